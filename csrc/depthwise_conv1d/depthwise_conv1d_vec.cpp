#include "depthwise_conv1d.h"

#include "../common/vec_math.h"

namespace dakd {
namespace DAKD_ISA {
namespace {

// d/da of a sigmoid(a), times the gradient of the result.
template <bool kSilu, typename V>
V gradient_of_a(const V& a, const V& dy) {
  if constexpr (!kSilu) return dy;
  const V s = sigmoid(a);
  return dy * (s + a * s * (1 - s));
}

// Up to kLanes channels of one sample, walked along time: the layout of a mixer's tokens, where channels are contiguous
// (kFull: that, and kLanes of them), and slowly any other.
template <typename Number, bool kSilu, bool kFull>
struct ChannelLanes {
  using V = Lanes<Number>;
  using Sequence = typename DepthwiseConv1d<Number>::Sequence;

  const DepthwiseConv1d<Number>& p;
  int64_t sample, channel, count;
  V taps[3] = {}, bias = {};

  ChannelLanes(const DepthwiseConv1d<Number>& p, int64_t sample, int64_t channel, int64_t count)
      : p(p), sample(sample), channel(channel), count(count) {
    for (int64_t c = 0; c < count; ++c) {
      for (int k = 0; k < 3; ++k) taps[k][c] = p.weight[(channel + c) * 3 + k];
      if (p.bias != nullptr) bias[c] = p.bias[channel + c];
    }
  }

  V at(const Sequence& from, int64_t step) const {
    if (step >= p.length) return V{};
    const Number* first = from.at(sample, channel) + step * from.step_stride;
    if constexpr (kFull) return load(first);
    return load(first, count, from.channel_stride);
  }
  void put(int64_t step, const V& lanes) const {
    Number* first = p.out.at(sample, channel) + step * p.out.step_stride;
    if constexpr (kFull) store(first, lanes);
    else store(first, lanes, count, p.out.channel_stride);
  }
  V convolve(const V& before, const V& centre, const V& after) const {
    return bias + taps[0] * before + taps[1] * centre + taps[2] * after;
  }

  void forward() const {
    V before = {}, centre = at(p.x, 0);
    for (int64_t step = 0; step < p.length; ++step) {
      const V after = at(p.x, step + 1);
      const V a = convolve(before, centre, after);
      if constexpr (kSilu) put(step, a * sigmoid(a));
      else put(step, a);
      before = centre, centre = after;
    }
  }

  void backward() const {
    V before = {}, centre = {}, after = at(p.x, 0), da_before = {}, da = {}, sums[4] = {};
    // da runs one step ahead of dx, and x one step ahead of da.
    for (int64_t step = -1; step < p.length; ++step) {
      before = centre, centre = after, after = at(p.x, step + 2);
      const V da_after = gradient_of_a<kSilu>(convolve(before, centre, after), at(p.dy, step + 1));
      sums[0] += da_after * before, sums[1] += da_after * centre, sums[2] += da_after * after, sums[3] += da_after;
      if (step >= 0) put(step, taps[2] * da_before + taps[1] * da + taps[0] * da_after);
      da_before = da, da = da_after;
    }
    for (int k = 0; k < 4; ++k) store(p.sums + (sample * 4 + k) * p.channels + channel, sums[k], count);
  }
};

// One channel of one sample, kLanes steps at a time: for sequences whose steps are contiguous. A block's neighbours are
// its own lanes moved by one, with one lane of the block before or after.
template <typename Number, bool kSilu>
struct StepLanes {
  using V = Lanes<Number>;
  using Real = typename DepthwiseConv1d<Number>::Real;

  const DepthwiseConv1d<Number>& p;
  const Number *x, *dy;
  Number* out;
  Real taps[3], bias;
  Real* sums;

  StepLanes(const DepthwiseConv1d<Number>& p, int64_t sample, int64_t channel)
      : p(p),
        x(p.x.at(sample, channel)),
        dy(p.dy.at(sample, channel)),
        out(p.out.at(sample, channel)),
        bias(p.bias == nullptr ? Real(0) : p.bias[channel]),
        sums(p.sums + sample * 4 * p.channels + channel) {
    for (int k = 0; k < 3; ++k) taps[k] = p.weight[3 * channel + k];
  }

  V at(const Number* row, int64_t step) const { return step < p.length ? load(row + step, p.length - step) : V{}; }
  V convolve(const V& before, const V& centre, const V& after) const {
    return bias + taps[0] * before + taps[1] * centre + taps[2] * after;
  }

  void forward() const {
    V last = {}, here = at(x, 0);
    for (int64_t step = 0; step < p.length; step += kLanes) {
      const V next = at(x, step + kLanes);
      const V a = convolve(one_before(last, here), here, one_after(here, next));
      if constexpr (kSilu) store(out + step, a * sigmoid(a), p.length - step);
      else store(out + step, a, p.length - step);
      last = here, here = next;
    }
  }

  void backward() const {
    V last = {}, here = {}, next = at(x, 0), da_last = {}, da = {}, totals[4] = {};
    // da runs one block ahead of dx, and x one block ahead of da.
    for (int64_t step = -kLanes; step < p.length; step += kLanes) {
      last = here, here = next, next = at(x, step + 2 * kLanes);
      const V before = one_before(last, here), after = one_after(here, next);
      // Zeros beyond the end, as dy is there.
      const V da_next = gradient_of_a<kSilu>(convolve(before, here, after), at(dy, step + kLanes));
      totals[0] += da_next * before, totals[1] += da_next * here, totals[2] += da_next * after, totals[3] += da_next;
      if (step >= 0) {
        const V dx = taps[2] * one_before(da_last, da) + taps[1] * da + taps[0] * one_after(da, da_next);
        store(out + step, dx, p.length - step);
      }
      da_last = da, da = da_next;
    }
    for (int k = 0; k < 4; ++k) sums[k * p.channels] = sum(totals[k]);
  }
};

// Calls work(lanes) for the items first <= item < last, with the lanes that the layout allows.
template <typename Number, bool kSilu, typename Work>
void for_items(const DepthwiseConv1d<Number>& p, int64_t first, int64_t last, const Work& work) {
  const int64_t blocks = (p.channels + kConvChannels - 1) / kConvChannels;
  const bool has_contiguous_steps = p.x.step_stride == 1 && p.dy.step_stride == 1 && p.out.step_stride == 1;
  const bool has_contiguous_channels =
      p.x.channel_stride == 1 && p.dy.channel_stride == 1 && p.out.channel_stride == 1;
  for (int64_t item = first; item < last; ++item) {
    const int64_t sample = item / blocks, start = item % blocks * kConvChannels;
    const int64_t end = start + kConvChannels < p.channels ? start + kConvChannels : p.channels;
    for (int64_t channel = start; channel < end; channel += has_contiguous_steps ? 1 : kLanes) {
      const int64_t count = end - channel < kLanes ? end - channel : kLanes;
      if (has_contiguous_steps) work(StepLanes<Number, kSilu>(p, sample, channel));
      else if (has_contiguous_channels && count == kLanes)
        work(ChannelLanes<Number, kSilu, true>(p, sample, channel, count));
      else work(ChannelLanes<Number, kSilu, false>(p, sample, channel, count));
    }
  }
}

template <typename Number, typename Work>
void for_items(const DepthwiseConv1d<Number>& p, int64_t first, int64_t last, const Work& work) {
  if (p.has_silu) for_items<Number, true>(p, first, last, work);
  else for_items<Number, false>(p, first, last, work);
}

}  // namespace

#define DAKD_DEFINE_CONV(Number)                                                                  \
  void depthwise_conv1d_forward(const DepthwiseConv1d<Number>& p, int64_t first, int64_t last) {  \
    for_items(p, first, last, [](const auto& lanes) { lanes.forward(); });                        \
  }                                                                                               \
  void depthwise_conv1d_backward(const DepthwiseConv1d<Number>& p, int64_t first, int64_t last) { \
    for_items(p, first, last, [](const auto& lanes) { lanes.backward(); });                       \
  }
DAKD_DEFINE_CONV(float)
DAKD_DEFINE_CONV(double)
DAKD_DEFINE_CONV(BFloat16)
DAKD_DEFINE_CONV(Float16)
#undef DAKD_DEFINE_CONV

}  // namespace DAKD_ISA
}  // namespace dakd

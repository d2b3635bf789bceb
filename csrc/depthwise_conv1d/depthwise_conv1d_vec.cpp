#include "depthwise_conv1d.h"

#include "../common/vec_math.h"

namespace dakd {
namespace DAKD_ISA {
namespace {

// Up to kLanes channels of one sample, walked along time: the layout of a mixer's tokens, where channels are contiguous
// (and any other, slowly).
template <typename Number, bool kSilu>
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
    if (step < 0 || step >= p.length) return V{};
    const int64_t offset = sample * from.batch_stride + channel * from.channel_stride + step * from.step_stride;
    return load(from.first + offset, count, from.channel_stride);
  }
  void put(int64_t step, const V& lanes) const {
    const int64_t offset = sample * p.out.batch_stride + channel * p.out.channel_stride + step * p.out.step_stride;
    store(p.out.first + offset, lanes, count, p.out.channel_stride);
  }

  void forward() const {
    V before = {}, centre = at(p.x, 0);
    for (int64_t step = 0; step < p.length; ++step) {
      const V after = at(p.x, step + 1);
      const V a = bias + taps[0] * before + taps[1] * centre + taps[2] * after;
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
      V da_after = at(p.dy, step + 1);
      if constexpr (kSilu) {
        const V a = bias + taps[0] * before + taps[1] * centre + taps[2] * after;
        const V s = sigmoid(a);
        da_after *= s + a * s * (1 - s);
      }
      sums[0] += da_after * before, sums[1] += da_after * centre, sums[2] += da_after * after, sums[3] += da_after;
      if (step >= 0) put(step, taps[2] * da_before + taps[1] * da + taps[0] * da_after);
      da_before = da, da = da_after;
    }
    for (int k = 0; k < 4; ++k) store(p.sums + (sample * 4 + k) * p.channels + channel, sums[k], count);
  }
};

// One channel of one sample, kLanes steps at a time: for sequences whose steps are contiguous.
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
        x(p.x.first + sample * p.x.batch_stride + channel * p.x.channel_stride),
        dy(p.dy.first + sample * p.dy.batch_stride + channel * p.dy.channel_stride),
        out(p.out.first + sample * p.out.batch_stride + channel * p.out.channel_stride),
        bias(p.bias == nullptr ? Real(0) : p.bias[channel]),
        sums(p.sums + sample * 4 * p.channels + channel) {
    for (int k = 0; k < 3; ++k) taps[k] = p.weight[3 * channel + k];
  }

  // Steps first .. first + kLanes - 1, zeros beyond both ends.
  V at(const Number* row, int64_t first) const {
    if (first >= 0 && first + kLanes <= p.length) return load(row + first);
    Number buffer[kLanes] = {};
    for (int64_t i = 0; i < kLanes; ++i)
      if (first + i >= 0 && first + i < p.length) buffer[i] = row[first + i];
    return load(buffer);
  }

  V convolve(int64_t first) const {
    return bias + taps[0] * at(x, first - 1) + taps[1] * at(x, first) + taps[2] * at(x, first + 1);
  }
  V gradient_of_a(int64_t first) const {
    const V upstream = at(dy, first);
    if constexpr (!kSilu) return upstream;
    const V a = convolve(first), s = sigmoid(a);
    return upstream * (s + a * s * (1 - s));
  }

  void forward() const {
    for (int64_t step = 0; step < p.length; step += kLanes) {
      const V a = convolve(step);
      if constexpr (kSilu) store(out + step, a * sigmoid(a), p.length - step);
      else store(out + step, a, p.length - step);
    }
  }

  void backward() const {
    V totals[4] = {};
    // Of the gradient of a, one block back, here and one block on: dx needs a step of each neighbour.
    V last = {}, here = gradient_of_a(0);
    for (int64_t step = 0; step < p.length; step += kLanes) {
      const V next = step + kLanes < p.length ? gradient_of_a(step + kLanes) : V{};
      Real line[3 * kLanes];
      store(line, last), store(line + kLanes, here), store(line + 2 * kLanes, next);
      totals[0] += here * at(x, step - 1), totals[1] += here * at(x, step), totals[2] += here * at(x, step + 1);
      totals[3] += here;
      const V dx = taps[2] * load(line + kLanes - 1) + taps[1] * here + taps[0] * load(line + kLanes + 1);
      store(out + step, dx, p.length - step);
      last = here, here = next;
    }
    for (int k = 0; k < 4; ++k) sums[k * p.channels] = sum(totals[k]);
  }
};

// Calls work(lanes) for the items first <= item < last, with the lanes that the layout allows.
template <typename Number, bool kSilu, typename Work>
void for_items(const DepthwiseConv1d<Number>& p, int64_t first, int64_t last, const Work& work) {
  const int64_t blocks = (p.channels + kConvChannels - 1) / kConvChannels;
  const bool has_contiguous_steps = p.x.step_stride == 1 && p.dy.step_stride == 1 && p.out.step_stride == 1;
  const int64_t width = has_contiguous_steps ? 1 : kLanes;
  for (int64_t item = first; item < last; ++item) {
    const int64_t sample = item / blocks, start = item % blocks * kConvChannels;
    const int64_t end = start + kConvChannels < p.channels ? start + kConvChannels : p.channels;
    for (int64_t channel = start; channel < end; channel += width) {
      if (has_contiguous_steps) work(StepLanes<Number, kSilu>(p, sample, channel));
      else work(ChannelLanes<Number, kSilu>(p, sample, channel, end - channel < width ? end - channel : width));
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

#include "ddim_step.h"

#include "../common/streaming.h"
#include "../common/vec_math.h"
#include "../common/vec_noise.h"

namespace dakd {
namespace DAKD_ISA {
namespace {

// As torch.clamp: a NaN stays.
DAKD_INLINE Floats clamp(const Floats& x, float limit) {
  const Floats above = x < -limit ? Floats{} - limit : x;
  return above > limit ? Floats{} + limit : above;
}
// e^x of a softmax, for x <= 0. Rounding x log2 e costs the small powers some of their digits, and the label none.
DAKD_INLINE Floats power(const Floats& x) { return exp2_of_negative(x * 1.44269502f); }
DAKD_INLINE Floats larger(const Floats& x, const Floats& y) { return x > y ? x : y; }

// One channel of a chunk: numbers, `stride` apart.
template <typename Number>
struct Row {
  Number* first;
  int64_t stride;

  // kWhole: the stride is 1 and a whole register's worth is there.
  template <bool kWhole>
  DAKD_INLINE Floats at(int64_t i, int64_t count) const {
    if constexpr (kWhole) return load(first + i);
    return stride == 1 ? load(first + i, count) : load(first + i * stride, count, stride);
  }
  void put(int64_t i, int64_t count, const Floats& lanes) const {
    if (stride == 1) store(first + i, lanes, count);
    else store(first + i * stride, lanes, count, stride);
  }
};

// state' = keep state + take clean + take_before clean_before (+ sigma z). Loops hold it by value: what they store might
// alias the original.
struct Coefficients {
  float keep, take, take_before, sigma;
};

// The update of one channel of a chunk from its clean estimates, which come multiplied and added up.
template <typename Input>
struct Update {
  Row<const float> state;
  const float* noise;  // null without
  Row<float> next;
  Row<Input> input;  // first is null where none is wanted

  template <bool kWhole>
  DAKD_INLINE Floats advance(Coefficients c, int64_t i, int64_t count, const Floats& taken) const {
    const Floats advanced = multiply_add(c.keep, state.template at<kWhole>(i, count), taken);
    if (noise == nullptr) return advanced;
    return multiply_add(c.sigma, Row<const float>{noise, 1}.at<kWhole>(i, count), advanced);
  }
  void put(int64_t i, int64_t count, const Floats& advanced) const {
    next.put(i, count, advanced);
    if (input.first != nullptr) input.put(i, count, advanced);
  }
  // Two registers' worth; the strides are 1.
  DAKD_INLINE void put_both(int64_t i, const Floats& first, const Floats& second, bool streams) const {
    if (streams) {
      stream(next.first + i, first, second);
      if (input.first != nullptr) stream(input.first + i, first, second);
    } else {
      store(next.first + i, first), store(next.first + i + kLanes, second);
      if (input.first != nullptr) store(input.first + i, first), store(input.first + i + kLanes, second);
    }
  }
  bool is_contiguous() const {
    return state.stride == 1 && next.stride == 1 && (input.first == nullptr || input.stride == 1);
  }
  bool can_stream() const { return is_aligned(next.first) && is_aligned(input.first); }
};

template <typename Prediction, typename Input>
struct Step {
  const DdimStep<Prediction, Input>& p;
  const Chunk chunk;
  float* const scratch;

  template <typename Number>
  Row<Number> row(const Maps<Number>& maps, int64_t channel) const {
    if (maps.first == nullptr) return {nullptr, 1};
    return {chunk.of(maps) + channel * maps.channel_stride, maps.pixel_stride};
  }

  // Noise, where it is wanted, is drawn into `buffer`.
  Update<Input> update(const Maps<const float>& state, const Maps<float>& next, const Maps<Input>& input,
                       int64_t channel, Stream stream, float* buffer) const {
    const float* noise = nullptr;
    if (p.noise_ids != nullptr) {
      const NoiseKey key = noise_key(p.seed, p.step, p.noise_ids[chunk.sample * p.noise_ids_stride], stream);
      noise = fill_elements(key, channel * p.num_pixels + chunk.element, chunk.length, buffer);
    }
    return {row(state, channel), noise, row(next, channel), row(input, channel)};
  }

  Coefficients coefficients() const { return {p.keep, p.take, p.take_before, p.sigma}; }

  // The image's clean estimates, multiplied.
  struct TakenImage {
    Row<const Prediction> x0, before;  // first of before is null without
    Coefficients c;
    float clip;

    template <bool kWhole>
    DAKD_INLINE Floats at(int64_t i, int64_t count) const {
      const Floats taken = c.take * clamp(x0.template at<kWhole>(i, count), clip);
      if (before.first == nullptr) return taken;
      return multiply_add(c.take_before, clamp(before.template at<kWhole>(i, count), clip), taken);
    }
    bool is_contiguous() const { return x0.stride == 1 && (before.first == nullptr || before.stride == 1); }
  };

  void image() const {
    const auto update = this->update(p.x, p.x_next, p.x_input, 0, kDdimImage, scratch);
    const Coefficients c = coefficients();
    const TakenImage taken = {row(p.x0, 0), row(p.x0_before, 0), c, p.clip};
    const bool streams = p.streams && update.can_stream();
    int64_t i = 0;
    if (update.is_contiguous() && taken.is_contiguous())
      for (; i + 2 * kLanes <= chunk.length; i += 2 * kLanes) {
        Floats out[2];
        for (int half = 0; half < 2; ++half) {
          const int64_t at = i + half * kLanes;
          out[half] = update.template advance<true>(c, at, kLanes, taken.template at<true>(at, kLanes));
        }
        update.put_both(i, out[0], out[1], streams);
      }
    for (; i < chunk.length; i += kLanes) {
      const int64_t count = chunk.length - i;
      update.put(i, count, update.template advance<false>(c, i, count, taken.template at<false>(i, count)));
    }
  }

  // y_0 = b (2 softmax(logits) - 1), and the update, in registers; pixels are contiguous.
  template <int kClasses, bool kHasBefore>
  struct FusedLabel {
    Update<Input> updates[kClasses];
    Row<const Prediction> logits[kClasses], logits_before[kClasses];
    Coefficients c;
    float b;

    template <bool kWhole>
    DAKD_INLINE void advance(int64_t i, int64_t count, Floats (&out)[kClasses]) const {
      Floats taken[kClasses];
      take<kWhole, false>(logits, c.take, i, count, taken);
      if constexpr (kHasBefore) take<kWhole, true>(logits_before, c.take_before, i, count, taken);
      for (int k = 0; k < kClasses; ++k) out[k] = updates[k].template advance<kWhole>(c, i, count, taken[k]);
    }

    // taken = factor y_0, or adds it.
    template <bool kWhole, bool kAdds>
    DAKD_INLINE void take(const Row<const Prediction> (&rows)[kClasses], float factor, int64_t i, int64_t count,
                          Floats (&taken)[kClasses]) const {
      Floats e[kClasses];
      for (int k = 0; k < kClasses; ++k) e[k] = rows[k].template at<kWhole>(i, count);
      Floats largest = e[0];
      for (int k = 1; k < kClasses; ++k) largest = larger(e[k], largest);
      Floats total = {};
      for (int k = 0; k < kClasses; ++k) total += e[k] = power(e[k] - largest);
      const Floats inverse = 1 / total;
      // matches the range that the label was noised in (paper, Eq. 21)
      for (int k = 0; k < kClasses; ++k) {
        const Floats clean = multiply_add(2 * b, e[k] * inverse, Floats{} - b);
        taken[k] = kAdds ? multiply_add(factor, clean, taken[k]) : factor * clean;
      }
    }
  };

  template <int kClasses, bool kHasBefore>
  void label_fused() const {
    FusedLabel<kClasses, kHasBefore> label;
    label.c = coefficients(), label.b = p.b;
    bool streams = p.streams;
    for (int k = 0; k < kClasses; ++k) {
      label.updates[k] = update(p.y, p.y_next, p.y_input, k, kDdimLabel, scratch + k * (Runs::kChunk + 8));
      label.logits[k] = row(p.logits, k);
      label.logits_before[k] = row(p.logits_before, k);
      streams = streams && label.updates[k].can_stream();
    }
    int64_t i = 0;
    for (; i + 2 * kLanes <= chunk.length; i += 2 * kLanes) {
      Floats first[kClasses], second[kClasses];
      label.template advance<true>(i, kLanes, first);
      label.template advance<true>(i + kLanes, kLanes, second);
      for (int k = 0; k < kClasses; ++k) label.updates[k].put_both(i, first[k], second[k], streams);
    }
    for (; i < chunk.length; i += kLanes) {
      Floats out[kClasses];
      label.template advance<false>(i, chunk.length - i, out);
      for (int k = 0; k < kClasses; ++k) label.updates[k].put(i, chunk.length - i, out[k]);
    }
  }

  // Any number of classes, any layout, both kinds of update: the clean estimates wait in memory, a row for each class.
  void label_any() const {
    const int64_t length = chunk.length;
    const Coefficients c = coefficients();
    float* clean = scratch + Runs::kChunk + 8;
    clean_estimates(p.logits, clean);
    scale(clean, c.take);
    if (p.logits_before.first != nullptr) {
      float* before = clean + p.num_classes * (Runs::kChunk + 8);
      clean_estimates(p.logits_before, before);
      scale(clean, 1, before, c.take_before);
    }
    for (int64_t k = 0; k < p.num_classes; ++k) {
      const auto update = this->update(p.y, p.y_next, p.y_input, k, kDdimLabel, scratch);
      for (int64_t i = 0; i < length; i += kLanes)
        update.put(i, length - i, update.template advance<false>(c, i, length - i, load(clean + k * Runs::kChunk + i)));
    }
  }

  // The estimates of all classes, a row of kChunk for each.
  void clean_estimates(const Maps<const Prediction>& logits, float* clean) const {
    if (p.is_softmax) return softmax(logits, clean);
    for (int64_t k = 0; k < p.num_classes; ++k)
      for (int64_t i = 0; i < chunk.length; i += kLanes)
        store(clean + k * Runs::kChunk + i, clamp(row(logits, k).template at<false>(i, chunk.length - i), p.b));
  }

  // clean = factor clean (+ other_factor other), over all rows.
  void scale(float* clean, float factor, const float* other = nullptr, float other_factor = 0) const {
    for (int64_t k = 0; k < p.num_classes; ++k)
      for (int64_t i = k * Runs::kChunk; i < k * Runs::kChunk + chunk.length; i += kLanes) {
        const Floats scaled = factor * load(clean + i);
        store(clean + i, other == nullptr ? scaled : multiply_add(other_factor, load(other + i), scaled));
      }
  }

  void softmax(const Maps<const Prediction>& maps, float* clean) const {
    const float twice_b = 2 * p.b;
    for (int64_t i = 0; i < chunk.length; i += kLanes) {
      const int64_t count = chunk.length - i;
      const auto logits = [&](int64_t k) { return row(maps, k).template at<false>(i, count); };
      Floats largest = logits(0), total = {};
      for (int64_t k = 1; k < p.num_classes; ++k) largest = larger(logits(k), largest);
      for (int64_t k = 0; k < p.num_classes; ++k) {
        const Floats e = power(logits(k) - largest);
        store(clean + k * Runs::kChunk + i, e);
        total += e;
      }
      const Floats inverse = 1 / total;
      for (int64_t k = 0; k < p.num_classes; ++k) {
        float* at = clean + k * Runs::kChunk + i;
        store(at, multiply_add(twice_b, load(at) * inverse, Floats{} - p.b));
      }
    }
  }

  template <int kClasses = 2>
  void label() const {
    if constexpr (kClasses > kMaxFused) return label_any();
    else if (p.num_classes == kClasses && is_fused(p)) {
      if (p.logits_before.first == nullptr) label_fused<kClasses, false>();
      else label_fused<kClasses, true>();
    }
    else label<kClasses + 1>();
  }
};

template <typename Prediction, typename Input>
void run_items(const DdimStep<Prediction, Input>& p, int64_t first, int64_t last, float* scratch) {
  for (int64_t item = first; item < last; ++item) {
    const Step<Prediction, Input> step = {p, Chunk(p.runs, item), scratch};
    step.image();
    step.label();
  }
  finish_streaming();
}

}  // namespace

#define DAKD_DEFINE_DDIM(Prediction, Input)                                                                   \
  void ddim_step_forward(const DdimStep<Prediction, Input>& p, int64_t first, int64_t last, float* scratch) { \
    run_items(p, first, last, scratch);                                                                       \
  }
#define DAKD_DEFINE_DDIM_INPUTS(Prediction) \
  DAKD_DEFINE_DDIM(Prediction, float)       \
  DAKD_DEFINE_DDIM(Prediction, BFloat16)    \
  DAKD_DEFINE_DDIM(Prediction, Float16)
DAKD_DEFINE_DDIM_INPUTS(float)
DAKD_DEFINE_DDIM_INPUTS(BFloat16)
DAKD_DEFINE_DDIM_INPUTS(Float16)
#undef DAKD_DEFINE_DDIM_INPUTS
#undef DAKD_DEFINE_DDIM

}  // namespace DAKD_ISA
}  // namespace dakd

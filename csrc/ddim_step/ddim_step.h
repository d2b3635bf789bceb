// One step of the sampler for image and label: the meaning stands in dakd/kernels/ddim_step/reference.py.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/maps.h"
#include "../common/numbers.h"

namespace dakd {

// Up to so many classes, a pixel's whole label stays in registers from its logits to the new state.
constexpr int kMaxFused = 5;

// Length of a chunk where that is so for all its pixels: the reads of one long row after another come sooner.
constexpr int64_t kFusedChunk = 2048;

// Prediction: the number format of the networks' outputs.  Input: of their next inputs; float where none are wanted.
template <typename Prediction, typename Input>
struct DdimStep {
  Maps<const float> x, y;
  Maps<const Prediction> x0, logits;
  Maps<const Prediction> x0_before, logits_before;  // first is null where the step has none
  Maps<float> x_next, y_next;
  Maps<Input> x_input, y_input;  // first is null where none are wanted
  Runs runs;
  int64_t num_classes;
  float keep, take, take_before, sigma, b, clip;
  bool is_softmax;
  bool streams;  // whether the results are too large for a cache
  const int64_t* noise_ids;  // null without noise
  int64_t noise_ids_stride, num_pixels, seed, step;
};

namespace {  // see numbers.h

template <typename Prediction, typename Input>
inline bool is_fused(const DdimStep<Prediction, Input>& p) {
  const auto is_dense = [](const auto& maps) { return maps.first == nullptr || maps.pixel_stride == 1; };
  return p.num_classes >= 2 && p.num_classes <= kMaxFused && p.is_softmax && is_dense(p.logits) &&
         is_dense(p.logits_before) && is_dense(p.y) && is_dense(p.y_next) && is_dense(p.y_input);
}

}  // namespace

// Bytes of new state from which on streaming pays; less may still be in a cache when the networks read it.
constexpr int64_t kStreamingBytes = int64_t{16} << 20;

// Floats of scratch memory that ddim_step_forward needs: noise of a chunk, and its clean estimates of two steps.
inline int64_t ddim_step_scratch(int64_t num_classes) { return (2 * num_classes + 1) * (Runs::kChunk + 8); }

// Does the items first <= item < last.
#define DAKD_DECLARE_DDIM(Prediction, Input) \
  DAKD_DECLARE(void ddim_step_forward(const DdimStep<Prediction, Input>&, int64_t first, int64_t last, float* scratch))
#define DAKD_DECLARE_DDIM_INPUTS(Prediction) \
  DAKD_DECLARE_DDIM(Prediction, float)       \
  DAKD_DECLARE_DDIM(Prediction, BFloat16)    \
  DAKD_DECLARE_DDIM(Prediction, Float16)
DAKD_DECLARE_DDIM_INPUTS(float)
DAKD_DECLARE_DDIM_INPUTS(BFloat16)
DAKD_DECLARE_DDIM_INPUTS(Float16)
#undef DAKD_DECLARE_DDIM_INPUTS
#undef DAKD_DECLARE_DDIM

}  // namespace dakd

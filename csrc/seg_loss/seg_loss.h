// The student's losses and their gradient: the meaning stands in dakd/kernels/seg_loss/reference.py.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/numbers.h"

namespace dakd {

enum class Format { fp32, fp64, bf16, fp16, uint8, int64 };

// A tensor (B, K, H, W), or (B, H, W) with one class, in any layout; strides count elements.
struct Planes {
  void* first;
  Format format;
  int64_t sample_stride, class_stride, row_stride, pixel_stride;
};

// Real: the type to compute in.
template <typename Real>
struct SegLoss {
  Planes logits, labels;
  Planes teacher;              // first is null without one
  Planes dlogits;              // of the backward pass
  const int64_t* teacher_row;  // (B), or null: all samples are real
  const Real* class_weights;   // (K), or null: all are 1
  Real teacher_scale, inverse_temperature;
  int64_t ignore_index;
  bool has_dice, has_soft_dice;
  int64_t batch, num_classes, height, width;
  // Forward: sums over each item's pixels, (items, 2 + 3 K), and its labels of no class, (items).
  Real* partials;
  int64_t* num_invalid;
  // Backward: by sample, dce / sum w and dkd / (H W temperature), (B); Dice's offset and slope times ddice, (B, K).
  const Real *ce_scale, *kd_scale, *offset, *slope;
};

// Work is cut into (sample, block of pixels) items.
constexpr int64_t kLossPixels = 2048;

template <typename Real>
int64_t items_a_sample(const SegLoss<Real>& p) {
  return (p.height * p.width + kLossPixels - 1) / kLossPixels;
}

// Both do the items first <= item < last. scratch: `seg_loss_scratch` bytes for each thread, aligned to 128.
#define DAKD_DECLARE_SEG_LOSS(Real)                                                                              \
  DAKD_DECLARE(void seg_loss_forward(const SegLoss<Real>&, int64_t first, int64_t last, unsigned char* scratch)) \
  DAKD_DECLARE(void seg_loss_backward(const SegLoss<Real>&, int64_t first, int64_t last, unsigned char* scratch))
DAKD_DECLARE_SEG_LOSS(float)
DAKD_DECLARE_SEG_LOSS(double)
#undef DAKD_DECLARE_SEG_LOSS
DAKD_DECLARE(int64_t seg_loss_scratch(int64_t num_classes, int64_t real_bytes))

}  // namespace dakd

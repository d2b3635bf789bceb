// From a sample's sums to its losses and coefficients. Formulas: dakd/kernels/seg_loss/reference.py.
#pragma once

#include "../common/host_device.h"

namespace dakd {
namespace {

// Numbers that are summed over a sample's pixels: the main sum (w nll, or the distillation's cross entropy), the sum of
// w, and by class I = r p, P = p and R = r.
DAKD_HD constexpr int num_loss_sums(int num_classes) { return 2 + 3 * num_classes; }

// A sample's Dice loss, and offset and slope of its gradient by class. overlap: the sums I by class, then P, then R.
template <typename Real>
DAKD_HD Real dice_loss(int num_classes, const Real* overlap, Real smooth, bool is_generalized, Real* offset,
                       Real* slope) {
  const Real *predicted = overlap + num_classes, *actual = predicted + num_classes;
  if (!is_generalized) {
    Real loss = 0;
    for (int c = 0; c < num_classes; ++c) {
      const Real united = predicted[c] + actual[c] + smooth, shared = 2 * overlap[c] + smooth;
      const bool is_compared = united > 0;
      loss += is_compared ? 1 - shared / united : 0;
      offset[c] = is_compared ? shared / (num_classes * united * united) : 0;
      slope[c] = is_compared ? -2 / (num_classes * united) : 0;
    }
    return loss / num_classes;
  }
  Real numerator = 0, denominator = 0;
  for (int c = 0; c < num_classes; ++c) {
    // A class of less than one pixel has no weight: 1 / R^2 would drown all others.
    const Real weight = actual[c] >= 1 ? 1 / (actual[c] * actual[c]) : 0;
    numerator += weight * overlap[c];
    denominator += weight * (predicted[c] + actual[c]);
    slope[c] = weight;
  }
  const bool is_compared = denominator > 0;
  for (int c = 0; c < num_classes; ++c) {
    const Real weight = slope[c];
    offset[c] = is_compared ? 2 * weight * numerator / (denominator * denominator) : 0;
    slope[c] = is_compared ? -2 * weight / denominator : 0;
  }
  return is_compared ? 1 - 2 * numerator / denominator : 0;
}

}  // namespace
}  // namespace dakd

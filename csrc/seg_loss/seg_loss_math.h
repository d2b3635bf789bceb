// The arithmetic of one pixel, written once for the CPU and the GPU: V is as many numbers as there are lanes, or one.
//
// s: a pixel's logits by class; z: its teacher's. Formulas: dakd/kernels/seg_loss/reference.py.
// Functions are in an anonymous namespace (see common/numbers.h).
#pragma once

#include <type_traits>

#include "../common/host_device.h"
#if !defined(__CUDACC__)
#include "../common/vec_math.h"
#endif

namespace dakd {
namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// 2^x of x <= 0, where less than 2^-120 may be anything from there to 0; and log x of x >= 1.
#if defined(__CUDACC__)
DAKD_HD float exp2_below(float x) {
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return ::exp2f(x);
#endif
}
DAKD_HD float log_above(float x) { return ::logf(x); }
template <typename V>
using RealOf = std::type_identity_t<V>;
#else
template <typename V>
using RealOf = std::remove_cvref_t<decltype(V{}[0])>;
template <typename V>
DAKD_HD V exp2_below(const V& x) {
  return exp2_of_negative(x);
}

// x = 2^e m with sqrt(1/2) <= m < sqrt(2), and a polynomial with Cephes' coefficients for log m.
DAKD_HD Floats log_above(const Floats& x) {
  const Ints bits = copy_bits<Ints>(x), exponent = (bits - 0x3F3504F3) >> 23;
  const Floats e = __builtin_convertvector(exponent, Floats);
  const Floats f = copy_bits<Floats>(bits - (exponent << 23)) - 1.0f, square = f * f;
  // In pairs, for a short chain of dependent steps.
  const Floats high = (f * 7.0376836292e-2f - 1.1514610310e-1f) * square + (f * 1.1676998740e-1f - 1.2420140846e-1f);
  const Floats low = (f * 1.4249322787e-1f - 1.6668057665e-1f) * square + (f * 2.0000714765e-1f - 2.4999993993e-1f);
  const Floats cubic = (high * (square * square) + low) * f + 3.3333331174e-1f;
  const Floats log_m = f + ((cubic * f * square - e * 2.12194440e-4f) - 0.5f * square);
  return x == x ? log_m + e * 0.693359375f : x;
}
DAKD_HD Doubles log_above(Doubles x) {
  for (int i = 0; i < kLanes; ++i) x[i] = ::log(x[i]);
  return x;
}
#endif

// A number of classes: known to the compiler, so that loops unroll and arrays become registers, or not.
template <int N>
struct Fixed {
  static constexpr int value = N;
  DAKD_HD constexpr operator int() const { return N; }
};
struct Any {
  int number;
  DAKD_HD operator int() const { return number; }
};

// The sums over a sample's pixels (see dice_loss.h), by class where they are arrays.
template <typename V>
struct Sums {
  V &main, &weight;
  V *overlap, *predicted, *actual;
};

// q / sum q = softmax(scale s), x = log2(e) scale (s - max s) and q = 2^x; returns sum q, which is at least 1.
template <typename Count, typename V>
DAKD_HD V powers(Count count, const V* s, RealOf<V> scale, V* q, V* x) {
  V top = s[0];
  DAKD_UNROLL
  for (int c = 1; c < count; ++c) top = s[c] > top ? s[c] : top;
  V total = V{};
  scale *= static_cast<RealOf<V>>(kLog2E);
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) {
    x[c] = (s[c] - top) * scale;
    q[c] = exp2_below(x[c]);
    total += q[c];
  }
  return total;
}

// The weight of a pixel with this label: 0 without one. class_weights: null stands for ones.
template <typename Count, typename V, typename Label, typename Real>
DAKD_HD V pixel_weight(Count count, Label label, const Real* class_weights, V zero) {
  V weight = label >= 0 ? zero + 1 : zero;
  if (class_weights == nullptr) return weight;
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) weight = label == c ? zero + class_weights[c] : weight;
  return weight;
}

// A real pixel's share of R. label: its class, or -1 for none.
template <typename Count, typename V, typename Label>
DAKD_HD void count_label(Count count, Label label, V* actual) {
  const V zero = V{}, one = zero + 1;
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) actual[c] += label == c ? one : zero;
}

// A real pixel's share of I and P; returns the `total` of its powers, and x at the label in `picked`, for add_nll. They
// are two, so that lanes need not wait for one logarithm after another. q, x: room for a number each class.
template <typename Count, typename V, typename Label>
DAKD_HD V add_labelled(Count count, const V* s, Label label, bool has_dice, V* q, V* x, const Sums<V>& sums,
                       V& picked) {
  const V total = powers(count, s, 1, q, x), zero = V{};
  picked = zero;
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) picked = label == c ? x[c] : picked;
  if (!has_dice) return total;
  const V inverse = label >= 0 ? 1 / total : zero;
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) {
    sums.predicted[c] += q[c] * inverse;
    sums.overlap[c] += label == c ? q[c] * inverse : zero;
  }
  return total;
}
template <typename Count, typename V, typename Label, typename Real>
DAKD_HD void add_nll(Count count, V total, V picked, Label label, const Real* class_weights, const Sums<V>& sums) {
  const V zero = V{}, weight = pixel_weight(count, label, class_weights, zero);
  sums.main += weight > 0 ? weight * (log_above(total) - picked * static_cast<Real>(kLn2)) : zero;
  sums.weight += weight;
}

// A synthetic pixel's share of I, P, R; returns the `total` of its powers, and the teacher's mean of x in `mean`, for
// add_cross_entropy. A pixel that is not `inside` counts nothing. t, y: as q and x.
template <typename Count, typename V, typename Label, typename Real>
DAKD_HD V add_distilled(Count count, const V* s, const V* z, Label inside, Real inverse_temperature, bool has_dice,
                        V* q, V* x, V* t, V* y, const Sums<V>& sums, V& mean) {
  const V zero = V{}, total = powers(count, s, inverse_temperature, q, x);
  const V teacher_total = powers(count, z, inverse_temperature, t, y);
  mean = zero;
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) mean += t[c] * x[c];
  mean /= teacher_total;
  if (!has_dice) return total;
  const V inverse = inside != 0 ? 1 / powers(count, s, 1, q, x) : zero;
  const V teacher_inverse = inside != 0 ? 1 / powers(count, z, 1, t, y) : zero;
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) {
    const V r = t[c] * teacher_inverse;
    sums.predicted[c] += q[c] * inverse;
    sums.overlap[c] += q[c] * inverse * r;
    sums.actual[c] += r;
  }
  return total;
}
template <typename V, typename Label>
DAKD_HD void add_cross_entropy(V total, V mean, Label inside, const Sums<V>& sums) {
  sums.main += inside != 0 ? log_above(total) - mean * static_cast<RealOf<V>>(kLn2) : V{};
}

// ds of a real pixel. scale: dce / sum w; offset, slope: Dice's, times ddice.
template <typename Count, typename V, typename Label, typename Real>
DAKD_HD void labelled_gradient(Count count, const V* s, Label label, const Real* class_weights, Real scale,
                               const Real* offset, const Real* slope, bool has_dice, V* q, V* x, V* ds) {
  const V total = powers(count, s, 1, q, x);
  const V zero = V{}, weight = pixel_weight(count, label, class_weights, zero) * scale;
  // Without a label all that follows is 0.
  const V inverse = label >= 0 ? 1 / total : zero;
  if (!has_dice) {
    const V factor = weight * inverse;
    DAKD_UNROLL
    for (int c = 0; c < count; ++c) ds[c] = q[c] * factor - (label == c ? weight : zero);
    return;
  }
  V mean = zero;
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) {
    x[c] = label == c ? zero + (offset[c] + slope[c]) : zero + offset[c];
    mean += q[c] * x[c];
  }
  const V rest = (weight - mean * inverse) * inverse;
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) ds[c] = q[c] * (x[c] * inverse + rest) - (label == c ? weight : zero);
}

// ds of a synthetic pixel. scale: dkd / (H W temperature).
template <typename Count, typename V, typename Real>
DAKD_HD void distilled_gradient(Count count, const V* s, const V* z, Real inverse_temperature, Real scale,
                                const Real* offset, const Real* slope, bool has_dice, V* q, V* x, V* t, V* y, V* ds) {
  V inverse = scale / powers(count, s, inverse_temperature, q, x);
  V teacher_inverse = scale / powers(count, z, inverse_temperature, t, y);
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) ds[c] = q[c] * inverse - t[c] * teacher_inverse;
  if (!has_dice) return;
  inverse = 1 / powers(count, s, 1, q, x);
  teacher_inverse = 1 / powers(count, z, 1, t, y);
  V mean = V{};
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) {
    q[c] *= inverse;
    t[c] = offset[c] + slope[c] * (t[c] * teacher_inverse);
    mean += q[c] * t[c];
  }
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) ds[c] += q[c] * (t[c] - mean);
}

}  // namespace
}  // namespace dakd

// Elementary functions over lanes. Float: errors of a few units in the last place, tested in
// tests/kernels/test_extension.py. Double: libm's, lane by lane.
// Everything is in an anonymous namespace (see numbers.h).
#pragma once

#include <cmath>

#include "lanes.h"

namespace dakd {
namespace {

// e^x as 2^n e^r with |r| <= ln 2 / 2 and a polynomial of degree 7 (Cephes' coefficients); 0 below -87.3, infinity above
// 88.7, NaN for NaN.
inline Floats exp(Floats x) {
  const Floats above = x < -87.33654f ? Floats{} - 87.33654f : x;
  const Floats clamped = above > 88.72283f ? Floats{} + 88.72283f : above;
  // Adding and taking away 1.5 2^23 rounds to the nearest integer.
  const Floats n = (clamped * 1.44269504f + 12582912.0f) - 12582912.0f;
  const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // In two factors: 2^128 is no float.
  const Ints whole = __builtin_convertvector(n, Ints);
  const Ints half = whole >> 1;
  const Floats scaled = p * copy_bits<Floats>((half + 127) << 23) * copy_bits<Floats>((whole - half + 127) << 23);
  const Floats low = x < -87.33654f ? Floats{} : scaled;
  const Floats high = x > 88.72283f ? Floats{} + INFINITY : low;
  return x == x ? high : x;
}

inline Doubles exp(Doubles x) {
  for (int i = 0; i < kLanes; ++i) x[i] = ::exp(x[i]);
  return x;
}

// 2^r for |r| <= 1/2 by a minimax polynomial of degree 6 (relative error 3e-9).
DAKD_INLINE Floats power_of_2(Floats r) {
  Floats p = r * 1.5594678e-4f + 1.3406643e-3f;
  p = p * r + 9.617693e-3f;
  p = p * r + 5.5503104e-2f;
  p = p * r + 2.4022652e-1f;
  p = p * r + 6.9314724e-1f;
  p = p * r + 1.0f;
  return p;
}

// 2^x as 2^n 2^r. With kBounded, x must lie within [-120, 120]; else 0 below -125.5, infinity from 128 on, NaN for NaN.
template <bool kBounded = false>
inline Floats exp2(Floats x) {
  Floats clamped = x;
  if constexpr (!kBounded) {
    clamped = clamped < -125.5f ? Floats{} - 125.5f : clamped;
    clamped = clamped > 127.9999f ? Floats{} + 127.9999f : clamped;
  }
  // Rounds to the nearest integer, as in exp; n stands in the last bits of `shifted`.
  const Floats shifted = clamped + 12582912.0f;
  const Floats r = clamped - (shifted - 12582912.0f);
  // Adds n to the exponent.
  const Floats scaled = copy_bits<Floats>(copy_bits<Ints>(power_of_2(r)) + (copy_bits<Ints>(shifted) << 23));
  if constexpr (kBounded) return scaled;
  const Floats low = x < -125.5f ? Floats{} : scaled;
  const Floats high = x >= 128.0f ? Floats{} + INFINITY : low;
  return x == x ? high : x;
}

template <bool kBounded = false>
inline Doubles exp2(Doubles x) {
  for (int i = 0; i < kLanes; ++i) x[i] = ::exp2(x[i]);
  return x;
}

// 2^x of a softmax: for x <= 0, relative error 1.6e-7; below -125 it may be anything from 2^-125 to 0, NaN for NaN.
DAKD_INLINE Floats exp2_of_negative(const Floats& x) {
#if defined(__AVX512DQ__)
  // x less its floor, and 2^floor times the polynomial: an instruction each, which know infinity too.
  const Floats r = _mm512_reduce_ps(x, 0x09);
  Floats p = r * 1.86713004e-3f + 9.01703039e-3f;
  p = p * r + 5.57999131e-2f;
  p = p * r + 2.4016445e-1f;
  p = p * r + 6.93151312e-1f;
  p = p * r + 1.0f;
  return _mm512_scalef_ps(p, x);
#else
  const Floats clamped = x < -125.0f ? Floats{} - 125.0f : x;
  const Floats shifted = clamped + 12582912.0f;
  const Floats r = clamped - (shifted - 12582912.0f);
  Floats p = r * 1.32647271e-3f + 9.67151263e-3f;
  p = p * r + 5.55073374e-2f;
  p = p * r + 2.40222421e-1f;
  p = p * r + 6.93146978e-1f;
  p = p * r + 1.0f;
  return copy_bits<Floats>(copy_bits<Ints>(p) + (copy_bits<Ints>(shifted) << 23));
#endif
}

// e^x for x <= 0: exp2's polynomial on the fraction of x log2 e, taken in two parts; 0 below -87, NaN for NaN.
DAKD_INLINE Floats exp_of_negative(Floats x) {
  const Floats clamped = x < -87.0f ? Floats{} - 87.0f : x;
  const Floats shifted = clamped * 1.44269502f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
#if defined(__FMA__)
  const Floats r = clamped * 1.92596303e-8f + (clamped * 1.44269502f - n);
#else
  // Without fused products the difference above would lose 5 digits; here n times the first constant is exact.
  const Floats r = ((clamped - n * 0.693359375f) + n * 2.12194440e-4f) * 1.44269502f;
#endif
  const Floats scaled = copy_bits<Floats>(copy_bits<Ints>(power_of_2(r)) + (copy_bits<Ints>(shifted) << 23));
  return x < -87.0f ? Floats{} : scaled;
}
inline Doubles exp_of_negative(Doubles x) { return exp(x); }

// log(1 + x) for 0 <= x <= 1, as 2 artanh(x / (2 + x)) by a minimax polynomial (relative error 5e-9).
inline Floats log1p_of_unit(Floats x) {
  const Floats s = x / (2 + x), square = s * s;
  Floats p = square * 0.14009386f + 0.14000268f;
  p = p * square + 0.20010799f;
  p = p * square + 0.33333206f;
  const Floats twice = s + s;
  return twice + twice * (square * p);
}
inline Doubles log1p_of_unit(Doubles x) {
  for (int i = 0; i < kLanes; ++i) x[i] = ::log1p(x[i]);
  return x;
}

// log(1 + e^x), and x above 20, as torch has it (in float both are the same).
template <typename V>
inline V softplus(V x) {
  const V folded = (x > 0 ? x : V{}) + log1p_of_unit(exp_of_negative(x > 0 ? -x : x));
  return sizeof(x[0]) == sizeof(float) ? folded : x > 20 ? x : folded;
}

template <typename V>
inline V sigmoid(V x) {
  return 1 / (1 + exp(-x));
}

}  // namespace
}  // namespace dakd

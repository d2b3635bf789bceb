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

#if defined(__AVX512DQ__)
// 2^(j/32).
alignas(64) constexpr float kPowersOf2[32] = {
    1.0f, 1.0218972f, 1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f, 1.13878858f, 1.1637249f,
    1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f, 1.35425556f, 1.38390994f,
    1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.5759809f, 1.61049032f, 1.64575553f,
    1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.8340081f, 1.87416768f, 1.91520655f, 1.95714414f};

// 2^x for x in [-120, 120] as 2^(n/32) 2^r with |r| <= 1/64: a table in two registers and a cubic (relative error 1e-7)
// take fewer products than a polynomial alone.
DAKD_INLINE Floats exp2_by_table(Floats x) {
  // Else GCC would fuse the product that x is into both sums below, and products are what the processor is short of.
  asm("" : "+v"(x));
  // Rounds to the nearest 32nd; the last five bits of `shifted` are n mod 32, and scalef takes the floor of n/32.
  const Floats shifted = x + 393216.0f, rounded = shifted - 393216.0f, r = x - rounded;
  const Floats power = _mm512_scalef_ps(_mm512_permutex2var_ps(_mm512_load_ps(kPowersOf2),
                                                               copy_bits<__m512i>(shifted),
                                                               _mm512_load_ps(kPowersOf2 + 16)), rounded);
  const Floats p = (r * 5.55041087e-2f + 2.40226507e-1f) * r + 6.93147182e-1f;
  return (power * r) * p + power;
}
#endif

// 2^x as 2^n 2^r. With kBounded, x must lie within [-120, 120]; else 0 below -125.5, infinity from 128 on, NaN for NaN.
template <bool kBounded = false>
inline Floats exp2(Floats x) {
#if defined(__AVX512DQ__)
  if constexpr (kBounded) return exp2_by_table(x);
#endif
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

// 2^x of a softmax: for x <= 0, relative error 1.9e-7; below -125 it may be anything from 2^-125 to 0, NaN for NaN.
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

inline Doubles exp2_of_negative(Doubles x) { return exp2(x); }

// e^x for x <= 0: exp2's polynomial on the fraction of x log2 e, taken in two parts; may be 0 below -87,
// NaN for NaN.
DAKD_INLINE Floats exp_of_negative(Floats x) {
#if defined(__AVX512DQ__)
  // e^-104 is 0 in float; the maximum with a NaN is its second operand.
  const Floats bounded = _mm512_max_ps(Floats{} - 104.0f, x);
  const Floats whole = _mm512_roundscale_ps(bounded * 1.44269502f, 0x08);
  // Fused, or the difference would lose 5 digits.
  const Floats near = _mm512_fmsub_ps(bounded, Floats{} + 1.44269502f, whole);
  const Floats fraction = bounded * 1.92596303e-8f + near;
  return _mm512_scalef_ps(power_of_2(fraction), whole);
#endif
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

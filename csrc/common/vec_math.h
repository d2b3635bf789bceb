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

template <typename V>
inline V sigmoid(V x) {
  return 1 / (1 + exp(-x));
}

}  // namespace
}  // namespace dakd

// As many floats at once as a register of the instruction set holds, by the vector types of GCC and Clang.
//
// Arithmetic, comparisons (giving a mask) and `mask ? a : b` work lane by lane; a scalar operand stands for all lanes.
// For *_vec.cpp alone; everything is in an anonymous namespace, for its meaning depends on the instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace dakd {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UInts __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef _Float16 Halves __attribute__((vector_size(2 * kLanes)));

template <typename Real>
struct LanesOf;
template <>
struct LanesOf<float> {
  using type = Floats;
};
template <>
struct LanesOf<double> {
  using type = Doubles;
};
// The lanes that features of this number format are computed in.
template <typename Number>
using Lanes = typename LanesOf<typename ComputeOf<Number>::type>::type;

template <typename To, typename From>
inline To copy_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline Floats load(const float* from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
inline Doubles load(const double* from) {
  Doubles lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
inline Floats load(const BFloat16* from) {
  Shorts bits;
  std::memcpy(&bits, from, sizeof bits);
  return copy_bits<Floats>(__builtin_convertvector(bits, UInts) << 16);
}
inline Floats load(const Float16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return __builtin_convertvector(halves, Floats);
}

inline void store(float* to, const Floats& lanes) { std::memcpy(to, &lanes, sizeof lanes); }
inline void store(double* to, const Doubles& lanes) { std::memcpy(to, &lanes, sizeof lanes); }
inline void store(BFloat16* to, const Floats& lanes) {
  const UInts bits = copy_bits<UInts>(lanes);
  // As write() in numbers.h: to nearest even, a NaN made quiet.
  const UInts rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const UInts quiet = (bits >> 16) | 0x40u;
  const Shorts narrow = __builtin_convertvector((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded, Shorts);
  std::memcpy(to, &narrow, sizeof narrow);
}
inline void store(Float16* to, const Floats& lanes) {
  const Halves halves = __builtin_convertvector(lanes, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

// The first `count` elements, `stride` apart; zeros in the other lanes.
template <typename Number>
inline Lanes<Number> load(const Number* from, int64_t count, int64_t stride = 1) {
  if (count >= kLanes && stride == 1) return load(from);
  Number buffer[kLanes] = {};
  for (int64_t i = 0; i < (count < kLanes ? count : kLanes); ++i) buffer[i] = from[i * stride];
  return load(buffer);
}
template <typename Number>
inline void store(Number* to, const Lanes<Number>& lanes, int64_t count, int64_t stride = 1) {
  if (count >= kLanes && stride == 1) return store(to, lanes);
  Number buffer[kLanes];
  store(buffer, lanes);
  for (int64_t i = 0; i < (count < kLanes ? count : kLanes); ++i) to[i * stride] = buffer[i];
}

// The sum of all lanes, always added in the same order.
template <typename V>
inline auto sum(const V& lanes) {
  V folded = lanes;
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) folded[i] += folded[i + width];
  return folded[0];
}

}  // namespace
}  // namespace dakd

// As many floats at once as a register of the instruction set holds, by the vector types of GCC and Clang.
//
// Arithmetic, comparisons (giving a mask) and `mask ? a : b` work lane by lane; a scalar operand stands for all lanes.
// Only for *_vec.cpp; everything is in an anonymous namespace, for its meaning depends on the instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
// GCC's own header leaves the unused operand of an unmasked AVX-512 intrinsic undefined, and warns of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include "numbers.h"

// A call would spill every vector register, and GCC makes one where it finds the caller long.
#define DAKD_INLINE inline __attribute__((always_inline))

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
typedef int64_t Longs __attribute__((vector_size(8 * kLanes)));
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
DAKD_INLINE To copy_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// a b + c, rounded once where the instruction set can. Left to the compiler, a sum of two products is contracted by the
// one or by the other, and two copies of one loop may differ in their last bit.
DAKD_INLINE Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
#if defined(__AVX512F__)
  return copy_bits<Floats>(_mm512_fmadd_ps(copy_bits<__m512>(a), copy_bits<__m512>(b), copy_bits<__m512>(c)));
#elif defined(__AVX2__)
  return copy_bits<Floats>(_mm256_fmadd_ps(copy_bits<__m256>(a), copy_bits<__m256>(b), copy_bits<__m256>(c)));
#else
  return a * b + c;
#endif
}
DAKD_INLINE Floats multiply_add(float a, const Floats& b, const Floats& c) {
  return multiply_add(Floats{} + a, b, c);
}

template <typename Number>
struct Line {
  Number first[kLanes];
};

DAKD_INLINE Floats load(const float* from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
DAKD_INLINE Doubles load(const double* from) {
  Doubles lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
DAKD_INLINE Floats load(const BFloat16* from) {
  Shorts bits;
  std::memcpy(&bits, from, sizeof bits);
  // GCC would widen each half of the register by itself.
#if defined(__AVX512F__)
  return copy_bits<Floats>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(copy_bits<__m256i>(bits)), 16));
#elif defined(__AVX2__)
  return copy_bits<Floats>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(copy_bits<__m128i>(bits)), 16));
#else
  return copy_bits<Floats>(__builtin_convertvector(bits, UInts) << 16);
#endif
}
DAKD_INLINE Floats load(const Float16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  // GCC would convert lane by lane.
#if defined(__AVX512F__)
  return copy_bits<Floats>(_mm512_cvtph_ps(copy_bits<__m256i>(halves)));
#elif defined(__AVX2__)
  return copy_bits<Floats>(_mm256_cvtph_ps(copy_bits<__m128i>(halves)));
#else
  // GCC would call a function for each. Here 2^112 makes up for the exponent's bias.
  const UInts wide = __builtin_convertvector(copy_bits<Shorts>(halves), UInts), magnitude = wide & 0x7FFFu;
  const UInts finite = copy_bits<UInts>(copy_bits<Floats>(magnitude << 13) * 0x1p112f);
  return copy_bits<Floats>(((wide & 0x8000u) << 16) | (magnitude < 0x7C00u ? finite : (magnitude << 13) | 0x7F800000u));
#endif
}

DAKD_INLINE void store(float* to, const Floats& lanes) { std::memcpy(to, &lanes, sizeof lanes); }
DAKD_INLINE void store(double* to, const Doubles& lanes) { std::memcpy(to, &lanes, sizeof lanes); }
// The upper halves are bf16: to nearest even, a NaN made quiet, as write() in numbers.h.
DAKD_INLINE UInts round_to_bfloat16(const Floats& lanes) {
  const UInts bits = copy_bits<UInts>(lanes);
  return lanes == lanes ? bits + (((bits >> 16) & 1u) + 0x7FFFu) : bits | 0x400000u;
}
DAKD_INLINE void store(BFloat16* to, const Floats& lanes) {
  const UInts rounded = round_to_bfloat16(lanes) >> 16;
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i bits = copy_bits<__m256i>(rounded);
  const __m128i narrow = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
#else
  const Shorts narrow = __builtin_convertvector(rounded, Shorts);
#endif
  std::memcpy(to, &narrow, sizeof narrow);
}
DAKD_INLINE void store(Float16* to, const Floats& lanes) {
#if defined(__AVX512F__)
  const __m256i halves = _mm512_cvtps_ph(copy_bits<__m512>(lanes), 0);
#elif defined(__AVX2__)
  const __m128i halves = _mm256_cvtps_ph(copy_bits<__m256>(lanes), 0);
#else
  const Halves halves = __builtin_convertvector(lanes, Halves);
#endif
  std::memcpy(to, &halves, sizeof halves);
}

// The first `count` elements, `stride` apart; zeros in the other lanes.
template <typename Number>
inline Lanes<Number> load(const Number* from, int64_t count, int64_t stride) {
  Number buffer[kLanes] = {};
  for (int64_t i = 0; i < (count < kLanes ? count : kLanes); ++i) buffer[i] = from[i * stride];
  return load(buffer);
}
template <typename Number>
inline void store(Number* to, const Lanes<Number>& lanes, int64_t count, int64_t stride) {
  Number buffer[kLanes];
  store(buffer, lanes);
  for (int64_t i = 0; i < (count < kLanes ? count : kLanes); ++i) to[i * stride] = buffer[i];
}

// The same for elements that adjoin.
template <typename Number>
inline Lanes<Number> load(const Number* from, int64_t count) {
  return count >= kLanes ? load(from) : load(from, count, 1);
}
template <typename Number>
inline void store(Number* to, const Lanes<Number>& lanes, int64_t count) {
  if (count >= kLanes) return store(to, lanes);
  store(to, lanes, count, 1);
}
#if defined(__AVX512BW__) && defined(__AVX512VL__)
// By masks: the ends of short rows were a third of their time.
inline __mmask16 first_lanes(int64_t count) { return count >= 16 ? 0xFFFF : (1u << count) - 1; }
inline Floats load(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(first_lanes(count), from); }
inline Floats load(const BFloat16* from, int64_t count) {
  return load(copy_bits<Line<BFloat16>>(_mm256_maskz_loadu_epi16(first_lanes(count), from)).first);
}
inline Floats load(const Float16* from, int64_t count) {
  return load(copy_bits<Line<Float16>>(_mm256_maskz_loadu_epi16(first_lanes(count), from)).first);
}
inline void store(float* to, const Floats& lanes, int64_t count) {
  _mm512_mask_storeu_ps(to, first_lanes(count), lanes);
}
inline void store(BFloat16* to, const Floats& lanes, int64_t count) {
  Line<BFloat16> line;
  store(line.first, lanes);
  _mm256_mask_storeu_epi16(to, first_lanes(count), copy_bits<__m256i>(line));
}
inline void store(Float16* to, const Floats& lanes, int64_t count) {
  Line<Float16> line;
  store(line.first, lanes);
  _mm256_mask_storeu_epi16(to, first_lanes(count), copy_bits<__m256i>(line));
}
#endif

template <typename V>
struct IndicesOf {
  using type = Ints;
};
template <>
struct IndicesOf<Doubles> {
  using type = Longs;
};

// Lanes kFirst .. kFirst + kLanes - 1 of two blocks that adjoin.
template <int kFirst, typename V>
inline V window(const V& a, const V& b) {
  typename IndicesOf<V>::type index;
  for (int i = 0; i < kLanes; ++i) index[i] = kFirst + i;
  return __builtin_shuffle(a, b, index);
}

// Two blocks of lanes that adjoin, seen one place earlier or later: the last lane of `last` before all but the last of
// `here`; all but the first of `here` before the first lane of `next`.
template <typename V>
inline V one_before(const V& last, const V& here) {
  return window<kLanes - 1>(last, here);
}
template <typename V>
inline V one_after(const V& here, const V& next) {
  return window<1>(here, next);
}

// The sum of all lanes, always added in the same order: halves, then quarters, and so on.
template <int kWidth = kLanes / 2, typename V>
inline auto sum(const V& lanes) {
  if constexpr (kWidth == 0) return lanes[0];
  else return sum<kWidth / 2>(lanes + window<kWidth>(lanes, lanes));
}

template <int kWidth, bool kUpper, int... i>
inline Floats swap_blocks(const Floats& a, const Floats& b, std::integer_sequence<int, i...>) {
  // Of every two blocks of kWidth lanes the lower is a's and the upper b's: their lower blocks, or their upper ones.
  constexpr int kOfA = kUpper ? kWidth : 0, kOfB = kLanes + kOfA - kWidth;
  return __builtin_shufflevector(a, b, (i + (i & kWidth ? kOfB : kOfA))...);
}
template <int kWidth, bool kUpper, int... i>
inline Floats half_runs(const Floats& a, const Floats& b, std::integer_sequence<int, i...>) {
  // The lower or upper halves of a's and b's runs of kWidth lanes, in their order.
  constexpr int kHalf = kWidth / 2;
  return __builtin_shufflevector(a, b, (i / kHalf * kWidth + i % kHalf + (kUpper ? kHalf : 0))...);
}

// rows[i][j] becomes rows[j][i].
#if defined(__AVX512F__)
// Within quarters of registers first, then whole quarters: GCC's own choice needs a dozen registers of indices.
DAKD_INLINE void transpose(Floats* rows) {
  __m512 pairs[16], fours[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  // Quarter q of fours[4 k + c] holds column 4 q + c of rows 4 k .. 4 k + 3.
#pragma GCC unroll 4
  for (int k = 0; k < 16; k += 4) {
    fours[k] = _mm512_shuffle_ps(pairs[k], pairs[k + 2], 0x44);
    fours[k + 1] = _mm512_shuffle_ps(pairs[k], pairs[k + 2], 0xEE);
    fours[k + 2] = _mm512_shuffle_ps(pairs[k + 1], pairs[k + 3], 0x44);
    fours[k + 3] = _mm512_shuffle_ps(pairs[k + 1], pairs[k + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even01 = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0xDD);
    const __m512 even23 = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0xDD);
    rows[c] = _mm512_shuffle_f32x4(even01, even23, 0x88);
    rows[4 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    rows[8 + c] = _mm512_shuffle_f32x4(even01, even23, 0xDD);
    rows[12 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0xDD);
  }
}
#else
template <int kWidth = kLanes / 2>
inline void transpose(Floats* rows) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kWidth) continue;
    const Floats lower = swap_blocks<kWidth, false>(rows[i], rows[i + kWidth], lanes);
    rows[i + kWidth] = swap_blocks<kWidth, true>(rows[i], rows[i + kWidth], lanes);
    rows[i] = lower;
  }
  if constexpr (kWidth > 1) transpose<kWidth / 2>(rows);
}
#endif

// Lane i of the result is the sum of the lanes of rows[i]; `rows` is used up. Always added in the same order.
template <int kWidth = kLanes>
inline Floats sums(Floats* rows) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
#pragma GCC unroll 16
  for (int i = 0; i < kWidth / 2; ++i)
    rows[i] = half_runs<kWidth, false>(rows[2 * i], rows[2 * i + 1], lanes) +
              half_runs<kWidth, true>(rows[2 * i], rows[2 * i + 1], lanes);
  if constexpr (kWidth > 2) return sums<kWidth / 2>(rows);
  return rows[0];
}
inline Doubles sums(Doubles* rows) {
  Doubles totals;
  for (int i = 0; i < kLanes; ++i) totals[i] = sum(rows[i]);
  return totals;
}

}  // namespace
}  // namespace dakd

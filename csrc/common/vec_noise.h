// Device noise (philox.h) many blocks at a time, only for *_vec.cpp.
#pragma once

#include "lanes.h"
#include "philox.h"

namespace dakd {
namespace {

struct Vector {
  using F = Floats;
  using I = Ints;
  using U = UInts;

  template <typename To, typename From>
  static DAKD_INLINE To bits(const From& from) {
    return copy_bits<To>(from);
  }
  static DAKD_INLINE F to_float(const I& x) { return __builtin_convertvector(x, Floats); }

#if defined(__AVX512F__)
  static DAKD_INLINE F root(const F& x) { return reinterpret_cast<F>(_mm512_sqrt_ps(reinterpret_cast<__m512>(x))); }
  static DAKD_INLINE void multiply(const U& a, uint32_t b, U& high, U& low) {
    const __m512i factor = _mm512_set1_epi64(b), even_lanes = reinterpret_cast<__m512i>(a);
    const __m512i even = _mm512_mul_epu32(even_lanes, factor);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(even_lanes, 32), factor);
    high = reinterpret_cast<U>(_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd));
    low = reinterpret_cast<U>(_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)));
  }
#elif defined(__AVX2__)
  static DAKD_INLINE F root(const F& x) { return reinterpret_cast<F>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x))); }
  static DAKD_INLINE void multiply(const U& a, uint32_t b, U& high, U& low) {
    const __m256i factor = _mm256_set1_epi64x(b), even_lanes = reinterpret_cast<__m256i>(a);
    const __m256i even = _mm256_mul_epu32(even_lanes, factor);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(even_lanes, 32), factor);
    high = reinterpret_cast<U>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA));
    low = reinterpret_cast<U>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
  }
#else
  static DAKD_INLINE F root(F x) {
    for (int i = 0; i < kLanes; ++i) x[i] = sqrtf(x[i]);
    return x;
  }
  static DAKD_INLINE void multiply(const U& a, uint32_t b, U& high, U& low) {
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t product = static_cast<uint64_t>(a[i]) * b;
      high[i] = static_cast<uint32_t>(product >> 32), low[i] = static_cast<uint32_t>(product);
    }
  }
#endif
};

// a_0 b_0 a_1 b_1 ... in two registers.
DAKD_INLINE void interleave(const Floats& a, const Floats& b, Floats& first, Floats& second) {
  Ints low, high;
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i / 2 + i % 2 * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
  first = __builtin_shuffle(a, b, low), second = __builtin_shuffle(a, b, high);
}

// The normal numbers of the blocks first .. first + count - 1 of a sample, 4 count floats in the order of the elements.
inline void fill_normals(const NoiseKey& key, uint32_t first, int64_t count, float* out) {
  UInts lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  int64_t block = 0;
  for (; block + kLanes <= count; block += kLanes) {
    Floats n[4], even[2], odd[2], ordered[4];
    draw_normals<Vector>(key, lane + (first + static_cast<uint32_t>(block)), n);
    interleave(n[0], n[2], even[0], even[1]);
    interleave(n[1], n[3], odd[0], odd[1]);
    interleave(even[0], odd[0], ordered[0], ordered[1]);
    interleave(even[1], odd[1], ordered[2], ordered[3]);
    for (int i = 0; i < 4; ++i) store(out + 4 * block + i * kLanes, ordered[i]);
  }
  for (; block < count; ++block) {
    float n[4];
    draw_normals<Scalar>(key, first + static_cast<uint32_t>(block), n);
    memcpy(out + 4 * block, n, sizeof n);
  }
}

// The normal numbers of the elements first .. first + count - 1 of a sample. They begin at the address returned, within
// `buffer`, which holds count + 6 floats.
inline const float* fill_elements(const NoiseKey& key, int64_t first, int64_t count, float* buffer) {
  const int64_t skipped = first % 4;
  fill_normals(key, static_cast<uint32_t>(first / 4), (skipped + count + 3) / 4, buffer);
  return buffer + skipped;
}

}  // namespace
}  // namespace dakd

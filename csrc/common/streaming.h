// Stores that go past the caches, for results too large to stay in them: a line written whole is not read first.
// Only for *_vec.cpp.
#pragma once

#include "lanes.h"

namespace dakd {
namespace {

// Whether a register's worth can be streamed to an address; then also to every multiple of it further on.
inline bool is_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % (4 * kLanes) == 0; }

// Two registers to an address aligned to one; call finish_streaming once before other threads read.
DAKD_INLINE void stream(float* to, const Floats& first, const Floats& second) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, copy_bits<__m512>(first));
  _mm512_stream_ps(to + kLanes, copy_bits<__m512>(second));
#elif defined(__AVX2__)
  _mm256_stream_ps(to, copy_bits<__m256>(first));
  _mm256_stream_ps(to + kLanes, copy_bits<__m256>(second));
#else
  store(to, first), store(to + kLanes, second);
#endif
}
// Two registers as halves in one. Through memory the whole would wait until both of its parts are in the cache.
#if defined(__AVX512F__)
DAKD_INLINE __m512i narrow(const Floats& first, const Floats& second, const BFloat16*) {
  typedef uint16_t Both __attribute__((vector_size(64)));
  const auto upper = []<int... i>(const Both& a, const Both& b, std::integer_sequence<int, i...>) {
    return __builtin_shufflevector(a, b, (2 * i + 1)...);
  };
  const UInts a = round_to_bfloat16(first), b = round_to_bfloat16(second);
  return copy_bits<__m512i>(upper(copy_bits<Both>(a), copy_bits<Both>(b), std::make_integer_sequence<int, 32>{}));
}
DAKD_INLINE __m512i narrow(const Floats& first, const Floats& second, const Float16*) {
  const __m256i a = _mm512_cvtps_ph(copy_bits<__m512>(first), 0), b = _mm512_cvtps_ph(copy_bits<__m512>(second), 0);
  return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}
#elif defined(__AVX2__)
DAKD_INLINE __m256i narrow(const Floats& first, const Floats& second, const BFloat16*) {
  const UInts a = round_to_bfloat16(first) >> 16, b = round_to_bfloat16(second) >> 16;
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(copy_bits<__m256i>(a), copy_bits<__m256i>(b)), 0xD8);
}
DAKD_INLINE __m256i narrow(const Floats& first, const Floats& second, const Float16*) {
  const __m128i a = _mm256_cvtps_ph(copy_bits<__m256>(first), 0), b = _mm256_cvtps_ph(copy_bits<__m256>(second), 0);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
}
#endif
template <typename Half>
DAKD_INLINE void stream(Half* to, const Floats& first, const Floats& second) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), narrow(first, second, to));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), narrow(first, second, to));
#else
  store(to, first), store(to + kLanes, second);
#endif
}
inline void finish_streaming() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace dakd

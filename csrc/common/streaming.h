// Stores that go past the caches, for results too large to stay in them: a line written whole is not read first.
// For *_vec.cpp alone.
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
template <typename Half>
DAKD_INLINE void stream(Half* to, const Floats& first, const Floats& second) {
#if defined(__AVX512F__)
  alignas(64) Half both[2 * kLanes];
  store(both, first), store(both + kLanes, second);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_load_si512(both));
#elif defined(__AVX2__)
  alignas(32) Half both[2 * kLanes];
  store(both, first), store(both + kLanes, second);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), _mm256_load_si256(reinterpret_cast<const __m256i*>(both)));
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

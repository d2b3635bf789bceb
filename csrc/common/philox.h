// Device noise, the numbers of dakd/runtime/seeding.py: Philox4x32-10 (Salmon et al. 2011) and Box-Muller.
//
//   key     = (seed mod 2^32, seed >> 32)
//   counter = (block, step, position mod 2^32, position >> 32 | stream << 28)
//
// Block i holds elements 4i .. 4i+3 of a sample's flattened, contiguous (C, H, W). Word w is the uniform number m 2^-24
// with m = (w >> 8) + 1. Everything is a template over `Lanes`, which says what one register holds: Scalar below, for
// plain C++ and for CUDA, or the vectors of vec_noise.h. In an anonymous namespace (see numbers.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define DAKD_HD __host__ __device__ __forceinline__
#else
#define DAKD_HD inline __attribute__((always_inline))
#endif

namespace dakd {
namespace {

// The ids of dakd/runtime/seeding.py.
enum Stream : uint32_t { kTimestep = 0, kImageNoise = 1, kLabelNoise = 2, kDdimImage = 10, kDdimLabel = 11 };

// All that decides a word, but the block.
struct NoiseKey {
  uint32_t seed_low, seed_high, step, position_low, position_high;
};

// seed: the int64 with the bits of a seed of 0 .. 2^64 - 1.  position: below 2^60.
DAKD_HD NoiseKey noise_key(int64_t seed, int64_t step, int64_t position, uint32_t stream) {
  const uint64_t seed_bits = static_cast<uint64_t>(seed), position_bits = static_cast<uint64_t>(position);
  return {static_cast<uint32_t>(seed_bits), static_cast<uint32_t>(seed_bits >> 32), static_cast<uint32_t>(step),
          static_cast<uint32_t>(position_bits), static_cast<uint32_t>(position_bits >> 32) | stream << 28};
}

// One number at a time.
struct Scalar {
  using F = float;
  using I = int32_t;
  using U = uint32_t;

  template <typename To, typename From>
  static DAKD_HD To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
  }
  static DAKD_HD F to_float(I x) { return static_cast<float>(x); }
  static DAKD_HD F root(F x) { return sqrtf(x); }
  // The high and the low half of a 64-bit product.
  static DAKD_HD void multiply(U a, uint32_t b, U& high, U& low) {
    const uint64_t product = static_cast<uint64_t>(a) * b;
    high = static_cast<uint32_t>(product >> 32), low = static_cast<uint32_t>(product);
  }
};

// The four words of each block.
template <typename Lanes>
DAKD_HD void draw_words(const NoiseKey& key, typename Lanes::U block, typename Lanes::U (&words)[4]) {
  using U = typename Lanes::U;
  U c0 = block, c1 = U{} + key.step, c2 = U{} + key.position_low, c3 = U{} + key.position_high;
  uint32_t k0 = key.seed_low, k1 = key.seed_high;
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    Lanes::multiply(c0, 0xD2511F53u, high0, low0);
    Lanes::multiply(c2, 0xCD9E8D57u, high1, low1);
    c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// -2 ln(m 2^-24) for m in 1 .. 2^24, as u = 2^e (1 + x) with 1 + x in [sqrt(1/2), sqrt(2)): exact up to x, so that the
// result is good to a few roundings also near u = 1.
template <typename Lanes>
DAKD_HD typename Lanes::F minus_two_log(typename Lanes::I m) {
  using F = typename Lanes::F;
  using I = typename Lanes::I;
  const I bits = Lanes::template bits<I>(Lanes::to_float(m) * 0x1p-24f);
  const I exponent = (bits - 0x3F3504F3) >> 23;
  const F x = Lanes::template bits<F>(bits - (exponent << 23)) - 1.0f;
  F tail = 0.152689487f * x - 0.255231351f;
  tail = tail * x + 0.26320374f;
  tail = tail * x - 0.284035176f;
  tail = tail * x + 0.332467139f;
  tail = tail * x - 0.400024533f;
  tail = tail * x + 0.500016391f;
  tail = tail * x - 0.666666627f;
  return Lanes::to_float(exponent) * -1.38629436f + x * (x * (x * tail + 1.0f) - 2.0f);
}

// cos and sin of 2 pi m 2^-24 for m in 1 .. 2^24, as pi q / 2 + 2 pi f with |f| <= 1/8, which is exact.
template <typename Lanes>
DAKD_HD void cos_sin(typename Lanes::I m, typename Lanes::F& cosine, typename Lanes::F& sine) {
  using F = typename Lanes::F;
  using I = typename Lanes::I;
  const I quarter = (m + (1 << 21)) >> 22;
  const F f = Lanes::to_float(m - (quarter << 22)) * 0x1p-24f;
  const F z = f * f;
  const F c = (((59.2204056f * z - 85.4428558f) * z + 64.9393158f) * z - 19.7392082f) * z + 1.0f;
  const F s = (((-75.4020691f * z + 81.5925522f) * z - 41.3416634f) * z + 6.28318548f) * f;
  const auto is_odd = (quarter & 1) != 0;
  const F turned_c = is_odd ? s : c, turned_s = is_odd ? c : s;
  // The cosine is negative in the quarters 1 and 2, the sine in 2 and 3.
  cosine = Lanes::template bits<F>(Lanes::template bits<I>(turned_c) ^ (((quarter + 1) & 2) << 30));
  sine = Lanes::template bits<F>(Lanes::template bits<I>(turned_s) ^ ((quarter & 2) << 30));
}

// Two independent standard normal numbers from two words.
template <typename Lanes>
DAKD_HD void normal_pair(typename Lanes::U first, typename Lanes::U second, typename Lanes::F& even,
                         typename Lanes::F& odd) {
  using I = typename Lanes::I;
  const typename Lanes::F radius = Lanes::root(minus_two_log<Lanes>(Lanes::template bits<I>(first >> 8) + 1));
  cos_sin<Lanes>(Lanes::template bits<I>(second >> 8) + 1, even, odd);
  even *= radius, odd *= radius;
}

// The four normal numbers of each block.
template <typename Lanes>
DAKD_HD void draw_normals(const NoiseKey& key, typename Lanes::U block, typename Lanes::F (&normals)[4]) {
  typename Lanes::U words[4];
  draw_words<Lanes>(key, block, words);
  normal_pair<Lanes>(words[0], words[1], normals[0], normals[1]);
  normal_pair<Lanes>(words[2], words[3], normals[2], normals[3]);
}

// A timestep of 0 .. num_timesteps - 1.
DAKD_HD int64_t draw_timestep(int64_t seed, int64_t position, int64_t num_timesteps) {
  uint32_t words[4];
  draw_words<Scalar>(noise_key(seed, 0, position, kTimestep), 0u, words);
  return static_cast<int64_t>(words[0] * static_cast<uint64_t>(num_timesteps) >> 32);
}

}  // namespace
}  // namespace dakd

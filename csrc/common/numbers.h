// The number formats of features: how they are read as, and written from, the type that a kernel computes in.
//
// Float and double are themselves; the halves are their 16 bits. Functions are in an anonymous namespace, because this
// header is compiled with several instruction sets and the linker must not merge the copies.
#pragma once

#include <cstdint>
#include <cstring>

namespace dakd {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  _Float16 value;
};

// The type to compute in: double for double, float for all narrower formats.
template <typename Number>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

namespace {

inline float read(float x) { return x; }
inline double read(double x) { return x; }
inline float read(Float16 x) { return static_cast<float>(x.value); }
inline float read(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void write(float* out, float x) { *out = x; }
inline void write(double* out, double x) { *out = x; }
inline void write(Float16* out, float x) { out->value = static_cast<_Float16>(x); }
inline void write(BFloat16* out, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  // Round to nearest even; a NaN keeps its upper bits and is made quiet, for rounding could carry it into infinity.
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  out->bits = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded);
}

}  // namespace
}  // namespace dakd

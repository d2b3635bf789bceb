// The work of one CUDA thread of joint_noising, written so that a CPU can compile it too: tests run it there.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>

#include "../common/philox.h"

#ifdef __CUDACC__
#define DAKD_UNROLL _Pragma("unroll")
#else
#define DAKD_UNROLL
#endif

namespace dakd {
namespace {

// A tensor (batch, height, width), whose strides count elements.
template <typename Number>
struct Plane {
  const Number* first;
  int64_t batch_stride, row_stride, pixel_stride;
};

// Id: the class ids' type.  Table: that of the coefficients.
template <typename Id, typename Table>
struct NoisingParameters {
  Plane<uint8_t> image;
  Plane<Id> label;  // not read where there are no classes
  const int64_t *positions, *t;  // t: null where it is to be drawn
  int64_t positions_stride, t_stride;
  const Table* tables;
  int64_t num_timesteps, tables_stride_t, tables_stride_column;
  int64_t seed;
  float b;
  int num_classes;
  int64_t width, num_pixels;
  bool is_flat;  // whether pixels are evenly spaced in image and label
  int64_t* t_out;
};

// Values that all pixels of a sample share.
struct SampleTerms {
  int64_t position, t;
  float a, s;  // of the signal and of the noise
};

// Four neighbouring pixels of one sample, of which `count` are there.
template <typename Id>
struct FourPixels {
  int count;
  uint8_t grey[4];
  Id ids[4];
};

// For 16-bit outputs the CUDA source has overloads, declared before it includes this.
DAKD_HD void round_to(float* out, float value) { *out = value; }

// Four numbers to an address aligned to all of them.
template <typename Output>
DAKD_HD void write_four(Output* out, const Output (&values)[4]) {
#ifdef __CUDA_ARCH__
  // Of an assignment nvcc makes four stores.
  if constexpr (sizeof values == sizeof(uint4)) {
    uint4 bits;
    memcpy(&bits, values, sizeof bits);
    __stwb(reinterpret_cast<uint4*>(out), bits);
  } else {
    uint2 bits;
    memcpy(&bits, values, sizeof bits);
    __stwb(reinterpret_cast<uint2*>(out), bits);
  }
#else
  memcpy(out, values, sizeof values);
#endif
}

// Four neighbours, of which `count` are there; in one store where all are and the address allows it.
template <typename Output>
DAKD_HD void write_pixels(Output* out, const float (&values)[4], int count) {
  Output rounded[4];
  DAKD_UNROLL
  for (int i = 0; i < 4; ++i) round_to(&rounded[i], values[i]);
  if (count == 4 && reinterpret_cast<uintptr_t>(out) % sizeof rounded == 0) return write_four(out, rounded);
  DAKD_UNROLL
  for (int i = 0; i < 4; ++i)
    if (i < count) out[i] = rounded[i];
}

// The normal numbers of four neighbours, from `element` on in the sample's (C, H, W): one block of noise where they are
// its four, otherwise of two.
DAKD_HD void draw_pixels(const NoiseKey& key, int64_t element, float (&normals)[4]) {
  const uint32_t block = static_cast<uint32_t>(element >> 2);
  const int skipped = static_cast<int>(element & 3);
  draw_normals<Scalar>(key, block, normals);
  if (skipped == 0) return;
  float next[4];
  draw_normals<Scalar>(key, block + 1, next);
  DAKD_UNROLL
  for (int shift = 0; shift < 3; ++shift)
    if (shift < skipped) {
      normals[0] = normals[1], normals[1] = normals[2], normals[2] = normals[3], normals[3] = next[0];
      next[0] = next[1], next[1] = next[2];
    }
}

// In bytes, of an address from which four numbers are read at once.
template <typename Number>
constexpr size_t alignment_of_four = sizeof(Number) < 4 ? 4 * sizeof(Number) : 16;

// Four numbers from an address so aligned.
template <typename Number>
DAKD_HD void read_four(const Number* first, Number (&values)[4]) {
#ifdef __CUDA_ARCH__
  // Of a copy nvcc makes four loads.
  if constexpr (sizeof values == sizeof(uint32_t)) {
    const uint32_t bits = __ldg(reinterpret_cast<const uint32_t*>(first));
    memcpy(values, &bits, sizeof bits);
  } else {
    const uint4 bits[2] = {__ldg(reinterpret_cast<const uint4*>(first)),
                           __ldg(reinterpret_cast<const uint4*>(first) + 1)};
    memcpy(values, bits, sizeof bits);
  }
#else
  assert(reinterpret_cast<uintptr_t>(first) % alignment_of_four<Number> == 0);
  memcpy(values, first, sizeof values);
#endif
}

template <typename Number, typename P>
DAKD_HD Number read_pixel(const P& p, const Plane<Number>& plane, int64_t sample, int64_t pixel) {
  const Number* first = plane.first + sample * plane.batch_stride;
  if (p.is_flat) return first[pixel * plane.pixel_stride];
  return first[pixel / p.width * plane.row_stride + pixel % p.width * plane.pixel_stride];
}

// `count` neighbours, together where all are there, adjoin and lie at an address that allows it; zeros for the others.
template <typename Number, typename P>
DAKD_HD void read_neighbours(const P& p, const Plane<Number>& plane, int64_t sample, int64_t pixel, int count,
                             Number (&values)[4]) {
  const Number* first = plane.first + sample * plane.batch_stride + pixel;
  const bool is_aligned = reinterpret_cast<uintptr_t>(first) % alignment_of_four<Number> == 0;
  if (count == 4 && p.is_flat && plane.pixel_stride == 1 && is_aligned) return read_four(first, values);
  DAKD_UNROLL
  for (int i = 0; i < 4; ++i) values[i] = i < count ? read_pixel(p, plane, sample, pixel + i) : Number{0};
}

template <typename Id, typename Table>
DAKD_HD FourPixels<Id> read_pixels(const NoisingParameters<Id, Table>& p, int64_t sample, int64_t pixel) {
  FourPixels<Id> pixels;
  const int64_t left = p.num_pixels - pixel;
  pixels.count = left >= 4 ? 4 : left > 0 ? static_cast<int>(left) : 0;
  read_neighbours(p, p.image, sample, pixel, pixels.count, pixels.grey);
  if (p.num_classes > 0) read_neighbours(p, p.label, sample, pixel, pixels.count, pixels.ids);
  return pixels;
}

template <typename Id, typename Table>
DAKD_HD SampleTerms sample_terms(const NoisingParameters<Id, Table>& p, int64_t sample) {
  // A t outside the tables gives NaN.
  SampleTerms terms = {p.positions[sample * p.positions_stride], 0, NAN, NAN};
  terms.t = p.t == nullptr ? draw_timestep(p.seed, terms.position, p.num_timesteps) : p.t[sample * p.t_stride];
  if (0 <= terms.t && terms.t < p.num_timesteps) {
    const Table* row = p.tables + terms.t * p.tables_stride_t;
    terms.a = static_cast<float>(row[0]), terms.s = static_cast<float>(row[p.tables_stride_column]);
  }
  return terms;
}

// Four neighbouring pixels of one sample, in all channels.
template <typename Output, typename Id, typename Table>
DAKD_HD void noise_pixels(const NoisingParameters<Id, Table>& p, const SampleTerms& terms, const FourPixels<Id>& pixels,
                          int64_t sample, int64_t pixel, Output* x_t, Output* y_t) {
  if (pixel == 0) p.t_out[sample] = terms.t;
  float values[4], eps[4];
  draw_pixels(noise_key(p.seed, terms.t, terms.position, kImageNoise), pixel, eps);
  DAKD_UNROLL
  for (int i = 0; i < 4; ++i)
    // 2 grey - 255 is exact, so that x_0 has one rounding.
    values[i] = terms.a * (static_cast<float>(2 * pixels.grey[i] - 255) * (1.0f / 255)) + terms.s * eps[i];
  write_pixels(x_t + sample * p.num_pixels + pixel, values, pixels.count);
  if (p.num_classes == 0) return;

  // aligns the label's corruption with the image's by their SNR (paper, Eq. 4)
  const float balanced = terms.a * p.b;
  const NoiseKey key = noise_key(p.seed, terms.t, terms.position, kLabelNoise);
  for (int k = 0; k < p.num_classes; ++k) {
    draw_pixels(key, k * p.num_pixels + pixel, eps);
    DAKD_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t id = static_cast<int64_t>(pixels.ids[i]);
      const bool is_known = 0 <= id && id < p.num_classes;
      values[i] = (id == k ? balanced : is_known ? -balanced : 0.0f) + terms.s * eps[i];
    }
    write_pixels(y_t + (sample * p.num_classes + k) * p.num_pixels + pixel, values, pixels.count);
  }
}

}  // namespace
}  // namespace dakd

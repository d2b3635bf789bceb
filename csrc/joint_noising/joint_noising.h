// The forward diffusion process for image and label: the meaning stands in dakd/kernels/joint_noising/reference.py.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/maps.h"
#include "../common/numbers.h"

namespace dakd {

// Output: the number format of x_t and y_t, which are contiguous.
template <typename Output>
struct JointNoising {
  Maps<const uint8_t> image;
  Maps<const uint8_t> label_bytes;  // class ids in one of the two; first is null in the other, in both without a label
  Maps<const int64_t> label_words;
  Runs runs;
  const int64_t *positions, *t;  // one number a sample, as of the next two: a and s at its t
  const float *signal, *noise;
  int64_t num_classes, num_pixels, seed;
  float b;
  Output *x_t, *y_t;
};

// Floats of scratch memory that joint_noising_forward needs: noise and the clean image of a chunk.
inline int64_t joint_noising_scratch() { return 2 * (Runs::kChunk + 16); }

// Does the items first <= item < last.
#define DAKD_DECLARE_NOISING(Output) \
  DAKD_DECLARE(void joint_noising_forward(const JointNoising<Output>&, int64_t first, int64_t last, float* scratch))
DAKD_DECLARE_NOISING(float)
DAKD_DECLARE_NOISING(BFloat16)
DAKD_DECLARE_NOISING(Float16)
#undef DAKD_DECLARE_NOISING

}  // namespace dakd

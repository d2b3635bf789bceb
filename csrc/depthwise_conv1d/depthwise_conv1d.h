// Depthwise convolution over a sequence, three taps, zeros beyond both ends, and SiLU: the meaning stands in
// dakd/kernels/depthwise_conv1d/reference.py.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/numbers.h"

namespace dakd {

// Strides count elements. Weights are contiguous (channels, 3), bias (channels) or null, both of the compute type.
template <typename Number>
struct DepthwiseConv1d {
  using Real = typename ComputeOf<Number>::type;
  struct Sequence {
    Number* first;
    int64_t batch_stride, channel_stride, step_stride;

    Number* at(int64_t sample, int64_t channel) const {
      return first + sample * batch_stride + channel * channel_stride;
    }
  };

  Sequence x, dy, out;  // only the backward pass reads dy; out is y, or dx
  const Real* weight;
  const Real* bias;
  bool has_silu;
  int64_t batch, channels, length;
  // Sums of the backward pass, one row per sample: (batch, 4, channels) of dw_0, dw_1, dw_2, dbias.
  Real* sums;
};

// Work is cut into (sample, block of channels) items; both functions do the items first <= item < last.
constexpr int64_t kConvChannels = 16;

#define DAKD_DECLARE_CONV(Number)                                                                            \
  DAKD_DECLARE(void depthwise_conv1d_forward(const DepthwiseConv1d<Number>&, int64_t first, int64_t last))  \
  DAKD_DECLARE(void depthwise_conv1d_backward(const DepthwiseConv1d<Number>&, int64_t first, int64_t last))
DAKD_DECLARE_CONV(float)
DAKD_DECLARE_CONV(double)
DAKD_DECLARE_CONV(BFloat16)
DAKD_DECLARE_CONV(Float16)
#undef DAKD_DECLARE_CONV

}  // namespace dakd

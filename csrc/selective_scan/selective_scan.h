// The selective scan: the meaning stands in dakd/kernels/selective_scan/reference.py.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/numbers.h"

namespace dakd {

// Work is cut into (sample, block of channels) items; these are a block's channels, forward and backward. Fixed, so
// that no result depends on the number of threads.
constexpr int64_t kScanChannels = 16;
constexpr int64_t kScanBackwardChannels = 64;
// Steps that are worked on at once, from local buffers.
constexpr int kScanSteps = 64;

// Strides count elements. Sequences are (batch, channels, length), or (batch, states, length) for B and C. Parameters
// are contiguous and of the compute type: A (states, channels), skip and delta_bias (channels) or null.
template <typename Number>
struct SelectiveScan {
  using Real = typename ComputeOf<Number>::type;
  struct Sequence {
    Number* first;
    int64_t batch_stride, row_stride, step_stride;
  };

  Sequence u, delta, B, C;
  Sequence y;                       // only of the forward pass
  Sequence dy, du, ddelta, dB, dC;  // only of the backward pass, as are the sums
  const Real* A;
  const Real* skip;
  const Real* delta_bias;
  bool has_softplus;
  int64_t batch, channels, states, length;
  // Over the steps of a sample: (batch, states + 2, channels) of dA, then dD and ddelta_bias. Over the channels of a
  // block: (batch, blocks, length, 2 states), for each group of states dB and then dC.
  Real *step_sums, *channel_sums;
  Real* totals;  // (states + 2, channels): step_sums over the batch, in its order
};

// Tiles of a sequence, whose starting states the backward pass keeps.
inline int64_t num_scan_tiles(int64_t length) { return (length + kScanSteps - 1) / kScanSteps; }

// All do the items first <= item < last. scratch: of one thread, aligned to 128 bytes; rows of kScanChannels numbers of
// the compute type: `states` rows in the forward pass, (num_scan_tiles + 2) states in the backward pass.
// The last two end the backward pass: one item is a sample of dB and dC, or kScanChannels of the totals.
#define DAKD_DECLARE_SCAN(Number)                                                                                     \
  DAKD_DECLARE(void selective_scan_forward(const SelectiveScan<Number>&, int64_t first, int64_t last, void* scratch)) \
  DAKD_DECLARE(void selective_scan_backward(const SelectiveScan<Number>&, int64_t first, int64_t last, void* scratch))\
  DAKD_DECLARE(void selective_scan_sum_channels(const SelectiveScan<Number>&, int64_t first, int64_t last))           \
  DAKD_DECLARE(void selective_scan_sum_batch(const SelectiveScan<Number>&, int64_t first, int64_t last))
DAKD_DECLARE_SCAN(float)
DAKD_DECLARE_SCAN(double)
DAKD_DECLARE_SCAN(BFloat16)
DAKD_DECLARE_SCAN(Float16)
#undef DAKD_DECLARE_SCAN

}  // namespace dakd

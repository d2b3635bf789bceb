// Feature maps (batch, channels, height, width) of any layout, cut into chunks of evenly spaced pixels.
#pragma once

#include <cstdint>

namespace dakd {

// One tensor. Strides count elements.
template <typename Number>
struct Maps {
  Number* first;
  int64_t batch_stride, channel_stride, run_stride, pixel_stride;
};

// Pixels that are evenly spaced in all tensors of a call: a whole channel of a sample, or else one row. An item of work
// is a chunk of one run of one sample.
struct Runs {
  static constexpr int64_t kChunk = 512;

  int64_t num_runs, run_length;
  int64_t chunk_length = kChunk;  // more where nothing of a chunk waits in memory that is kept for kChunk pixels

  int64_t chunks_per_run() const { return (run_length + chunk_length - 1) / chunk_length; }
  int64_t items_per_sample() const { return num_runs * chunks_per_run(); }
};

// The position of an item. element: of its first pixel in a channel of the sample, flattened.
struct Chunk {
  int64_t sample, run, first, length, element;

  Chunk(const Runs& runs, int64_t item) {
    const int64_t chunks = runs.chunks_per_run(), per_sample = runs.items_per_sample();
    sample = item / per_sample, run = item % per_sample / chunks, first = item % chunks * runs.chunk_length;
    length = runs.run_length - first < runs.chunk_length ? runs.run_length - first : runs.chunk_length;
    element = run * runs.run_length + first;
  }

  template <typename Number>
  Number* of(const Maps<Number>& maps) const {
    return maps.first + sample * maps.batch_stride + run * maps.run_stride + first * maps.pixel_stride;
  }
};

}  // namespace dakd

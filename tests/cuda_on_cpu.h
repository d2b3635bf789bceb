// As much of CUDA as dakd's kernels use, on a CPU: a block at a time, a thread of the host for each of its threads.
// What it cannot show: blocks that run at once, and the device's own functions, for which the host's stand.
#pragma once

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "common/host.h"

#define __CUDACC__ 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline thread_local dim3 threadIdx;
inline dim3 blockIdx, gridDim;
inline std::unique_ptr<std::barrier<>> of_block;
inline std::vector<std::unique_ptr<std::barrier<>>> of_warps;
inline std::vector<double> of_lanes;

inline void __threadfence() {}
inline void __syncthreads() { of_block->arrive_and_wait(); }
template <typename Number>
Number __shfl_down_sync(unsigned, Number mine, unsigned width) {
  const unsigned thread = threadIdx.x;
  of_lanes[thread] = mine;
  of_warps[thread / 32]->arrive_and_wait();
  const Number theirs = thread % 32 + width < 32 ? static_cast<Number>(of_lanes[thread + width]) : mine;
  of_warps[thread / 32]->arrive_and_wait();
  return theirs;
}
// Drawn by one thread of a block, and there is one block at a time.
template <typename Number>
Number atomicAdd(Number* to, Number value) {
  return std::exchange(*to, *to + value);
}
template <typename Number>
Number atomicExch(Number* to, Number value) {
  return std::exchange(*to, value);
}
template <typename Number>
Number __ldcg(const Number* from) {
  return *from;
}
inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

using __nv_bfloat16 = dakd::BFloat16;
using __half = dakd::Float16;
inline float __bfloat162float(__nv_bfloat16 x) { return dakd::read(x); }
inline float __half2float(__half x) { return dakd::read(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  __nv_bfloat16 rounded;
  dakd::write(&rounded, x);
  return rounded;
}
inline __half __float2half_rn(float x) {
  __half rounded;
  dakd::write(&rounded, x);
  return rounded;
}

namespace dakd {

struct OnDeviceOf {
  int stream = 0;
  explicit OnDeviceOf(const Tensor&) {}
};
inline void check_launch(const char*) {}

// kernel<<<grid, num_threads>>>()
template <typename Kernel>
void run_grid(dim3 grid, unsigned num_threads, const Kernel& kernel) {
  gridDim = grid;
  of_lanes.assign(num_threads, 0);
  for (unsigned block = 0; block < grid.x * grid.y; ++block) {
    blockIdx = dim3(block % grid.x, block / grid.x);
    of_block = std::make_unique<std::barrier<>>(num_threads);
    of_warps.clear();
    for (unsigned warp = 0; warp < num_threads / 32; ++warp) of_warps.push_back(std::make_unique<std::barrier<>>(32));
    std::vector<std::jthread> threads;
    for (unsigned thread = 0; thread < num_threads; ++thread)
      threads.emplace_back([thread, &kernel] {
        threadIdx = dim3(thread);
        kernel();
        of_block->arrive_and_drop();
      });
  }
}

}  // namespace dakd

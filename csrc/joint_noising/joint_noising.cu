// The forward diffusion process on CUDA: timesteps, noise and both noisy inputs in one kernel. What a thread does stands
// in joint_noising_pixels.h, which tests run on a CPU.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../common/cuda.h"

namespace dakd {
namespace {

__device__ __forceinline__ void round_to(__nv_bfloat16* out, float value) { *out = __float2bfloat16_rn(value); }
__device__ __forceinline__ void round_to(__half* out, float value) { *out = __float2half_rn(value); }

}  // namespace
}  // namespace dakd

#include "joint_noising_pixels.h"

namespace dakd {
namespace {

constexpr const char* kOp = "joint_noising";
constexpr int kThreads = 256;

// A thread makes four neighbouring pixels; a block lies within one sample.
template <typename Output, typename Id, typename Table>
__global__ void __launch_bounds__(kThreads)
    joint_noising(const NoisingParameters<Id, Table> p, unsigned blocks_per_sample, Output* __restrict__ x_t,
                  Output* __restrict__ y_t) {
  const int64_t sample = blockIdx.x / blocks_per_sample;
  const int64_t pixel = (static_cast<int64_t>(blockIdx.x % blocks_per_sample) * kThreads + threadIdx.x) * 4;
  __shared__ SampleTerms terms;
  const FourPixels<Id> pixels = read_pixels(p, sample, pixel);
  if (threadIdx.x == 0) terms = sample_terms(p, sample);
  // No thread may use the terms before the first one has drawn them; the loads of the pixels run during the wait.
  __syncthreads();
  if (pixels.count > 0) noise_pixels(p, terms, pixels, sample, pixel, x_t, y_t);
}

// Calls function(Number{}) with the CUDA type of an output.
template <typename Function>
void with_output(ScalarType type, const Function& function) {
  switch (type) {
    case ScalarType::Float: return function(float{});
    case ScalarType::BFloat16: return function(__nv_bfloat16{});
    case ScalarType::Half: return function(__half{});
    default: check(false, kOp, "outputs must be float32, bfloat16 or float16");
  }
}

template <typename Function>
void with_id(const std::optional<Tensor>& label, const Function& function) {
  if (label && label->scalar_type() == ScalarType::Long) function(int64_t{});
  else function(uint8_t{});
}

template <typename Function>
void with_table(ScalarType type, const Function& function) {
  if (type == ScalarType::Double) function(double{});
  else function(float{});
}

}  // namespace

void joint_noising_forward_cuda(const Tensor& image, const std::optional<Tensor>& label, const Tensor& positions,
                                const Tensor& tables, double b, int64_t seed, const std::optional<Tensor>& t,
                                Tensor x_t, Tensor y_t, Tensor t_out) {
  check(x_t.is_contiguous() && y_t.is_contiguous() && t_out.is_contiguous(), kOp, "outputs must be contiguous");
  const int64_t batch = image.size(0), height = image.size(2), width = image.size(3), num_pixels = height * width;
  if (batch * num_pixels == 0) return;
  const OnDeviceOf device(image);
  with_output(x_t.scalar_type(), [&](auto output) {
    with_id(label, [&](auto id) {
      with_table(tables.scalar_type(), [&](auto table) {
        using Output = decltype(output);
        using Id = decltype(id);
        using Table = decltype(table);
        NoisingParameters<Id, Table> p{};
        p.image = {data<uint8_t>(image), image.stride(0), image.stride(2), image.stride(3)};
        p.is_flat = image.stride(2) == width * image.stride(3);
        if (label) {
          p.label = {data<Id>(*label), label->stride(0), label->stride(1), label->stride(2)};
          p.is_flat = p.is_flat && label->stride(1) == width * label->stride(2);
          p.num_classes = static_cast<int>(y_t.size(1));
        }
        p.positions = data<int64_t>(positions), p.positions_stride = positions.stride(0);
        if (t) p.t = data<int64_t>(*t), p.t_stride = t->stride(0);
        p.tables = data<Table>(tables), p.num_timesteps = tables.size(0);
        p.tables_stride_t = tables.stride(0), p.tables_stride_column = tables.stride(1);
        p.seed = seed, p.b = static_cast<float>(b), p.t_out = mutable_data<int64_t>(t_out);
        p.width = width, p.num_pixels = num_pixels;
        const int64_t blocks_per_sample = (num_pixels + 4 * kThreads - 1) / (4 * kThreads);
        check(batch * blocks_per_sample < (int64_t{1} << 31), kOp, "there are too many pixels for one launch");
        const unsigned num_blocks = static_cast<unsigned>(batch * blocks_per_sample);
        joint_noising<Output, Id, Table><<<num_blocks, kThreads, 0, device.stream>>>(
            p, static_cast<unsigned>(blocks_per_sample), mutable_data<Output>(x_t), mutable_data<Output>(y_t));
      });
    });
  });
  check_launch(kOp);
}

}  // namespace dakd

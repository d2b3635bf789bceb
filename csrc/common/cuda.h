// For the host side of every CUDA op: the device and the stream of its tensors, a check after each launch.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <string>

#include "host.h"

// Only a CUDA build of torch has it; weak, so that the library also loads into one without.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace dakd {

// The device of a tensor is current while this lives; kernels go to torch's stream on it.
struct OnDeviceOf {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;

  explicit OnDeviceOf(const Tensor& tensor) : guard(tensor.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }
};

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
}

}  // namespace dakd

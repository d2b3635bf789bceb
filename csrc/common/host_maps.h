// Tensors (batch, channels, height, width) as the maps of vector code.
#pragma once

#include "host.h"
#include "maps.h"

namespace dakd {
namespace {

// Whether the pixels of a channel are evenly spaced.
inline bool is_flat(const Tensor& tensor) { return tensor.stride(2) == tensor.size(3) * tensor.stride(3); }

template <typename Number>
Maps<Number> maps(const Tensor& tensor) {
  auto* first = static_cast<Number*>(const_cast<void*>(tensor.const_data_ptr()));
  return {first, tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

}  // namespace
}  // namespace dakd

// For the host side of every op: tensors of torch's stable ABI, checks with readable messages, dtype switches.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "isa.h"
#include "numbers.h"

namespace dakd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The public functions of the package check what users pass; these checks guard the library against its own callers.
inline void check(bool condition, const char* op, const char* message) {
  if (!condition) throw std::runtime_error(std::string(op) + ": " + message);
}

// The first element, as the type that the kernel was instantiated for.
template <typename Number>
const Number* data(const Tensor& tensor) {
  return static_cast<const Number*>(tensor.const_data_ptr());
}
template <typename Number>
Number* mutable_data(const Tensor& tensor) {
  return static_cast<Number*>(tensor.mutable_data_ptr());
}
template <typename Number>
const Number* data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data<Number>(*tensor) : nullptr;
}

// Calls function(Number{}) with the number format of features; throws for any other.
template <typename Function>
void with_number(ScalarType type, const char* op, const Function& function) {
  switch (type) {
    case ScalarType::Float: return function(float{});
    case ScalarType::Double: return function(double{});
    case ScalarType::BFloat16: return function(BFloat16{});
    case ScalarType::Half: return function(Float16{});
    default: throw std::runtime_error(std::string(op) + ": features must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace dakd

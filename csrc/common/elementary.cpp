#include "elementary.h"

#include <type_traits>

#include "host.h"

namespace dakd {
namespace {

constexpr const char* kOp = "elementary";

Elementary named(const std::string& name) {
  if (name == "cast") return Elementary::cast;
  if (name == "cast_one") return Elementary::cast_one;
  if (name == "exp") return Elementary::exp;
  if (name == "sigmoid") return Elementary::sigmoid;
  throw std::runtime_error(std::string(kOp) + ": no function is called " + name);
}

}  // namespace

void elementary_cpu(std::string name, const Tensor& x, Tensor out) {
  check(x.is_contiguous() && out.is_contiguous() && x.numel() == out.numel(), kOp, "tensors of one size, contiguous");
  const Elementary function = named(name);
  with_number(x.scalar_type(), kOp, [&](auto from) {
    with_number(out.scalar_type(), kOp, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      if constexpr (std::is_same_v<From, double> == std::is_same_v<To, double>)
        DAKD_CALL(elementary, function, data<From>(x), mutable_data<To>(out), x.numel());
      else check(false, kOp, "float64 goes to float64 alone");
    });
  });
}

}  // namespace dakd

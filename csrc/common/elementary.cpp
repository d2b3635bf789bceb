#include "elementary.h"

#include <type_traits>
#include <utility>

#include "host.h"

namespace dakd {
namespace {

constexpr const char* kOp = "elementary";

Elementary named(const std::string& name) {
  constexpr std::pair<const char*, Elementary> functions[] = {
      {"cast", Elementary::cast},
      {"cast_one", Elementary::cast_one},
      {"exp", Elementary::exp},
      {"exp2", Elementary::exp2},
      {"exp2_bounded", Elementary::exp2_bounded},
      {"exp2_of_negative", Elementary::exp2_of_negative},
      {"exp_of_negative", Elementary::exp_of_negative},
      {"log1p_of_unit", Elementary::log1p_of_unit},
      {"sigmoid", Elementary::sigmoid},
      {"softplus", Elementary::softplus},
  };
  for (const auto& [known, function] : functions)
    if (name == known) return function;
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
      else check(false, kOp, "float64 is converted only to float64");
    });
  });
}

}  // namespace dakd

#include "depthwise_conv1d.h"

#include "../common/host.h"

namespace dakd {
namespace {

constexpr const char* kOp = "depthwise_conv1d";

template <typename Number>
typename DepthwiseConv1d<Number>::Sequence sequence(const Tensor& tensor) {
  auto* first = const_cast<Number*>(data<Number>(tensor));
  return {first, tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

template <typename Number>
DepthwiseConv1d<Number> parameters(const Tensor& x, const Tensor& dy, const Tensor& weight,
                                   const std::optional<Tensor>& bias, bool has_silu, const Tensor& out) {
  using Real = typename ComputeOf<Number>::type;
  DepthwiseConv1d<Number> p{};
  p.x = sequence<Number>(x), p.dy = sequence<Number>(dy), p.out = sequence<Number>(out);
  p.weight = data<Real>(weight), p.bias = data<Real>(bias), p.has_silu = has_silu;
  p.batch = x.size(0), p.channels = x.size(1), p.length = x.size(2);
  return p;
}

int64_t num_items(const Tensor& x) {
  return x.size(2) == 0 ? 0 : x.size(0) * ((x.size(1) + kConvChannels - 1) / kConvChannels);
}

}  // namespace

void depthwise_conv1d_forward_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                  bool has_silu, Tensor y) {
  check(weight.is_contiguous() && (!bias || bias->is_contiguous()), kOp, "weight and bias must be contiguous");
  with_number(x.scalar_type(), kOp, [&](auto number) {
    using Number = decltype(number);
    const auto p = parameters<Number>(x, x, weight, bias, has_silu, y);
    torch::stable::parallel_for(0, num_items(x), 1, [&](int64_t first, int64_t last) {
      DAKD_CALL(depthwise_conv1d_forward, p, first, last);
    });
  });
}

void depthwise_conv1d_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                   const std::optional<Tensor>& bias, bool has_silu, Tensor dx, Tensor sums) {
  check(weight.is_contiguous() && (!bias || bias->is_contiguous()), kOp, "weight and bias must be contiguous");
  check(sums.is_contiguous(), kOp, "sums must be contiguous");
  with_number(x.scalar_type(), kOp, [&](auto number) {
    using Number = decltype(number);
    auto p = parameters<Number>(x, dy, weight, bias, has_silu, dx);
    p.sums = mutable_data<typename ComputeOf<Number>::type>(sums);
    torch::stable::parallel_for(0, num_items(x), 1, [&](int64_t first, int64_t last) {
      DAKD_CALL(depthwise_conv1d_backward, p, first, last);
    });
  });
}

}  // namespace dakd

#include "selective_scan.h"

#include <new>

#include "../common/host.h"

namespace dakd {
namespace {

constexpr const char* kOp = "selective_scan";

int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Memory of one thread.
struct Scratch {
  static constexpr std::align_val_t kAlignment{128};
  void* first;

  explicit Scratch(int64_t num_bytes) : first(::operator new(num_bytes, kAlignment)) {}
  ~Scratch() { ::operator delete(first, kAlignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

template <typename Number>
typename SelectiveScan<Number>::Sequence sequence(const Tensor& tensor) {
  auto* first = const_cast<Number*>(data<Number>(tensor));
  return {first, tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

template <typename Number>
SelectiveScan<Number> parameters(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                 const Tensor& C, const std::optional<Tensor>& D,
                                 const std::optional<Tensor>& delta_bias, bool has_softplus) {
  using Real = typename ComputeOf<Number>::type;
  check(A.is_contiguous() && (!D || D->is_contiguous()) && (!delta_bias || delta_bias->is_contiguous()), kOp,
        "A, D and delta_bias must be contiguous");
  SelectiveScan<Number> p{};
  p.u = sequence<Number>(u), p.delta = sequence<Number>(delta);
  p.B = sequence<Number>(B), p.C = sequence<Number>(C);
  p.A = data<Real>(A), p.skip = data<Real>(D), p.delta_bias = data<Real>(delta_bias), p.has_softplus = has_softplus;
  p.batch = u.size(0), p.channels = u.size(1), p.states = A.size(0), p.length = u.size(2);
  return p;
}

}  // namespace

void selective_scan_forward_cpu(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                const Tensor& C, const std::optional<Tensor>& D,
                                const std::optional<Tensor>& delta_bias, bool has_softplus, Tensor y) {
  with_number(u.scalar_type(), kOp, [&](auto number) {
    using Number = decltype(number);
    auto p = parameters<Number>(u, delta, A, B, C, D, delta_bias, has_softplus);
    p.y = sequence<Number>(y);
    torch::stable::parallel_for(0, p.batch * ceil_div(p.channels, kScanChannels), 1, [&](int64_t first, int64_t last) {
      const Scratch scratch(p.states * kScanChannels * sizeof(*p.A));
      DAKD_CALL(selective_scan_forward, p, first, last, scratch.first);
    });
  });
}

void selective_scan_backward_cpu(const Tensor& dy, const Tensor& u, const Tensor& delta, const Tensor& A,
                                 const Tensor& B, const Tensor& C, const std::optional<Tensor>& D,
                                 const std::optional<Tensor>& delta_bias, bool has_softplus, Tensor du, Tensor ddelta,
                                 Tensor dB, Tensor dC, Tensor step_sums, Tensor channel_sums, Tensor totals) {
  check(step_sums.is_contiguous() && channel_sums.is_contiguous() && totals.is_contiguous(), kOp,
        "the sums must be contiguous");
  with_number(u.scalar_type(), kOp, [&](auto number) {
    using Number = decltype(number);
    using Real = typename ComputeOf<Number>::type;
    auto p = parameters<Number>(u, delta, A, B, C, D, delta_bias, has_softplus);
    const int64_t blocks = ceil_div(p.channels, kScanBackwardChannels);
    check(channel_sums.numel() == p.batch * blocks * p.length * 2 * p.states, kOp, "channel_sums has a wrong size");
    p.dy = sequence<Number>(dy), p.du = sequence<Number>(du), p.ddelta = sequence<Number>(ddelta);
    p.dB = sequence<Number>(dB), p.dC = sequence<Number>(dC);
    p.step_sums = mutable_data<Real>(step_sums), p.channel_sums = mutable_data<Real>(channel_sums);
    p.totals = mutable_data<Real>(totals);
    torch::stable::parallel_for(0, p.batch * blocks, 1, [&](int64_t first, int64_t last) {
      const Scratch scratch((num_scan_tiles(p.length) + 2) * p.states * kScanChannels * sizeof(Real));
      DAKD_CALL(selective_scan_backward, p, first, last, scratch.first);
    });
    torch::stable::parallel_for(0, p.batch, 1, [&](int64_t first, int64_t last) {
      DAKD_CALL(selective_scan_sum_channels, p, first, last);
    });
    const int64_t numbers = (p.states + 2) * p.channels;
    torch::stable::parallel_for(0, ceil_div(numbers, kScanChannels), 1, [&](int64_t first, int64_t last) {
      DAKD_CALL(selective_scan_sum_batch, p, first, last);
    });
  });
}

}  // namespace dakd

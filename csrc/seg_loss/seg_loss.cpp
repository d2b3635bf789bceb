#include "seg_loss.h"

#include <vector>

#include "../common/host.h"
#include "dice_loss.h"

namespace dakd {
namespace {

constexpr const char* kOp = "seg_loss";

Format format(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Format::fp32;
    case ScalarType::Double: return Format::fp64;
    case ScalarType::BFloat16: return Format::bf16;
    case ScalarType::Half: return Format::fp16;
    case ScalarType::Byte: return Format::uint8;
    case ScalarType::Long: return Format::int64;
    default: throw std::runtime_error(std::string(kOp) + ": a tensor has a dtype that is not supported");
  }
}

Planes planes(const Tensor& tensor) {
  void* first = const_cast<void*>(tensor.const_data_ptr());
  const int64_t class_stride = tensor.dim() == 4 ? tensor.stride(1) : 0;
  return {first, format(tensor), tensor.stride(0), class_stride, tensor.stride(-2), tensor.stride(-1)};
}

// The arguments of a call in the kernels' form.
template <typename Real>
struct Call {
  SegLoss<Real> p{};
  std::vector<int64_t> rows;

  Call(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& teacher,
       const std::optional<Tensor>& teacher_row, const std::optional<Tensor>& class_weights, double teacher_scale,
       double temperature, int64_t ignore_index, const std::string& dice_samples) {
    p.logits = planes(logits), p.labels = planes(labels);
    p.batch = logits.size(0), p.num_classes = logits.size(1), p.height = logits.size(2), p.width = logits.size(3);
    if (teacher && teacher->size(0) > 0) p.teacher = planes(*teacher);
    if (teacher_row) read_rows(*teacher_row, p.teacher.first == nullptr ? 0 : teacher->size(0));
    check(!class_weights || class_weights->is_contiguous(), kOp, "class_weights must be contiguous");
    p.class_weights = data<Real>(class_weights);
    p.teacher_scale = static_cast<Real>(teacher_scale), p.inverse_temperature = static_cast<Real>(1 / temperature);
    p.ignore_index = ignore_index, p.has_dice = dice_samples != "none", p.has_soft_dice = dice_samples == "all";
  }

  void read_rows(const Tensor& teacher_row, int64_t num_rows) {
    const auto* given = data<int64_t>(teacher_row);
    for (int64_t b = 0; b < p.batch; ++b) rows.push_back(given[b * teacher_row.stride(0)]);
    for (const int64_t row : rows)
      check(row < num_rows || num_rows == 0, kOp, "teacher_row names a row that teacher does not have");
    p.teacher_row = rows.data();
  }

  bool is_real(int64_t sample) const { return p.teacher_row == nullptr || p.teacher_row[sample] < 0; }

  // Calls work(first, last, scratch) for all items, by several threads.
  template <typename Work>
  void for_items(const Work& work) const {
    constexpr int64_t kAlignment = 128;
    const int64_t bytes = DAKD_CALL(seg_loss_scratch, p.num_classes, sizeof(Real)) + kAlignment;
    torch::stable::parallel_for(0, p.batch * items_a_sample(p), 1, [&](int64_t first, int64_t last) {
      std::vector<unsigned char> scratch(bytes);
      const auto address = reinterpret_cast<uintptr_t>(scratch.data());
      work(first, last, scratch.data() + (kAlignment - address % kAlignment) % kAlignment);
    });
  }
};

// The sums of one sample's items, in their order: the same bits for any number of threads.
std::vector<double> total(const auto& p, int64_t sample) {
  const int64_t count = num_loss_sums(p.num_classes), items = items_a_sample(p);
  std::vector<double> sums(count);
  for (int64_t item = sample * items; item < (sample + 1) * items; ++item)
    for (int64_t i = 0; i < count; ++i) sums[i] += p.partials[item * count + i];
  return sums;
}

template <typename Real>
void forward(Call<Real>& call, bool is_generalized, double smooth, const Tensor& ce, const Tensor& kd,
             const Tensor& dice, const Tensor& num_invalid, const Tensor& coefficients) {
  SegLoss<Real>& p = call.p;
  const int64_t num_items = p.batch * items_a_sample(p), num_classes = p.num_classes;
  std::vector<Real> partials(num_items * num_loss_sums(num_classes));
  std::vector<int64_t> invalid(num_items);
  p.partials = partials.data(), p.num_invalid = invalid.data();
  call.for_items([&](int64_t first, int64_t last, unsigned char* scratch) {
    DAKD_CALL(seg_loss_forward, p, first, last, scratch);
  });
  int64_t count = 0;
  for (const int64_t here : invalid) count += here;
  *mutable_data<int64_t>(num_invalid) = count;
  std::vector<double> offset(num_classes), slope(num_classes);
  for (int64_t b = 0; b < p.batch; ++b) {
    const std::vector<double> sums = total(p, b);
    const double inverse_weight = sums[1] > 0 ? 1 / sums[1] : 0;
    double loss = 0;
    if (p.has_dice) loss = dice_loss(num_classes, &sums[2], smooth, is_generalized, offset.data(), slope.data());
    mutable_data<Real>(ce)[b] = call.is_real(b) ? sums[0] * inverse_weight : 0;
    mutable_data<Real>(kd)[b] = call.is_real(b) || !p.teacher.first ? 0 : sums[0] / (p.height * p.width);
    mutable_data<Real>(dice)[b] = loss;
    Real* row = mutable_data<Real>(coefficients) + b * (1 + 2 * num_classes);
    row[0] = inverse_weight;
    for (int64_t c = 0; c < num_classes; ++c) row[1 + c] = offset[c], row[1 + num_classes + c] = slope[c];
  }
}

template <typename Real>
void backward(Call<Real>& call, double temperature, const Tensor& dce, const Tensor& dkd, const Tensor& ddice,
              const Tensor& coefficients, const Tensor& dlogits) {
  SegLoss<Real>& p = call.p;
  p.dlogits = planes(dlogits);
  std::vector<Real> ce_scale(p.batch), kd_scale(p.batch), offset, slope;
  for (int64_t b = 0; b < p.batch; ++b) {
    const Real* row = data<Real>(coefficients) + b * (1 + 2 * p.num_classes);
    const auto upstream = [&](const Tensor& gradient) { return data<Real>(gradient)[b * gradient.stride(0)]; };
    ce_scale[b] = upstream(dce) * row[0];
    kd_scale[b] = upstream(dkd) / (p.height * p.width * temperature);
    for (int64_t c = 0; c < p.num_classes; ++c) {
      offset.push_back(upstream(ddice) * row[1 + c]);
      slope.push_back(upstream(ddice) * row[1 + p.num_classes + c]);
    }
  }
  p.ce_scale = ce_scale.data(), p.kd_scale = kd_scale.data(), p.offset = offset.data(), p.slope = slope.data();
  call.for_items([&](int64_t first, int64_t last, unsigned char* scratch) {
    DAKD_CALL(seg_loss_backward, p, first, last, scratch);
  });
}

// Calls function(Real{}) with the type that losses and coefficients have.
template <typename Function>
void with_real(const Tensor& coefficients, const Function& function) {
  check(coefficients.is_contiguous(), kOp, "coefficients must be contiguous");
  if (coefficients.scalar_type() == ScalarType::Double) return function(double{});
  check(coefficients.scalar_type() == ScalarType::Float, kOp, "coefficients must be float32 or float64");
  function(float{});
}

}  // namespace

void seg_loss_forward_cpu(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& teacher,
                          const std::optional<Tensor>& teacher_row, const std::optional<Tensor>& class_weights,
                          double teacher_scale, double temperature, int64_t ignore_index, std::string dice_samples,
                          bool is_generalized, double smooth, Tensor ce, Tensor kd, Tensor dice, Tensor num_invalid,
                          Tensor coefficients) {
  with_real(coefficients, [&](auto real) {
    Call<decltype(real)> call(logits, labels, teacher, teacher_row, class_weights, teacher_scale, temperature,
                              ignore_index, dice_samples);
    forward(call, is_generalized, smooth, ce, kd, dice, num_invalid, coefficients);
  });
}

void seg_loss_backward_cpu(const Tensor& dce, const Tensor& dkd, const Tensor& ddice, const Tensor& coefficients,
                           const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& teacher,
                           const std::optional<Tensor>& teacher_row, const std::optional<Tensor>& class_weights,
                           double teacher_scale, double temperature, int64_t ignore_index, std::string dice_samples,
                           Tensor dlogits) {
  with_real(coefficients, [&](auto real) {
    Call<decltype(real)> call(logits, labels, teacher, teacher_row, class_weights, teacher_scale, temperature,
                              ignore_index, dice_samples);
    backward(call, temperature, dce, dkd, ddice, coefficients, dlogits);
  });
}

}  // namespace dakd

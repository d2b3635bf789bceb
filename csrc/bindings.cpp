// Everything that the library exports, as torch.ops.dakd_C.*. An op fills outputs that its caller allocated.
#include "common/host.h"

namespace dakd {

// The hash of this file, by which the package sees that a library was built from another one.
std::string bindings() { return DAKD_BINDINGS; }

bool has_cuda() {
#ifdef DAKD_WITH_CUDA
  return true;
#else
  return false;
#endif
}

void elementary_cpu(std::string name, const Tensor& x, Tensor out);

void depthwise_conv1d_forward_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                  bool has_silu, Tensor y);
void depthwise_conv1d_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                   const std::optional<Tensor>& bias, bool has_silu, Tensor dx, Tensor sums);
void seg_loss_forward_cpu(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& teacher,
                          const std::optional<Tensor>& teacher_row, const std::optional<Tensor>& class_weights,
                          double teacher_scale, double temperature, int64_t ignore_index, std::string dice_samples,
                          bool is_generalized, double smooth, Tensor ce, Tensor kd, Tensor dice, Tensor num_invalid,
                          Tensor coefficients);
void seg_loss_backward_cpu(const Tensor& dce, const Tensor& dkd, const Tensor& ddice, const Tensor& coefficients,
                           const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& teacher,
                           const std::optional<Tensor>& teacher_row, const std::optional<Tensor>& class_weights,
                           double teacher_scale, double temperature, int64_t ignore_index, std::string dice_samples,
                           Tensor dlogits);
void seg_loss_forward_cuda(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& teacher,
                           const std::optional<Tensor>& teacher_row, const std::optional<Tensor>& class_weights,
                           double teacher_scale, double temperature, int64_t ignore_index, std::string dice_samples,
                           bool is_generalized, double smooth, Tensor ce, Tensor kd, Tensor dice, Tensor num_invalid,
                           Tensor coefficients, Tensor partials, Tensor arrivals);
void seg_loss_backward_cuda(const Tensor& dce, const Tensor& dkd, const Tensor& ddice, const Tensor& coefficients,
                            const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& teacher,
                            const std::optional<Tensor>& teacher_row, const std::optional<Tensor>& class_weights,
                            double teacher_scale, double temperature, int64_t ignore_index, std::string dice_samples,
                            Tensor dlogits);

void ddim_step_forward_cpu(const Tensor& x, const Tensor& y, const Tensor& x0_pred, const Tensor& logits,
                           const std::optional<Tensor>& x0_before, const std::optional<Tensor>& logits_before,
                           const Tensor& coefficients, const Tensor& step, const std::optional<Tensor>& noise_ids,
                           double b, double clip, bool is_softmax, int64_t seed, Tensor x_next, Tensor y_next,
                           const std::optional<Tensor>& x_input, const std::optional<Tensor>& y_input);

void joint_noising_forward_cpu(const Tensor& image, const std::optional<Tensor>& label, const Tensor& positions,
                               const Tensor& tables, double b, int64_t seed, const std::optional<Tensor>& t,
                               Tensor x_t, Tensor y_t, Tensor t_out);
void joint_noising_forward_cuda(const Tensor& image, const std::optional<Tensor>& label, const Tensor& positions,
                                const Tensor& tables, double b, int64_t seed, const std::optional<Tensor>& t,
                                Tensor x_t, Tensor y_t, Tensor t_out);

void selective_scan_forward_cpu(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                const Tensor& C, const std::optional<Tensor>& D,
                                const std::optional<Tensor>& delta_bias, bool has_softplus, Tensor y);
void selective_scan_backward_cpu(const Tensor& dy, const Tensor& u, const Tensor& delta, const Tensor& A,
                                 const Tensor& B, const Tensor& C, const std::optional<Tensor>& D,
                                 const std::optional<Tensor>& delta_bias, bool has_softplus, Tensor du, Tensor ddelta,
                                 Tensor dB, Tensor dC, Tensor step_sums, Tensor channel_sums, Tensor totals);

}  // namespace dakd

STABLE_TORCH_LIBRARY(dakd_C, m) {
  m.def("bindings() -> str");
  m.def("has_cuda() -> bool");
  m.def("isa() -> str");
  m.def("set_isa(str name) -> ()");
  m.def("elementary(str name, Tensor x, Tensor(a!) out) -> ()");
  m.def("depthwise_conv1d_forward(Tensor x, Tensor weight, Tensor? bias, bool has_silu, Tensor(a!) y) -> ()");
  m.def(
      "depthwise_conv1d_backward(Tensor dy, Tensor x, Tensor weight, Tensor? bias, bool has_silu, Tensor(a!) dx,"
      " Tensor(b!) sums) -> ()");
  m.def(
      "selective_scan_forward(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias,"
      " bool has_softplus, Tensor(a!) y) -> ()");
  m.def(
      "selective_scan_backward(Tensor dy, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D,"
      " Tensor? delta_bias, bool has_softplus, Tensor(a!) du, Tensor(b!) ddelta, Tensor(c!) dB, Tensor(d!) dC,"
      " Tensor(e!) step_sums, Tensor(f!) channel_sums, Tensor(g!) totals) -> ()");
  m.def(
      "ddim_step_forward(Tensor x, Tensor y, Tensor x0_pred, Tensor logits, Tensor? x0_before, Tensor? logits_before,"
      " Tensor coefficients, Tensor step,"
      " Tensor? noise_ids, float b, float clip, bool is_softmax, int seed, Tensor(a!) x_next, Tensor(b!) y_next,"
      " Tensor(c!)? x_input, Tensor(d!)? y_input) -> ()");
  m.def(
      "joint_noising_forward(Tensor image, Tensor? label, Tensor positions, Tensor tables, float b, int seed,"
      " Tensor? t, Tensor(a!) x_t, Tensor(b!) y_t, Tensor(c!) t_out) -> ()");
  m.def(
      "seg_loss_forward(Tensor logits, Tensor labels, Tensor? teacher, Tensor? teacher_row, Tensor? class_weights,"
      " float teacher_scale, float temperature, int ignore_index, str dice_samples, bool is_generalized, float smooth,"
      " Tensor(a!) ce, Tensor(b!) kd, Tensor(c!) dice, Tensor(d!) num_invalid, Tensor(e!) coefficients) -> ()");
  // The blocks of a GPU leave partial sums and count their arrivals.
  m.def(
      "seg_loss_forward_blocks(Tensor logits, Tensor labels, Tensor? teacher, Tensor? teacher_row,"
      " Tensor? class_weights, float teacher_scale, float temperature, int ignore_index, str dice_samples,"
      " bool is_generalized, float smooth, Tensor(a!) ce, Tensor(b!) kd, Tensor(c!) dice, Tensor(d!) num_invalid,"
      " Tensor(e!) coefficients, Tensor(f!) partials, Tensor(g!) arrivals) -> ()");
  m.def(
      "seg_loss_backward(Tensor dce, Tensor dkd, Tensor ddice, Tensor coefficients, Tensor logits, Tensor labels,"
      " Tensor? teacher, Tensor? teacher_row, Tensor? class_weights, float teacher_scale, float temperature,"
      " int ignore_index, str dice_samples, Tensor(a!) dlogits) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dakd_C, CompositeExplicitAutograd, m) {
  m.impl("bindings", TORCH_BOX(&dakd::bindings));
  m.impl("has_cuda", TORCH_BOX(&dakd::has_cuda));
  m.impl("isa", TORCH_BOX(&dakd::isa_name));
  m.impl("set_isa", TORCH_BOX(&dakd::set_isa));
}

STABLE_TORCH_LIBRARY_IMPL(dakd_C, CPU, m) {
  m.impl("elementary", TORCH_BOX(&dakd::elementary_cpu));
  m.impl("depthwise_conv1d_forward", TORCH_BOX(&dakd::depthwise_conv1d_forward_cpu));
  m.impl("depthwise_conv1d_backward", TORCH_BOX(&dakd::depthwise_conv1d_backward_cpu));
  m.impl("selective_scan_forward", TORCH_BOX(&dakd::selective_scan_forward_cpu));
  m.impl("selective_scan_backward", TORCH_BOX(&dakd::selective_scan_backward_cpu));
  m.impl("ddim_step_forward", TORCH_BOX(&dakd::ddim_step_forward_cpu));
  m.impl("joint_noising_forward", TORCH_BOX(&dakd::joint_noising_forward_cpu));
  m.impl("seg_loss_forward", TORCH_BOX(&dakd::seg_loss_forward_cpu));
  m.impl("seg_loss_backward", TORCH_BOX(&dakd::seg_loss_backward_cpu));
}

#ifdef DAKD_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(dakd_C, CUDA, m) {
  m.impl("joint_noising_forward", TORCH_BOX(&dakd::joint_noising_forward_cuda));
  m.impl("seg_loss_forward_blocks", TORCH_BOX(&dakd::seg_loss_forward_cuda));
  m.impl("seg_loss_backward", TORCH_BOX(&dakd::seg_loss_backward_cuda));
}
#endif

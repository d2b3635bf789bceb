#include "ddim_step.h"

#include <type_traits>
#include <vector>

#include "../common/host.h"
#include "../common/host_maps.h"

namespace dakd {
namespace {

constexpr const char* kOp = "ddim_step";

// The row of the table (S, 4) at `step`.
template <typename Number>
void read_row(const Tensor& table, int64_t step, float (&row)[4]) {
  const Number* first = data<Number>(table) + step * table.stride(0);
  for (int column = 0; column < 4; ++column) row[column] = static_cast<float>(first[column * table.stride(1)]);
}

// with_number, less double: the state is float.
template <typename Function>
void with_narrow_number(ScalarType type, const Function& function) {
  with_number(type, kOp, [&](auto number) {
    if constexpr (!std::is_same_v<decltype(number), double>) return function(number);
    check(false, kOp, "the networks' numbers must not be float64");
  });
}

}  // namespace

void ddim_step_forward_cpu(const Tensor& x, const Tensor& y, const Tensor& x0_pred, const Tensor& logits,
                           const std::optional<Tensor>& x0_before, const std::optional<Tensor>& logits_before,
                           const Tensor& coefficients, const Tensor& step, const std::optional<Tensor>& noise_ids,
                           double b, double clip, bool is_softmax, int64_t seed, Tensor x_next, Tensor y_next,
                           const std::optional<Tensor>& x_input, const std::optional<Tensor>& y_input) {
  bool has_one_dtype = x0_pred.scalar_type() == logits.scalar_type();
  for (const auto* before : {&x0_before, &logits_before})
    has_one_dtype = has_one_dtype && (!*before || (*before)->scalar_type() == logits.scalar_type());
  check(has_one_dtype, kOp, "all predictions must have one dtype");
  const int64_t now = *data<int64_t>(step);
  check(0 <= now && now < coefficients.size(0), kOp, "step is outside the table of coefficients");
  float row[4];
  if (coefficients.scalar_type() == ScalarType::Double) read_row<double>(coefficients, now, row);
  else read_row<float>(coefficients, now, row);
  bool flat = true;
  for (const Tensor* tensor : {&x, &y, &x0_pred, &logits, &std::as_const(x_next), &std::as_const(y_next)})
    flat = flat && is_flat(*tensor);
  if (x_input) flat = flat && is_flat(*x_input) && is_flat(*y_input);
  if (x0_before) flat = flat && is_flat(*x0_before) && is_flat(*logits_before);
  const int64_t batch = y.size(0), height = y.size(2), width = y.size(3);

  with_narrow_number(logits.scalar_type(), [&](auto prediction) {
    with_narrow_number(x_input ? x_input->scalar_type() : ScalarType::Float, [&](auto input) {
      using Prediction = decltype(prediction);
      using Input = decltype(input);
      DdimStep<Prediction, Input> p{};
      p.x = maps<const float>(x), p.y = maps<const float>(y);
      p.x0 = maps<const Prediction>(x0_pred), p.logits = maps<const Prediction>(logits);
      if (x0_before)
        p.x0_before = maps<const Prediction>(*x0_before), p.logits_before = maps<const Prediction>(*logits_before);
      p.x_next = maps<float>(x_next), p.y_next = maps<float>(y_next);
      if (x_input) p.x_input = maps<Input>(*x_input), p.y_input = maps<Input>(*y_input);
      p.runs = flat ? Runs{1, height * width} : Runs{height, width};
      p.num_classes = y.size(1), p.num_pixels = height * width;
      p.keep = row[0], p.take = row[1], p.take_before = row[2], p.sigma = row[3];
      p.b = static_cast<float>(b), p.clip = static_cast<float>(clip), p.is_softmax = is_softmax;
      p.seed = seed, p.step = now;
      p.streams = (x_next.numel() + y_next.numel()) * sizeof(float) >= kStreamingBytes;
      if (noise_ids) p.noise_ids = data<int64_t>(noise_ids), p.noise_ids_stride = noise_ids->stride(0);
      else if (is_fused(p)) p.runs.chunk_length = kFusedChunk;
      const int64_t items = height * width == 0 ? 0 : batch * p.runs.items_per_sample();
      torch::stable::parallel_for(0, items, 1, [&](int64_t first, int64_t last) {
        std::vector<float> scratch(ddim_step_scratch(p.num_classes));
        DAKD_CALL(ddim_step_forward, p, first, last, scratch.data());
      });
    });
  });
}

}  // namespace dakd

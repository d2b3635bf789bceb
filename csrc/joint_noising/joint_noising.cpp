#include "joint_noising.h"

#include <type_traits>
#include <vector>

#include "../common/host.h"
#include "../common/host_maps.h"
#include "../common/philox.h"

namespace dakd {
namespace {

constexpr const char* kOp = "joint_noising";

// a, s = tables[t] of every sample.
template <typename Number>
void read_rows(const Tensor& tables, const int64_t* t, int64_t batch, float* signal, float* noise) {
  for (int64_t sample = 0; sample < batch; ++sample) {
    check(0 <= t[sample] && t[sample] < tables.size(0), kOp, "t is outside the tables");
    const Number* row = data<Number>(tables) + t[sample] * tables.stride(0);
    signal[sample] = static_cast<float>(row[0]), noise[sample] = static_cast<float>(row[tables.stride(1)]);
  }
}

// (batch, height, width) class ids.
template <typename Id>
Maps<const Id> id_maps(const Tensor& label) {
  return {data<Id>(label), label.stride(0), 0, label.stride(1), label.stride(2)};
}

}  // namespace

void joint_noising_forward_cpu(const Tensor& image, const std::optional<Tensor>& label, const Tensor& positions,
                               const Tensor& tables, double b, int64_t seed, const std::optional<Tensor>& t,
                               Tensor x_t, Tensor y_t, Tensor t_out) {
  check(x_t.is_contiguous() && y_t.is_contiguous() && t_out.is_contiguous(), kOp, "outputs must be contiguous");
  const int64_t batch = image.size(0), height = image.size(2), width = image.size(3);
  std::vector<int64_t> position(batch);
  int64_t* steps = mutable_data<int64_t>(t_out);
  for (int64_t sample = 0; sample < batch; ++sample) {
    position[sample] = data<int64_t>(positions)[sample * positions.stride(0)];
    steps[sample] = t ? data<int64_t>(t)[sample * t->stride(0)] : draw_timestep(seed, position[sample], tables.size(0));
  }
  std::vector<float> signal(batch), noise(batch);
  if (tables.scalar_type() == ScalarType::Double) read_rows<double>(tables, steps, batch, signal.data(), noise.data());
  else read_rows<float>(tables, steps, batch, signal.data(), noise.data());
  const bool flat = is_flat(image) && (!label || label->stride(1) == width * label->stride(2));

  with_number(x_t.scalar_type(), kOp, [&](auto number) {
    using Output = decltype(number);
    if constexpr (std::is_same_v<Output, double>) {
      check(false, kOp, "outputs must not be float64");
    } else {
      JointNoising<Output> p{};
      p.image = maps<const uint8_t>(image);
      if (label) {
        if (label->scalar_type() == ScalarType::Byte) p.label_bytes = id_maps<uint8_t>(*label);
        else p.label_words = id_maps<int64_t>(*label);
        p.num_classes = y_t.size(1);
      }
      p.runs = flat ? Runs{1, height * width} : Runs{height, width};
      p.positions = position.data(), p.t = steps, p.signal = signal.data(), p.noise = noise.data();
      p.num_pixels = height * width, p.seed = seed, p.b = static_cast<float>(b);
      p.x_t = mutable_data<Output>(x_t), p.y_t = mutable_data<Output>(y_t);
      const int64_t items = p.num_pixels == 0 ? 0 : batch * p.runs.items_per_sample();
      torch::stable::parallel_for(0, items, 1, [&](int64_t first, int64_t last) {
        std::vector<float> scratch(joint_noising_scratch());
        DAKD_CALL(joint_noising_forward, p, first, last, scratch.data());
      });
    }
  });
}

}  // namespace dakd

#include "joint_noising.h"

#include "../common/vec_noise.h"

namespace dakd {
namespace DAKD_ISA {
namespace {

template <typename Output>
struct Noiser {
  const JointNoising<Output>& p;
  const Chunk chunk;
  float* const scratch;

  void run() const {
    image();
    if (p.num_classes > 0) label();
  }

  // out = clean + s eps.  clean(i): the clean numbers from the chunk's pixel i on, times a.
  template <typename Clean>
  DAKD_INLINE void diffuse(Output* out, int64_t channel, Stream stream, const Clean& clean) const {
    const NoiseKey key = noise_key(p.seed, p.t[chunk.sample], p.positions[chunk.sample], stream);
    const float* eps = fill_elements(key, channel * p.num_pixels + chunk.element, chunk.length, scratch);
    const int64_t length = chunk.length;
    const float s = p.noise[chunk.sample];
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes) store(out + i, clean(i) + s * load(eps + i));
    if (i < length) store(out + i, clean(i) + s * load(eps + i, length - i), length - i);
  }

  void image() const {
    float* clean = scratch + Runs::kChunk + 16;
    const float a = p.signal[chunk.sample];
    const uint8_t* grey = chunk.of(p.image);
    // 2 grey - 255 is exact, so that x_0 has one rounding.
    for (int64_t i = 0; i < chunk.length; ++i)
      clean[i] = a * (static_cast<float>(2 * grey[i * p.image.pixel_stride] - 255) * (1.0f / 255));
    diffuse(p.x_t + chunk.sample * p.num_pixels + chunk.element, 0, kImageNoise,
            [=](int64_t i) { return load(clean + i); });
  }

  // The class of each pixel; -1 for an id that is none.
  template <typename Id>
  void read_classes(const Maps<const Id>& maps, int32_t* classes) const {
    const Id* ids = chunk.of(maps);
    for (int64_t i = 0; i < chunk.length; ++i) {
      const int64_t id = ids[i * maps.pixel_stride];
      classes[i] = 0 <= id && id < p.num_classes ? static_cast<int32_t>(id) : -1;
    }
  }

  void label() const {
    int32_t classes[Runs::kChunk + 16];
    if (p.label_bytes.first != nullptr) read_classes(p.label_bytes, classes);
    else read_classes(p.label_words, classes);
    // aligns the label's corruption with the image's by their SNR (paper, Eq. 4)
    const float balanced = p.signal[chunk.sample] * p.b;
    for (int64_t k = 0; k < p.num_classes; ++k) {
      const int32_t* own = classes;
      diffuse(p.y_t + (chunk.sample * p.num_classes + k) * p.num_pixels + chunk.element, k, kLabelNoise,
              [=, wanted = static_cast<int32_t>(k)](int64_t i) {
                Ints found;
                std::memcpy(&found, own + i, sizeof found);
                const Floats absent = found < 0 ? Floats{} : Floats{} - balanced;
                return found == wanted ? Floats{} + balanced : absent;
              });
    }
  }
};

template <typename Output>
void run_items(const JointNoising<Output>& p, int64_t first, int64_t last, float* scratch) {
  for (int64_t item = first; item < last; ++item) Noiser<Output>{p, Chunk(p.runs, item), scratch}.run();
}

}  // namespace

#define DAKD_DEFINE_NOISING(Output)                                                                         \
  void joint_noising_forward(const JointNoising<Output>& p, int64_t first, int64_t last, float* scratch) { \
    run_items(p, first, last, scratch);                                                                     \
  }
DAKD_DEFINE_NOISING(float)
DAKD_DEFINE_NOISING(BFloat16)
DAKD_DEFINE_NOISING(Float16)
#undef DAKD_DEFINE_NOISING

}  // namespace DAKD_ISA
}  // namespace dakd

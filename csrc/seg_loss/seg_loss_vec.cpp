#include "../common/lanes.h"
#include "../common/numbers.h"
#include "../common/vec_math.h"
#include "dice_loss.h"
#include "seg_loss.h"
#include "seg_loss_math.h"

namespace dakd {
namespace DAKD_ISA {
namespace {

constexpr int kMaxFixed = 8;

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

inline float read(uint8_t x) { return static_cast<float>(x); }
using dakd::read;

inline Floats load_bytes(const uint8_t* from) {
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats);
}

template <typename Wide>
inline Wide load_labels(const uint8_t* from) {
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, Wide);
}
template <typename Wide>
inline Wide load_labels(const int64_t* from) {
  Wide labels;
  std::memcpy(&labels, from, sizeof labels);
  return labels;
}

// Adjacent numbers, as many as there are lanes, in those of Real.
template <typename V>
inline V load_as(const uint8_t* from) {
  return __builtin_convertvector(load_bytes(from), V);
}
template <typename V, typename Number>
inline V load_as(const Number* from) {
  return __builtin_convertvector(load(from), V);
}

// Pixels that are read, computed and written at a time: their rows stay in the first-level cache.
constexpr int64_t chunk_pixels(int64_t num_classes) { return num_classes <= kMaxFixed ? 256 : kLanes; }

struct Chunk {
  int64_t begin, count;
};

// By class, numbers of a chunk's pixels: in the tensor itself, or brought into scratch.
template <typename Real>
struct Rows {
  Real* first;
  int64_t class_stride;

  Real* at(int64_t c, int64_t i) const { return first + c * class_stride + i; }
};

// Some pixels of one sample. Count: Fixed<K>, or Any.
template <typename Real, typename Count>
struct Worker {
  using V = typename LanesOf<Real>::type;
  using Label = typename IndicesOf<V>::type;

  const SegLoss<Real>& p;
  Count count;
  int64_t sample, first, last;
  unsigned char* scratch;

  int64_t chunk_size() const { return chunk_pixels(count); }
  bool is_linear(const Planes& planes) const {
    return p.height <= 1 || planes.row_stride == p.width * planes.pixel_stride;
  }
  bool is_adjacent(const Planes& planes) const { return is_linear(planes) && planes.pixel_stride == 1; }
  int64_t element(const Planes& planes, int64_t pixel) const {
    if (is_linear(planes)) return pixel * (p.width == 1 ? planes.row_stride : planes.pixel_stride);
    return pixel / p.width * planes.row_stride + pixel % p.width * planes.pixel_stride;
  }

  // Scratch: rows of logits, teacher and gradient, then labels, two numbers a pixel, and numbers by class.
  Rows<Real> room(int which) const {
    return {reinterpret_cast<Real*>(scratch) + which * count * chunk_size(), chunk_size()};
  }
  int32_t* label_room() const { return reinterpret_cast<int32_t*>(room(3).first); }
  Real* pixel_room(int which) const {
    return reinterpret_cast<Real*>(label_room() + 2 * chunk_size()) + which * chunk_size();
  }
  V* class_room(int which) const { return reinterpret_cast<V*>(pixel_room(2)) + which * count; }

  template <typename Visit>
  void for_chunks(const Visit& visit) const {
    for (int64_t begin = first; begin < last; begin += chunk_size())
      visit(Chunk{begin, last - begin < chunk_size() ? last - begin : chunk_size()});
  }

  // Whether lanes can be taken from the tensor, or put there, as they are.
  bool is_direct(const Planes& planes, const Chunk& chunk) const {
    const Format own = sizeof(Real) == sizeof(float) ? Format::fp32 : Format::fp64;
    return planes.format == own && is_adjacent(planes) && chunk.count % kLanes == 0;
  }

  template <typename Number>
  void bring(const Rows<Real>& to, const Planes& planes, int64_t row, const Chunk& chunk, Real scale) const {
    const Number* from = static_cast<const Number*>(planes.first) + row * planes.sample_stride;
    int64_t i = 0;
    if (is_adjacent(planes))
      for (; i + kLanes <= chunk.count; i += kLanes)
        for (int c = 0; c < count; ++c)
          store(to.at(c, i), load_as<V>(from + c * planes.class_stride + chunk.begin + i) * scale);
    for (; i < chunk.count; ++i) {
      const Number* pixel = from + element(planes, chunk.begin + i);
      for (int c = 0; c < count; ++c) *to.at(c, i) = static_cast<Real>(read(pixel[c * planes.class_stride])) * scale;
    }
    // The lanes of the last vector that have no pixel must hold numbers.
    for (; i % kLanes != 0; ++i)
      for (int c = 0; c < count; ++c) *to.at(c, i) = 0;
  }

  Rows<const Real> rows(const Planes& planes, int64_t row, const Chunk& chunk, int which, Real scale) const {
    if (is_direct(planes, chunk))
      return {static_cast<const Real*>(planes.first) + row * planes.sample_stride + chunk.begin, planes.class_stride};
    const Rows<Real> to = room(which);
    switch (planes.format) {
      case Format::fp32: bring<float>(to, planes, row, chunk, scale); break;
      case Format::fp64: bring<double>(to, planes, row, chunk, scale); break;
      case Format::bf16: bring<BFloat16>(to, planes, row, chunk, scale); break;
      case Format::fp16: bring<Float16>(to, planes, row, chunk, scale); break;
      default: bring<uint8_t>(to, planes, row, chunk, scale);
    }
    return {to.first, to.class_stride};
  }
  Rows<const Real> logits(const Chunk& chunk) const { return rows(p.logits, sample, chunk, 0, 1); }
  Rows<const Real> teacher(const Chunk& chunk) const {
    return rows(p.teacher, p.teacher_row[sample], chunk, 1, p.teacher_scale);
  }

  Rows<Real> gradient(const Chunk& chunk) const {
    if (!is_direct(p.dlogits, chunk)) return room(2);
    Real* to = static_cast<Real*>(p.dlogits.first) + sample * p.dlogits.sample_stride + chunk.begin;
    return {to, p.dlogits.class_stride};
  }
  void put_gradient(const Chunk& chunk) const {
    if (is_direct(p.dlogits, chunk)) return;
    switch (p.dlogits.format) {
      case Format::fp32: return put<float>(chunk);
      case Format::fp64: return put<double>(chunk);
      case Format::bf16: return put<BFloat16>(chunk);
      default: return put<Float16>(chunk);
    }
  }
  template <typename Number>
  void put(const Chunk& chunk) const {
    using Narrow = typename ComputeOf<Number>::type;
    const Planes& planes = p.dlogits;
    const Rows<Real> from = room(2);
    Number* to = static_cast<Number*>(planes.first) + sample * planes.sample_stride;
    int64_t i = 0;
    if (is_adjacent(planes))
      for (; i + kLanes <= chunk.count; i += kLanes)
        for (int c = 0; c < count; ++c)
          store(to + c * planes.class_stride + chunk.begin + i,
                __builtin_convertvector(load(from.at(c, i)), Lanes<Number>));
    for (; i < chunk.count; ++i) {
      Number* pixel = to + element(planes, chunk.begin + i);
      for (int c = 0; c < count; ++c) write(pixel + c * planes.class_stride, static_cast<Narrow>(*from.at(c, i)));
    }
  }

  // The labels' classes, -1 where there is none, into their room; returns how many are neither a class nor ignored.
  int64_t bring_labels(const Chunk& chunk) const {
    if (p.labels.format == Format::int64) return classify<int64_t, Longs>(chunk, p.ignore_index);
    // What no byte can be ignores nothing.
    const bool is_byte = p.ignore_index >= 0 && p.ignore_index <= 255;
    return classify<uint8_t, Ints>(chunk, is_byte ? static_cast<int32_t>(p.ignore_index) : -1);
  }
  template <typename Number, typename Wide, typename Index>
  int64_t classify(const Chunk& chunk, Index ignore_index) const {
    const Number* from = static_cast<const Number*>(p.labels.first) + sample * p.labels.sample_stride;
    const Wide none = Wide{} - 1, ignored = Wide{} + ignore_index;
    const Index num_classes = count;
    Wide invalid = Wide{};
    for (int64_t i = 0; i < chunk.count; i += kLanes) {
      const int64_t left = chunk.count - i;
      Wide label;
      if (is_adjacent(p.labels) && left >= kLanes) {
        label = load_labels<Wide>(from + chunk.begin + i);
      } else {
        label = ignored;
        for (int j = 0; j < (left < kLanes ? left : kLanes); ++j)
          label[j] = from[element(p.labels, chunk.begin + i + j)];
      }
      const Wide is_class = (label >= 0) & (label < num_classes), is_given = label != ignored;
      const Ints found = __builtin_convertvector((is_class & is_given) != 0 ? label : none, Ints);
      std::memcpy(label_room() + i, &found, sizeof found);
      invalid -= ~is_class & is_given;
    }
    int64_t num_invalid = 0;
    for (int j = 0; j < kLanes; ++j) num_invalid += invalid[j];
    return num_invalid;
  }
  Label labels(int64_t i) const {
    Ints lanes;
    std::memcpy(&lanes, label_room() + i, sizeof lanes);
    return __builtin_convertvector(lanes, Label);
  }
  static Label inside(int64_t left) {
    static constexpr int32_t kNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Ints lanes;
    std::memcpy(&lanes, kNumbers, sizeof lanes);
    return __builtin_convertvector(lanes, Label) < static_cast<int>(left);
  }
};

// Numbers by class: registers where the number of classes is known, else scratch.
template <typename V, typename Count>
struct Numbers {
  V* at;
  Numbers(V* there, Count) : at(there) {}
};
template <typename V, int K>
struct Numbers<V, Fixed<K>> {
  V at[K];
  Numbers(V*, Fixed<K>) {}
};

template <typename V, typename Real, typename Count>
DAKD_HD void load_classes(Count count, V* to, const Rows<const Real>& rows, int64_t i) {
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) to[c] = load(rows.at(c, i));
}
template <typename V, typename Real, typename Count>
DAKD_HD void store_classes(Count count, const Rows<Real>& rows, const V* from, int64_t i) {
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) store(rows.at(c, i), from[c]);
}

template <typename Real, typename Count>
void forward_item(const Worker<Real, Count>& w, Real* partials, int64_t& num_invalid) {
  using V = typename Worker<Real, Count>::V;
  const auto& p = w.p;
  const Count count = w.count;
  using Room = Numbers<V, Count>;
  Room s(w.class_room(0), count), z(w.class_room(1), count), q(w.class_room(2), count), x(w.class_room(3), count);
  Room t(w.class_room(4), count), y(w.class_room(5), count);
  Room overlap(w.class_room(6), count), predicted(w.class_room(7), count), actual(w.class_room(8), count);
  V main = V{}, weight = V{};
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) overlap.at[c] = predicted.at[c] = actual.at[c] = V{};
  num_invalid = 0;
  const Sums<V> sums{main, weight, overlap.at, predicted.at, actual.at};
  if (p.teacher_row == nullptr || p.teacher_row[w.sample] < 0) {
    w.for_chunks([&](const Chunk& chunk) {
      num_invalid += w.bring_labels(chunk);
      if (p.has_dice)
        for (int64_t i = 0; i < chunk.count; i += kLanes) count_label(count, w.labels(i), actual.at);
      const auto rows = w.logits(chunk);
      for (int64_t i = 0; i < chunk.count; i += kLanes) {
        load_classes(count, s.at, rows, i);
        V picked;
        store(w.pixel_room(0) + i, add_labelled(count, s.at, w.labels(i), p.has_dice, q.at, x.at, sums, picked));
        store(w.pixel_room(1) + i, picked);
      }
      for (int64_t i = 0; i < chunk.count; i += kLanes)
        add_nll(count, load(w.pixel_room(0) + i), load(w.pixel_room(1) + i), w.labels(i), p.class_weights, sums);
    });
  } else if (p.teacher.first != nullptr) {
    w.for_chunks([&](const Chunk& chunk) {
      const auto rows = w.logits(chunk), teacher_rows = w.teacher(chunk);
      for (int64_t i = 0; i < chunk.count; i += kLanes) {
        load_classes(count, s.at, rows, i);
        load_classes(count, z.at, teacher_rows, i);
        V mean;
        store(w.pixel_room(0) + i, add_distilled(count, s.at, z.at, w.inside(chunk.count - i), p.inverse_temperature,
                                                 p.has_soft_dice, q.at, x.at, t.at, y.at, sums, mean));
        store(w.pixel_room(1) + i, mean);
      }
      for (int64_t i = 0; i < chunk.count; i += kLanes)
        add_cross_entropy(load(w.pixel_room(0) + i), load(w.pixel_room(1) + i), w.inside(chunk.count - i), sums);
    });
  }
  partials[0] = sum(main);
  partials[1] = sum(weight);
  for (int c = 0; c < count; ++c) {
    partials[2 + c] = sum(overlap.at[c]);
    partials[2 + count + c] = sum(predicted.at[c]);
    partials[2 + 2 * count + c] = sum(actual.at[c]);
  }
}

template <typename Real, typename Count>
void backward_item(const Worker<Real, Count>& w) {
  using V = typename Worker<Real, Count>::V;
  const auto& p = w.p;
  const Count count = w.count;
  using Room = Numbers<V, Count>;
  Room s(w.class_room(0), count), z(w.class_room(1), count), q(w.class_room(2), count), x(w.class_room(3), count);
  Room t(w.class_room(4), count), y(w.class_room(5), count), ds(w.class_room(6), count);
  const Real *offset = p.offset + w.sample * count, *slope = p.slope + w.sample * count;
  const bool is_real = p.teacher_row == nullptr || p.teacher_row[w.sample] < 0;
  w.for_chunks([&](const Chunk& chunk) {
    const auto gradient_rows = w.gradient(chunk);
    if (is_real) {
      w.bring_labels(chunk);
      const auto rows = w.logits(chunk);
      for (int64_t i = 0; i < chunk.count; i += kLanes) {
        load_classes(count, s.at, rows, i);
        labelled_gradient(count, s.at, w.labels(i), p.class_weights, p.ce_scale[w.sample], offset, slope, p.has_dice,
                          q.at, x.at, ds.at);
        store_classes(count, gradient_rows, ds.at, i);
      }
    } else if (p.teacher.first != nullptr) {
      const auto rows = w.logits(chunk), teacher_rows = w.teacher(chunk);
      for (int64_t i = 0; i < chunk.count; i += kLanes) {
        load_classes(count, s.at, rows, i);
        load_classes(count, z.at, teacher_rows, i);
        distilled_gradient(count, s.at, z.at, p.inverse_temperature, p.kd_scale[w.sample], offset, slope,
                           p.has_soft_dice, q.at, x.at, t.at, y.at, ds.at);
        store_classes(count, gradient_rows, ds.at, i);
      }
    } else {
      for (int64_t i = 0; i < chunk.count; i += kLanes)
        for (int c = 0; c < count; ++c) store(gradient_rows.at(c, i), V{});
    }
    w.put_gradient(chunk);
  });
}

// Calls work(Count) with the number of classes.
template <typename Real, typename Work>
void with_count(int64_t num_classes, const Work& work) {
  // Double serves tests: one general version will do.
  if constexpr (sizeof(Real) == sizeof(float)) {
    switch (num_classes) {
      case 2: return work(Fixed<2>{});
      case 3: return work(Fixed<3>{});
      case 4: return work(Fixed<4>{});
      case 5: return work(Fixed<5>{});
      case 6: return work(Fixed<6>{});
      case 7: return work(Fixed<7>{});
      case 8: return work(Fixed<8>{});
    }
  }
  work(Any{static_cast<int>(num_classes)});
}

template <typename Real, typename Count>
Worker<Real, Count> worker(const SegLoss<Real>& p, Count count, int64_t item, unsigned char* scratch) {
  const int64_t items = items_a_sample(p), pixels = p.height * p.width, first = item % items * kLossPixels;
  return {p, count, item / items, first, first + kLossPixels < pixels ? first + kLossPixels : pixels, scratch};
}

template <typename Real>
void forward(const SegLoss<Real>& p, int64_t first, int64_t last, unsigned char* scratch) {
  with_count<Real>(p.num_classes, [&](auto count) {
    for (int64_t item = first; item < last; ++item)
      forward_item(worker(p, count, item, scratch), p.partials + item * num_loss_sums(count), p.num_invalid[item]);
  });
}

template <typename Real>
void backward(const SegLoss<Real>& p, int64_t first, int64_t last, unsigned char* scratch) {
  with_count<Real>(p.num_classes, [&](auto count) {
    for (int64_t item = first; item < last; ++item) backward_item(worker(p, count, item, scratch));
  });
}

}  // namespace

int64_t seg_loss_scratch(int64_t num_classes, int64_t real_bytes) {
  const int64_t chunk = chunk_pixels(num_classes);
  return (3 * num_classes + 2) * chunk * real_bytes + 2 * chunk * 4 + 9 * num_classes * kLanes * real_bytes;
}

#define DAKD_DEFINE_SEG_LOSS(Real)                                                                            \
  void seg_loss_forward(const SegLoss<Real>& p, int64_t first, int64_t last, unsigned char* scratch) {       \
    forward(p, first, last, scratch);                                                                        \
  }                                                                                                          \
  void seg_loss_backward(const SegLoss<Real>& p, int64_t first, int64_t last, unsigned char* scratch) {      \
    backward(p, first, last, scratch);                                                                       \
  }
DAKD_DEFINE_SEG_LOSS(float)
DAKD_DEFINE_SEG_LOSS(double)

}  // namespace DAKD_ISA
}  // namespace dakd

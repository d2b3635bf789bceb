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

// A register's worth of labels that are bytes, and as many of them as there are lanes.
constexpr int kBytes = 4 * kLanes;
typedef uint8_t ManyBytes __attribute__((vector_size(kBytes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef int8_t SignedBytes __attribute__((vector_size(kLanes)));

// A pixel's class while it waits in scratch, -1 for none.
template <typename Count>
struct ClassOf {
  using type = int8_t;
};
template <>
struct ClassOf<Any> {
  using type = int32_t;
};

inline float read(uint8_t x) { return static_cast<float>(x); }
using dakd::read;

template <typename Block, typename Number>
DAKD_INLINE Block load_block(const Number* from) {
  Block block;
  std::memcpy(&block, from, sizeof block);
  return block;
}

// GCC would widen byte by byte.
DAKD_INLINE Floats load_bytes(const uint8_t* from) {
#if defined(__AVX512F__)
  const Ints wide = copy_bits<Ints>(_mm512_cvtepu8_epi32(load_block<__m128i>(from)));
#elif defined(__AVX2__)
  const Ints wide = copy_bits<Ints>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(load_block<int64_t>(from))));
#else
  const Ints wide = __builtin_convertvector(load_block<Bytes>(from), Ints);
#endif
  return __builtin_convertvector(wide, Floats);
}
DAKD_INLINE Ints load_classes(const int8_t* from) {
#if defined(__AVX512F__)
  return copy_bits<Ints>(_mm512_cvtepi8_epi32(load_block<__m128i>(from)));
#elif defined(__AVX2__)
  return copy_bits<Ints>(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(load_block<int64_t>(from))));
#else
  return __builtin_convertvector(load_block<SignedBytes>(from), Ints);
#endif
}
DAKD_INLINE Ints load_classes(const int32_t* from) { return load_block<Ints>(from); }

// The sum of all bytes.
inline int64_t sum_bytes(const ManyBytes& bytes) {
  const UInts words = copy_bits<UInts>(bytes);
  return sum((words & 0xFFu) + ((words >> 8) & 0xFFu) + ((words >> 16) & 0xFFu) + (words >> 24));
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
  using Class = typename ClassOf<Count>::type;

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

  // Scratch: rows of logits, teacher and gradient, then classes, two numbers a pixel, and numbers by class.
  Rows<Real> room(int which) const {
    return {reinterpret_cast<Real*>(scratch) + which * count * chunk_size(), chunk_size()};
  }
  Class* class_of_pixel() const { return reinterpret_cast<Class*>(room(3).first); }
  Real* pixel_room(int which) const {
    return reinterpret_cast<Real*>(reinterpret_cast<int32_t*>(room(3).first) + 2 * chunk_size()) +
           which * chunk_size();
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
    const int64_t whole = is_adjacent(planes) ? chunk.count / kLanes * kLanes : 0;
    for (int c = 0; c < count; ++c) {
      const Number* row = from + c * planes.class_stride + chunk.begin;
      Real* out = to.at(c, 0);
      if (scale == 1)
#pragma GCC unroll 4
        for (int64_t i = 0; i < whole; i += kLanes) store(out + i, load_as<V>(row + i));
      else
        for (int64_t i = 0; i < whole; i += kLanes) store(out + i, load_as<V>(row + i) * scale);
    }
    int64_t i = whole;
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
  // Calls work(rows) with the teacher's: halves that adjoin are read as they are.
  template <typename Work>
  void with_teacher(const Chunk& chunk, const Work& work) const {
    const int64_t row = p.teacher_row[sample];
    if constexpr (sizeof(Real) == sizeof(float) && sizeof(Class) == 1)
      if (p.teacher.format == Format::fp16 && is_adjacent(p.teacher) && chunk.count % kLanes == 0)
        return work(Rows<const Float16>{
            static_cast<const Float16*>(p.teacher.first) + row * p.teacher.sample_stride + chunk.begin,
            p.teacher.class_stride});
    work(rows(p.teacher, row, chunk, 1, p.teacher_scale));
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
    const int64_t whole = is_adjacent(planes) ? chunk.count / kLanes * kLanes : 0;
    for (int c = 0; c < count; ++c) {
      Number* row = to + c * planes.class_stride + chunk.begin;
      for (int64_t i = 0; i < whole; i += kLanes)
        store(row + i, __builtin_convertvector(load(from.at(c, i)), Lanes<Number>));
    }
    int64_t i = whole;
    for (; i < chunk.count; ++i) {
      Number* pixel = to + element(planes, chunk.begin + i);
      for (int c = 0; c < count; ++c) write(pixel + c * planes.class_stride, static_cast<Narrow>(*from.at(c, i)));
    }
  }

  // The labels' classes, -1 where there is none, into their room; returns how many are neither a class nor ignored.
  int64_t bring_labels(const Chunk& chunk) const {
    for (int64_t i = chunk.count; i % kLanes != 0; ++i) class_of_pixel()[i] = -1;
    if (p.labels.format == Format::int64) return classify<int64_t>(chunk);
    if constexpr (sizeof(Class) == 1)
      if (is_adjacent(p.labels) && chunk.count % kBytes == 0) return classify_bytes(chunk);
    return classify<uint8_t>(chunk);
  }
  template <typename Number>
  int64_t classify(const Chunk& chunk) const {
    const Number* from = static_cast<const Number*>(p.labels.first) + sample * p.labels.sample_stride;
    int64_t num_invalid = 0;
    const auto classify = [&](const auto& place) {
      for (int64_t i = 0; i < chunk.count; ++i) {
        const int64_t label = from[place(chunk.begin + i)];
        const bool is_class = label >= 0 && label < count, is_given = label != p.ignore_index;
        class_of_pixel()[i] = is_class && is_given ? static_cast<Class>(label) : -1;
        num_invalid += !is_class && is_given;
      }
    };
    if (is_adjacent(p.labels)) classify([](int64_t pixel) { return pixel; });
    else classify([&](int64_t pixel) { return element(p.labels, pixel); });
    return num_invalid;
  }
  int64_t classify_bytes(const Chunk& chunk) const {
    const uint8_t* from = static_cast<const uint8_t*>(p.labels.first) + sample * p.labels.sample_stride + chunk.begin;
    // What no byte can be ignores nothing.
    const bool ignores = p.ignore_index >= 0 && p.ignore_index <= 255;
    const ManyBytes ignored = ManyBytes{} + static_cast<uint8_t>(p.ignore_index), none = ManyBytes{} - 1;
    const ManyBytes num_classes = ManyBytes{} + static_cast<uint8_t>(count);
    ManyBytes invalid = {};
    for (int64_t i = 0; i < chunk.count; i += kBytes) {
      const ManyBytes label = load_block<ManyBytes>(from + i);
      const ManyBytes given = ignores ? copy_bits<ManyBytes>(label != ignored) : none;
      const ManyBytes known = copy_bits<ManyBytes>(label < num_classes);
      const ManyBytes found = label | ~(known & given);
      std::memcpy(class_of_pixel() + i, &found, sizeof found);
      invalid -= ~known & given;
    }
    return sum_bytes(invalid);
  }
  Label labels(int64_t i) const { return __builtin_convertvector(load_classes(class_of_pixel() + i), Label); }
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

// Constants by class: copied where their number is known, so that no store to memory can seem to change them.
template <typename Real, typename Count>
struct Constants {
  const Real* at;
  Constants(const Real* from, Count) : at(from) {}
};
template <typename Real, int K>
struct Constants<Real, Fixed<K>> {
  Real at[K];
  Constants(const Real* from, Fixed<K>) { std::memcpy(at, from, sizeof at); }
};

template <typename V, typename Number, typename Count>
DAKD_HD void load_classes(Count count, V* to, const Rows<const Number>& rows, int64_t i) {
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) to[c] = load(rows.at(c, i));
}
template <typename V, typename Real, typename Count>
DAKD_HD void store_classes(Count count, const Rows<Real>& rows, const V* from, int64_t i) {
  DAKD_UNROLL
  for (int c = 0; c < count; ++c) store(rows.at(c, i), from[c]);
}

// Adds log total - ln 2 x of a chunk's pixels that count, where total lies in pixel_room(0) and x in pixel_room(1). One
// logarithm is taken of the product of many totals, each of which is at most the number of classes.
template <typename Real, typename Count, typename Counts, typename V>
DAKD_HD void add_logarithms(const Worker<Real, Count>& w, const Chunk& chunk, const Counts& counts, V& main) {
  // kMaxFixed^32 is far from overflow, and a chunk of more classes is one block of lanes.
  constexpr int64_t kFactors = 32 * kLanes;
  static_assert(kMaxFixed <= 8);
  for (int64_t begin = 0; begin < chunk.count; begin += kFactors) {
    V product = V{} + 1, exponents = V{};
    for (int64_t i = begin; i < begin + kFactors && i < chunk.count; i += kLanes) {
      const auto is_counted = counts(i);
      const V total = load(w.pixel_room(0) + i), x = load(w.pixel_room(1) + i);
      product = is_counted ? product * total : product;
      exponents = is_counted ? exponents + x : exponents;
    }
    main += log_above(product) - exponents * static_cast<Real>(kLn2);
  }
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
      const auto rows = w.logits(chunk);
      for (int64_t i = 0; i < chunk.count; i += kLanes) {
        load_classes(count, s.at, rows, i);
        const auto label = w.labels(i);
        V picked;
        store(w.pixel_room(0) + i, add_labelled(count, s.at, label, p.has_dice, q.at, x.at, sums, picked));
        store(w.pixel_room(1) + i, picked);
        if (p.has_dice) count_label(count, label, actual.at);
      }
      if (p.class_weights == nullptr) {
        add_logarithms(w, chunk, [&](int64_t i) { return w.labels(i) >= 0; }, main);
        for (int64_t i = 0; i < chunk.count; i += kLanes) weight += w.labels(i) >= 0 ? V{} + 1 : V{};
        return;
      }
      for (int64_t i = 0; i < chunk.count; i += kLanes)
        add_nll(count, load(w.pixel_room(0) + i), load(w.pixel_room(1) + i), w.labels(i), p.class_weights, sums);
    });
  } else if (p.teacher.first != nullptr) {
    w.for_chunks([&](const Chunk& chunk) {
      const auto rows = w.logits(chunk);
      w.with_teacher(chunk, [&](const auto& teacher_rows) {
        for (int64_t i = 0; i < chunk.count; i += kLanes) {
          load_classes(count, s.at, rows, i);
          load_classes(count, z.at, teacher_rows, i);
          V mean;
          const auto inside = w.inside(chunk.count - i);
          store(w.pixel_room(0) + i, add_distilled(count, s.at, z.at, inside, p.inverse_temperature, p.has_soft_dice,
                                                   q.at, x.at, t.at, y.at, sums, mean));
          store(w.pixel_room(1) + i, mean);
        }
      });
      add_logarithms(w, chunk, [&](int64_t i) { return w.inside(chunk.count - i) != 0; }, main);
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
  const Constants<Real, Count> offset(p.offset + w.sample * count, count), slope(p.slope + w.sample * count, count);
  const Real ce_scale = p.ce_scale[w.sample], kd_scale = p.kd_scale[w.sample];
  const Real inverse_temperature = p.inverse_temperature;
  const bool has_dice = p.has_dice, has_soft_dice = p.has_soft_dice;
  const Real* class_weights = p.class_weights;
  const bool is_real = p.teacher_row == nullptr || p.teacher_row[w.sample] < 0;
  w.for_chunks([&](const Chunk& chunk) {
    const auto gradient_rows = w.gradient(chunk);
    if (is_real) {
      w.bring_labels(chunk);
      const auto rows = w.logits(chunk);
      for (int64_t i = 0; i < chunk.count; i += kLanes) {
        load_classes(count, s.at, rows, i);
        labelled_gradient(count, s.at, w.labels(i), class_weights, ce_scale, offset.at, slope.at, has_dice, q.at, x.at,
                          ds.at);
        store_classes(count, gradient_rows, ds.at, i);
      }
    } else if (p.teacher.first != nullptr) {
      const auto rows = w.logits(chunk);
      w.with_teacher(chunk, [&](const auto& teacher_rows) {
        for (int64_t i = 0; i < chunk.count; i += kLanes) {
          load_classes(count, s.at, rows, i);
          load_classes(count, z.at, teacher_rows, i);
          distilled_gradient(count, s.at, z.at, inverse_temperature, kd_scale, offset.at, slope.at, has_soft_dice,
                             q.at, x.at, t.at, y.at, ds.at);
          store_classes(count, gradient_rows, ds.at, i);
        }
      });
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

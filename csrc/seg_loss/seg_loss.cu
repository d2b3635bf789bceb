// The student's losses on CUDA: one kernel forward, one backward. The arithmetic of a pixel is that of the CPU
// (seg_loss_math.h); here stand the traffic with memory and the sums over threads and blocks.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <climits>
#include <type_traits>

#include "../common/cuda.h"
#include "dice_loss.h"
#include "seg_loss.h"
#include "seg_loss_math.h"

namespace dakd {
namespace {

constexpr const char* kOp = "seg_loss";
constexpr int kThreads = 128, kWarps = kThreads / 32;

// Blocks a multiprocessor that the compiler is to make room for. By itself (0) it spills for the sake of more where a
// thread's numbers are few. Where they are many, four of the backward kernel fit only on Hopper and before.
constexpr int kForwardBlocks = 3;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kBackwardBlocksOfMany = 0;
#else
constexpr int kBackwardBlocksOfMany = 4;
#endif
constexpr int backward_blocks(int num_classes, int num_pixels) {
  return num_classes * num_pixels >= 40 ? kBackwardBlocksOfMany : 3;
}

// How a thread finds the numbers of its adjacent pixels: side by side in each class (planar), or the classes side by
// side in each pixel (packed, channels_last), both from a multiple of 16 bytes on; or one by one.
enum class Layout { planar, packed, scattered };

struct View {
  Planes planes;
  Layout layout;
};

struct Arguments {
  View logits, labels, teacher, dlogits;
  const int64_t* teacher_row;
  const float* class_weights;
  float teacher_scale, inverse_temperature, smooth;
  int64_t ignore_index;
  bool has_dice, is_generalized;
  unsigned blocks_per_sample;
  int64_t num_teacher_rows, num_pixels, height, width;
  float *ce, *kd, *dice, *coefficients, *partials;
  int64_t* num_invalid;
  unsigned long long* arrivals;
  const float *dce, *dkd, *ddice;
  int64_t dce_stride, dkd_stride, ddice_stride;
};

__device__ __forceinline__ float as_float(float x) { return x; }
__device__ __forceinline__ float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float as_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float as_float(uint8_t x) { return static_cast<float>(x); }
template <typename Number>
__device__ __forceinline__ Number rounded(float x);
template <>
__device__ __forceinline__ float rounded<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 rounded<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half rounded<__half>(float x) {
  return __float2half_rn(x);
}

// N numbers, moved as many bytes at a time as their alignment (a multiple of their size, at most 16) allows. Words and
// numbers are copied into each other: through a union of both, nvcc 13.0 stored most of a packet byte by byte, and some
// bytes of two-byte numbers wrongly.
template <typename Number, int N>
struct Packet {
  static constexpr int kBytes = N * sizeof(Number), kMove = kBytes % 16 == 0 ? 16 : kBytes % 8 == 0 ? 8 : 4;
  static constexpr int kNumbers = kMove / sizeof(Number);
  struct alignas(kMove) Move {
    uint32_t words[kMove / 4];
  };
  Number numbers[N];

  __device__ __forceinline__ void read(const Number* from) {
#pragma unroll
    for (int i = 0; i < N / kNumbers; ++i) {
      const Move move = reinterpret_cast<const Move*>(from)[i];
      memcpy(numbers + i * kNumbers, &move, kMove);
    }
  }
  __device__ __forceinline__ void write(Number* to) const {
#pragma unroll
    for (int i = 0; i < N / kNumbers; ++i) {
      Move move;
      memcpy(&move, numbers + i * kNumbers, kMove);
      reinterpret_cast<Move*>(to)[i] = move;
    }
  }
};

// The pixels of one thread: `count` of kPixels, from `pixel` on.
template <int kPixels>
struct Range {
  int64_t pixel;
  int count;

  __device__ Range(int64_t block, int64_t num_pixels) : pixel((block * kThreads + threadIdx.x) * kPixels) {
    const int64_t left = num_pixels - pixel;
    count = left < 0 ? 0 : left < kPixels ? static_cast<int>(left) : kPixels;
  }
};

// The elements of a few adjacent pixels, one after another: a division is slow, and long code if it stands there for
// each pixel.
struct Elements {
  int64_t element, pixel_stride, row_jump;
  int left, width;

  __device__ __forceinline__ Elements(const Planes& planes, int64_t pixel, int64_t row_width)
      : pixel_stride(planes.pixel_stride), row_jump(planes.row_stride - row_width * planes.pixel_stride) {
    const int64_t row = pixel / row_width, column = pixel - row * row_width;
    element = row * planes.row_stride + column * planes.pixel_stride;
    // A row longer than an int can count does not end within a few pixels more than once.
    const auto bounded = [](int64_t count) { return count < INT_MAX ? static_cast<int>(count) : INT_MAX; };
    left = bounded(row_width - column), width = bounded(row_width);
  }
  __device__ __forceinline__ int64_t next() {
    const int64_t current = element;
    element += pixel_stride;
    if (--left == 0) left = width, element += row_jump;
    return current;
  }
};

template <typename Number, int K, int kPixels>
__device__ __forceinline__ void read_as(const View& view, int64_t row, const Range<kPixels>& range, int64_t width,
                                        float (&s)[K][kPixels]) {
  const Planes& planes = view.planes;
  const Number* from = static_cast<const Number*>(planes.first) + row * planes.sample_stride;
  if (view.layout == Layout::planar && range.count == kPixels) {
    Packet<Number, kPixels> packets[K];
#pragma unroll
    for (int c = 0; c < K; ++c) packets[c].read(from + c * planes.class_stride + range.pixel);
#pragma unroll
    for (int c = 0; c < K; ++c)
#pragma unroll
      for (int i = 0; i < kPixels; ++i) s[c][i] = as_float(packets[c].numbers[i]);
  } else if (view.layout == Layout::packed && range.count == kPixels) {
    Packet<Number, K * kPixels> packet;
    packet.read(from + range.pixel * K);
#pragma unroll
    for (int c = 0; c < K; ++c)
#pragma unroll
      for (int i = 0; i < kPixels; ++i) s[c][i] = as_float(packet.numbers[i * K + c]);
  } else {
    // Four pixels at a time, for which the others move up: all at once, their addresses would take too many registers.
    constexpr int kGroup = 4, kFirst = kPixels - kGroup;
    Elements elements(planes, range.pixel, width);
#pragma unroll
    for (int c = 0; c < K; ++c)
#pragma unroll
      for (int i = 0; i < kPixels; ++i) s[c][i] = 0;
#pragma unroll 1
    for (int first = 0; first < kPixels; first += kGroup) {
#pragma unroll
      for (int c = 0; c < K; ++c)
#pragma unroll
        for (int i = 0; i < kFirst; ++i) s[c][i] = s[c][i + kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const Number* at = from + elements.next();
#pragma unroll
        for (int c = 0; c < K; ++c, at += planes.class_stride)
          s[c][kFirst + i] = first + i < range.count ? as_float(*at) : 0;
      }
    }
  }
}

template <int K, int kPixels>
__device__ __forceinline__ void read_logits(const Arguments& p, int64_t sample, const Range<kPixels>& range,
                                            float (&s)[K][kPixels]) {
  switch (p.logits.planes.format) {
    case Format::fp32: return read_as<float>(p.logits, sample, range, p.width, s);
    case Format::bf16: return read_as<__nv_bfloat16>(p.logits, sample, range, p.width, s);
    default: return read_as<__half>(p.logits, sample, range, p.width, s);
  }
}

template <int K, int kPixels>
__device__ __forceinline__ void read_teacher(const Arguments& p, int64_t row, const Range<kPixels>& range,
                                             float (&z)[K][kPixels]) {
  switch (p.teacher.planes.format) {
    case Format::fp32: read_as<float>(p.teacher, row, range, p.width, z); break;
    case Format::bf16: read_as<__nv_bfloat16>(p.teacher, row, range, p.width, z); break;
    case Format::fp16: read_as<__half>(p.teacher, row, range, p.width, z); break;
    default: read_as<uint8_t>(p.teacher, row, range, p.width, z);
  }
#pragma unroll
  for (int c = 0; c < K; ++c)
#pragma unroll
    for (int i = 0; i < kPixels; ++i) z[c][i] *= p.teacher_scale;
}

// The labels' classes, -1 where there is none; returns how many are neither a class nor ignored.
template <typename Number, int K, int kPixels>
__device__ __forceinline__ int read_labels_as(const Arguments& p, int64_t sample, const Range<kPixels>& range,
                                              int (&label)[kPixels]) {
  const Planes& planes = p.labels.planes;
  const Number* from = static_cast<const Number*>(planes.first) + sample * planes.sample_stride;
  Packet<Number, kPixels> packet;
  if (p.labels.layout == Layout::planar && range.count == kPixels) {
    packet.read(from + range.pixel);
  } else {
    Elements elements(planes, range.pixel, p.width);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const Number* at = from + elements.next();
      packet.numbers[i] = i < range.count ? *at : Number(0);
    }
  }
  int num_invalid = 0;
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const int64_t found = packet.numbers[i];
    const bool is_class = found >= 0 && found < K, is_given = found != p.ignore_index && i < range.count;
    label[i] = is_class && is_given ? static_cast<int>(found) : -1;
    num_invalid += !is_class && is_given;
  }
  return num_invalid;
}
template <int K, int kPixels>
__device__ __forceinline__ int read_labels(const Arguments& p, int64_t sample, const Range<kPixels>& range,
                                           int (&label)[kPixels]) {
  return p.labels.planes.format == Format::uint8 ? read_labels_as<uint8_t, K>(p, sample, range, label)
                                                 : read_labels_as<int64_t, K>(p, sample, range, label);
}

template <typename Number, int K, int kPixels>
__device__ __forceinline__ void write_as(const View& view, int64_t sample, const Range<kPixels>& range, int64_t width,
                                         const float (&ds)[K][kPixels]) {
  const Planes& planes = view.planes;
  Number* to = static_cast<Number*>(planes.first) + sample * planes.sample_stride;
  if (view.layout == Layout::planar && range.count == kPixels) {
#pragma unroll
    for (int c = 0; c < K; ++c) {
      Packet<Number, kPixels> packet;
#pragma unroll
      for (int i = 0; i < kPixels; ++i) packet.numbers[i] = rounded<Number>(ds[c][i]);
      packet.write(to + c * planes.class_stride + range.pixel);
    }
  } else if (view.layout == Layout::packed && range.count == kPixels) {
    Packet<Number, K * kPixels> packet;
#pragma unroll
    for (int c = 0; c < K; ++c)
#pragma unroll
      for (int i = 0; i < kPixels; ++i) packet.numbers[i * K + c] = rounded<Number>(ds[c][i]);
    packet.write(to + range.pixel * K);
  } else {
    Elements elements(planes, range.pixel, width);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      Number* at = to + elements.next();
#pragma unroll
      for (int c = 0; c < K; ++c)
        if (i < range.count) at[c * planes.class_stride] = rounded<Number>(ds[c][i]);
    }
  }
}

__device__ __forceinline__ int64_t teacher_row(const Arguments& p, int64_t sample) {
  return p.teacher_row == nullptr ? -1 : p.teacher_row[sample];
}

// The lanes' sum, added in the same order in every call, in lane 0.
template <typename Number>
__device__ __forceinline__ Number sum_of_warp(Number x) {
#pragma unroll
  for (int width = 16; width > 0; width /= 2) x += __shfl_down_sync(0xFFFFFFFFu, x, width);
  return x;
}

// The work of a sample's last block: from the sums of all blocks to losses and coefficients.
template <int K>
__device__ void finish_sample(const Arguments& p, int64_t sample, const float* sums) {
  const int64_t row = teacher_row(p, sample);
  const bool has_teacher = p.num_teacher_rows > 0;
  const float inverse_weight = sums[1] > 0 ? 1 / sums[1] : 0;
  p.ce[sample] = row < 0 ? sums[0] * inverse_weight : 0;
  // A row that the teacher does not have must show: its loss is NaN.
  const float kd = row < p.num_teacher_rows ? sums[0] / p.num_pixels : __int_as_float(0x7FC00000);
  p.kd[sample] = row < 0 || !has_teacher ? 0 : kd;
  float offset[K] = {}, slope[K] = {};
  p.dice[sample] = p.has_dice ? dice_loss<float>(K, sums + 2, p.smooth, p.is_generalized, offset, slope) : 0;
  float* to = p.coefficients + sample * (1 + 2 * K);
  to[0] = inverse_weight;
#pragma unroll
  for (int c = 0; c < K; ++c) to[1 + c] = offset[c], to[1 + K + c] = slope[c];
}

// Grid: one sample's blocks after those of another, all in x, for y ends at 65535. arrivals: zeros before and after;
// by sample, the blocks that have arrived; the samples that are done; the labels of no class.
template <int K, int kPixels, bool kSoftDice>
__global__ void __launch_bounds__(kThreads, kForwardBlocks) seg_loss_forward(const Arguments p) {
  constexpr int kSums = num_loss_sums(K);
  constexpr Fixed<K> count;
  const unsigned num_blocks = p.blocks_per_sample, first_block = blockIdx.x % num_blocks;
  const unsigned num_samples = gridDim.x / num_blocks;
  const int64_t sample = blockIdx.x / num_blocks, row = teacher_row(p, sample);
  float main = 0, weight = 0, overlap[K] = {}, predicted[K] = {}, actual[K] = {};
  const Sums<float> sums{main, weight, overlap, predicted, actual};
  int num_invalid = 0;
  for (int64_t block = first_block; block * kThreads * kPixels < p.num_pixels; block += num_blocks) {
    const Range<kPixels> range(block, p.num_pixels);
    if (range.count == 0) break;
    float s[K][kPixels], at[K], q[K], x[K];
    if (row < 0) {
      int label[kPixels];
      read_logits(p, sample, range, s);
      num_invalid += read_labels<K>(p, sample, range, label);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
#pragma unroll
        for (int c = 0; c < K; ++c) at[c] = s[c][i];
        float picked;
        const float total = add_labelled(count, at, label[i], p.has_dice, q, x, sums, picked);
        add_nll(count, total, picked, label[i], p.class_weights, sums);
        if (p.has_dice) count_label(count, label[i], actual);
      }
    } else if (p.num_teacher_rows > 0) {
      float z[K][kPixels], of_teacher[K], t[K], y[K];
      read_logits(p, sample, range, s);
      read_teacher(p, row < p.num_teacher_rows ? row : 0, range, z);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
#pragma unroll
        for (int c = 0; c < K; ++c) at[c] = s[c][i], of_teacher[c] = z[c][i];
        float mean;
        const int inside = i < range.count;
        const float total = add_distilled(count, at, of_teacher, inside, p.inverse_temperature, kSoftDice, q, x, t, y,
                                          sums, mean);
        add_cross_entropy(total, mean, inside, sums);
      }
    }
  }

  __shared__ float of_warps[kWarps][kSums];
  __shared__ int invalid_of_warps[kWarps];
  __shared__ bool is_last;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto share = [&](int slot, float mine) {
    const float total = sum_of_warp(mine);
    if (lane == 0) of_warps[warp][slot] = total;
  };
  share(0, main), share(1, weight);
#pragma unroll
  for (int c = 0; c < K; ++c) share(2 + c, overlap[c]), share(2 + K + c, predicted[c]), share(2 + 2 * K + c, actual[c]);
  num_invalid = sum_of_warp(num_invalid);
  if (lane == 0) invalid_of_warps[warp] = num_invalid;
  // The warps' sums are there.
  __syncthreads();
  float* partials = p.partials + sample * num_blocks * kSums;
  if (threadIdx.x < kSums) {
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += of_warps[w][threadIdx.x];
    partials[first_block * kSums + threadIdx.x] = total;
  }
  __threadfence();
  // This block's partial sums are where all blocks see them; only now may its arrival be counted.
  __syncthreads();
  if (threadIdx.x == 0) {
    int invalid = 0;
    for (int w = 0; w < kWarps; ++w) invalid += invalid_of_warps[w];
    // Sums of integers are the same in any order.
    if (invalid > 0) atomicAdd(p.arrivals + num_samples + 1, static_cast<unsigned long long>(invalid));
    __threadfence();
    is_last = atomicAdd(p.arrivals + sample, 1ull) == num_blocks - 1;
    __threadfence();
  }
  // All threads learn whether theirs was the sample's last block.
  __syncthreads();
  if (!is_last) return;
  static_assert(kSums <= 32, "a lane for each sum");
  if (lane < kSums) {
    float total = 0;
#pragma unroll 8
    for (unsigned b = warp; b < num_blocks; b += kWarps) total += __ldcg(partials + b * kSums + lane);
    of_warps[warp][lane] = total;
  }
  // The sums of every fourth block are there.
  __syncthreads();
  if (threadIdx.x > 0) return;
  float totals[kSums];
#pragma unroll
  for (int slot = 0; slot < kSums; ++slot) {
    totals[slot] = of_warps[0][slot];
    for (int w = 1; w < kWarps; ++w) totals[slot] += of_warps[w][slot];
  }
  finish_sample<K>(p, sample, totals);
  p.arrivals[sample] = 0;
  __threadfence();
  if (atomicAdd(p.arrivals + num_samples, 1ull) == num_samples - 1) {
    *p.num_invalid = static_cast<int64_t>(atomicExch(p.arrivals + num_samples + 1, 0ull));
    p.arrivals[num_samples] = 0;
  }
}

// Grid: as above.
template <int K, int kPixels, bool kSoftDice>
__global__ void __launch_bounds__(kThreads, backward_blocks(K, kPixels)) seg_loss_backward(const Arguments p) {
  constexpr Fixed<K> count;
  const int64_t sample = blockIdx.x / p.blocks_per_sample, row = teacher_row(p, sample);
  const Range<kPixels> range(blockIdx.x % p.blocks_per_sample, p.num_pixels);
  if (range.count == 0) return;
  const float* coefficients = p.coefficients + sample * (1 + 2 * K);
  const float ddice = p.ddice[sample * p.ddice_stride];
  float s[K][kPixels], offset[K], slope[K], at[K], q[K], x[K], gradient[K];
#pragma unroll
  for (int c = 0; c < K; ++c) offset[c] = ddice * coefficients[1 + c], slope[c] = ddice * coefficients[1 + K + c];
  read_logits(p, sample, range, s);
  if (row < 0) {
    int label[kPixels];
    read_labels<K>(p, sample, range, label);
    const float scale = p.dce[sample * p.dce_stride] * coefficients[0];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
#pragma unroll
      for (int c = 0; c < K; ++c) at[c] = s[c][i];
      labelled_gradient(count, at, label[i], p.class_weights, scale, offset, slope, p.has_dice, q, x, gradient);
#pragma unroll
      for (int c = 0; c < K; ++c) s[c][i] = gradient[c];
    }
  } else if (p.num_teacher_rows > 0) {
    float z[K][kPixels], of_teacher[K], t[K], y[K];
    const bool is_known = row < p.num_teacher_rows;
    read_teacher(p, is_known ? row : 0, range, z);
    float scale = p.dkd[sample * p.dkd_stride] * p.inverse_temperature / p.num_pixels;
    if (!is_known) scale = __int_as_float(0x7FC00000);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
#pragma unroll
      for (int c = 0; c < K; ++c) at[c] = s[c][i], of_teacher[c] = z[c][i];
      distilled_gradient(count, at, of_teacher, p.inverse_temperature, scale, offset, slope, kSoftDice, q, x, t, y,
                         gradient);
#pragma unroll
      for (int c = 0; c < K; ++c) s[c][i] = gradient[c];
    }
  } else {
#pragma unroll
    for (int c = 0; c < K; ++c)
#pragma unroll
      for (int i = 0; i < kPixels; ++i) s[c][i] = 0;
  }
  switch (p.dlogits.planes.format) {
    case Format::fp32: return write_as<float>(p.dlogits, sample, range, p.width, s);
    case Format::bf16: return write_as<__nv_bfloat16>(p.dlogits, sample, range, p.width, s);
    default: return write_as<__half>(p.dlogits, sample, range, p.width, s);
  }
}

Format format(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Format::fp32;
    case ScalarType::BFloat16: return Format::bf16;
    case ScalarType::Half: return Format::fp16;
    case ScalarType::Byte: return Format::uint8;
    case ScalarType::Long: return Format::int64;
    default: throw std::runtime_error(std::string(kOp) + ": a tensor has a dtype that the CUDA kernels do not read");
  }
}

View view(const Tensor& tensor) {
  void* first = const_cast<void*>(tensor.const_data_ptr());
  const bool has_classes = tensor.dim() == 4;
  const int64_t num_classes = has_classes ? tensor.size(1) : 1, class_stride = has_classes ? tensor.stride(1) : 0;
  const int64_t height = tensor.size(-2), width = tensor.size(-1);
  Planes planes{first, format(tensor), tensor.stride(0), class_stride, tensor.stride(-2), tensor.stride(-1)};
  // A row of one pixel, or a single row, may have any stride.
  if (width == 1) planes.pixel_stride = planes.row_stride;
  if (height == 1 || width == 1) planes.row_stride = width * planes.pixel_stride;
  const int64_t bytes = tensor.element_size();
  const auto is_aligned = [&](int64_t stride) { return stride * bytes % 16 == 0; };
  const bool is_linear = planes.row_stride == width * planes.pixel_stride && is_aligned(planes.sample_stride) &&
                         reinterpret_cast<uintptr_t>(first) % 16 == 0;
  Layout layout = Layout::scattered;
  if (is_linear && planes.pixel_stride == 1 && is_aligned(class_stride)) layout = Layout::planar;
  else if (is_linear && class_stride == 1 && planes.pixel_stride == num_classes) layout = Layout::packed;
  return {planes, layout};
}

Arguments arguments(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& teacher,
                    const std::optional<Tensor>& teacher_row, const std::optional<Tensor>& class_weights,
                    double teacher_scale, double temperature, int64_t ignore_index, const std::string& dice_samples,
                    const Tensor& coefficients) {
  check(!teacher_row || teacher_row->is_contiguous(), kOp, "teacher_row must be contiguous");
  check(!class_weights || class_weights->is_contiguous(), kOp, "class_weights must be contiguous");
  check(coefficients.is_contiguous() && coefficients.scalar_type() == ScalarType::Float, kOp,
        "coefficients must be contiguous and float32");
  Arguments p{};
  p.logits = view(logits), p.labels = view(labels);
  if (teacher) p.teacher = view(*teacher), p.num_teacher_rows = teacher->size(0);
  p.teacher_row = data<int64_t>(teacher_row), p.class_weights = data<float>(class_weights);
  p.teacher_scale = static_cast<float>(teacher_scale), p.inverse_temperature = static_cast<float>(1 / temperature);
  p.ignore_index = ignore_index, p.has_dice = dice_samples != "none";
  p.height = logits.size(2), p.width = logits.size(3), p.num_pixels = p.height * p.width;
  p.coefficients = const_cast<float*>(data<float>(coefficients));
  return p;
}

dim3 grid_of(int64_t batch, int64_t blocks_per_sample, Arguments& p) {
  check(batch * blocks_per_sample < (int64_t{1} << 31), kOp, "there are too many pixels for one launch");
  p.blocks_per_sample = static_cast<unsigned>(blocks_per_sample);
  return dim3(static_cast<unsigned>(batch * blocks_per_sample));
}

// Calls launch(Fixed<K>, pixels a thread, whether synthetic samples have a Dice loss), as types; more pixels make wider
// loads, fewer leave registers for more numbers of each.
template <typename Launch>
void with_kernel(int64_t num_classes, bool has_soft_dice, const Launch& launch) {
  const auto with_count = [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    if (has_soft_dice) launch(count, Fixed<(kCount <= 3 ? 8 : 4)>{}, std::true_type{});
    else launch(count, Fixed<8>{}, std::false_type{});
  };
  switch (num_classes) {
    case 2: return with_count(Fixed<2>{});
    case 3: return with_count(Fixed<3>{});
    case 4: return with_count(Fixed<4>{});
    case 5: return with_count(Fixed<5>{});
    default: check(false, kOp, "the CUDA kernels are made for 2 to 5 classes");
  }
}

}  // namespace

void seg_loss_forward_cuda(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& teacher,
                           const std::optional<Tensor>& teacher_row, const std::optional<Tensor>& class_weights,
                           double teacher_scale, double temperature, int64_t ignore_index, std::string dice_samples,
                           bool is_generalized, double smooth, Tensor ce, Tensor kd, Tensor dice, Tensor num_invalid,
                           Tensor coefficients, Tensor partials, Tensor arrivals) {
  if (logits.size(0) == 0) return;
  const OnDeviceOf device(logits);
  Arguments p = arguments(logits, labels, teacher, teacher_row, class_weights, teacher_scale, temperature,
                          ignore_index, dice_samples, coefficients);
  p.smooth = static_cast<float>(smooth), p.is_generalized = is_generalized;
  p.ce = mutable_data<float>(ce), p.kd = mutable_data<float>(kd), p.dice = mutable_data<float>(dice);
  p.num_invalid = mutable_data<int64_t>(num_invalid), p.partials = mutable_data<float>(partials);
  p.arrivals = reinterpret_cast<unsigned long long*>(mutable_data<int64_t>(arrivals));
  check(partials.is_contiguous() && partials.size(2) == num_loss_sums(logits.size(1)), kOp, "partials are too small");
  check(arrivals.numel() >= logits.size(0) + 2, kOp, "there are too few arrival counters");
  const dim3 grid = grid_of(logits.size(0), partials.size(1), p);
  with_kernel(logits.size(1), dice_samples == "all", [&](auto count, auto pixels, auto has_soft_dice) {
    seg_loss_forward<decltype(count)::value, decltype(pixels)::value, decltype(has_soft_dice)::value>
        <<<grid, kThreads, 0, device.stream>>>(p);
  });
  check_launch(kOp);
}

void seg_loss_backward_cuda(const Tensor& dce, const Tensor& dkd, const Tensor& ddice, const Tensor& coefficients,
                            const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& teacher,
                            const std::optional<Tensor>& teacher_row, const std::optional<Tensor>& class_weights,
                            double teacher_scale, double temperature, int64_t ignore_index, std::string dice_samples,
                            Tensor dlogits) {
  if (logits.numel() == 0) return;
  const OnDeviceOf device(logits);
  Arguments p = arguments(logits, labels, teacher, teacher_row, class_weights, teacher_scale, temperature,
                          ignore_index, dice_samples, coefficients);
  p.dlogits = view(dlogits);
  p.dce = data<float>(dce), p.dkd = data<float>(dkd), p.ddice = data<float>(ddice);
  p.dce_stride = dce.stride(0), p.dkd_stride = dkd.stride(0), p.ddice_stride = ddice.stride(0);
  with_kernel(logits.size(1), dice_samples == "all", [&](auto count, auto pixels, auto has_soft_dice) {
    constexpr int kPixels = decltype(pixels)::value, kBlock = kThreads * kPixels;
    const dim3 grid = grid_of(logits.size(0), (p.num_pixels + kBlock - 1) / kBlock, p);
    seg_loss_backward<decltype(count)::value, kPixels, decltype(has_soft_dice)::value>
        <<<grid, kThreads, 0, device.stream>>>(p);
  });
  check_launch(kOp);
}

}  // namespace dakd

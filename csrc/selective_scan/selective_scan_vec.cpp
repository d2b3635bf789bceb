// One lane is one channel. A block of kLanes channels of one sample is walked along time in tiles of kScanSteps steps:
// operands come into local buffers with channels innermost (transposed where steps are contiguous in memory), and the
// states, in groups of up to eight, stay in registers over a tile. The backward pass first keeps the states before each
// tile; then, from the last tile to the first, it computes a tile's states and decays again and walks them back.
#include "selective_scan.h"

#include "../common/vec_math.h"

namespace dakd {
namespace DAKD_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634;
// Within this |delta A log2 e|, the exponential needs no guard.
constexpr float kBound = 120;

// Up to kLanes channels of one sample, or some states of B and C, where they lie in memory.
template <typename Number>
struct Rows {
  Number* first;
  int64_t row_stride, step_stride, count;

  Rows(const typename SelectiveScan<Number>::Sequence& from, int64_t sample, int64_t row, int64_t count)
      : first(from.first + sample * from.batch_stride + row * from.row_stride),
        row_stride(from.row_stride),
        step_stride(from.step_stride),
        count(count) {}

  Number* at(int64_t row, int64_t step) const { return first + row * row_stride + step * step_stride; }
};

// The step within a tile from which the square after `done` steps is taken: the last one overlaps the one before.
inline int square_start(int done, int num_steps) { return done + kLanes <= num_steps ? done : num_steps - kLanes; }

// Steps `step` .. step + num_steps - 1 of all rows, rows innermost; zeros in lanes that have no row.
template <typename Number>
void read_tile(const Rows<Number>& from, int64_t step, int num_steps, Lanes<Number>* tile) {
  if constexpr (sizeof(Lanes<Number>) == sizeof(Floats)) {
    if (from.step_stride == 1 && num_steps >= kLanes) {
      for (int done = 0; done < num_steps; done += kLanes) {
        const int start = square_start(done, num_steps);
        Floats square[kLanes];
        if (from.count == kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) square[i] = load(from.at(i, step + start));
        } else {
          for (int i = 0; i < kLanes; ++i) square[i] = i < from.count ? load(from.at(i, step + start)) : Floats{};
        }
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) tile[start + i] = square[i];
      }
      return;
    }
  }
  for (int l = 0; l < num_steps; ++l) tile[l] = load(from.at(0, step + l), from.count, from.row_stride);
}

template <typename Number>
void write_tile(const Rows<Number>& to, int64_t step, int num_steps, const Lanes<Number>* tile) {
  if constexpr (sizeof(Lanes<Number>) == sizeof(Floats)) {
    if (to.step_stride == 1 && num_steps >= kLanes) {
      for (int done = 0; done < num_steps; done += kLanes) {
        const int start = square_start(done, num_steps);
        Floats square[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) square[i] = tile[start + i];
        transpose(square);
        if (to.count == kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) store(to.at(i, step + start), square[i]);
        } else {
          for (int i = 0; i < to.count; ++i) store(to.at(i, step + start), square[i]);
        }
      }
      return;
    }
  }
  for (int l = 0; l < num_steps; ++l) store(to.at(0, step + l), tile[l], to.count, to.row_stride);
}

// Asks for the cache lines of a tile that will be read or written soon, a step's share at a time.
template <typename Number>
void prefetch(const Rows<Number>& from, int64_t step, int l) {
  if (from.step_stride != 1) return __builtin_prefetch(from.at(0, step + l));
  constexpr int kPerLine = 64 / sizeof(Number), kLines = kScanSteps / kPerLine;
  if (l / kLines < from.count) __builtin_prefetch(from.at(l / kLines, step + l % kLines * kPerLine));
}

// Steps of the next tile when so many are left: the last two share theirs, so that none is shorter than kLanes unless
// the whole sequence is.
inline int tile_steps(int64_t left) {
  if (left >= 2 * kScanSteps || left <= kScanSteps) return left < kScanSteps ? static_cast<int>(left) : kScanSteps;
  return static_cast<int>((left / 2 + 15) / 16 * 16);
}

template <int kNumber>
struct Count {
  static constexpr int value = kNumber;
};

// Calls work(Count<G>, n) for groups of G = 8, 4, 2 or 1 states from n on, which together are all states.
template <typename Work>
void for_groups(int64_t states, const Work& work) {
  int64_t n = 0;
  for (; n + 8 <= states; n += 8) work(Count<8>{}, n);
  if (n + 4 <= states) work(Count<4>{}, n), n += 4;
  if (n + 2 <= states) work(Count<2>{}, n), n += 2;
  if (n < states) work(Count<1>{}, n);
}

// A group of states of B or C over a tile's steps, as scalars: state n at step l is first[n * kRow + l * step].
template <typename Real>
struct Inputs {
  const Real* first;
  int64_t step;
};

// Read where they lie if states are contiguous, else from `buffer`: with kRow = kScanSteps, a row for each state.
template <int kStates, int kRow, typename Number, typename Real>
Inputs<Real> read_inputs(const Rows<Number>& from, int64_t step, int num_steps, Real* buffer) {
  if constexpr (kRow == kScanSteps) {
    for (int n = 0; n < kStates; ++n) {
      const Number* row = from.at(n, step);
      int l = 0;
      for (; l + kLanes <= num_steps; l += kLanes) store(buffer + n * kRow + l, load(row + l));
      if (l < num_steps) store(buffer + n * kRow + l, load(row + l, num_steps - l));
    }
    return {buffer, 1};
  } else {
    if constexpr (sizeof(Number) == sizeof(Real))
      if (from.row_stride == 1) return {from.at(0, step), from.step_stride};
    for (int l = 0; l < num_steps; ++l)
      for (int n = 0; n < kStates; ++n) buffer[l * kStates + n] = read(*from.at(n, step + l));
    return {buffer, kStates};
  }
}

// The operands of a block of channels over the steps of one tile, and what the backward pass adds to them.
template <typename Real>
struct Tile {
  using V = Lanes<Real>;

  int num_steps;
  V largest;  // |delta| over the steps
  V u[kScanSteps], delta[kScanSteps], delta_u[kScanSteps];
};

template <typename Real>
struct ForwardTile : Tile<Real> {
  Lanes<Real> y[kScanSteps];
};

template <typename Real>
struct BackwardTile : Tile<Real> {
  using V = Lanes<Real>;

  V dy[kScanSteps], slope[kScanSteps];  // slope: of the step size by the raw delta
  // The gradients of delta u, and of delta through the exponential.
  V dproduct[kScanSteps], ddelta[kScanSteps];
  V decays[8 * kScanSteps], states[8 * (kScanSteps + 1)];  // of one group; states from the one before the tile on
};

// The results of walking over a tile, other than the states at its end.
enum class Keep { nothing, outputs, states };

// states: those of the group before the tile, which become those after it.
template <Keep kKeep, int kStates, int kRow, bool kBounded, typename T, typename Real, typename V>
void advance(T& tile, const Inputs<Real>& B, const Inputs<Real>& C, const V* rates, V* states) {
  V h[kStates], rate[kStates];
  for (int n = 0; n < kStates; ++n) h[n] = states[n], rate[n] = rates[n];
  if constexpr (kKeep == Keep::states)
    for (int n = 0; n < kStates; ++n) tile.states[n] = h[n];
  for (int l = 0; l < tile.num_steps; ++l) {
    const Real *B_l = B.first + l * B.step, *C_l = C.first + l * C.step;
    const V delta = tile.delta[l], delta_u = tile.delta_u[l];
    V y = {};
    if constexpr (kKeep == Keep::outputs) y = tile.y[l];
#pragma GCC unroll 8
    for (int n = 0; n < kStates; ++n) {
      const V decay = exp2<kBounded>(delta * rate[n]);
      h[n] = decay * h[n] + delta_u * B_l[n * kRow];
      if constexpr (kKeep == Keep::outputs) y += h[n] * C_l[n * kRow];
      if constexpr (kKeep == Keep::states) {
        tile.decays[l * kStates + n] = decay;
        tile.states[(l + 1) * kStates + n] = h[n];
      }
    }
    if constexpr (kKeep == Keep::outputs) tile.y[l] = y;
  }
  for (int n = 0; n < kStates; ++n) states[n] = h[n];
}

template <Keep kKeep, int kStates, int kRow, typename T, typename Real, typename V>
void advance(T& tile, const Inputs<Real>& B, const Inputs<Real>& C, const V* rates, V* states) {
  V extreme = {};
  for (int n = 0; n < kStates; ++n) {
    const V exponent = (rates[n] < 0 ? -rates[n] : rates[n]) * tile.largest;
    extreme = exponent <= extreme ? extreme : exponent;
  }
  bool is_bounded = true;
  for (int i = 0; i < kLanes; ++i) is_bounded &= extreme[i] <= kBound;
  if (is_bounded) advance<kKeep, kStates, kRow, true>(tile, B, C, rates, states);
  else advance<kKeep, kStates, kRow, false>(tile, B, C, rates, states);
}

// Adds the sum of the lanes of each of `rows` to the number at its place; uses the rows up.
template <int kRows, typename V, typename Real>
void add_sums(V* rows, Real* to) {
  if constexpr (kRows % kLanes == 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i += kLanes) store(to + i, load(to + i) + sums(rows + i));
  } else {
    for (int i = 0; i < kRows; ++i) to[i] += sum(rows[i]);
  }
}

// From the tile's last step to its first, with a_l, h_l from `advance`; see reference.py for the names.
// carries: a_{l+1} g_{l+1} of the step after the tile, which becomes that of the tile's first step.
template <int kStates, int kRow, typename Real, typename V>
void walk_back(BackwardTile<Real>& tile, const Inputs<Real>& B, const Inputs<Real>& C, const V* A, V* carries, V* dA,
               Real* channel_sums, int64_t sums_stride) {
  V carry[kStates], rate[kStates], drate[kStates];
  for (int n = 0; n < kStates; ++n) carry[n] = carries[n], rate[n] = A[n], drate[n] = V{};
  for (int l = tile.num_steps - 1; l >= 0; --l) {
    const Real *B_l = B.first + l * B.step, *C_l = C.first + l * C.step;
    const V *before = tile.states + l * kStates, *h = before + kStates, *decay = tile.decays + l * kStates;
    const V dy = tile.dy[l], delta = tile.delta[l], delta_u = tile.delta_u[l];
    V dproduct = tile.dproduct[l], ddelta = tile.ddelta[l];
    V over_channels[2 * kStates];
#pragma GCC unroll 8
    for (int n = 0; n < kStates; ++n) {
      const V g = dy * C_l[n * kRow] + carry[n];
      over_channels[n] = g * delta_u;
      over_channels[kStates + n] = dy * h[n];
      dproduct += g * B_l[n * kRow];
      carry[n] = g * decay[n];
      const V z = carry[n] * before[n];
      ddelta += z * rate[n];
      drate[n] += z * delta;
    }
    tile.dproduct[l] = dproduct, tile.ddelta[l] = ddelta;
    add_sums<2 * kStates>(over_channels, channel_sums + l * sums_stride);
  }
  for (int n = 0; n < kStates; ++n) carries[n] = carry[n], dA[n] += drate[n];
}

// A block of channels of one sample.
template <typename Number>
struct Block {
  using V = Lanes<Number>;
  using Real = typename SelectiveScan<Number>::Real;

  const SelectiveScan<Number>& p;
  int64_t sample, channel, count;
  V bias = {}, skip = {};

  Block(const SelectiveScan<Number>& p, int64_t sample, int64_t channel, int64_t count)
      : p(p), sample(sample), channel(channel), count(count) {
    if (p.delta_bias != nullptr) bias = load(p.delta_bias + channel, count);
    if (p.skip != nullptr) skip = load(p.skip + channel, count);
  }

  Rows<Number> rows(const typename SelectiveScan<Number>::Sequence& from) const {
    return Rows<Number>(from, sample, channel, count);
  }

  // next: the step from which on the next tile is worked on.  each(l, raw): called for every step.
  template <typename Each>
  void load_tile(int64_t step, int64_t next, Tile<Real>& tile, const Each& each) const {
    tile.num_steps = tile_steps(p.length - step);
    const auto u = rows(p.u), delta = rows(p.delta);
    read_tile(u, step, tile.num_steps, tile.u);
    read_tile(delta, step, tile.num_steps, tile.delta);
    V largest = {};
    for (int l = 0; l < tile.num_steps; ++l) {
      prefetch(u, next, l), prefetch(delta, next, l);
      const V raw = tile.delta[l] + bias, step_size = p.has_softplus ? softplus(raw) : raw;
      const V size = step_size < 0 ? -step_size : step_size;
      // Written so that a NaN stays.
      largest = size <= largest ? largest : size;
      tile.delta[l] = step_size, tile.delta_u[l] = step_size * tile.u[l];
      each(l, raw);
    }
    tile.largest = largest;
  }

  template <Keep kKeep, int kStates, typename T>
  void advance_group(int64_t step, int64_t state, T& tile, V* states) const {
    // In units of which the exponential is a power of two.
    V rates[kStates];
    for (int n = 0; n < kStates; ++n) rates[n] = load(p.A + (state + n) * p.channels + channel, count) * Real(kLog2E);
    with_inputs<kStates>(step, state, tile.num_steps, [&](auto row, const auto& B, const auto& C) {
      advance<kKeep, kStates, row.value>(tile, B, C, rates, states);
    });
  }

  // Calls work(Count<kRow>, B, C).
  template <int kStates, typename Work>
  void with_inputs(int64_t step, int64_t state, int num_steps, const Work& work) const {
    Real B[kStates * kScanSteps], C[kStates * kScanSteps];
    const Rows<Number> B_rows(p.B, sample, state, kStates), C_rows(p.C, sample, state, kStates);
    if (p.B.step_stride == 1 && p.C.step_stride == 1)
      work(Count<kScanSteps>{}, read_inputs<kStates, kScanSteps>(B_rows, step, num_steps, B),
           read_inputs<kStates, kScanSteps>(C_rows, step, num_steps, C));
    else
      work(Count<1>{}, read_inputs<kStates, 1>(B_rows, step, num_steps, B),
           read_inputs<kStates, 1>(C_rows, step, num_steps, C));
  }

  void forward(V* states) const {
    for (int64_t n = 0; n < p.states; ++n) states[n] = V{};
    ForwardTile<Real> tile;
    const auto y = rows(p.y);
    for (int64_t step = 0; step < p.length; step += tile.num_steps) {
      load_tile(step, step + kScanSteps, tile, [&](int l, const V&) {
        prefetch(y, step, l);
        tile.y[l] = skip * tile.u[l];
      });
      for_groups(p.states, [&](auto group, int64_t n) {
        advance_group<Keep::outputs, group.value>(step, n, tile, states + n);
      });
      write_tile(y, step, tile.num_steps, tile.y);
    }
  }

  void backward(V* scratch, Real* channel_sums) const {
    const int64_t num_tiles = num_scan_tiles(p.length);
    // After the starting states of all tiles: a_{l+1} g_{l+1} of the step after a tile, and the sums over the steps.
    V *starts = scratch, *carries = starts + num_tiles * p.states, *dA = carries + p.states;
    for (int64_t n = 0; n < p.states; ++n) starts[n] = carries[n] = dA[n] = V{};
    BackwardTile<Real> tile;
    int64_t step = 0;
    for (int64_t t = 0; t + 1 < num_tiles; ++t, step += tile.num_steps) {
      V *before = starts + t * p.states, *after = before + p.states;
      for (int64_t n = 0; n < p.states; ++n) after[n] = before[n];
      load_tile(step, step + kScanSteps, tile, [](int, const V&) {});
      for_groups(p.states, [&](auto group, int64_t n) {
        advance_group<Keep::nothing, group.value>(step, n, tile, after + n);
      });
    }
    V dskip = {}, dbias = {};
    for (int64_t t = num_tiles - 1; t >= 0; --t) {
      step = t * kScanSteps;
      if (t == num_tiles - 1 && t > 0) step = (t - 1) * kScanSteps + tile_steps(p.length - (t - 1) * kScanSteps);
      load_backward_tile(step, tile);
      V* states = starts + t * p.states;
      for_groups(p.states, [&](auto group, int64_t n) {
        advance_group<Keep::states, group.value>(step, n, tile, states + n);
        walk_back_group<group.value>(step, n, tile, carries + n, dA + n, channel_sums + step * 2 * p.states);
      });
      finish_tile(step, tile, dskip, dbias);
    }
    Real* sums = p.step_sums + sample * (p.states + 2) * p.channels + channel;
    for (int64_t n = 0; n < p.states; ++n) store(sums + n * p.channels, dA[n], count);
    store(sums + p.states * p.channels, dskip, count), store(sums + (p.states + 1) * p.channels, dbias, count);
  }

  void load_backward_tile(int64_t step, BackwardTile<Real>& tile) const {
    const auto dy = rows(p.dy), du = rows(p.du), ddelta = rows(p.ddelta);
    load_tile(step, step - kScanSteps, tile, [&](int l, const V& raw) {
      prefetch(dy, step - kScanSteps, l), prefetch(du, step, l), prefetch(ddelta, step, l);
      tile.slope[l] = p.has_softplus ? sigmoid(raw) : V{} + 1;
      tile.dproduct[l] = tile.ddelta[l] = V{};
    });
    read_tile(dy, step, tile.num_steps, tile.dy);
  }

  template <int kStates>
  void walk_back_group(int64_t step, int64_t state, BackwardTile<Real>& tile, V* carries, V* dA, Real* sums) const {
    V rates[kStates];
    for (int n = 0; n < kStates; ++n) rates[n] = load(p.A + (state + n) * p.channels + channel, count);
    with_inputs<kStates>(step, state, tile.num_steps, [&](auto row, const auto& B, const auto& C) {
      walk_back<kStates, row.value>(tile, B, C, rates, carries, dA, sums + 2 * state, 2 * p.states);
    });
  }

  void finish_tile(int64_t step, BackwardTile<Real>& tile, V& dskip, V& dbias) const {
    V skips = {}, biases = {};
    for (int l = 0; l < tile.num_steps; ++l) {
      // The buffers now become du and the gradient of the raw delta.
      tile.ddelta[l] = (tile.dproduct[l] * tile.u[l] + tile.ddelta[l]) * tile.slope[l];
      tile.dproduct[l] = tile.dproduct[l] * tile.delta[l] + skip * tile.dy[l];
      skips += tile.dy[l] * tile.u[l], biases += tile.ddelta[l];
    }
    dskip += skips, dbias += biases;
    write_tile(rows(p.du), step, tile.num_steps, tile.dproduct);
    write_tile(rows(p.ddelta), step, tile.num_steps, tile.ddelta);
  }
};

// Calls work(block) for the blocks of kLanes channels of channels `start` .. end - 1.
template <typename Number, typename Work>
void for_blocks(const SelectiveScan<Number>& p, int64_t sample, int64_t start, int64_t end, const Work& work) {
  if (end > p.channels) end = p.channels;
  for (int64_t channel = start; channel < end; channel += kLanes)
    work(Block<Number>(p, sample, channel, end - channel < kLanes ? end - channel : kLanes));
}

template <typename Number>
void forward(const SelectiveScan<Number>& p, int64_t first, int64_t last, void* scratch) {
  const int64_t blocks = (p.channels + kScanChannels - 1) / kScanChannels;
  for (int64_t item = first; item < last; ++item) {
    const int64_t start = item % blocks * kScanChannels;
    for_blocks(p, item / blocks, start, start + kScanChannels, [&](const Block<Number>& block) {
      block.forward(static_cast<Lanes<Number>*>(scratch));
    });
  }
}

template <typename Number>
void backward(const SelectiveScan<Number>& p, int64_t first, int64_t last, void* scratch) {
  const int64_t blocks = (p.channels + kScanBackwardChannels - 1) / kScanBackwardChannels;
  for (int64_t item = first; item < last; ++item) {
    auto* sums = p.channel_sums + item * p.length * 2 * p.states;
    for (int64_t i = 0; i < p.length * 2 * p.states; ++i) sums[i] = 0;
    const int64_t start = item % blocks * kScanBackwardChannels;
    for_blocks(p, item / blocks, start, start + kScanBackwardChannels, [&](const Block<Number>& block) {
      block.backward(static_cast<Lanes<Number>*>(scratch), sums);
    });
  }
}

template <typename Number>
void sum_channels(const SelectiveScan<Number>& p, int64_t first, int64_t last) {
  const int64_t blocks = (p.channels + kScanBackwardChannels - 1) / kScanBackwardChannels;
  for (int64_t sample = first; sample < last; ++sample) {
    const Rows<Number> dB(p.dB, sample, 0, p.states), dC(p.dC, sample, 0, p.states);
    const auto* sums = p.channel_sums + sample * blocks * p.length * 2 * p.states;
    for (int64_t l = 0; l < p.length; ++l) {
      for_groups(p.states, [&](auto group, int64_t n) {
        typename SelectiveScan<Number>::Real totals[2 * group.value] = {};
        for (int64_t block = 0; block < blocks; ++block)
          for (int i = 0; i < 2 * group.value; ++i) totals[i] += sums[((block * p.length + l) * p.states + n) * 2 + i];
        for (int i = 0; i < group.value; ++i) {
          write(dB.at(n + i, l), totals[i]);
          write(dC.at(n + i, l), totals[group.value + i]);
        }
      });
    }
  }
}

template <typename Number>
void sum_batch(const SelectiveScan<Number>& p, int64_t first, int64_t last) {
  const int64_t numbers = (p.states + 2) * p.channels;
  for (int64_t start = first * kScanChannels; start < last * kScanChannels && start < numbers; start += kLanes) {
    Lanes<Number> total = {};
    for (int64_t sample = 0; sample < p.batch; ++sample)
      total += load(p.step_sums + sample * numbers + start, numbers - start);
    store(p.totals + start, total, numbers - start);
  }
}

}  // namespace

#define DAKD_DEFINE_SCAN(Number)                                                                              \
  void selective_scan_forward(const SelectiveScan<Number>& p, int64_t first, int64_t last, void* scratch) {   \
    forward(p, first, last, scratch);                                                                         \
  }                                                                                                           \
  void selective_scan_backward(const SelectiveScan<Number>& p, int64_t first, int64_t last, void* scratch) {  \
    backward(p, first, last, scratch);                                                                        \
  }                                                                                                           \
  void selective_scan_sum_channels(const SelectiveScan<Number>& p, int64_t first, int64_t last) {             \
    sum_channels(p, first, last);                                                                             \
  }                                                                                                           \
  void selective_scan_sum_batch(const SelectiveScan<Number>& p, int64_t first, int64_t last) {                \
    sum_batch(p, first, last);                                                                                \
  }
DAKD_DEFINE_SCAN(float)
DAKD_DEFINE_SCAN(double)
DAKD_DEFINE_SCAN(BFloat16)
DAKD_DEFINE_SCAN(Float16)
#undef DAKD_DEFINE_SCAN

}  // namespace DAKD_ISA
}  // namespace dakd

// Cells: the 2 x 2 positions of a map that an output of pooling 2 covers. With dilation 2 an output
// reads its own cell and the four next to it, each at its own four positions, so five places say
// all that it depends on, and cells may lie in any order: where they were computed, and once for
// all maps that share them.
//
//   [slot][C / L][4][L]   or of one channel [slot][4]
#pragma once

#include <cstdint>
#include <cstring>

#include "cross.h"
#include "dtypes.h"
#include "product.h"
#include "scratch.h"
#include "vec.h"

namespace fastsep::FASTSEP_ISA {

// Rows or columns of cells of a map of zeros, of which the first and the last two may differ from
// those between: so far what lies outside the map, and half cells at an odd end, are felt.
class Samples {
 public:
  explicit Samples(int64_t cells) : cells_(cells) {}

  int64_t count() const { return least(cells_, 4); }
  int64_t of(int64_t cell) const {
    return cell < cells_ - 2 ? least(cell, 1) : cell - cells_ + count();
  }
  int64_t cell(int64_t sample) const {
    return sample < count() - 2 ? sample : sample + cells_ - count();
  }

 private:
  int64_t cells_;
};

// A map as rows and columns of cells.
struct Grid {
  Grid(int64_t t, int64_t f) : frames(t), bins(f), rows(ceil_div(t, 2)), cols(ceil_div(f, 2)) {}

  int64_t samples() const { return Samples(rows).count() * Samples(cols).count(); }
  int64_t sample(int64_t row, int64_t col) const {
    return Samples(rows).of(row) * Samples(cols).count() + Samples(cols).of(col);
  }
  bool inside(int64_t row, int64_t col, int64_t p) const {
    return 2 * row + p / 2 < frames && 2 * col + p % 2 < bins;
  }

  int64_t frames, bins, rows, cols;
};

// Where the cells that an output reads begin.
struct Around {
  int32_t up, left, centre, right, down;
};

// The same of the four outputs that are a whole cell of the next map: they read twelve cells, not
// twenty.
struct AroundFour {
  int32_t up[2], upper[4], lower[4], down[2];  // upper, lower: of two rows, from left to right

  FASTSEP_INLINE Around of(int64_t p) const {
    const int32_t* const row = (p < 2 ? upper : lower) + p % 2;
    return {p < 2 ? up[p] : upper[p - 1], row[0], row[1], row[2],
            p < 2 ? lower[p + 1] : down[p - 2]};
  }
};

// The rows of cells that a row of outputs reads.
struct Near {
  const int32_t *above, *row, *below;

  FASTSEP_INLINE Around at(int64_t f) const {
    return {above[f], row[f - 1], row[f], row[f + 1], below[f]};
  }
};

// Outputs to be computed and where each goes. Those that are a whole cell of the next map, four in
// a row, come first.
class Outputs {
 public:
  Outputs() = default;
  Outputs(Bump& bump, int64_t most)
      : fours_(bump.take<AroundFour>(most / 4)),
        singles_(bump.take<Around>(most)),
        targets_(bump.take<int32_t>(most)),
        single_targets_(bump.take<int32_t>(most)) {}

  void clear() { num_fours_ = num_singles_ = 0; }

  FASTSEP_INLINE void add(const Around& around, int32_t target) {
    singles_[num_singles_] = around;
    single_targets_[num_singles_++] = target;
  }

  // Outputs f and f + 1 of two rows; target(row of two, output).
  template <class Target>
  FASTSEP_INLINE void add_four(const Near* near, int64_t f, Target target) {
    AroundFour& four = fours_[num_fours_];
    std::memcpy(four.up, near[0].above + f, sizeof four.up);
    std::memcpy(four.upper, near[0].row + f - 1, sizeof four.upper);
    std::memcpy(four.lower, near[1].row + f - 1, sizeof four.lower);
    std::memcpy(four.down, near[1].below + f, sizeof four.down);
    for (int64_t p = 0; p < 4; ++p) targets_[4 * num_fours_ + p] = target(p / 2, f + p % 2);
    ++num_fours_;
  }

  // When all are there: makes one list of the targets.
  void close() {
    std::memcpy(targets_ + 4 * num_fours_, single_targets_,
                size_t(num_singles_) * sizeof *targets_);
  }

  int64_t count() const { return 4 * num_fours_ + num_singles_; }
  int64_t num_fours() const { return num_fours_; }
  const AroundFour* fours() const { return fours_; }
  const Around* singles() const { return singles_; }
  const int32_t* targets() const { return targets_; }

 private:
  AroundFour* fours_ = nullptr;
  Around* singles_ = nullptr;
  int32_t *targets_ = nullptr, *single_targets_ = nullptr;
  int64_t num_fours_ = 0, num_singles_ = 0;
};

struct Move {
  int32_t to, from;
};

// Slot 0 holds zeros, for what is outside the map.
template <class T>
class Cells {
 public:
  Cells(Bump& bump, int64_t slots, int64_t channels, int64_t width)
      : width_(width), groups_(ceil_div(channels, width)), size_(4 * width * groups_) {
    constexpr int64_t line = 64 / sizeof(T);
    if (width > 1) size_ = (ceil_div(size_, line) | 1) * line;
    base_ = bump.take<T>(slots * size_);
  }

  T* base() const { return base_; }

  // Of position p of a cell, in elements.
  int32_t place(int64_t slot, int64_t p = 0) const { return int32_t(slot * size_ + p * width_); }

  void clear(int64_t slots) const {
    for (int64_t i = 0; i < slots * size_; ++i) base_[i] = 0;
  }

  void move(const Move* moves, int64_t count) const {
    for (const Move* m = moves; m < moves + count; ++m) {
      if (width_ == 1) {
        base_[m->to] = base_[m->from];
      } else {
        for (int64_t i = 0; i < groups_ * 4 * width_; i += 4 * width_) {
          store(base_ + m->to + i, load(base_ + m->from + i));
        }
      }
    }
  }

 private:
  int64_t width_, groups_, size_;
  T* base_;
};

// Keeps an address in a register: GCC would make one for every load and run out of them.
template <class T>
FASTSEP_INLINE const T* pinned(const T* address) {
  asm("" : "+r"(address));
  return address;
}

// One group of an output.
template <class T>
FASTSEP_INLINE Vec<T> pooled_cell(const Taps<T>& taps, const T* z, const Around& at) {
  constexpr int64_t L = kLanes<T>;
  const T *up = pinned(z + at.up), *left = pinned(z + at.left), *centre = pinned(z + at.centre),
          *right = pinned(z + at.right), *down = pinned(z + at.down);
  Vec<T> value[4];
#pragma GCC unroll 4
  for (int64_t p = 0; p < 4; ++p) {
    Vec<T> v = taps.bias + taps.centre * load(centre + p * L);
    v += taps.up * load(up + p * L);
    v += taps.left * load(left + p * L);
    v += taps.right * load(right + p * L);
    v += taps.down * load(down + p * L);
    value[p] = relu<T>(v);
  }
  return (value[0] + value[1]) + (value[2] + value[3]);
}

// The same of four outputs.
template <class T>
FASTSEP_INLINE void pooled_four(const Taps<T>& taps, const T* z, const AroundFour& at, T* y) {
  constexpr int64_t L = kLanes<T>;
  const T *up0 = pinned(z + at.up[0]), *up1 = pinned(z + at.up[1]),
          *left0 = pinned(z + at.upper[0]), *c0 = pinned(z + at.upper[1]),
          *c1 = pinned(z + at.upper[2]), *right1 = pinned(z + at.upper[3]),
          *left2 = pinned(z + at.lower[0]), *c2 = pinned(z + at.lower[1]),
          *c3 = pinned(z + at.lower[2]), *right3 = pinned(z + at.lower[3]),
          *down2 = pinned(z + at.down[0]), *down3 = pinned(z + at.down[1]);
  Vec<T> value[4][4];
#pragma GCC unroll 4
  for (int64_t p = 0; p < 4; ++p) {
    const Vec<T> z0 = load(c0 + p * L), z1 = load(c1 + p * L), z2 = load(c2 + p * L),
                 z3 = load(c3 + p * L);
    Vec<T> v0 = taps.bias + taps.centre * z0, v1 = taps.bias + taps.centre * z1,
           v2 = taps.bias + taps.centre * z2, v3 = taps.bias + taps.centre * z3;
    v0 += taps.up * load(up0 + p * L), v1 += taps.up * load(up1 + p * L);
    v2 += taps.up * z0, v3 += taps.up * z1;
    v0 += taps.left * load(left0 + p * L), v1 += taps.left * z0;
    v2 += taps.left * load(left2 + p * L), v3 += taps.left * z2;
    v0 += taps.right * z1, v1 += taps.right * load(right1 + p * L);
    v2 += taps.right * z3, v3 += taps.right * load(right3 + p * L);
    v0 += taps.down * z2, v1 += taps.down * z3;
    v2 += taps.down * load(down2 + p * L), v3 += taps.down * load(down3 + p * L);
    value[0][p] = relu<T>(v0), value[1][p] = relu<T>(v1);
    value[2][p] = relu<T>(v2), value[3][p] = relu<T>(v3);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    store(y + i * L, (value[i][0] + value[i][1]) + (value[i][2] + value[i][3]));
  }
}

// pooled_cross of outputs anywhere, to the same bits; y is a list of them, fours first.
template <class T>
void pooled_cells(const T* packed_taps, const Cells<T>& cells, int64_t groups,
                  const AroundFour* fours, int64_t num_fours, const Around* singles,
                  int64_t num_singles, T* y, int64_t y_stride) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t i = 0; i < num_fours; ++i) {
    const T* z = cells.base();
    const T* packed = packed_taps;
    T* to = y + 4 * i * L;
    for (int64_t g = 0; g < groups; ++g, packed += Taps<T>::kSize, z += 4 * L, to += y_stride) {
      pooled_four(Taps<T>::read(packed), z, fours[i], to);
    }
  }
  y += 4 * num_fours * L;
  for (int64_t i = 0; i < num_singles; ++i) {
    const T* z = cells.base();
    for (int64_t g = 0; g < groups; ++g, z += 4 * L) {
      store(y + g * y_stride + i * L,
            pooled_cell(Taps<T>::read(packed_taps + g * Taps<T>::kSize), z, singles[i]));
    }
  }
}

// The same of one channel, to the bits of pooled_lone, for NV groups.
template <class T, int NV>
void pooled_lone_cells(const T* packed_taps, const Cells<T>& cells, const AroundFour* fours,
                       int64_t num_fours, const Around* singles, int64_t num_singles, T* y,
                       int64_t y_stride) {
  constexpr int64_t L = kLanes<T>;
  Taps<T> taps[NV];
  for (int j = 0; j < NV; ++j) taps[j] = Taps<T>::read(packed_taps + j * Taps<T>::kSize);
  const T* const x = cells.base();
  const auto put = [&](const Around& at) {
    Vec<T> sum[NV];
#pragma GCC unroll 4
    for (int64_t p = 0; p < 4; ++p) {
      Vec<T> value[NV];
#define FASTSEP_EACH_GROUP _Pragma("GCC unroll 4") for (int j = 0; j < NV; ++j)
      FASTSEP_EACH_GROUP value[j] = taps[j].bias + taps[j].centre * x[at.centre + p];
      FASTSEP_EACH_GROUP value[j] += taps[j].up * x[at.up + p];
      FASTSEP_EACH_GROUP value[j] += taps[j].left * x[at.left + p];
      FASTSEP_EACH_GROUP value[j] += taps[j].right * x[at.right + p];
      FASTSEP_EACH_GROUP value[j] += taps[j].down * x[at.down + p];
      FASTSEP_EACH_GROUP value[j] = relu<T>(value[j]);
      FASTSEP_EACH_GROUP sum[j] = p == 0 ? value[j] : sum[j] + value[j];
#undef FASTSEP_EACH_GROUP
    }
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store(y + j * y_stride, sum[j]);
    y += L;
  };
  for (int64_t i = 0; i < 4 * num_fours; ++i) put(fours[i / 4].of(i % 4));
  for (int64_t i = 0; i < num_singles; ++i) put(singles[i]);
}

}  // namespace fastsep::FASTSEP_ISA

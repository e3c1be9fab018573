// Cells: the 2 x 2 positions of a map that an output of pooling 2 covers. With dilation 2 an output
// reads its own cell and the four next to it, each at its own four positions, so five places say
// all that it depends on, and cells may lie in any order: where they were computed, and once for
// all maps that share them.
//
//   [slot][C / L][4][L]   or of one channel [slot][4]
#pragma once

#include <cstdint>

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

// One group of pooled_cells.
template <class T>
FASTSEP_INLINE Vec<T> pooled_cell(const Taps<T>& taps, const T* z, const Around& at) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> value[4];
#pragma GCC unroll 4
  for (int64_t p = 0; p < 4; ++p) {
    Vec<T> v = taps.bias + taps.centre * load(z + at.centre + p * L);
    v += taps.up * load(z + at.up + p * L);
    v += taps.left * load(z + at.left + p * L);
    v += taps.right * load(z + at.right + p * L);
    v += taps.down * load(z + at.down + p * L);
    value[p] = relu<T>(v);
  }
  return (value[0] + value[1]) + (value[2] + value[3]);
}

// pooled_cross of outputs anywhere, to the same bits; y is a list of them. Two at a time, best with
// one below the other; cells come from the third cache, so those of the next two are fetched.
template <class T>
void pooled_cells(const T* packed_taps, const Cells<T>& cells, int64_t groups, const Around* around,
                  int64_t count, T* y, int64_t y_stride) {
  constexpr int64_t L = kLanes<T>, kLine = 64 / sizeof(T);
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    const Around upper = around[i], lower = around[i + 1];
    const Around* const next = around + (i + 4 <= count ? i + 2 : i);
    const int32_t fetched[] = {next[0].up, next[0].centre, next[1].centre, next[1].down};
    const T* z = cells.base();
    const T* packed = packed_taps;
    T* to = y + i * L;
    for (int64_t g = 0; g < groups; ++g, packed += Taps<T>::kSize, z += 4 * L, to += y_stride) {
      for (const int32_t place : fetched) {
        for (int64_t b = 0; b < 4 * L; b += kLine) __builtin_prefetch(z + place + b);
      }
      const Taps<T> taps = Taps<T>::read(packed);
      store(to, pooled_cell(taps, z, upper));
      store(to + L, pooled_cell(taps, z, lower));
    }
  }
  for (; i < count; ++i) {
    const T* z = cells.base();
    for (int64_t g = 0; g < groups; ++g, z += 4 * L) {
      store(y + g * y_stride + i * L,
            pooled_cell(Taps<T>::read(packed_taps + g * Taps<T>::kSize), z, around[i]));
    }
  }
}

// The same of one channel, to the bits of pooled_lone, for NV groups.
template <class T, int NV>
void pooled_lone_cells(const T* packed_taps, const Cells<T>& cells, const Around* around,
                       int64_t count, T* y, int64_t y_stride) {
  constexpr int64_t L = kLanes<T>;
  Taps<T> taps[NV];
  for (int j = 0; j < NV; ++j) taps[j] = Taps<T>::read(packed_taps + j * Taps<T>::kSize);
  const T* x = cells.base();
  for (int64_t i = 0; i < count; ++i) {
    const Around& at = around[i];
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
    for (int j = 0; j < NV; ++j) store(y + j * y_stride + i * L, sum[j]);
  }
}

}  // namespace fastsep::FASTSEP_ISA

// A lone first block in training: y is a cross over the rows of scalars x itself, with the products
// w of the pointwise weight and the taps. No map of it is kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../../kernels.h"
#include "../../parts/cross.h"
#include "../../parts/product.h"
#include "../../parts/scratch.h"
#include "../../parts/vec.h"
#include "../load.h"
#include "norm.h"

namespace fastsep::FASTSEP_ISA {

template <class T>
struct LoneTaps {
  static constexpr int64_t L = kLanes<T>;

  // w of channel c, times a factor.
  static void products(const Block& block, int64_t c, double factor, double* w) {
    cross_taps<T>(block, c, w);
    factor *= double(static_cast<const T*>(block.pointwise)[c]);
    for (int64_t k = 0; k < kTaps; ++k) w[k] *= factor;
  }

  // As Taps; of(norm) gives each channel's factor and bias.
  template <class F>
  static void pack(const TrainBlock& b, T* to, F of) {
    for (int64_t c = 0; c < ceil_div(b.block.out, L) * L; ++c) {
      T* lane = to + c / L * Taps<T>::kSize + c % L;
      double w[kTaps + 1] = {};
      if (c < b.block.out) {
        double factor = 0;
        of(norm_of<T>(b, c), factor, w[kTaps]);
        products(b.block, c, factor, w);
      }
      for (int64_t k = 0; k <= kTaps; ++k) lane[k * L] = T(w[k]);
    }
  }

  // Whose cross is a / pool^2.
  static void pack_folded(const TrainBlock& b, T* to) {
    const double share = 1.0 / double(b.block.pool * b.block.pool);
    pack(b, to, [&](const Norm& norm, double& factor, double& bias) {
      factor = norm.scale() * share;
      bias = (norm.beta - norm.scale() * norm.mean) * share;
    });
  }

  // The block's output, and which positions ReLU let through on the way: a row of LonePassed.
  static void pooled(const T* packed, int64_t groups, const Cross<T>* rows, int64_t pool,
                     int64_t bins_out, T* y, int64_t y_stride, LaneBits<T>* passed,
                     int64_t passed_stride) {
    for (int64_t g = 0; g < groups; g += kTileVectors) {
      with_count<kTileVectors>(least(kTileVectors, groups - g), [&](auto nv) {
        constexpr int NV = decltype(nv)::value;
        const auto nothing = [] {};  // by their types, so that nothing is called
        const Keep<NV> keep{passed + g * passed_stride, passed_stride};
        const auto run = pool == 2 ? pooled_lone<T, 2, true, NV, decltype(nothing), Keep<NV>>
                                   : pooled_lone<T, 0, true, NV, decltype(nothing), Keep<NV>>;
        run(packed + g * Taps<T>::kSize, rows, pool, bins_out, y + g * y_stride, y_stride, nothing,
            keep);
      });
    }
  }

  // The cross of one position.
  FASTSEP_INLINE static Vec<T> apply(const Taps<T>& taps, const Cross<T>& x, int64_t at) {
    Vec<T> value = taps.bias + taps.centre * x.middle[at];
    value += taps.up * x.up[at];
    value += taps.left * x.middle[at - x.reach];
    value += taps.right * x.middle[at + x.reach];
    value += taps.down * x.down[at];
    return value;
  }

 private:
  template <int NV>
  struct Keep {
    LaneBits<T>* to;
    int64_t group_stride;

    FASTSEP_INLINE void operator()(int64_t i, const Vec<T>* value) const {
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) to[j * group_stride + i] = passed_lanes<T>(value[j]);
    }
  };
};

// Which of a lone block's values its ReLU let through, which it keeps in place of z: rows of bits
// [group][bin of the output][position in its window].
template <class T>
class LonePassed {
 public:
  explicit LonePassed(const Train& job)
      : sizes_(sizes_of(job, 0)), base_(static_cast<char*>(job.blocks[0].z)) {}

  int64_t size(int64_t clips) const {  // in elements of T
    return clips * sizes_.frames_out * row_bytes() / int64_t(sizeof(T));
  }
  LaneBits<T>* row(int64_t n, int64_t t) const {
    return reinterpret_cast<LaneBits<T>*>(base_ + (n * sizes_.frames_out + t) * row_bytes());
  }
  // An odd number of cache lines.
  int64_t row_bytes() const { return (ceil_div(used_bytes(), kLine) | 1) * kLine; }
  int64_t row_stride() const { return row_bytes() / int64_t(sizeof(LaneBits<T>)); }
  int64_t group_stride() const { return sizes_.bins_out * window(); }
  int64_t window() const { return sizes_.block.pool * sizes_.block.pool; }

  // In a group, the position of row t and bin f of the map.
  int64_t place(int64_t t, int64_t f) const {
    const int64_t pool = sizes_.block.pool;
    return f / pool * window() + t % pool * pool + f % pool;
  }

  // With what only keeps rows apart: the same values give the same memory.
  void clear_end(LaneBits<T>* row) const {
    std::memset(reinterpret_cast<char*>(row) + used_bytes(), 0, size_t(row_bytes() - used_bytes()));
  }

 private:
  static constexpr int64_t kLine = 64;

  int64_t used_bytes() const {
    return ceil_div(sizes_.block.out, kLanes<T>) * group_stride() * int64_t(sizeof(LaneBits<T>));
  }

  Sizes sizes_;
  char* base_;
};

// The rows of x around those last asked for, in the order of time: the cross of row t + 1 stands
// stride() behind that of row t. Rows outside the map are zeros.
template <class T>
class LoneRows {
  static constexpr int64_t kSpare = 16;  // rows until the last ones have to be moved

 public:
  // rows: how many neighbouring crosses are used at once; affine: whether scale and shift apply.
  LoneRows(const Train& job, int64_t rows, Bump& scratch, bool affine = true)
      : sizes_(sizes_of(job, 0)),
        load_(input(job, affine), true, scratch),
        stride_(sizes_.bins + 2 * sizes_.reach_f),
        capacity_(rows + 2 * sizes_.reach_t + kSpare),
        base_(scratch.take<T>(capacity_ * stride_)) {}

  int64_t stride() const { return stride_; }

  // Of clip n, from the crosses of row t on.
  void start(int64_t n, int64_t t) {
    std::memset(base_, 0, size_t(capacity_ * stride_) * sizeof(T));
    n_ = n;
    first_ = next_ = t - sizes_.reach_t;
  }

  // The cross of row t, with those of `rows` rows from there on behind it. Ends what was given
  // before, which t follows: no row is skipped.
  Cross<T> crosses(int64_t t, int64_t rows) {
    const int64_t reach = sizes_.reach_t;
    if (t + rows + reach > first_ + capacity_) {
      std::memmove(base_, row(t - reach), size_t((next_ - t + reach) * stride_) * sizeof(T));
      first_ = t - reach;
    }
    for (; next_ < t + rows + reach; ++next_) {
      T* to = row(next_) + sizes_.reach_f;
      if (next_ < 0 || next_ >= sizes_.frames) {
        std::memset(to, 0, size_t(sizes_.bins) * sizeof(T));
      } else {
        load_.row(n_, next_, [](auto) {}, to);
      }
    }
    const T* middle = row(t) + sizes_.reach_f;
    return {middle - reach * stride_, middle, middle + reach * stride_, sizes_.reach_f};
  }

  // Whether row t is in the map and no stripe covers it.
  bool has(int64_t t) const { return t >= 0 && t < sizes_.frames && !load_.masks(n_, 0, t); }
  bool has_bin(int64_t f) const { return f >= 0 && f < sizes_.bins && !load_.masks(n_, 1, f); }

  // Of `rows` crosses from row t on: for the row above, the own and the one below, 1 where there is
  // none. Returns whether any is missing.
  bool find_missing(int64_t t, int64_t rows, T* to) const {
    bool any = false;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < 3; ++k, ++to) {
        *to = has(t + i + (k - 1) * sizes_.reach_t) ? T(0) : T(1);
        any |= *to != 0;
      }
    }
    return any;
  }

 private:
  static Input input(const Train& job, bool affine) {
    Input input = job.input;
    if (!affine) input.scale = input.shift = nullptr;
    return input;
  }

  T* row(int64_t t) const { return base_ + (t - first_) * stride_; }

  Sizes sizes_;
  Load<T> load_;
  int64_t stride_, capacity_;
  T* base_;
  int64_t n_ = 0, first_ = 0, next_ = 0;
};

}  // namespace fastsep::FASTSEP_ISA

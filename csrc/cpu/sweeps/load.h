// The rows of a sweep's input as its first block sees them: the per-bin affine, then the stripes.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "../parts/ahead.h"
#include "../parts/dtypes.h"
#include "../parts/rows.h"
#include "../parts/scratch.h"
#include "../parts/vec.h"

namespace fastsep::FASTSEP_ISA {

template <class S>
class Load {
  using T = Compute<S>;
  static constexpr int64_t L = kLanes<T>;

 public:
  // planar: as which kind of row; blocked is for maps whose channels are neighbours in memory.
  Load(const Input& input, bool planar, Bump& scratch)
      : input_(input),
        planar_(planar),
        row_(scratch.take<T>(row_size<T>(input.channels, input.bins))) {}

  // Loads row (n, t), into `to` where it is given, and calls f with it: a Planar or a Blocked.
  template <class F>
  FASTSEP_INLINE void row(int64_t n, int64_t t, F f, T* to = nullptr) const {
    T* x = to == nullptr ? row_ : to;
    if (planar_) {
      const int64_t stride = planar_stride<T>(input_.bins);
      load_planar<S>(input_.x, n, t, input_.channels, input_.bins, x);
      finish(n, t, [&](int64_t bin, int64_t c) -> T& { return x[c * stride + bin]; });
      f(Planar<T>{x, stride});
    } else {
      const int64_t stride = blocked_stride<T>(input_.bins);
      load_blocked<S>(input_.x, n, t, input_.channels, input_.bins, x, stride);
      finish(n, t,
             [&](int64_t bin, int64_t c) -> T& { return x[c / L * stride + bin * L + c % L]; });
      f(Blocked<T>{x, stride});
    }
  }

  // Whether a stripe of clip n covers a frame (axis 0) or a bin (axis 1).
  bool masks(int64_t n, int64_t axis, int64_t position) const {
    for (int64_t s = 0; s < input_.num_stripes; ++s) {
      const int32_t* stripe = input_.stripes + (n * input_.num_stripes + s) * 3;
      if (stripe[0] == axis && position >= stripe[1] && position < stripe[2]) return true;
    }
    return false;
  }

  // Adds row (n, t).
  void fetch(Ahead& ahead, int64_t n, int64_t t) const {
    ahead.add_rows<S>(input_.x, n, t, 1, input_.channels, input_.bins);
  }

 private:
  // The per-bin affine, then the stripes: masked values become 0 whatever they were.
  template <class Element>
  FASTSEP_INLINE void finish(int64_t n, int64_t t, Element element) const {
    if (input_.scale != nullptr) {
      const S* scale = static_cast<const S*>(input_.scale);
      const S* shift = static_cast<const S*>(input_.shift);
      for (int64_t c = 0; c < input_.channels; ++c) {
        for (int64_t f = 0; f < input_.bins; ++f) {
          element(f, c) = element(f, c) * widen(scale[f]) + widen(shift[f]);
        }
      }
    }
    for (int64_t s = 0; s < input_.num_stripes; ++s) {
      const int32_t* stripe = input_.stripes + (n * input_.num_stripes + s) * 3;
      int64_t start = most(stripe[1], 0), stop = stripe[2];
      if (stripe[0] == 0) {
        if (t < start || t >= stop) continue;
        start = 0;
        stop = input_.bins;
      } else if (stripe[0] != 1) {
        continue;
      }
      for (int64_t c = 0; c < input_.channels; ++c) {
        for (int64_t f = start; f < least(stop, input_.bins); ++f) element(f, c) = 0;
      }
    }
  }

  Input input_;
  bool planar_;
  T* row_;
};

}  // namespace fastsep::FASTSEP_ISA

// Rows of the caller's tensors that are needed soon. Products leave memory idle, so they fetch
// these a few cache lines at a time: more at once would hold up what the products load themselves.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "rows.h"
#include "vec.h"

namespace fastsep::FASTSEP_ISA {

class Ahead {
 public:
  Ahead() = default;

  // Rows (n, t) to (n, t + rows - 1) of a tensor, to be fetched evenly in so many steps. Where they
  // do not follow each other in memory, the first only.
  template <class S>
  static Ahead rows(const Map& map, int64_t n, int64_t t, int64_t rows, int64_t channels,
                    int64_t bins, int64_t steps) {
    Ahead ahead;
    ahead.piece_ = reinterpret_cast<const char*>(row_of<S>(map, n, t));
    if (map.t == bins * map.f) bins *= rows;
    constexpr int64_t size = sizeof(S);
    if (map.f == 1) {
      ahead.pieces_ = channels;
      ahead.stride_ = map.c * size;
      ahead.bytes_ = bins * size;
    } else if (map.c == 1) {
      ahead.pieces_ = bins;
      ahead.stride_ = map.f * size;
      ahead.bytes_ = channels * size;
    }
    ahead.per_step_ = ceil_div(ahead.pieces_ * ceil_div(ahead.bytes_, kLine), most(steps, 1));
    return ahead;
  }

  FASTSEP_INLINE void step() {
    for (int64_t i = 0; i < per_step_ && pieces_ > 0; ++i) {
      __builtin_prefetch(piece_ + offset_, 0, 2);
      offset_ += kLine;
      if (offset_ >= bytes_) {
        offset_ = 0;
        piece_ += stride_;
        --pieces_;
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* piece_ = nullptr;
  int64_t pieces_ = 0, stride_ = 0, bytes_ = 0, offset_ = 0, per_step_ = 0;
};

}  // namespace fastsep::FASTSEP_ISA

// Memory that is needed soon. Products leave it idle, so they fetch this a few cache lines at a
// time: more at once would hold up what the products load themselves.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "rows.h"
#include "vec.h"

namespace fastsep::FASTSEP_ISA {

class Ahead {
 public:
  void clear() { *this = Ahead(); }

  // `count` pieces of so many bytes, `stride` bytes apart. At most kParts times.
  void add(const void* base, int64_t bytes, int64_t count = 1, int64_t stride = 0) {
    if (base == nullptr || bytes <= 0 || count <= 0) return;
    parts_[num_parts_++] = {static_cast<const char*>(base), bytes, count, stride};
    lines_ += count * ceil_div(bytes, kLine);
  }

  // Rows (n, t) to (n, t + rows - 1) of a tensor. Where they do not follow each other in memory,
  // the first only.
  template <class S>
  void add_rows(const Map& map, int64_t n, int64_t t, int64_t rows, int64_t channels,
                int64_t bins) {
    constexpr int64_t size = sizeof(S);
    if (map.t == bins * map.f) bins *= rows;
    const S* first = row_of<S>(map, n, t);
    if (map.f == 1) {
      add(first, bins * size, channels, map.c * size);
    } else if (map.c == 1) {
      add(first, channels * size, bins, map.f * size);
    }
  }

  // All of it in about so many steps.
  void spread(int64_t steps) { per_step_ = ceil_div(lines_, most(steps, 1)); }

  FASTSEP_INLINE void step() {
    const char *at = at_, *end = end_;
    for (int64_t i = 0; i < per_step_; ++i, at += kLine) {
      if (at >= end) {
        if (!next_piece()) break;
        at = at_;
        end = end_;
      }
      __builtin_prefetch(at, 0, 2);
    }
    at_ = at;
  }

 private:
  static constexpr int64_t kLine = 64, kParts = 5;
  struct Part {
    const char* base;
    int64_t bytes, count, stride;
  };

  bool next_piece() {
    while (part_ < num_parts_ && parts_[part_].count == 0) ++part_;
    if (part_ == num_parts_) return false;
    Part& part = parts_[part_];
    at_ = part.base;
    end_ = at_ + part.bytes;
    part.base += part.stride;
    --part.count;
    return true;
  }

  const char *at_ = nullptr, *end_ = nullptr;
  int64_t per_step_ = 0, lines_ = 0, part_ = 0, num_parts_ = 0;
  Part parts_[kParts] = {};
};

}  // namespace fastsep::FASTSEP_ISA

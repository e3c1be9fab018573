// Where spans of time meet. A block's cross reaches rows of z on the other side, which the span
// there computes anyway: it leaves a copy here, and nothing is computed twice.
#pragma once

#include <sched.h>
#include <cstdint>
#include <cstring>

#include "scratch.h"
#include "vec.h"

namespace fastsep::FASTSEP_ISA {

// Rows [begin, stop) of one stage's z that the span on one side of a seam gives the one on the
// other side.
template <class T>
class Seam {
 public:
  Seam() = default;
  Seam(Bump& bump, int64_t begin, int64_t stop, int64_t row_size)
      : begin_(begin),
        stop_(most(begin, stop)),
        row_size_(row_size),
        given_(bump.take<int32_t>(16)),  // alone in its cache line, as is the next
        taken_(bump.take<int32_t>(16)),
        rows_(bump.take<T>((stop_ - begin_) * row_size)) {}

  void clear() const { *given_ = *taken_ = 0; }

  int64_t begin() const { return begin_; }
  int64_t stop() const { return stop_; }
  int64_t rows() const { return stop_ - begin_; }
  bool holds(int64_t t) const { return t >= begin_ && t < stop_; }

  // Of one clip after the other: the giver waits until the clip before is taken, gives its rows and
  // says so; the taker waits for that, takes them and says so.
  void give(int64_t t, const T* row) const {
    std::memcpy(rows_ + (t - begin_) * row_size_, row, size_t(row_size_) * sizeof(T));
  }
  void take(int64_t t, T* row) const {
    std::memcpy(row, rows_ + (t - begin_) * row_size_, size_t(row_size_) * sizeof(T));
  }
  void await_taken(int64_t clips) const { await(taken_, clips); }
  void await_given(int64_t clips) const { await(given_, clips); }
  void announce_taken(int64_t clips) const { announce(taken_, clips); }
  void announce_given(int64_t clips) const { announce(given_, clips); }

 private:
  static void announce(int32_t* count, int64_t clips) {
    __atomic_store_n(count, int32_t(clips), __ATOMIC_RELEASE);
  }
  static void await(const int32_t* count, int64_t clips) {
    for (int64_t tries = 0; __atomic_load_n(count, __ATOMIC_ACQUIRE) < int32_t(clips); ++tries) {
      if (tries > 10000) sched_yield();
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

  int64_t begin_ = 0, stop_ = 0, row_size_ = 0;
  int32_t *given_ = nullptr, *taken_ = nullptr;  // clips
  T* rows_ = nullptr;
};

}  // namespace fastsep::FASTSEP_ISA

// Where strips of time meet. A block's cross reaches rows of z on the other side, which the strip
// there computes anyway: it leaves a copy here, and nothing is computed twice.
#pragma once

namespace fastsep::FASTSEP_ISA {

// Rows [begin, stop) of one stage's z that the strip on one side of a seam gives the one on the
// other side.
template <class T>
class Seam {
 public:
  Seam() = default;
  Seam(Bump& bump, int64_t begin, int64_t stop, int64_t row_size)
      : begin_(begin),
        stop_(most(begin, stop)),
        row_size_(row_size),
        clip_(bump.take<int32_t>(16)),  // alone in its cache line
        rows_(bump.take<T>((stop_ - begin_) * row_size)) {}

  void clear() const { *clip_ = -1; }

  int64_t begin() const { return begin_; }
  int64_t stop() const { return stop_; }
  bool holds(int64_t t) const { return t >= begin_ && t < stop_; }

  void give(int64_t t, const T* row) const {
    std::memcpy(rows_ + (t - begin_) * row_size_, row, size_t(row_size_) * sizeof(T));
  }
  void take(int64_t t, T* row) const {
    std::memcpy(row, rows_ + (t - begin_) * row_size_, size_t(row_size_) * sizeof(T));
  }

  // All rows of this clip have been given; wait until they have.
  void announce(int64_t clip) const { __atomic_store_n(clip_, int32_t(clip), __ATOMIC_RELEASE); }
  void await(int64_t clip) const {
    for (int64_t tries = 0; __atomic_load_n(clip_, __ATOMIC_ACQUIRE) < int32_t(clip); ++tries) {
      if (tries > 10000) sched_yield();
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

 private:
  int64_t begin_ = 0, stop_ = 0, row_size_ = 0;
  int32_t* clip_ = nullptr;
  T* rows_ = nullptr;
};

}  // namespace fastsep::FASTSEP_ISA

// Batch norm between the cross and ReLU: a = gamma rstd (y - mean) + beta, channel by channel.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../../kernels.h"
#include "../../parts/cross.h"
#include "../../parts/kept.h"
#include "../../parts/scratch.h"
#include "../../parts/vec.h"
#include "../sizes.h"

namespace fastsep::FASTSEP_ISA {

// The sizes of block i of a stack in training; of an empty one behind the last.
inline Sizes sizes_of(const Train& job, int64_t i) {
  static constexpr Block kNone{nullptr, nullptr, nullptr, nullptr, 0, 0, 1, 1, false};
  int64_t frames = job.input.frames, bins = job.input.bins;
  for (int64_t k = 0; k < i; ++k) {
    frames /= job.blocks[k].block.pool;
    bins /= job.blocks[k].block.pool;
  }
  return Sizes(i < job.num_blocks ? job.blocks[i].block : kNone, frames, bins);
}

inline bool is_lone(const Train& job, int64_t i) { return i == 0 && job.blocks[0].block.in == 1; }

// What stands so many bytes behind p: the same of another group of work.
template <class P>
const P* after(const P* p, size_t bytes) {
  return reinterpret_cast<const P*>(reinterpret_cast<const char*>(p) + bytes);
}

// What p points at, added up in double over the groups of work, whose partial sums are `stride`
// bytes apart.
template <class P>
double over_groups(const Train& job, const P* p, size_t stride) {
  double sum = 0;
  for (int64_t g = 0; g < job.groups; ++g) sum += double(*after(p, size_t(g) * stride));
  return sum;
}

template <class T>
Kept<T> kept_x(const Train& job, int64_t i) {
  const Sizes s = sizes_of(job, i);
  return Kept<T>(job.blocks[i].x, s.block.in, s.frames, s.bins, 0);
}

// Beside a block's input: how many positions under each of its values the block before let through
// its ReLU, as bytes [n][t][group][bin][lane]. With them and the input itself, batch norm's sums of
// the block before need no z.
template <class T>
class Counts {
  static constexpr int64_t L = kLanes<T>;

 public:
  Counts() = default;
  Counts(const Train& job, int64_t i) {
    const Sizes sizes = sizes_of(job, i);
    frames_ = sizes.frames;
    bins_ = sizes.bins;
    groups_ = ceil_div(sizes.block.in, L);
    T* const x = static_cast<T*>(job.blocks[i].x);
    if (x == nullptr) return;
    base_ = reinterpret_cast<uint8_t*>(x + kept_x<T>(job, i).size(job.input.clips));
  }

  // Whether block i has them.
  static bool are_kept(const Train& job, int64_t i) {
    if (i == 0 || i >= job.num_blocks || is_lone(job, i - 1)) return false;
    return job.blocks[i - 1].block.pool < 16;
  }

  int64_t group_stride() const { return bins_ * L; }
  int64_t row_size() const { return ceil_div(used(), kElement) * kElement; }
  int64_t size(int64_t clips) const {  // in elements of T
    return clips * frames_ * row_size() / kElement;
  }
  uint8_t* row(int64_t n, int64_t t) const { return base_ + (n * frames_ + t) * row_size(); }

  void fetch(Ahead& ahead, int64_t n, int64_t t) const {
    if (base_ != nullptr && t < frames_) ahead.add(row(n, t), row_size());
  }

  // With what fills the row's last element: the same values give the same memory.
  void clear_end(uint8_t* row) const { std::memset(row + used(), 0, size_t(row_size() - used())); }

 private:
  static constexpr int64_t kElement = sizeof(T);

  int64_t used() const { return groups_ * group_stride(); }

  int64_t frames_ = 0, bins_ = 0, groups_ = 0;
  uint8_t* base_ = nullptr;
};

template <class T>
Kept<T> kept_z(const Train& job, int64_t i) {
  const Sizes s = sizes_of(job, i);
  return Kept<T>(job.blocks[i].z, s.block.out, s.frames, s.bins, s.reach_f);
}

template <class T>
Kept<T> kept_grad(const Train& job, int64_t i) {
  const Sizes s = sizes_of(job, i);
  return Kept<T>(job.blocks[i].grad, s.block.out, s.frames_out, s.bins_out, 0);
}

// z of a block, as its cross reads it.
template <class T>
class KeptCross {
 public:
  KeptCross(const Train& job, int64_t i, Bump& scratch)
      : sizes_(sizes_of(job, i)), z_(kept_z<T>(job, i)), outside_(scratch.take<T>(z_.row_size())) {}

  void clear() const { std::memset(outside_, 0, size_t(z_.row_size()) * sizeof(T)); }
  int64_t group_stride() const { return z_.group_stride(); }

  // Adds what `rows` crosses from row t on read beyond those before them.
  void fetch(Ahead& ahead, int64_t n, int64_t t, int64_t rows) const {
    z_.fetch(ahead, n, t + sizes_.reach_t, rows);
  }

  Cross<T> operator()(int64_t n, int64_t t) const {
    return {row(n, t - sizes_.reach_t), row(n, t), row(n, t + sizes_.reach_t),
            sizes_.reach_f * kLanes<T>};
  }

 private:
  const T* row(int64_t n, int64_t t) const {
    return t < 0 || t >= sizes_.frames ? outside_ + sizes_.reach_f * kLanes<T> : z_.row(n, t);
  }

  Sizes sizes_;
  Kept<T> z_;
  T* outside_;
};

struct Norm {
  double mean, rstd, gamma, beta;
  double scale() const { return gamma * rstd; }
};

template <class T>
Norm norm_of(const TrainBlock& b, int64_t c) {
  return {b.statistics[c], 1 / std::sqrt(b.statistics[b.block.out + c] + b.eps),
          double(static_cast<const T*>(b.gamma)[c]), double(static_cast<const T*>(b.beta)[c])};
}

// a / pool^2 = shift + scale (y - mean) of channel c.
template <class T>
struct PooledAffine {
  T scale, shift;

  static PooledAffine of(const TrainBlock& b, int64_t c) {
    const double share = 1.0 / double(b.block.pool * b.block.pool);
    const Norm norm = norm_of<T>(b, c);
    return {T(norm.scale() * share), T(norm.beta * share)};
  }
};

constexpr int64_t kTaps = 5;  // up, left, centre, right, down

// The five taps of channel c, the centres merged.
template <class T>
void cross_taps(const Block& block, int64_t c, double* taps) {
  const T* time = static_cast<const T*>(block.time_taps) + 3 * c;
  const T* freq = static_cast<const T*>(block.freq_taps) + 3 * c;
  const double all[] = {double(time[0]), double(freq[0]), double(time[1]) + double(freq[1]),
                        double(freq[2]), double(time[2])};
  for (int64_t k = 0; k < kTaps; ++k) taps[k] = all[k];
}

// A block's taps and batch norm: the cross with v = y - mean as its value, and a / pool^2 from it.
template <class T>
struct NormTaps {
  Taps<T> taps;
  Vec<T> scale, shift;

  FASTSEP_INLINE Vec<T> a(Vec<T> v) const { return shift + scale * v; }

  static constexpr int64_t kSize = Taps<T>::kSize + 2 * kLanes<T>;

  FASTSEP_INLINE static NormTaps read(const T* packed) {
    const T* affine = packed + Taps<T>::kSize;
    return {Taps<T>::read(packed), load(affine), load(affine + kLanes<T>)};
  }

  static void pack(const TrainBlock& b, T* to) {
    constexpr int64_t L = kLanes<T>;
    const Block& block = b.block;
    for (int64_t c = 0; c < ceil_div(block.out, L) * L; ++c) {
      T* lane = to + c / L * kSize + c % L;
      for (int64_t i = 0; i < kTaps + 3; ++i) lane[i * L] = 0;
      if (c >= block.out) continue;
      const auto affine = PooledAffine<T>::of(b, c);
      double values[kTaps + 3];
      cross_taps<T>(block, c, values);
      values[kTaps] = -b.statistics[c];
      values[kTaps + 1] = affine.scale;
      values[kTaps + 2] = affine.shift;
      for (int64_t i = 0; i < kTaps + 3; ++i) lane[i * L] = T(values[i]);
    }
  }
};

// Small whole numbers as bytes. Integers double in size from step to step: GCC takes a longer step
// lane by lane.
template <class T>
FASTSEP_INLINE void store_counts(uint8_t* to, Vec<T> counts) {
  const auto whole = __builtin_convertvector(counts, Integers<T, int32_t>);
  const auto half = __builtin_convertvector(whole, Integers<T, uint16_t>);
  const auto bytes = __builtin_convertvector(half, Integers<T, uint8_t>);
  __builtin_memcpy(to, &bytes, sizeof bytes);
}
template <class T>
FASTSEP_INLINE Vec<T> load_counts(const uint8_t* from) {
  Integers<T, uint8_t> bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  const auto half = __builtin_convertvector(bytes, Integers<T, uint16_t>);
  const auto whole = __builtin_convertvector(half, Integers<T, int32_t>);
  return __builtin_convertvector(whole, Vec<T>);
}

// pooled_cross with batch norm before ReLU, for R rows of the output at once: crosses that are near
// each other read the same rows of z, which come from the second cache. rows: all their crosses, in
// the order of time. counts, unless null: how many positions under each output ReLU let through.
// Outputs and counts of the next row stand y_row and counts_row behind.
template <class T, int P, int R>
void pooled_norm(const T* packed, int64_t groups, const Cross<T>* rows, int64_t z_stride,
                 int64_t pool, int64_t bins_out, T* y, int64_t y_stride, int64_t y_row,
                 uint8_t* counts, int64_t counts_row) {
  constexpr int64_t L = kLanes<T>;
  const int64_t p = P > 0 ? P : pool;
  const Vec<T> zero = {}, one = zero + 1;
  for (int64_t g = 0; g < groups; ++g, packed += NormTaps<T>::kSize, y += y_stride) {
    const NormTaps<T> norm = NormTaps<T>::read(packed);
    for (int64_t f = 0; f < bins_out; ++f) {
#pragma GCC unroll 2
      for (int64_t r = 0; r < R; ++r) {
        Vec<T> sum = {}, count = {};
        for (int64_t i = 0; i < p; ++i) {
          for (int64_t k = 0; k < p; ++k) {
            const Vec<T> a =
                norm.a(norm.taps.apply(rows[r * p + i], g * z_stride + (f * p + k) * L));
            sum += relu<T>(a);
            count += a <= zero ? zero : one;
          }
        }
        store(y + r * y_row + f * L, sum);
        if (counts != nullptr) store_counts<T>(counts + r * counts_row, count);
      }
      if (counts != nullptr) counts += L;
    }
  }
}

// Mean and variance of y, a few rows at a time without loss of digits: their sums are taken about
// the mean of those before them, and added up in double.
template <class T>
class Statistics {
  static constexpr int64_t L = kLanes<T>;

 public:
  Statistics(int64_t channels, Bump& scratch, Bump& partial)
      : groups_(ceil_div(channels, L)),
        shift_(scratch.take<T>(groups_ * L)),
        count_(partial.take<double>(1)),
        mean_(partial.take<double>(groups_ * L)),
        m2_(partial.take<double>(groups_ * L)) {}

  void start_item() { fresh_ = true; }

  // Crosses that share rows of z, which come from the second cache.
  static constexpr int64_t kRows = 4;

  // `count` rows' crosses over all groups, kRows at most; taps: of NormTaps, whose mean is not
  // used.
  void add_rows(const T* packed, const Cross<T>* rows, int64_t count, int64_t z_stride,
                int64_t bins) {
    const double n = double(count * bins), total = *count_ + n;
    for (int64_t g = 0; g < groups_; ++g) {
      Taps<T> taps = Taps<T>::read(packed + g * NormTaps<T>::kSize);
      T* shift = shift_ + g * L;
      Vec<T> sum = {}, squares = {};
      if (fresh_) {
        taps.bias = Vec<T>{};
        find_sums<1>(taps, rows, g * z_stride, bins, sum, squares);
        store(shift, sum / T(bins));
        sum = squares = Vec<T>{};
      }
      taps.bias = -load(shift);
      if (count == kRows) {
        find_sums<kRows>(taps, rows, g * z_stride, bins, sum, squares);
      } else {
        for (int64_t i = 0; i < count; ++i) {
          find_sums<1>(taps, rows + i, g * z_stride, bins, sum, squares);
        }
      }
      for (int64_t l = 0; l < L; ++l) {
        const double offset = double(sum[l]) / n;
        const double mean = double(shift[l]) + offset;
        const double m2 = double(squares[l]) - offset * double(sum[l]);
        shift[l] = T(mean);
        merge(mean_[g * L + l], m2_[g * L + l], mean, m2, n / total, *count_ * n / total);
      }
    }
    *count_ = total;
    fresh_ = false;
  }

  // Those of all groups, which follow each other `stride` bytes apart, in their order.
  void finish(int64_t partials, int64_t stride, const TrainBlock& b) const {
    for (int64_t c = 0; c < b.block.out; ++c) {
      double count = 0, mean = 0, m2 = 0;
      for (int64_t i = 0; i < partials; ++i) {
        const auto of = [&](const double* p) { return *after(p, size_t(i * stride)); };
        const double n = of(count_), total = count + n;
        if (n == 0) continue;
        merge(mean, m2, of(mean_ + c), of(m2_ + c), n / total, count * n / total);
        count = total;
      }
      b.statistics[c] = mean;
      b.statistics[b.block.out + c] = count > 0 ? m2 / count : 0;
    }
  }

 private:
  FASTSEP_INLINE static void merge(double& mean, double& m2, double other_mean, double other_m2,
                                   double share, double weight) {
    const double difference = other_mean - mean;
    mean += difference * share;
    m2 += other_m2 + difference * difference * weight;
  }

  // Of R rows. Two sums of each, so that not every one waits for the one before.
  template <int R>
  FASTSEP_INLINE static void find_sums(const Taps<T>& taps, const Cross<T>* rows, int64_t offset,
                                       int64_t bins, Vec<T>& sum, Vec<T>& squares) {
    Cross<T> row[R];
    for (int i = 0; i < R; ++i) row[i] = rows[i].from(offset);
    Vec<T> sums[2] = {}, of_squares[2] = {};
    const auto add = [&](int64_t f, int i) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec<T> v = taps.apply(row[r], f * L);
        sums[(i + r) % 2] += v;
        of_squares[(i + r) % 2] += v * v;
      }
    };
    int64_t f = 0;
    for (; f + 2 <= bins; f += 2) {
      add(f, 0);
      add(f + 1, 1);
    }
    if (f < bins) add(f, 0);
    sum += sums[0] + sums[1];
    squares += of_squares[0] + of_squares[1];
  }

  int64_t groups_;
  T* shift_;
  double *count_, *mean_, *m2_;
  bool fresh_ = true;
};

}  // namespace fastsep::FASTSEP_ISA

// Moments of a lone first block's input under its cross, bin by bin, in double. Its statistics
// follow from them, and in backward all that does not depend on the output's gradient; so they are
// kept between the two, where other blocks keep their input.
//
// The cross reads x = scale raw + shift u: raw is the input before the per-bin affine, 0 where
// there is none, and u is 1 where there is one, in the map and under no stripe. Sums of raw and u
// over the rows of a bin give those of x, and are what the affine's own gradients are made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../../kernels.h"
#include "../../parts/dtypes.h"
#include "../../parts/scratch.h"
#include "../../parts/vec.h"
#include "lone.h"

namespace fastsep::FASTSEP_ISA {

constexpr int64_t kLonePairs = kTaps * (kTaps + 1) / 2;

// Where tap k of a cross stands along the bins.
FASTSEP_INLINE int64_t bin_of_tap(int64_t k, int64_t reach) {
  return k == 1 ? -reach : k == 3 ? reach : 0;
}
// Which of the rows above, at and below the centre it stands in.
FASTSEP_INLINE int64_t row_of_tap(int64_t k) { return k == 0 ? 0 : k == 4 ? 2 : 1; }

template <class T>
struct LoneMoments {
  LoneMoments(Bump& bump, const Train& job)
      : bins(job.input.bins),
        affine(job.input.scale != nullptr),
        x(bump.take<double>(kTaps * bins)),
        pairs(bump.take<double>(kLonePairs * bins)),
        ux(bump.take<double>(affine ? kTaps * kTaps * bins : 0)),
        uu(bump.take<double>(affine ? kTaps * kTaps * bins : 0)),
        reach(sizes_of(job, 0).reach_f),
        scale(static_cast<const T*>(job.input.scale)),
        shift(static_cast<const T*>(job.input.shift)) {}

  static LoneMoments kept(const Train& job) {
    Bump bump(job.blocks[0].x);
    return LoneMoments(bump, job);
  }

  static int64_t kept_size(const Train& job) {  // in elements of T
    if (job.blocks[0].frozen || job.blocks[0].block.out == 0) return 0;
    Bump bump(nullptr);
    LoneMoments(bump, job);
    return int64_t(bump.used() / sizeof(T));
  }

  // Where tap k of the cross around bin f reads, or -1 outside the map.
  int64_t bin_of(int64_t k, int64_t f) const {
    const int64_t at = f + bin_of_tap(k, reach);
    return at < bins ? at : -1;
  }

  // Of the cross around bin f: sums of tap k's raw and u, and of tap j's x times them.
  double of_raw(int64_t k, int64_t f) const { return x[k * bins + f]; }
  double of_u(int64_t k, int64_t f) const { return affine ? uu[(k * kTaps + k) * bins + f] : 0; }
  double of_x_raw(int64_t j, int64_t k, int64_t f) const {
    const int64_t pair = j >= k ? j * (j + 1) / 2 + k : k * (k + 1) / 2 + j;
    return of_x(j, f, pairs[pair * bins + f], affine ? ux[(j * kTaps + k) * bins + f] : 0);
  }
  double of_x_u(int64_t j, int64_t k, int64_t f) const {
    if (!affine) return 0;
    return of_x(j, f, ux[(k * kTaps + j) * bins + f], uu[(j * kTaps + k) * bins + f]);
  }

  // Over all bins: of tap k's x, and of tap j's times tap k's.
  struct Totals {
    double x[kTaps] = {}, xx[kTaps][kTaps] = {};
  };
  Totals totals() const {
    Totals sums;
    for (int64_t k = 0; k < kTaps; ++k) {
      for (int64_t f = 0; f < bins; ++f) {
        sums.x[k] += of_x(k, f, of_raw(k, f), of_u(k, f));
        for (int64_t j = 0; j < kTaps; ++j) {
          sums.xx[j][k] += of_x(k, f, of_x_raw(j, k, f), of_x_u(j, k, f));
        }
      }
    }
    return sums;
  }

  int64_t bins;
  bool affine;
  double *x, *pairs;  // of raw: [tap][bin], and of tap j times tap k [j (j + 1) / 2 + k][bin]
  double *ux, *uu;    // of tap k's u times tap j's raw, and times its u: [k][j][bin]

 private:
  // From what tap j's raw and its u give to what its x gives.
  double of_x(int64_t j, int64_t f, double by_raw, double by_u) const {
    const int64_t at = bin_of(j, f);
    if (!affine) return by_raw;
    return at < 0 ? 0 : double(scale[at]) * by_raw + double(shift[at]) * by_u;
  }

  int64_t reach;
  const T *scale, *shift;
};

// The moments, and from them mean and variance of y: w m and w C w.
template <class T>
class LoneStatistics {
  static constexpr int64_t kRows = 64;  // crosses between which the sums leave the first cache

 public:
  static size_t weights_bytes(const Train&, int64_t) { return 0; }
  static void pack(const Train&, int64_t, void*) {}

  static size_t scratch_bytes(const Train& job, int64_t) {
    Bump scratch(nullptr), partial(nullptr);
    LoneStatistics(job, scratch, partial);
    return scratch.used();
  }

  static size_t partial_bytes(const Train& job, int64_t) {
    Bump bump(nullptr);
    LoneMoments<T>(bump, job);
    return bump.used();
  }

  static void run(const Train& job, int64_t, const void*, void* scratch, void* partial,
                  int64_t group) {
    Bump bump(scratch), sums(partial);
    LoneStatistics pass(job, bump, sums);
    std::memset(partial, 0, sums.used());
    const int64_t items = job.input.clips * job.spans;
    for (int64_t k = items * group / job.groups; k < items * (group + 1) / job.groups; ++k) {
      pass.run_span(k / job.spans, k % job.spans);
    }
  }

  static void finish(const Train& job, int64_t, void* partials) {
    const size_t size = partial_bytes(job, 0) / sizeof(double);
    const double* partial = static_cast<const double*>(partials);
    double* const kept = static_cast<double*>(job.blocks[0].x);
    for (size_t i = 0; i < size; ++i) kept[i] = 0;
    for (int64_t group = 0; group < job.groups; ++group, partial += size) {
      for (size_t i = 0; i < size; ++i) kept[i] += partial[i];
    }
    const auto sums = LoneMoments<T>::kept(job).totals();
    const double count = double(job.input.clips) * double(job.input.frames * job.input.bins);
    const TrainBlock& b = job.blocks[0];
    for (int64_t c = 0; c < b.block.out; ++c) {
      double w[kTaps], mean = 0, variance = 0;
      LoneTaps<T>::products(b.block, c, 1, w);
      for (int64_t k = 0; k < kTaps; ++k) mean += w[k] * (sums.x[k] / count);
      for (int64_t j = 0; j < kTaps; ++j) {
        for (int64_t k = 0; k < kTaps; ++k) {
          const double covariance = sums.xx[j][k] / count - sums.x[j] / count * (sums.x[k] / count);
          variance += w[j] * w[k] * covariance;
        }
      }
      b.statistics[c] = mean;
      b.statistics[b.block.out + c] = variance < 0 ? 0 : variance;
    }
  }

 private:
  LoneStatistics(const Train& job, Bump& scratch, Bump& partial)
      : job_(job),
        sizes_(sizes_of(job, 0)),
        moments_(partial, job),
        x_(job, kRows, scratch, false),
        missing_(scratch.take<T>(3 * kRows)),
        x_sums_(scratch.take<double>(4 * kTaps * sizes_.bins)) {}

  void run_span(int64_t n, int64_t span) {
    const int64_t begin = sizes_.frames * span / job_.spans;
    const int64_t end = sizes_.frames * (span + 1) / job_.spans;
    std::memset(x_sums_, 0, size_t(4 * kTaps * sizes_.bins) * sizeof(double));
    std::memset(counts_, 0, sizeof counts_);
    x_.start(n, begin);
    for (int64_t t = begin; t < end; t += kRows) add_rows(t, least(kRows, end - t));
    for (int64_t k = 0; k < kTaps; ++k) {
      for (int64_t f = 0; f < sizes_.bins; ++f) {
        moments_.x[k * sizes_.bins + f] += x_sums_[4 * k * sizes_.bins + f];
      }
    }
    if (moments_.affine) add_of_u();
  }

  void add_rows(int64_t t, int64_t rows) {
    const Cross<T> cross = x_.crosses(t, rows);
    const bool missing = x_.find_missing(t, rows, missing_);
    for (int64_t i = 0; i < rows; ++i) {
      const T* m = missing_ + 3 * i;
      for (int64_t j = 0; j < 3; ++j) {
        for (int64_t k = 0; k < 3; ++k) counts_[j][k] += m[j] == 0 && m[k] == 0;
      }
    }
    constexpr int64_t step = kLanes<double>;
    int64_t f = 0;
    for (; f + step <= sizes_.bins; f += step) {
      add_bins<Vec<double>>(
          [](const T* p) { return widened(p); },
          [](double* p, Vec<double> v) { store_as<double>(p, load_as<double>(p) + v); },
          cross.from(f), rows, missing, f);
    }
    for (; f < sizes_.bins; ++f) {
      add_bins<double>([](const T* p) { return double(*p); }, [](double* p, double v) { *p += v; },
                       cross.from(f), rows, missing, f);
    }
  }

  // Of the bins from f on that a V holds.
  template <class V, class Read, class Add>
  FASTSEP_INLINE void add_bins(Read read, Add add, Cross<T> x, int64_t rows, bool missing,
                               int64_t f) const {
    const int64_t bins = sizes_.bins;
    V first[kTaps] = {}, second[kLonePairs] = {};
    for (int64_t i = 0; i < rows; ++i, x = x.from(x_.stride())) {
      const V v[] = {read(x.up), read(x.middle - x.reach), read(x.middle), read(x.middle + x.reach),
                     read(x.down)};
      int pair = 0;
#pragma GCC unroll 5
      for (int j = 0; j < kTaps; ++j) {
        first[j] += v[j];
#pragma GCC unroll 5
        for (int k = 0; k <= j; ++k) second[pair++] += v[j] * v[k];
      }
      for (int64_t k = 0; missing && k < 3; ++k) {
        if (missing_[3 * i + k] == 0) continue;
        for (int j = 0; j < kTaps; ++j) add(x_sums_ + (4 * j + 1 + k) * bins + f, v[j]);
      }
    }
    for (int j = 0; j < kTaps; ++j) add(x_sums_ + 4 * j * bins + f, first[j]);
    for (int i = 0; i < kLonePairs; ++i) add(moments_.pairs + i * bins + f, second[i]);
  }

  void add_of_u() const {
    const int64_t bins = sizes_.bins;
    for (int64_t k = 0; k < kTaps; ++k) {
      const int64_t row = row_of_tap(k), off = bin_of_tap(k, sizes_.reach_f);
      for (int64_t f = 0; f < bins; ++f) {
        if (!x_.has_bin(f + off)) continue;
        for (int64_t j = 0; j < kTaps; ++j) {
          const int64_t pair = (k * kTaps + j) * bins + f, other = row_of_tap(j);
          const double* of_x = x_sums_ + 4 * j * bins + f;
          moments_.ux[pair] += of_x[0] - of_x[(1 + row) * bins];
          const bool both = x_.has_bin(f + bin_of_tap(j, sizes_.reach_f));
          moments_.uu[pair] += both ? double(counts_[row][other]) : 0;
        }
      }
    }
  }

  const Train& job_;
  Sizes sizes_;
  LoneMoments<T> moments_;
  LoneRows<T> x_;  // before the affine
  T* missing_;
  double*
      x_sums_;  // of a span: [tap][all rows, and those whose row above, own or below is missing]
  int64_t counts_[3][3] = {};  // of a span: rows that have both of these
};

}  // namespace fastsep::FASTSEP_ISA

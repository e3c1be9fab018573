// The sums that a lone first block's gradients follow from (lone_sums.h), added up a few rows of
// its output's gradient at a time: the pass of the block behind has them in cache as it makes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../../kernels.h"
#include "../../parts/ahead.h"
#include "../../parts/dtypes.h"
#include "../../parts/scratch.h"
#include "../../parts/vec.h"
#include "lone.h"
#include "lone_moments.h"
#include "lone_sums.h"
#include "norm_gradient.h"

namespace fastsep::FASTSEP_ISA {

template <class T>
class LoneGradient {
  static constexpr int64_t L = kLanes<T>;
  static constexpr int64_t kCrosses = 32;  // whose sums stay in registers
  // Sums of a bin: da x[k] for the five taps, and da; for the affine's gradients also da of rows
  // whose row above, own row or row below is masked or outside.
  static constexpr int64_t kSums = kTaps + 1, kMissing = 3;

 public:
  static int64_t packed_size(const Train& job) {
    return ceil_div(job.blocks[0].block.out, L) * Taps<T>::kSize;
  }

  // w scale / pool^2.
  static void pack(const Train& job, T* to) {
    const TrainBlock& b = job.blocks[0];
    const double share = 1.0 / double(b.block.pool * b.block.pool);
    LoneTaps<T>::pack(b, to, [&](const Norm& norm, double& factor, double& bias) {
      factor = norm.scale() * share;
      bias = 0;
    });
  }

  // How many rows of the output's gradient `add` takes.
  static int64_t most_rows(const Train& job) {
    return most(kCrosses / job.blocks[0].block.pool, 1);
  }

  LoneGradient(const Train& job, const T* weights, Bump& scratch, Bump& partial)
      : affine_(job.input.scale != nullptr),
        input_(job.input),
        sizes_(sizes_of(job, 0)),
        groups_(ceil_div(sizes_.block.out, L)),
        weights_(weights),
        passed_(job),
        sums_(partial, job),
        grad_(kept_grad<T>(job, 0)),
        x_(job, most_rows(job) * sizes_.block.pool, scratch, false),
        missing_(scratch.take<T>(3 * most_rows(job) * sizes_.block.pool)),
        bin_sums_(scratch.take<T>(groups_ * sizes_.bins * kSums * L)),
        missing_sums_(scratch.take<T>(affine_ ? groups_ * sizes_.bins * kMissing * L : 0)) {}

  // Of clip n, from row t of the output on.
  void start(int64_t n, int64_t t) {
    n_ = n;
    x_.start(n, t * sizes_.block.pool);
    std::memset(bin_sums_, 0, size_t(groups_ * sizes_.bins * kSums * L) * sizeof(T));
    if (!affine_) return;
    std::memset(missing_sums_, 0, size_t(groups_ * sizes_.bins * kMissing * L) * sizeof(T));
  }

  void fetch(Ahead& ahead, int64_t n, int64_t t) const {
    if (t < sizes_.frames_out) ahead.add(passed_.row(n, t), passed_.row_bytes());
  }

  // What is added by `rows` rows of the output's gradient, blocked as a kept one's, from row t on,
  // which follow those before them.
  void add(int64_t t, int64_t rows, const T* grad) {
    const int64_t pool = sizes_.block.pool;
    cross_ = x_.crosses(t * pool, rows * pool);
    const bool missing = affine_ && x_.find_missing(t * pool, rows * pool, missing_);
    const auto add = pool == 2 ? (missing ? &LoneGradient::template add_bins<2, true>
                                          : &LoneGradient::template add_bins<2, false>)
                               : (missing ? &LoneGradient::template add_bins<0, true>
                                          : &LoneGradient::template add_bins<0, false>);
    for (int64_t g = 0; g < groups_; ++g) {
      (this->*add)(g, passed_.row(n_, t) + g * passed_.group_stride(),
                   grad + g * grad_.group_stride(), rows);
    }
  }

  // After the last rows of a clip or span.
  void end() const {
    if (affine_) {
      add_affine();
      return;
    }
    for (int64_t g = 0; g < groups_; ++g) {
      Vec<T> sum[kSums] = {};
      const T* sums = bin_sums_ + g * sizes_.bins * kSums * L;
      for (int64_t f = 0; f < sizes_.bins; ++f) {
        for (int64_t k = 0; k < kSums; ++k, sums += L) sum[k] += load(sums);
      }
      for (int64_t k = 0; k < kSums; ++k) add_by_channel(k, g, sum[k]);
    }
  }

  template <class Total>
  void finish(const Train& job, Total total) const {
    sums_.finish(job, total);
  }

 private:
  // What is added to the sums of a group's bins.
  template <int P, bool missing>
  void add_bins(int64_t g, const LaneBits<T>* passed, const T* grad, int64_t rows) const {
    constexpr int64_t B = P > 0 ? P : 1;  // bins at once
    const int64_t p = P > 0 ? P : sizes_.block.pool;
    T* sums = bin_sums_ + g * sizes_.bins * kSums * L;
    T* missing_sums = missing_sums_ + g * sizes_.bins * kMissing * L;
    for (int64_t f = 0; f < sizes_.bins_out * p; f += B) {
      Cross<T> x = cross_.from(f);
      const T *of_bin = grad + f / p * L, *there = missing_;
      const LaneBits<T>* bits = passed + passed_.place(0, f);
      Vec<T> sum[B][kSums] = {}, of_missing[B][kMissing] = {};
      for (int64_t t = 0; t < rows; ++t, of_bin += grad_.row_size(), bits += passed_.row_stride()) {
        const Vec<T> full = load(of_bin);
        for (int64_t i = 0; i < p; ++i, x = x.from(x_.stride()), there += 3) {
#pragma GCC unroll 2
          for (int64_t b = 0; b < B; ++b) {
            const Vec<T> da = only_lanes<T>(bits[i * p + b], full);
            sum[b][0] += da * x.up[b];
            sum[b][1] += da * x.middle[b - x.reach];
            sum[b][2] += da * x.middle[b];
            sum[b][3] += da * x.middle[b + x.reach];
            sum[b][4] += da * x.down[b];
            sum[b][kTaps] += da;
            if constexpr (missing) {
              for (int64_t k = 0; k < kMissing; ++k) of_missing[b][k] += da * there[k];
            }
          }
        }
      }
#pragma GCC unroll 2
      for (int64_t b = 0; b < B; ++b) {
#pragma GCC unroll 6
        for (int64_t k = 0; k < kSums; ++k, sums += L) store(sums, load(sums) + sum[b][k]);
        if constexpr (missing) {
          for (int64_t k = 0; k < kMissing; ++k, missing_sums += L) {
            store(missing_sums, load(missing_sums) + of_missing[b][k]);
          }
        }
      }
    }
  }

  void add_by_channel(int64_t k, int64_t g, Vec<T> sum) const {
    for (int64_t l = 0; l < L; ++l) {
      sums_.by_channel[k * sums_.channels + g * L + l] += double(sum[l]);
    }
  }

  void add_affine() const {
    const int64_t bins = sizes_.bins;
    const T* scale = static_cast<const T*>(input_.scale);
    const T* shift = static_cast<const T*>(input_.shift);
    for (int64_t k = 0; k < kTaps; ++k) {
      const int64_t row = row_of_tap(k), off = bin_of_tap(k, sizes_.reach_f);
      for (int64_t g = 0; g < groups_; ++g) {
        Vec<T> of_x = {}, all = {};
        for (int64_t f = 0; f < bins; ++f) {
          if (k == 0) all += bin_sum(g, f, kTaps);
          if (!x_.has_bin(f + off)) continue;
          of_x += scale[f + off] * bin_sum(g, f, k) + shift[f + off] * of_there(g, f, row);
        }
        add_by_channel(k, g, of_x);
        if (k == 0) add_by_channel(kTaps, g, all);
      }
      for (int64_t f = 0; f < bins; ++f) {
        if (!x_.has_bin(f + off)) continue;
        Vec<T> by_raw = {}, by_u = {};
        for (int64_t g = 0; g < groups_; ++g) {
          const Vec<T> w = load(weights_ + g * Taps<T>::kSize + k * L);
          by_raw += w * bin_sum(g, f, k);
          by_u += w * of_there(g, f, row);
        }
        sums_.by_scale[k * bins + f] += over_lanes(by_raw);
        sums_.by_shift[k * bins + f] += over_lanes(by_u);
      }
    }
  }

  FASTSEP_INLINE Vec<T> bin_sum(int64_t g, int64_t f, int64_t k) const {
    return load(bin_sums_ + ((g * sizes_.bins + f) * kSums + k) * L);
  }
  // Of da where the cross reads a row that is there.
  FASTSEP_INLINE Vec<T> of_there(int64_t g, int64_t f, int64_t row) const {
    const T* missing = missing_sums_ + ((g * sizes_.bins + f) * kMissing + row) * L;
    return bin_sum(g, f, kTaps) - load(missing);
  }

  FASTSEP_INLINE static double over_lanes(Vec<T> v) {
    T lanes[L];
    std::memcpy(lanes, &v, sizeof lanes);
    Vec<double> sums = {};
    for (int64_t l = 0; l < L; l += kLanes<double>) sums += widened(lanes + l);
    double sum = 0;
    for (int64_t l = 0; l < kLanes<double>; ++l) sum += sums[l];
    return sum;
  }

  bool affine_;
  Input input_;
  Sizes sizes_;
  int64_t groups_;
  const T* weights_;
  LonePassed<T> passed_;
  LoneSums<T> sums_;
  Kept<T> grad_;      // its layout
  LoneRows<T> x_;     // before the affine
  Cross<T> cross_{};  // of the first of the rows added
  T* missing_;
  T *bin_sums_, *missing_sums_;  // of a span: [group][bin][sum][lane]
  int64_t n_ = 0;
};

// For a stack that is a lone block and nothing else: no pass behind it makes its gradient.
template <class T>
class LoneBackward {
 public:
  static size_t weights_bytes(const Train& job, int64_t) {
    return size_t(LoneGradient<T>::packed_size(job)) * sizeof(T);
  }
  static void pack(const Train& job, int64_t, void* buffer) {
    LoneGradient<T>::pack(job, static_cast<T*>(buffer));
  }

  static size_t scratch_bytes(const Train& job, int64_t) {
    Bump scratch(nullptr), partial(nullptr);
    LoneBackward(job, nullptr, scratch, partial);
    return scratch.used();
  }
  static size_t partial_bytes(const Train& job, int64_t) {
    Bump scratch(nullptr), partial(nullptr);
    LoneBackward(job, nullptr, scratch, partial);
    return partial.used();
  }

  static void run(const Train& job, int64_t, const void* weights, void* scratch, void* partial,
                  int64_t group) {
    Bump bump(scratch), sums(partial);
    LoneBackward pass(job, static_cast<const T*>(weights), bump, sums);
    std::memset(partial, 0, sums.used());
    const int64_t items = job.input.clips * job.spans, frames = sizes_of(job, 0).frames_out;
    for (int64_t k = items * group / job.groups; k < items * (group + 1) / job.groups; ++k) {
      const int64_t n = k / job.spans, span = k % job.spans, end = frames * (span + 1) / job.spans;
      int64_t t = frames * span / job.spans;
      pass.gradient_.start(n, t);
      for (int64_t rows; t < end; t += rows) {
        rows = least(LoneGradient<T>::most_rows(job), end - t);
        pass.gradient_.add(t, rows, pass.grad_.rows(n, t, rows));
      }
      pass.gradient_.end();
    }
  }

  static void finish(const Train& job, int64_t, void* partials) {
    const size_t stride = partial_bytes(job, 0);
    Bump scratch(nullptr), sums(partials);
    const LoneBackward first(job, nullptr, scratch, sums);
    first.gradient_.finish(job, [&](const double* p) { return over_groups(job, p, stride); });
  }

 private:
  LoneBackward(const Train& job, const T* weights, Bump& scratch, Bump& partial)
      : gradient_(job, weights, scratch, partial),
        grad_(job, 0, LoneGradient<T>::most_rows(job), scratch) {}

  LoneGradient<T> gradient_;
  OutputGradient<T> grad_;
};

}  // namespace fastsep::FASTSEP_ISA

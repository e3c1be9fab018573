// Backward through a lone first block, in one pass: everything follows from sums of da and da x
// over the cross, and from moments of x. With dy = scale da + by_v (w x - mean) + constant, the
// gradient of the product w[k] is the sum of dy x[k]; those of the per-bin affine are the same sums
// taken bin by bin, with x as it was before the affine and with the places that no stripe covers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../../kernels.h"
#include "../../parts/scratch.h"
#include "../../parts/vec.h"
#include "lone.h"
#include "lone_sums.h"
#include "norm_gradient.h"

namespace fastsep::FASTSEP_ISA {

constexpr int64_t kLoneRows = 64;  // crosses between which all sums of bins leave the first cache
constexpr int64_t kLoneTile = 32;  // crosses whose sums stay in registers
constexpr int64_t kLoneBins = 16;  // bins of the output whose sums and x stay in the first cache

template <class T>
class LoneBackward {
  static constexpr int64_t L = kLanes<T>;
  // Sums of a bin: da x[k] for the five taps, da, and da of rows whose row above, own row or row
  // below is masked or outside; the last three for the affine's gradients only.
  static constexpr int64_t kMissing = kTaps + 1, kSums = kTaps + 4;

 public:
  static size_t weights_bytes(const Train& job, int64_t) {
    return size_t(ceil_div(job.blocks[0].block.out, L) * Taps<T>::kSize) * sizeof(T);
  }

  // w scale / pool^2.
  static void pack(const Train& job, int64_t, void* buffer) {
    const TrainBlock& b = job.blocks[0];
    const double share = 1.0 / double(b.block.pool * b.block.pool);
    LoneTaps<T>::pack(b, static_cast<T*>(buffer),
                      [&](const Norm& norm, double& factor, double& bias) {
                        factor = norm.scale() * share;
                        bias = 0;
                      });
  }

  static size_t scratch_bytes(const Train& job, int64_t) {
    Bump scratch(nullptr), partial(nullptr);
    LoneBackward(job, nullptr, scratch, partial);
    return scratch.used();
  }

  static size_t partial_bytes(const Train& job, int64_t) {
    Bump bump(nullptr);
    LoneSums<T>(bump, job);
    return bump.used();
  }

  static void run(const Train& job, int64_t, const void* weights, void* scratch, void* partial,
                  int64_t group) {
    Bump bump(scratch), sums(partial);
    LoneBackward pass(job, static_cast<const T*>(weights), bump, sums);
    std::memset(partial, 0, sums.used());
    const int64_t items = job.input.clips * job.spans;
    for (int64_t k = items * group / job.groups; k < items * (group + 1) / job.groups; ++k) {
      pass.run_span(k / job.spans, k % job.spans);
    }
  }

  static void finish(const Train& job, int64_t, void* partials) {
    LoneSums<T>::finish(job, partials);
  }

 private:
  LoneBackward(const Train& job, const T* weights, Bump& scratch, Bump& partial)
      : job_(job),
        affine_(job.input.scale != nullptr),
        sizes_(sizes_of(job, 0)),
        groups_(ceil_div(sizes_.block.out, L)),
        steps_(most(kLoneRows / sizes_.block.pool, 1)),
        weights_(weights),
        passed_(job),
        sums_(partial, job),
        x_(job, steps_ * sizes_.block.pool, scratch, false),
        grad_(job, 0, steps_, scratch),
        missing_(scratch.take<T>(3 * steps_ * sizes_.block.pool)),
        bin_sums_(scratch.take<T>(groups_ * sizes_.bins * kSums * L)),
        x_sums_(scratch.take<double>(4 * kTaps * sizes_.bins)) {}

  void run_span(int64_t n, int64_t span) {
    const int64_t pool = sizes_.block.pool;
    // Rows of the output; what pooling dropped counts in the moments only.
    const int64_t first = sizes_.frames_out * span / job_.spans;
    const int64_t stop = sizes_.frames_out * (span + 1) / job_.spans;
    const int64_t end = span + 1 == job_.spans ? sizes_.frames : stop * pool;
    std::memset(bin_sums_, 0, size_t(groups_ * sizes_.bins * kSums * L) * sizeof(T));
    std::memset(x_sums_, 0, size_t(4 * kTaps * sizes_.bins) * sizeof(double));
    std::memset(counts_, 0, sizeof counts_);
    x_.start(n, first * pool);
    int64_t t = first * pool;
    for (int64_t row = first; row < stop; row += steps_) {
      const int64_t steps = least(steps_, stop - row);
      prepare(t, steps * pool);
      const T* grad = grad_.rows(n, row, steps);
      for (int64_t f = 0; f < sizes_.bins_out; f += kLoneBins) {
        for (int64_t g = 0; g < groups_; ++g) add_bins(g, passed_.row(n, row), grad, steps, f);
      }
      t += steps * pool;
    }
    for (; t < end; ++t) prepare(t, 1);
    for (int64_t k = 0; k < kTaps; ++k) {
      for (int64_t f = 0; f < sizes_.bins; ++f) {
        sums_.x[k * sizes_.bins + f] += x_sums_[4 * k * sizes_.bins + f];
      }
    }
    if (affine_) {
      fold_affine();
    } else {
      fold();
    }
  }

  // The crosses of so many rows, and what they add to the moments.
  void prepare(int64_t t, int64_t rows) {
    cross_ = x_.crosses(t, rows);
    for (int64_t i = 0; affine_ && i < rows; ++i) {
      T* missing = missing_ + 3 * i;
      for (int64_t k = 0; k < 3; ++k) {
        missing[k] = x_.has(t + i + (k - 1) * sizes_.reach_t) ? T(0) : T(1);
      }
      for (int64_t j = 0; j < 3; ++j) {
        for (int64_t k = 0; k < 3; ++k) counts_[j][k] += missing[j] == 0 && missing[k] == 0;
      }
    }
    if (!job_.blocks[0].frozen) {
      constexpr int64_t step = kLanes<double>;
      int64_t f = 0;
      for (; f + step <= sizes_.bins; f += step) {
        add_moments<Vec<double>>(
            [](const T* p) { return widened(p); },
            [](double* p, Vec<double> v) { store_as<double>(p, load_as<double>(p) + v); }, f, rows);
      }
      for (; f < sizes_.bins; ++f) {
        add_moments<double>([](const T* p) { return double(*p); },
                            [](double* p, double v) { *p += v; }, f, rows);
      }
    }
  }

  // Of the bins from f on that a V holds.
  template <class V, class Read, class Add>
  FASTSEP_INLINE void add_moments(Read read, Add add, int64_t f, int64_t rows) const {
    const int64_t bins = sizes_.bins;
    V first[kTaps] = {}, second[kLonePairs] = {};
    for (int64_t i = 0; i < rows; ++i) {
      const Cross<T> x = cross_.from(i * x_.stride());
      const V v[] = {read(x.up + f), read(x.middle + f - x.reach), read(x.middle + f),
                     read(x.middle + f + x.reach), read(x.down + f)};
      int pair = 0;
#pragma GCC unroll 5
      for (int j = 0; j < kTaps; ++j) {
        first[j] += v[j];
#pragma GCC unroll 5
        for (int k = 0; k <= j; ++k) second[pair++] += v[j] * v[k];
        if (!affine_) continue;
        for (int k = 0; k < 3; ++k) {
          if (missing_[3 * i + k] != 0) add(x_sums_ + (4 * j + 1 + k) * bins + f, v[j]);
        }
      }
    }
    for (int j = 0; j < kTaps; ++j) add(x_sums_ + 4 * j * bins + f, first[j]);
    for (int i = 0; i < kLonePairs; ++i) add(sums_.pairs + i * bins + f, second[i]);
  }

  // What rows under `steps` rows of the gradient add to the sums of a group's bins.
  void add_bins(int64_t g, const LaneBits<T>* passed, const T* grad, int64_t steps, int64_t first) {
    const int64_t pool = sizes_.block.pool, tile = most(kLoneTile / pool, 1);
    for (int64_t i = 0; i < steps; i += tile) {
      const int64_t end = least(i + tile, steps);
      bool missing = false;
      for (int64_t k = 3 * i * pool; affine_ && k < 3 * end * pool; ++k)
        missing |= missing_[k] != 0;
      const auto add = pool == 2 ? (missing ? &LoneBackward::template add_rows<2, true>
                                            : &LoneBackward::template add_rows<2, false>)
                                 : (missing ? &LoneBackward::template add_rows<0, true>
                                            : &LoneBackward::template add_rows<0, false>);
      (this->*add)(g, passed, grad, i, end, first, least(first + kLoneBins, sizes_.bins_out));
    }
  }

  // What rows under rows begin to end of the gradient add to the sums of a group's bins, those
  // under bins first to stop of the output.
  template <int P, bool missing>
  void add_rows(int64_t g, const LaneBits<T>* passed, const T* grad, int64_t begin, int64_t end,
                int64_t first, int64_t stop) {
    constexpr int64_t count = missing ? kSums : kMissing;
    const int64_t p = P > 0 ? P : sizes_.block.pool, stride = x_.stride();
    // To what is added next: the next group's, or the next bins' of the first group.
    const auto to_next = [&](int64_t group_stride, int64_t bin) {
      return g + 1 < groups_ ? group_stride : kLoneBins * bin - g * group_stride;
    };
    const int64_t next = to_next(grad_.group_stride(), L);
    const int64_t next_bits = to_next(passed_.group_stride(), passed_.window());
    const Cross<T> x_first = cross_.from(begin * p * stride);
    grad += begin * grad_.row_size() + g * grad_.group_stride();
    passed += begin * passed_.row_stride() + g * passed_.group_stride();
    T* sums = bin_sums_ + (g * sizes_.bins + first * p) * kSums * L;
    for (int64_t f = first * p; f < stop * p; ++f, sums += kSums * L) {
      Cross<T> x = x_first.from(f);
      const T* of_bin = grad + f / p * L;
      const T* there = missing_ + 3 * begin * p;
      const LaneBits<T>* bits = passed + passed_.place(0, f);
      // Two of each, so that not every sum waits for the one before.
      Vec<T> even[count] = {}, odd[count] = {};
      const auto add = [&](Vec<T>* sum, Vec<T> da) __attribute__((always_inline)) {
        sum[0] += da * x.up[0];
        sum[1] += da * x.middle[-x.reach];
        sum[2] += da * x.middle[0];
        sum[3] += da * x.middle[x.reach];
        sum[4] += da * x.down[0];
        sum[kTaps] += da;
        if constexpr (missing) {
          for (int64_t k = 0; k < 3; ++k) sum[kMissing + k] += da * there[k];
          there += 3;
        }
        x = x.from(stride);
      };
      for (int64_t i = begin; i < end; ++i, of_bin += grad_.row_size()) {
        const Vec<T> full = load(of_bin);
        __builtin_prefetch(of_bin + next, 0, 2);
        __builtin_prefetch(bits + next_bits, 0, 2);
        if constexpr (P == 2) {
          add(even, only_lanes<T>(bits[0], full));
          add(odd, only_lanes<T>(bits[2], full));
        } else {
          for (int64_t r = 0; r < p; ++r) add(even, only_lanes<T>(bits[r * p], full));
        }
        bits += passed_.row_stride();
      }
#pragma GCC unroll 9
      for (int64_t k = 0; k < count; ++k)
        store(sums + k * L, load(sums + k * L) + (even[k] + odd[k]));
    }
  }

  void add_by_channel(int64_t k, int64_t g, Vec<T> sum) const {
    for (int64_t l = 0; l < L; ++l) {
      sums_.by_channel[k * sums_.channels + g * L + l] += double(sum[l]);
    }
  }

  // A clip's sums of bins into those of the group of work.
  void fold() const {
    for (int64_t g = 0; g < groups_; ++g) {
      Vec<T> sum[kTaps + 1] = {};
      const T* sums = bin_sums_ + g * sizes_.bins * kSums * L;
      for (int64_t f = 0; f < sizes_.bins; ++f, sums += kSums * L) {
        for (int64_t k = 0; k <= kTaps; ++k) sum[k] += load(sums + k * L);
      }
      for (int64_t k = 0; k <= kTaps; ++k) add_by_channel(k, g, sum[k]);
    }
  }

  void fold_affine() const {
    const int64_t bins = sizes_.bins;
    const T* scale = static_cast<const T*>(job_.input.scale);
    const T* shift = static_cast<const T*>(job_.input.shift);
    for (int64_t k = 0; k < kTaps; ++k) {
      const int64_t row = row_of_tap(k), off = bin_of_tap(k, sizes_.reach_f);
      for (int64_t g = 0; g < groups_; ++g) {
        const Vec<T> w = load(weights_ + g * Taps<T>::kSize + k * L);
        const T* sums = bin_sums_ + g * bins * kSums * L;
        Vec<T> of_x = {}, all = {};
        for (int64_t f = 0; f < bins; ++f, sums += kSums * L) {
          const Vec<T> da = load(sums + kTaps * L);
          if (k == 0) all += da;
          if (!x_.has_bin(f + off)) continue;
          const Vec<T> by_raw = load(sums + k * L);
          const Vec<T> there = da - load(sums + (kMissing + row) * L);
          of_x += scale[f + off] * by_raw + shift[f + off] * there;
          sums_.by_scale[k * bins + f] += over_lanes(w * by_raw);
          sums_.by_shift[k * bins + f] += over_lanes(w * there);
        }
        add_by_channel(k, g, of_x);
        if (k == 0) add_by_channel(kTaps, g, all);
      }
      for (int64_t f = 0; f < bins; ++f) {
        if (!x_.has_bin(f + off)) continue;
        for (int64_t j = 0; j < kTaps; ++j) {
          const int64_t pair = (k * kTaps + j) * bins + f, other = row_of_tap(j);
          const double* of_x = x_sums_ + 4 * j * bins + f;
          sums_.ux[pair] += of_x[0] - of_x[(1 + row) * bins];
          const bool both = x_.has_bin(f + bin_of_tap(j, sizes_.reach_f));
          sums_.uu[pair] += both ? double(counts_[row][other]) : 0;
        }
      }
    }
  }

  FASTSEP_INLINE static double over_lanes(Vec<T> v) {
    double sum = 0;
    for (int64_t l = 0; l < L; ++l) sum += double(v[l]);
    return sum;
  }

  const Train& job_;
  bool affine_;
  Sizes sizes_;
  int64_t groups_, steps_;
  const T* weights_;
  LonePassed<T> passed_;
  LoneSums<T> sums_;
  LoneRows<T> x_;  // before the affine
  OutputGradient<T> grad_;
  Cross<T> cross_{};  // of the first of the rows prepared
  T* missing_;
  T* bin_sums_;
  double*
      x_sums_;  // of a clip: [tap][all rows, and those whose row above, own or below is missing]
  int64_t counts_[3][3] = {};  // of a clip: rows that have both of these
};

}  // namespace fastsep::FASTSEP_ISA

// Mean and variance of a map's bins over all of its rows: from sums of the differences from the
// first row, and of their squares, in double.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../kernels.h"
#include "../parts/dtypes.h"
#include "../parts/vec.h"

namespace fastsep::FASTSEP_ISA {

template <class S>
struct BinStatistics {
  using T = Compute<S>;
  static constexpr int64_t L = kLanes<double>;

  static void run(const Bins& job, int64_t group) {
    const S* first = static_cast<const S*>(job.x);
    double* sums = job.partials + 2 * job.bins * group;
    for (int64_t i = 0; i < 2 * job.bins; ++i) sums[i] = 0;
    for (int64_t row = job.rows * group / job.groups; row < job.rows * (group + 1) / job.groups;
         ++row) {
      add(first + row * job.bins, first, job.bins, sums, sums + job.bins);
    }
  }

  // mean and variance: of no rows, 0.
  static void finish(const Bins& job, double* mean, double* variance) {
    const S* first = static_cast<const S*>(job.x);
    const double count = double(most(job.rows, 1));
    for (int64_t f = 0; f < job.bins; ++f) {
      double sum = 0, squares = 0;
      for (int64_t group = 0; group < job.groups; ++group) {
        sum += job.partials[2 * job.bins * group + f];
        squares += job.partials[2 * job.bins * group + job.bins + f];
      }
      mean[f] = (job.rows > 0 ? double(widen(first[f])) : 0) + sum / count;
      const double v = squares / count - sum / count * (sum / count);
      variance[f] = v < 0 ? 0 : v;  // NaN stays
    }
  }

 private:
  static void add(const S* x, const S* first, int64_t bins, double* sums, double* squares) {
    int64_t f = 0;
    if constexpr (std::is_same_v<S, T>) {
      for (; f + L <= bins; f += L) {
        const Vec<double> v = widened(x + f) - widened(first + f);
        store_as<double>(sums + f, load_as<double>(sums + f) + v);
        store_as<double>(squares + f, load_as<double>(squares + f) + v * v);
      }
    }
    for (; f < bins; ++f) {
      const double v = double(widen(x[f])) - double(widen(first[f]));
      sums[f] += v;
      squares[f] += v * v;
    }
  }
};

template <class S>
constexpr BinsKernels kBins = {.run = BinStatistics<S>::run, .finish = BinStatistics<S>::finish};

inline const BinsKernels& bins_kernels(const Bins& job) {
  return with_storage(job.dtype, []<class S>() -> const BinsKernels& { return kBins<S>; });
}

}  // namespace fastsep::FASTSEP_ISA

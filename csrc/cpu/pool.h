// Global pooling of the network's tail: the mean over bins, then its maximum over time plus its
// mean over time. Lanes are channels; NaN and infinity of the maximum are in the mean too.
#pragma once

namespace fastsep::FASTSEP_ISA {

// Sums over the bins of L channels at one time.
template <class S, class T = Compute<S>>
FASTSEP_INLINE Vec<T> sum_of_bins(const S* x, const Map& map, int64_t channels, int64_t bins) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> sum = {};
  int64_t f = 0;
  if (map.c == 1 && channels == L) {
    for (; f < bins; ++f) sum += load_as<S>(x + f * map.f);
  } else if (map.f == 1 && channels == L && bins >= L) {
    Vec<T> square[L] = {};
    for (; f + L <= bins; f += L) {
      for (int64_t l = 0; l < L; ++l) square[l] += load_as<S>(x + l * map.c + f);
    }
    transpose<T>(square);
    for (int64_t l = 0; l < L; ++l) sum += square[l];
  }
  for (; f < bins; ++f) {
    for (int64_t l = 0; l < channels; ++l) sum[l] += widen(x[l * map.c + f * map.f]);
  }
  return sum;
}

template <class S>
void global_pool(const GlobalPool& job, int64_t n) {
  using T = Compute<S>;
  constexpr int64_t L = kLanes<T>;
  for (int64_t c = 0; c < job.channels; c += L) {
    const int64_t lanes = least(L, job.channels - c);
    Vec<T> largest, total;
    for (int64_t t = 0; t < job.frames; ++t) {
      const S* x = row_of<S>(job.x, n, t) + c * job.x.c;
      const Vec<T> sum = sum_of_bins<S>(x, job.x, lanes, job.bins);
      if (t == 0) {
        largest = total = sum;
      } else {
        largest = sum > largest ? sum : largest;
        total += sum;
      }
    }
    const Vec<T> pooled = (largest + total / T(job.frames)) / T(job.bins);
    S* y = static_cast<S*>(job.y) + n * job.channels + c;
    for (int64_t l = 0; l < lanes; ++l) narrow(pooled[l], y[l]);
  }
}

}  // namespace fastsep::FASTSEP_ISA

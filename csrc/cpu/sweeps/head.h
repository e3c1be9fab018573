// The head sweep, one clip at a time. Global pooling: the mean over bins, then its maximum over
// time plus its mean over time; lanes are channels; NaN and infinity of the maximum are in the mean
// too. Then layers that are linear, with a ReLU between them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernels.h"
#include "../parts/dtypes.h"
#include "../parts/rows.h"
#include "../parts/scratch.h"
#include "../parts/vec.h"

namespace fastsep::FASTSEP_ISA {

// Sums over the bins of L channels at one time.
template <class S, class T = Compute<S>>
FASTSEP_INLINE Vec<T> sum_of_bins(const S* x, const Map& map, int64_t channels, int64_t bins) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> sum = {};
  int64_t f = 0;
  const bool channels_last = map.c == 1;
  if (channels == L && bins >= L && (channels_last || map.f == 1)) {
    Vec<T> square[L] = {};  // of bins f, f + L, f + 2 L ...: the order of sums is that of both
    for (; f + L <= bins; f += L) {
      for (int64_t l = 0; l < L; ++l) {
        square[l] += load_as<S>(channels_last ? x + (f + l) * map.f : x + l * map.c + f);
      }
    }
    if (!channels_last) transpose<T>(square);
    for (int64_t l = 0; l < L; ++l) sum += square[l];
  }
  for (; channels_last && channels == L && f < bins; ++f) sum += load_as<S>(x + f * map.f);
  for (; f < bins; ++f) {
    for (int64_t l = 0; l < channels; ++l) sum[l] += widen(x[l * map.c + f * map.f]);
  }
  return sum;
}

// Into y; total is of its size. A row of all channels at a time where they lie next to each other,
// else all rows of L channels.
template <class S, class T = Compute<S>>
void global_pool(const Head& job, int64_t n, T* y, T* total) {
  constexpr int64_t L = kLanes<T>;
  const int64_t width = job.x.c == 1 ? job.channels : L;
  for (int64_t first = 0; first < job.channels; first += width) {
    const int64_t stop = least(first + width, job.channels);
    for (int64_t t = 0; t < job.frames; ++t) {
      const S* x = row_of<S>(job.x, n, t);
      for (int64_t c = first; c < stop; c += L) {
        const Vec<T> sum =
            sum_of_bins<S>(x + c * job.x.c, job.x, least(L, job.channels - c), job.bins);
        if (t == 0) {
          store(y + c, sum);
          store(total + c, sum);
        } else {
          const Vec<T> largest = load(y + c);
          store(y + c, sum > largest ? sum : largest);
          store(total + c, load(total + c) + sum);
        }
      }
    }
    for (int64_t c = first; c < stop; c += L) {
      store(y + c, (load(y + c) + load(total + c) / T(job.frames)) / T(job.bins));
    }
  }
}

// y = weight x + bias; whole vectors of x and y may be read and written. Lanes are inputs first, so
// that weights are read as they lie, then outputs.
template <class S, class T = Compute<S>>
void linear(const Linear& layer, const T* x, T* y) {
  constexpr int64_t L = kLanes<T>;
  const S* bias = static_cast<const S*>(layer.bias);
  for (int64_t o = 0; o < layer.out; o += L) {
    const int64_t lanes = least(L, layer.out - o);
    const S* weight = static_cast<const S*>(layer.weight) + o * layer.in;
    const int64_t vectors = layer.in / L * L;
    Vec<T> square[L] = {}, sum = {};
    for (int64_t l = 0; l < lanes; ++l) {
      for (int64_t i = 0; i < vectors; i += L) {
        square[l] += load_as<S>(weight + l * layer.in + i) * load(x + i);
      }
      sum[l] = widen(bias[o + l]);
      for (int64_t i = vectors; i < layer.in; ++i) sum[l] += widen(weight[l * layer.in + i]) * x[i];
    }
    transpose<T>(square);
    for (int64_t l = 0; l < L; ++l) sum += square[l];
    store(y + o, sum);
  }
}

template <class S>
class HeadSweep {
  using T = Compute<S>;

 public:
  static size_t scratch_bytes(const Head& job) {
    Bump bump(nullptr);
    for (int i = 0; i < 2; ++i) bump.take<T>(widest(job));
    return bump.used();
  }

  static void run(const Head& job, void* scratch, int64_t n) {
    Bump bump(scratch);
    T* x = bump.take<T>(widest(job));
    T* y = bump.take<T>(widest(job));
    global_pool<S>(job, n, y, x);
    int64_t out = job.channels;
    for (int64_t i = 0; i < job.num_layers; ++i) {
      T* const last = y;
      y = x;
      x = last;
      for (int64_t c = 0; i > 0 && c < out; c += kLanes<T>) store(x + c, relu<T>(load(x + c)));
      linear<S>(job.layers[i], x, y);
      out = job.layers[i].out;
    }
    S* to = static_cast<S*>(job.y) + n * out;
    for (int64_t c = 0; c < out; ++c) narrow(y[c], to[c]);
  }

 private:
  // Values of the longest vector between two layers, in whole vectors.
  static int64_t widest(const Head& job) {
    int64_t most_values = job.channels;
    for (int64_t i = 0; i < job.num_layers; ++i) {
      most_values = most(most_values, job.layers[i].out);
    }
    return ceil_div(most_values, kLanes<T>) * kLanes<T>;
  }
};

template <class S>
constexpr HeadKernels kHead = {
    .scratch_bytes = HeadSweep<S>::scratch_bytes,
    .run = HeadSweep<S>::run,
};

inline const HeadKernels& head_kernels(const Head& job) {
  return with_storage(job.dtype, []<class S>() -> const HeadKernels& { return kHead<S>; });
}

}  // namespace fastsep::FASTSEP_ISA

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

// Of all bins, f(bin) of L channels each.
template <class T, class F>
FASTSEP_INLINE Vec<T> sum_of_vectors(int64_t bins, F f) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> sum = {};
  int64_t bin = 0;
  if (bins >= L) {
    Vec<T> square[L] = {};  // of bins l, l + L, l + 2 L ...
    for (; bin + L <= bins; bin += L) {
      for (int64_t l = 0; l < L; ++l) square[l] += f(bin + l);
    }
    for (int64_t l = 0; l < L; ++l) sum += square[l];
  }
  for (; bin < bins; ++bin) sum += f(bin);
  return sum;
}

// Pools L channels over time, from sums over their bins.
template <class T>
FASTSEP_INLINE void pool_frame(Vec<T> sum, bool first, T* largest, T* total) {
  if (first) {
    store(largest, sum);
    store(total, sum);
  } else {
    const Vec<T> before = load(largest);
    store(largest, sum > before ? sum : before);
    store(total, load(total) + sum);
  }
}
template <class T>
FASTSEP_INLINE Vec<T> pooled_frames(const T* largest, const T* total, int64_t frames,
                                    int64_t bins) {
  return (load(largest) + load(total) / T(frames)) / T(bins);
}

// Sums over the bins of L channels at one time.
template <class S, class T = Compute<S>>
FASTSEP_INLINE Vec<T> sum_of_bins(const S* x, const Map& map, int64_t channels, int64_t bins) {
  constexpr int64_t L = kLanes<T>;
  if (channels == L && map.c == 1) {
    return sum_of_vectors<T>(bins, [&](int64_t f) { return load_as<S>(x + f * map.f); });
  }
  Vec<T> sum = {};
  int64_t f = 0;
  if (channels == L && bins >= L && map.f == 1) {
    Vec<T> square[L] = {};  // as in sum_of_vectors, but for the transposition
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
        pool_frame(sum, t == 0, y + c, total + c);
      }
    }
    for (int64_t c = first; c < stop; c += L) {
      store(y + c, pooled_frames(y + c, total + c, job.frames, job.bins));
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
    finish(job, y, x, n);
  }

  // Values of the longest vector between two layers, in whole vectors.
  static int64_t widest(const Head& job) {
    int64_t most_values = job.channels;
    for (int64_t i = 0; i < job.num_layers; ++i) {
      most_values = most(most_values, job.layers[i].out);
    }
    return ceil_div(most_values, kLanes<T>) * kLanes<T>;
  }

  // From the pooled y; x is as large.
  static void finish(const Head& job, T* y, T* x, int64_t n) {
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
};

// Heads of several clips whose frames come one at a time, to the bits of the sweep.
template <class S>
class FrameByFrame {
  using T = Compute<S>;
  static constexpr int64_t L = kLanes<T>;

 public:
  FrameByFrame() = default;
  FrameByFrame(const Head& job, int64_t clips, Bump& scratch)
      : job_(&job),
        width_(HeadSweep<S>::widest(job)),
        largest_(scratch.take<T>(clips * width_)),
        total_(scratch.take<T>(clips * width_)) {}

  // The next frame of a clip: bins[f] is where the channels of bin f are.
  void add(int64_t clip, bool first, const T* const* bins) const {
    T *const largest = largest_ + clip * width_, *const total = total_ + clip * width_;
    for (int64_t c = 0; c < job_->channels; c += L) {
      const auto at = [&](int64_t f) { return load(bins[f] + c); };
      Vec<T> sum = {};
      if (c + L <= job_->channels) {
        sum = sum_of_vectors<T>(job_->bins, at);
      } else {
        for (int64_t f = 0; f < job_->bins; ++f) sum += at(f);
      }
      pool_frame(sum, first, largest + c, total + c);
    }
  }

  // After the last: result n.
  void finish(int64_t clip, int64_t n) const {
    T *const y = largest_ + clip * width_, *const x = total_ + clip * width_;
    for (int64_t c = 0; c < job_->channels; c += L) {
      store(y + c, pooled_frames(y + c, x + c, job_->frames, job_->bins));
    }
    HeadSweep<S>::finish(*job_, y, x, n);
  }

 private:
  const Head* job_ = nullptr;
  int64_t width_ = 0;
  T *largest_ = nullptr, *total_ = nullptr;
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

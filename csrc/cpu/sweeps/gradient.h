// The gradient sweep of one operator or block: z is recomputed row by row, never stored. Along
// time, with d the dilation: z[t + 2d] is projected, then dy[t + d] known (and the taps' gradients
// with it), then dz[t], and from it dx[t] and a share of the pointwise weights' gradient.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../kernels.h"
#include "../parts/ahead.h"
#include "../parts/cross.h"
#include "../parts/dtypes.h"
#include "../parts/product.h"
#include "../parts/rows.h"
#include "../parts/scratch.h"
#include "../parts/vec.h"
#include "load.h"
#include "sizes.h"

namespace fastsep::FASTSEP_ISA {

template <class S>
class GradientSweep {
  using T = Compute<S>;
  static constexpr int64_t L = kLanes<T>;
  // Sums for one group's taps and bias: up, left, centre, right, down, bias.
  static constexpr int64_t kSums = 6 * L;

  struct Packed {
    Packed(Bump& bump, const Block& block)
        : forward{bump.take<T>(Panels<T>::size(block.in, block.out)), block.in, block.out},
          backward{bump.take<T>(Panels<T>::size(block.out, block.in)), block.out, block.in},
          taps(bump.take<T>(ceil_div(block.out, L) * SeparateTaps<T>::kSize)) {}

    Panels<T> forward, backward;
    T* taps;  // nothing is merged: next to the products it would save little
  };

 public:
  static size_t weights_bytes(const Gradient& job) {
    Bump bump(nullptr);
    Packed(bump, job.block);
    return bump.used();
  }

  static void pack(const Gradient& job, void* buffer) {
    Bump bump(buffer);
    const Block& block = job.block;
    const Packed packed(bump, block);
    const S* p = static_cast<const S*>(block.pointwise);
    packed.forward.pack(p, block.in, 1);
    packed.backward.pack(p, 1, block.in);
    SeparateTaps<T>::template pack<S>(block, packed.taps);
  }

  static size_t scratch_bytes(const Gradient& job) {
    Bump weights(nullptr), scratch(nullptr), partial(nullptr);
    GradientSweep(job, weights, scratch, partial);
    return scratch.used();
  }

  static size_t partial_bytes(const Gradient& job) {
    Bump weights(nullptr), scratch(nullptr), partial(nullptr);
    GradientSweep(job, weights, scratch, partial);
    return partial.used();
  }

  static void run(const Gradient& job, const void* weights, void* scratch, void* partial,
                  int64_t group) {
    Bump packed(const_cast<void*>(weights)), bump(scratch), sums(partial);
    GradientSweep sweep(job, packed, bump, sums);
    if (sums.used() > 0) std::memset(partial, 0, sums.used());
    const int64_t items = job.input.clips * job.spans;
    for (int64_t i = items * group / job.groups; i < items * (group + 1) / job.groups; ++i) {
      sweep.run_span(i / job.spans, i % job.spans);
    }
  }

  // Adds the groups' sums in their order and rounds once.
  static void reduce(const Gradient& job, const void* partials) {
    const Block& block = job.block;
    const int64_t groups_out = ceil_div(block.out, L);
    const int64_t stride = int64_t(partial_bytes(job) / sizeof(T));
    const T* pointwise = static_cast<const T*>(partials);
    Bump bump(const_cast<void*>(partials));
    bump.take<T>(block.in * groups_out * L);
    const T* taps = bump.take<T>(groups_out * kSums);
    const auto total = [&](const T* first) {
      double sum = 0;
      for (int64_t g = 0; g < job.groups; ++g) sum += double(first[g * stride]);
      return T(sum);
    };
    S* d_pointwise = static_cast<S*>(job.d_pointwise);
    S* d_time = static_cast<S*>(job.d_time_taps);
    S* d_freq = static_cast<S*>(job.d_freq_taps);
    S* d_bias = static_cast<S*>(job.d_bias);
    for (int64_t c = 0; c < block.out; ++c) {
      for (int64_t k = 0; k < block.in; ++k) {
        narrow(total(pointwise + k * groups_out * L + c), d_pointwise[c * block.in + k]);
      }
      const T* lane = taps + c / L * kSums + c % L;
      narrow(total(lane + 0 * L), d_time[3 * c]);
      narrow(total(lane + 1 * L), d_freq[3 * c]);
      narrow(total(lane + 2 * L), d_time[3 * c + 1]);
      narrow(total(lane + 2 * L), d_freq[3 * c + 1]);
      narrow(total(lane + 3 * L), d_freq[3 * c + 2]);
      narrow(total(lane + 4 * L), d_time[3 * c + 2]);
      narrow(total(lane + 5 * L), d_bias[c]);
    }
  }

 private:
  GradientSweep(const Gradient& job, Bump& weights, Bump& scratch, Bump& partial)
      : job_(job),
        sizes_(job.block, job.input.frames, job.input.bins),
        groups_(ceil_div(job.block.out, L)),
        stride_(blocked_stride<T>(sizes_.bins)),
        packed_(weights, job.block),
        load_(job.input, job.input.x.c != 1 || sizes_.lone, scratch),
        z_(scratch, least(2 * sizes_.reach_t + 1, sizes_.frames), job.block.out, sizes_.bins,
           sizes_.frames, sizes_.reach_f),
        dy_(scratch, least(2 * sizes_.reach_t + 1, sizes_.frames), job.block.out, sizes_.bins,
            sizes_.frames, sizes_.reach_f),
        pooled_(scratch.take<T>(row_size<T>(job.block.out, sizes_.bins_out))),
        dz_(scratch.take<T>(row_size<T>(job.block.out, sizes_.bins))),
        dx_(scratch.take<T>(row_size<T>(job.block.in, sizes_.bins))),
        d_pointwise_(partial.take<T>(job.block.in * groups_ * L)),
        d_taps_(partial.take<T>(groups_ * kSums)) {}

  void run_span(int64_t n, int64_t index) {
    const int64_t frames = sizes_.frames, reach = sizes_.reach_t;
    n_ = n;
    own_begin_ = frames * index / job_.spans;
    own_end_ = frames * (index + 1) / job_.spans;
    z_.clear();
    dy_.clear();
    pooled_row_ = -1;
    int64_t next_z = most(own_begin_ - 2 * reach, 0), next_dy = most(own_begin_ - reach, 0);
    for (int64_t t = own_begin_; t < own_end_; ++t) {
      for (; next_dy < least(t + reach + 1, frames); ++next_dy) {
        for (; next_z < least(next_dy + reach + 1, frames); ++next_z) project_z(next_z);
        find_dy(next_dy);
      }
      find_dz(t);
      load_.row(n_, t, [&](auto x) {
        correlate(x, job_.block.in, dz_, stride_, job_.block.out, sizes_.bins, d_pointwise_);
      });
      if (job_.dx.data != nullptr) {
        project(Blocked<T>{dz_, stride_}, sizes_.bins, packed_.backward, dx_, stride_, [] {});
        store_blocked<S>(dx_, stride_, job_.dx, n_, t, job_.block.in, sizes_.bins);
      }
    }
  }

  void project_z(int64_t t) {
    Ahead next;
    if (t + 1 < sizes_.frames) {
      load_.fetch(next, n_, t + 1);
      next.spread(packed_.forward.steps(sizes_.bins));
    }
    load_.row(n_, t, [&](auto x) {
      project(x, sizes_.bins, packed_.forward, z_[t], z_.group_stride(), [&] { next.step(); });
    });
  }

  // The gradient before ReLU and pooling, and what it adds to the taps' and the bias's gradients.
  void find_dy(int64_t t) {
    const int64_t pool = job_.block.pool, bins_out = sizes_.bins_out;
    T* dy = dy_[t];
    if (!job_.block.relu) {
      load_blocked<S>(job_.grad, n_, t, job_.block.out, sizes_.bins, dy, dy_.group_stride());
    } else if (t / pool < sizes_.frames_out && t / pool != pooled_row_) {
      pooled_row_ = t / pool;
      load_blocked<S>(job_.grad, n_, pooled_row_, job_.block.out, bins_out, pooled_,
                      blocked_stride<T>(bins_out));
    }
    const bool used = t / pool < sizes_.frames_out;  // else pooling dropped the row
    const bool own = t >= own_begin_ && t < own_end_;
    const Vec<T> share = Vec<T>{} + T(1) / T(pool * pool), zero = {};
    for (int64_t g = 0; g < groups_; ++g) {
      const Cross<T> z = cross(z_, t, g);
      T* dy_group = dy + g * dy_.group_stride();
      if (job_.block.relu) {
        const auto taps = SeparateTaps<T>::read(packed_.taps + g * SeparateTaps<T>::kSize);
        const T* from = pooled_ + g * blocked_stride<T>(bins_out);
        for (int64_t f = 0; f < sizes_.bins; ++f) {
          if (!used || f / pool >= bins_out) {
            store(dy_group + f * L, zero);
            continue;
          }
          const Vec<T> y = taps.apply(z, f * L), full = load(from + f / pool * L) * share;
          store(dy_group + f * L, y <= zero ? zero : full);
        }
      }
      if (own) add_tap_gradients(z, dy_group, sizes_.bins, d_taps_ + g * kSums);
    }
  }

  void find_dz(int64_t t) {
    turned_cross<T>(packed_.taps, groups_, cross(dy_, t, 0), t >= sizes_.reach_t,
                    t + sizes_.reach_t < sizes_.frames, dy_.group_stride(), sizes_.bins, dz_,
                    stride_);
  }

  Cross<T> cross(const Ring<T>& ring, int64_t t, int64_t group) const {
    const int64_t offset = group * ring.group_stride();
    return {ring[t - sizes_.reach_t] + offset, ring[t] + offset, ring[t + sizes_.reach_t] + offset,
            sizes_.reach_f * L};
  }

  const Gradient& job_;
  Sizes sizes_;
  int64_t groups_, stride_;
  Packed packed_;
  Load<S> load_;
  Ring<T> z_, dy_;
  T *pooled_, *dz_, *dx_;
  T *d_pointwise_, *d_taps_;  // [in][groups][L], and kSums a group
  int64_t n_ = 0, own_begin_ = 0, own_end_ = 0, pooled_row_ = -1;
};

template <class S>
constexpr GradientKernels kGradient = {
    .weights_bytes = GradientSweep<S>::weights_bytes,
    .pack = GradientSweep<S>::pack,
    .scratch_bytes = GradientSweep<S>::scratch_bytes,
    .partial_bytes = GradientSweep<S>::partial_bytes,
    .run = GradientSweep<S>::run,
    .reduce = GradientSweep<S>::reduce,
};

inline const GradientKernels& gradient_kernels(const Gradient& job) {
  return with_storage(job.dtype, []<class S>() -> const GradientKernels& { return kGradient<S>; });
}

}  // namespace fastsep::FASTSEP_ISA

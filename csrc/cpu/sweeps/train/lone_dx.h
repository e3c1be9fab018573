// The gradient of a lone first block's input, which few ask for: log-mels are data.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../kernels.h"
#include "../../parts/scratch.h"
#include "../../parts/vec.h"
#include "../load.h"
#include "lone.h"
#include "norm_gradient.h"

namespace fastsep::FASTSEP_ISA {

// Once the block's sums are known.
template <class T>
class LoneDx {
  static constexpr int64_t L = kLanes<T>;

  struct Packed {
    Packed(Bump& bump, int64_t groups)
        : centred(bump.take<T>(groups * Taps<T>::kSize)),
          flipped(bump.take<T>(groups * Taps<T>::kSize)),
          gradient(bump.take<T>(groups * NormGradient<T>::kSize)) {}
    T *centred, *flipped, *gradient;  // centred: whose cross is y - mean
  };

 public:
  static size_t weights_bytes(const Train& job, int64_t) {
    Bump bump(nullptr);
    Packed(bump, ceil_div(job.blocks[0].block.out, L));
    return bump.used();
  }

  static void pack(const Train& job, int64_t, void* buffer) {
    Bump bump(buffer);
    const TrainBlock& b = job.blocks[0];
    const int64_t groups = ceil_div(b.block.out, L);
    const Packed packed(bump, groups);
    LoneTaps<T>::pack(b, packed.centred, [](const Norm& norm, double& factor, double& bias) {
      factor = 1;
      bias = -norm.mean;
    });
    Taps<T>::flip(packed.centred, groups, packed.flipped);
    NormGradient<T>::pack(job, 0, packed.gradient);
  }

  static size_t scratch_bytes(const Train& job, int64_t) {
    Bump weights(nullptr), scratch(nullptr);
    LoneDx(job, weights, scratch);
    return scratch.used();
  }

  static size_t partial_bytes(const Train&, int64_t) { return 0; }

  static void run(const Train& job, int64_t, const void* weights, void* scratch, void*,
                  int64_t group) {
    Bump packed(const_cast<void*>(weights)), bump(scratch);
    LoneDx pass(job, packed, bump);
    pass.dy_.clear();
    const int64_t items = job.input.clips * job.spans;
    for (int64_t k = items * group / job.groups; k < items * (group + 1) / job.groups; ++k) {
      pass.run_span(k / job.spans, k % job.spans);
    }
  }

  static void finish(const Train&, int64_t, void*) {}

 private:
  LoneDx(const Train& job, Bump& weights, Bump& scratch)
      : job_(job),
        sizes_(sizes_of(job, 0)),
        groups_(ceil_div(sizes_.block.out, L)),
        packed_(weights, groups_),
        passed_(job),
        load_(job.input, true, scratch),
        x_(job, 1, scratch),
        grad_(job, 0, 1, scratch),
        dy_(scratch, least(2 * sizes_.reach_t + 1, sizes_.frames), sizes_.block.out, sizes_.bins,
            sizes_.frames, sizes_.reach_f) {}

  void run_span(int64_t n, int64_t span) {
    const int64_t frames = sizes_.frames, reach = sizes_.reach_t;
    const int64_t begin = frames * span / job_.spans, end = frames * (span + 1) / job_.spans;
    int64_t next = most(begin - reach, 0);
    x_.start(n, next);
    for (int64_t t = begin; t < end; ++t) {
      for (; next < least(t + reach + 1, frames); ++next) find_dy(n, next);
      find_dx(n, t);
    }
  }

  void find_dy(int64_t n, int64_t t) {
    const int64_t pool = sizes_.block.pool;
    const Cross<T> x = x_.crosses(t, 1);
    const bool used = t / pool < sizes_.frames_out;  // else pooling dropped the row
    const T* grad = used ? grad_.row(n, t / pool) : nullptr;
    const LaneBits<T>* passed = used ? passed_.row(n, t / pool) : nullptr;
    for (int64_t g = 0; g < groups_; ++g) {
      const auto centred = Taps<T>::read(packed_.centred + g * Taps<T>::kSize);
      const auto back = NormGradient<T>::read(packed_.gradient + g * NormGradient<T>::kSize);
      T* dy = dy_[t] + g * dy_.group_stride();
      for (int64_t f = 0; f < sizes_.bins; ++f) {
        Vec<T> da = {};
        if (grad != nullptr && f / pool < sizes_.bins_out) {
          da = only_lanes<T>(passed[g * passed_.group_stride() + passed_.place(t, f)],
                             load(grad + g * grad_.group_stride() + f / pool * L));
        }
        store(dy + f * L,
              back.by_da * da + (back.constant + back.by_v * LoneTaps<T>::apply(centred, x, f)));
      }
    }
  }

  void find_dx(int64_t n, int64_t t) {
    const Cross<T> dy{dy_[t - sizes_.reach_t], dy_[t], dy_[t + sizes_.reach_t], sizes_.reach_f * L};
    T* to = row_of<T>(job_.dx, n, t);
    const bool masked = load_.masks(n, 0, t);
    const T* scale = static_cast<const T*>(job_.input.scale);
    for (int64_t f = 0; f < sizes_.bins; ++f) {
      Vec<T> lanes = {};
      for (int64_t g = 0; g < groups_; ++g) {
        const auto flipped = Taps<T>::read(packed_.flipped + g * Taps<T>::kSize);
        lanes += flipped.apply(dy, g * dy_.group_stride() + f * L);
      }
      double sum = 0;
      for (int64_t l = 0; l < L; ++l) sum += double(lanes[l]);
      if (masked || load_.masks(n, 1, f)) sum = 0;
      to[f * job_.dx.f] = T(scale != nullptr ? sum * double(scale[f]) : sum);
    }
  }

  const Train& job_;
  Sizes sizes_;
  int64_t groups_;
  Packed packed_;
  LonePassed<T> passed_;
  Load<T> load_;
  LoneRows<T> x_;
  OutputGradient<T> grad_;
  Ring<T> dy_;
};

}  // namespace fastsep::FASTSEP_ISA

// The first backward pass of a block in training: the sums that its batch norm's gradient needs. y
// is computed again from the z that was kept, to the bits of the forward pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../../kernels.h"
#include "../../parts/kept.h"
#include "../../parts/rows.h"
#include "../../parts/scratch.h"
#include "../../parts/vec.h"
#include "norm.h"
#include "norm_gradient.h"

namespace fastsep::FASTSEP_ISA {

template <class T>
class TrainSums {
  static constexpr int64_t L = kLanes<T>;

 public:
  static size_t weights_bytes(const Train& job, int64_t i) {
    return size_t(ceil_div(job.blocks[i].block.out, L) * NormTaps<T>::kSize) * sizeof(T);
  }

  static void pack(const Train& job, int64_t i, void* buffer) {
    NormTaps<T>::pack(job.blocks[i], static_cast<T*>(buffer));
  }

  static size_t scratch_bytes(const Train& job, int64_t i) {
    Bump scratch(nullptr);
    TrainSums(job, i, nullptr, scratch, nullptr);
    return scratch.used();
  }

  static size_t partial_bytes(const Train& job, int64_t i) {
    return size_t(2 * ceil_div(job.blocks[i].block.out, L) * ceil_div(L, 8) * 8) * sizeof(double);
  }

  static void run(const Train& job, int64_t i, const void* weights, void* scratch, void* partial,
                  int64_t group) {
    Bump bump(scratch);
    TrainSums pass(job, i, static_cast<const T*>(weights), bump, static_cast<double*>(partial));
    pass.z_.clear();
    std::memset(partial, 0, partial_bytes(job, i));
    const Sizes& sizes = pass.sizes_;
    const int64_t items = job.input.clips * job.spans, pool = sizes.block.pool;
    for (int64_t k = items * group / job.groups; k < items * (group + 1) / job.groups; ++k) {
      const int64_t span = k % job.spans;
      for (int64_t t = sizes.frames_out * span / job.spans;
           t < sizes.frames_out * (span + 1) / job.spans; ++t) {
        const auto add =
            pool == 2 ? &TrainSums::template add_rows<2> : &TrainSums::template add_rows<0>;
        (pass.*add)(k / job.spans, t);
      }
    }
  }

  static void finish(const Train& job, int64_t i, void* partials) {
    const TrainBlock& b = job.blocks[i];
    const int64_t lanes = ceil_div(b.block.out, L) * L;
    const double share = 1.0 / double(b.block.pool * b.block.pool);
    for (int64_t c = 0; c < b.block.out; ++c) {
      double sums[2] = {};
      for (int64_t g = 0; g < job.groups; ++g) {
        const double* partial = reinterpret_cast<const double*>(static_cast<const char*>(partials) +
                                                                size_t(g) * partial_bytes(job, i));
        sums[0] += partial[c];
        sums[1] += partial[lanes + c];
      }
      b.sums[c] = share * sums[0];
      b.sums[b.block.out + c] = share * sums[1];
      if (b.d_beta != nullptr) static_cast<T*>(b.d_beta)[c] = T(b.sums[c]);
      if (b.d_gamma != nullptr) {
        static_cast<T*>(b.d_gamma)[c] = T(norm_of<T>(b, c).rstd * b.sums[b.block.out + c]);
      }
    }
  }

 private:
  TrainSums(const Train& job, int64_t i, const T* weights, Bump& scratch, double* sums)
      : sizes_(sizes_of(job, i)),
        groups_(ceil_div(sizes_.block.out, L)),
        taps_(weights),
        z_(job, i, scratch),
        grad_(job, i, 1, scratch),
        window_(scratch.take<Cross<T>>(sizes_.block.pool)),
        sums_(sums) {}

  // Of the rows under row t of the output.
  template <int P>
  void add_rows(int64_t n, int64_t t) {
    const int64_t p = P > 0 ? P : sizes_.block.pool;
    for (int64_t i = 0; i < p; ++i) window_[i] = z_(n, t * p + i);
    const T* grad = grad_.row(n, t);
    const Vec<T> zero = {};
    for (int64_t g = 0; g < groups_; ++g, grad += grad_.group_stride()) {
      const NormTaps<T> norm = NormTaps<T>::read(taps_ + g * NormTaps<T>::kSize);
      Vec<T> sum = {}, by_v = {};
      for (int64_t f = 0; f < sizes_.bins_out; ++f) {
        const Vec<T> full = load(grad + f * L);
        for (int64_t i = 0; i < p; ++i) {
          for (int64_t k = 0; k < p; ++k) {
            const Vec<T> v = norm.taps.apply(window_[i], g * z_.group_stride() + (f * p + k) * L);
            const Vec<T> da = norm.a(v) <= zero ? zero : full;
            sum += da;
            by_v += da * v;
          }
        }
      }
      for (int64_t l = 0; l < L; ++l) {
        sums_[g * L + l] += double(sum[l]);
        sums_[(groups_ + g) * L + l] += double(by_v[l]);
      }
    }
  }

  Sizes sizes_;
  int64_t groups_;
  const T* taps_;
  KeptCross<T> z_;
  OutputGradient<T> grad_;
  Cross<T>* window_;
  double* sums_;
};

}  // namespace fastsep::FASTSEP_ISA

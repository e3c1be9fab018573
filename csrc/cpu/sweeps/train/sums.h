// The first backward pass of a block in training: the sums that its batch norm's gradient needs. y
// is computed again from the z that was kept, to the bits of the forward pass.
//
// Where the block behind has kept counts beside its input, its backward pass finds the sums from
// the two (OutputSums): with a = scale v + shift, the v that ReLU let through under an output sum
// up to (output - count shift) / scale.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../../kernels.h"
#include "../../parts/kept.h"
#include "../../parts/rows.h"
#include "../../parts/scratch.h"
#include "../../parts/vec.h"
#include "norm.h"
#include "norm_gradient.h"

namespace fastsep::FASTSEP_ISA {

// Of channel c: of da and of da (y - mean), and the gradients that they are.
template <class T>
void set_sums(const TrainBlock& b, int64_t c, double da, double by_v) {
  b.sums[c] = da;
  b.sums[b.block.out + c] = by_v;
  if (b.d_beta != nullptr) static_cast<T*>(b.d_beta)[c] = T(da);
  if (b.d_gamma != nullptr) static_cast<T*>(b.d_gamma)[c] = T(norm_of<T>(b, c).rstd * by_v);
}

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
    const double* const sums = static_cast<const double*>(partials);
    const size_t stride = partial_bytes(job, i);
    const double share = 1.0 / double(b.block.pool * b.block.pool);
    for (int64_t c = 0; c < b.block.out; ++c) {
      const auto sum = [&](int64_t at) { return over_groups(job, sums + at, stride); };
      set_sums<T>(b, c, share * sum(c), share * sum(lanes + c));
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

// The sums of block i, found by the backward pass of block i + 1 as it makes the gradient.
template <class T>
class OutputSums {
  static constexpr int64_t L = kLanes<T>;

 public:
  // Not where so much of the output is beta that the rest has lost digits.
  static bool are_found(const Train& job, int64_t i) {
    const TrainBlock& b = job.blocks[i];
    if (!Counts<T>::are_kept(job, i + 1) || !b.wanted) return false;
    for (int64_t c = 0; c < b.block.out; ++c) {
      const T scale = PooledAffine<T>::of(b, c).scale;
      const double gamma = double(static_cast<const T*>(b.gamma)[c]);
      const double beta = double(static_cast<const T*>(b.beta)[c]);
      if (!(std::abs(beta) <= kMostBeta * std::abs(gamma))) return false;
      if (!(std::abs(scale) >= std::numeric_limits<T>::min()) || !std::isfinite(scale))
        return false;
    }
    return true;
  }

  // packed: of packed_size elements, see pack.
  OutputSums(const Train& job, int64_t i, const T* packed, Bump& partial)
      : b_(job.blocks[i]),
        groups_(ceil_div(b_.block.out, L)),
        counts_(job, i + 1),
        shift_(packed),
        sums_(partial.take<double>(2 * groups_ * L)) {}

  static int64_t packed_size(const TrainBlock& b) { return ceil_div(b.block.out, L) * L; }
  static void pack(const TrainBlock& b, T* to) {
    for (int64_t c = 0; c < packed_size(b); ++c) {
      to[c] = c < b.block.out ? PooledAffine<T>::of(b, c).shift : T(0);
    }
  }

  void fetch(Ahead& ahead, int64_t n, int64_t t) const { counts_.fetch(ahead, n, t); }

  // What row t of the output and its gradient add.
  void add(int64_t n, int64_t t, const T* output, const T* grad, int64_t stride) const {
    const uint8_t* counts = counts_.row(n, t);
    const int64_t size = counts_.group_stride();
    for (int64_t g = 0; g < groups_; ++g, output += stride, grad += stride, counts += size) {
      const Vec<T> shift = load(shift_ + g * L);
      Vec<T> sums[2] = {}, by_v[2] = {};
      const auto add_bin = [&](int64_t i, int64_t at) __attribute__((always_inline)) {
        const Vec<T> count = load_counts<T>(counts + at), da = load(grad + at);
        sums[i] += da * count;
        by_v[i] += da * (load(output + at) - shift * count);
      };
      int64_t at = 0;
      for (; at + 2 * L <= size; at += 2 * L) {
        add_bin(0, at);
        add_bin(1, at + L);
      }
      if (at < size) add_bin(0, at);
      const Vec<T> sum = sums[0] + sums[1], all_by_v = by_v[0] + by_v[1];
      for (int64_t l = 0; l < L; ++l) {
        sums_[g * L + l] += double(sum[l]);
        sums_[(groups_ + g) * L + l] += double(all_by_v[l]);
      }
    }
  }

  // total(p): what p points at, summed over the groups of work.
  template <class Total>
  void finish(Total total) const {
    const double share = 1.0 / double(b_.block.pool * b_.block.pool);
    for (int64_t c = 0; c < b_.block.out; ++c) {
      const double da = total(sums_ + c), by_v = total(sums_ + groups_ * L + c);
      set_sums<T>(b_, c, share * da, share * by_v / double(PooledAffine<T>::of(b_, c).scale));
    }
  }

 private:
  static constexpr double kMostBeta = 16;

  const TrainBlock& b_;
  int64_t groups_;
  Counts<T> counts_;
  const T* shift_;
  double* sums_;
};

}  // namespace fastsep::FASTSEP_ISA

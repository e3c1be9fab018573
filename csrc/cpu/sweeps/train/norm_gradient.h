// Back through ReLU and batch norm. With a what ReLU is applied to and da its gradient:
//
//   dy = scale da + by_v (y - mean) + constant      both 0 where statistics are frozen
//
// in which sums over all of the map stand, of da and of da (y - mean): the gradients of beta and,
// but for a factor, of gamma.
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

namespace fastsep::FASTSEP_ISA {

// How dy follows from da pool^2 and v = y - mean.
template <class T>
struct NormGradient {
  Vec<T> by_da, by_v, constant;

  static constexpr int64_t kSize = 3 * kLanes<T>;

  FASTSEP_INLINE static NormGradient read(const T* packed) {
    constexpr int64_t L = kLanes<T>;
    return {load(packed), load(packed + L), load(packed + 2 * L)};
  }

  struct Terms {
    double scale, by_v, constant;
  };

  static Terms terms(const Train& job, int64_t i, int64_t c) {
    const TrainBlock& b = job.blocks[i];
    const Norm norm = norm_of<T>(b, c);
    const Sizes sizes = sizes_of(job, i);
    const double count = double(job.input.clips) * double(sizes.frames * sizes.bins);
    if (b.frozen || count == 0) return {norm.scale(), 0, 0};
    return {norm.scale(), -norm.scale() * norm.rstd * norm.rstd * b.sums[b.block.out + c] / count,
            -norm.scale() * b.sums[c] / count};
  }

  static void pack(const Train& job, int64_t i, T* to) {
    constexpr int64_t L = kLanes<T>;
    const Block& block = job.blocks[i].block;
    const double share = 1.0 / double(block.pool * block.pool);
    for (int64_t c = 0; c < ceil_div(block.out, L) * L; ++c) {
      const Terms t = c < block.out ? terms(job, i, c) : Terms{0, 0, 0};
      T* lane = to + c / L * kSize + c % L;
      lane[0] = T(t.scale * share);
      lane[L] = T(t.by_v);
      lane[2 * L] = T(t.constant);
    }
  }
};

// Rows of the gradient of a block's output: the job's, or what the block behind it has left.
template <class T>
class OutputGradient {
 public:
  OutputGradient(const Train& job, int64_t i, int64_t rows, Bump& scratch)
      : job_(job),
        sizes_(sizes_of(job, i)),
        kept_(kept_grad<T>(job, i)),
        is_kept_(i + 1 < job.num_blocks),
        rows_(is_kept_ ? nullptr : scratch.take<T>(rows * kept_.row_size())) {}

  int64_t group_stride() const { return kept_.group_stride(); }
  int64_t row_size() const { return kept_.row_size(); }

  void fetch(Ahead& ahead, int64_t n, int64_t t) const {
    if (is_kept_) kept_.fetch(ahead, n, t, 1);
  }

  // Row t; `count` rows, row_size() apart. Ends what was given before.
  const T* row(int64_t n, int64_t t) const { return rows(n, t, 1); }
  const T* rows(int64_t n, int64_t t, int64_t count) const {
    if (is_kept_) return kept_.row(n, t);
    for (int64_t i = 0; i < count; ++i) {
      load_blocked<T>(job_.y, n, t + i, sizes_.block.out, sizes_.bins_out, rows_ + i * row_size(),
                      group_stride());
    }
    return rows_;
  }

 private:
  const Train& job_;
  Sizes sizes_;
  Kept<T> kept_;
  bool is_kept_;
  T* rows_;
};

}  // namespace fastsep::FASTSEP_ISA

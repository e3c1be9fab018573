// The forward passes of a stack in training. Pass i makes block i's input from block i - 1's z,
// whose statistics are now known, and from it block i's z; both are kept for backward. Behind it,
// along time, come the statistics of block i. Behind the last block a pass makes the output.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>

#include "../../kernels.h"
#include "../../parts/ahead.h"
#include "../../parts/kept.h"
#include "../../parts/product.h"
#include "../../parts/rows.h"
#include "../../parts/scratch.h"
#include "../../parts/vec.h"
#include "../load.h"
#include "lone.h"
#include "norm.h"

namespace fastsep::FASTSEP_ISA {

template <class T>
class TrainForward {
  static constexpr int64_t L = kLanes<T>;
  static constexpr int64_t kMostAtOnce = 2;  // rows of a block's input

  struct Packed {
    Packed(Bump& bump, const Train& job, int64_t i)
        : before(i == 0                ? nullptr
                 : is_lone(job, i - 1) ? bump.take<T>(groups(job, i - 1) * Taps<T>::kSize)
                                       : bump.take<T>(groups(job, i - 1) * NormTaps<T>::kSize)) {
      if (i == job.num_blocks) return;
      const Block& block = job.blocks[i].block;
      panels = {bump.take<T>(Panels<T>::size(block.in, block.out)), block.in, block.out};
      taps = bump.take<T>(groups(job, i) * NormTaps<T>::kSize);
    }

    static int64_t groups(const Train& job, int64_t i) {
      return ceil_div(job.blocks[i].block.out, L);
    }

    T* before;  // the block before: taps and batch norm
    Panels<T> panels{};
    T* taps = nullptr;
  };

 public:
  static size_t weights_bytes(const Train& job, int64_t i) {
    Bump bump(nullptr);
    Packed(bump, job, i);
    return bump.used();
  }

  static void pack(const Train& job, int64_t i, void* buffer) {
    Bump bump(buffer);
    const Packed packed(bump, job, i);
    if (i > 0) {
      const TrainBlock& before = job.blocks[i - 1];
      if (is_lone(job, i - 1)) {
        LoneTaps<T>::pack_folded(before, packed.before);
      } else {
        NormTaps<T>::pack(before, packed.before);
      }
    }
    if (i == job.num_blocks) return;
    const TrainBlock& b = job.blocks[i];
    packed.panels.pack(static_cast<const T*>(b.block.pointwise), b.block.in, 1);
    NormTaps<T>::pack(b, packed.taps);
  }

  static size_t scratch_bytes(const Train& job, int64_t i) {
    Bump weights(nullptr), scratch(nullptr), partial(nullptr);
    TrainForward(job, i, weights, scratch, partial);
    return scratch.used();
  }

  static size_t partial_bytes(const Train& job, int64_t i) {
    Bump weights(nullptr), scratch(nullptr), partial(nullptr);
    TrainForward(job, i, weights, scratch, partial);
    return partial.used();
  }

  static void run(const Train& job, int64_t i, const void* weights, void* scratch, void* partial,
                  int64_t group) {
    run_items(job, i, weights, scratch, partial, group, true);
  }

  static void run_statistics(const Train& job, int64_t i, const void* weights, void* scratch,
                             void* partial, int64_t group) {
    run_items(job, i, weights, scratch, partial, group, false);
  }

  static void finish(const Train& job, int64_t i, void* partials) {
    if (i < job.num_blocks && job.spans == 1) finish_statistics(job, i, partials);
  }

  static void finish_statistics(const Train& job, int64_t i, void* partials) {
    if (job.blocks[i].frozen) return;
    Bump weights(nullptr), scratch(nullptr), sums(partials);
    TrainForward(job, i, weights, scratch, sums)
        .statistics_.finish(job.groups, int64_t(partial_bytes(job, i)), job.blocks[i]);
  }

 private:
  TrainForward(const Train& job, int64_t i, Bump& weights, Bump& scratch, Bump& partial)
      : job_(job),
        index_(i),
        is_last_(i == job.num_blocks),
        after_lone_(is_lone(job, i - 1)),
        takes_statistics_(!is_last_ && !job.blocks[i].frozen),
        keeps_counts_(Counts<T>::are_kept(job, i)),
        sizes_(sizes_of(job, i)),
        before_sizes_(sizes_of(job, i > 0 ? i - 1 : 0)),
        packed_(weights, job, i),
        load_(job.input, i > 0 || job.input.x.c != 1, scratch),
        statistics_(takes_statistics_ ? sizes_.block.out : 0, scratch, partial),
        at_once_(i == 0 || after_lone_ ? 1 : kMostAtOnce) {
    if (i > 0) {
      const int64_t pool = before_sizes_.block.pool;
      if (after_lone_) {
        lone_.emplace(job, pool, scratch);
      } else {
        z_before_.emplace(job, i - 1, scratch);
      }
      window_ = scratch.take<Cross<T>>(at_once_ * pool);
      x_stride_ = blocked_stride<T>(sizes_.bins);
      x_size_ = ceil_div(before_sizes_.block.out, L) * x_stride_;
    }
    if (is_last_) {
      x_rows_ = scratch.take<T>(at_once_ * x_size_);
    } else {
      z_ = kept_z<T>(job, i);
      z_cross_.emplace(job, i, scratch);
      if (i > 0) x_ = kept_x<T>(job, i);
      if (keeps_counts_) counts_ = Counts<T>(job, i);
    }
  }

  static void run_items(const Train& job, int64_t i, const void* weights, void* scratch,
                        void* partial, int64_t group, bool makes) {
    Bump packed(const_cast<void*>(weights)), bump(scratch), sums(partial);
    TrainForward pass(job, i, packed, bump, sums);
    if (sums.used() > 0) std::memset(partial, 0, sums.used());
    if (pass.z_before_) pass.z_before_->clear();
    if (pass.z_cross_) pass.z_cross_->clear();
    const int64_t items = job.input.clips * job.spans;
    for (int64_t k = items * group / job.groups; k < items * (group + 1) / job.groups; ++k) {
      if (makes) {
        pass.make_span(k / job.spans, k % job.spans);
      } else {
        pass.count_span(k / job.spans, k % job.spans);
      }
    }
  }

  int64_t cut(int64_t span) const { return sizes_.frames * span / job_.spans; }

  void make_span(int64_t n, int64_t span) {
    const bool counts = takes_statistics_ && job_.spans == 1;
    statistics_.start_item();
    if (after_lone_) lone_->start(n, cut(span) * before_sizes_.block.pool);
    int64_t counted = cut(span);
    const int64_t end = cut(span + 1);
    for (int64_t t = cut(span), rows; t < end; t += rows) {
      rows = least(at_once_, end - t);
      make_rows(n, t, rows);
      const bool last = t + rows == end;
      if (counts) counted = count_rows(n, counted, last ? end : t + rows - sizes_.reach_t, last);
    }
  }

  void count_span(int64_t n, int64_t span) {
    statistics_.start_item();
    count_rows(n, cut(span), cut(span + 1), true);
  }

  // Rows from `counted` to before `end`, as many at a time as belong together; those that are left
  // then only if they are the span's last. Returns to where.
  int64_t count_rows(int64_t n, int64_t counted, int64_t end, bool last) {
    constexpr int64_t R = Statistics<T>::kRows;
    Cross<T> crosses[R];
    for (int64_t rows; counted + (last ? 1 : R) <= end; counted += rows) {
      rows = least(R, end - counted);
      for (int64_t i = 0; i < rows; ++i) crosses[i] = (*z_cross_)(n, counted + i);
      statistics_.add_rows(packed_.taps, crosses, rows, z_.group_stride(), sizes_.bins);
    }
    return counted;
  }

  void make_rows(int64_t n, int64_t t, int64_t rows) {
    T* const x = index_ == 0 ? nullptr : is_last_ ? x_rows_ : x_.row(n, t);
    if (index_ > 0) find_input(n, t, rows, x);
    for (int64_t i = 0; i < rows; ++i, ++t) {
      if (is_last_) {
        store_blocked<T>(x + i * x_size_, x_stride_, job_.y, n, t, before_sizes_.block.out,
                         sizes_.bins);
        continue;
      }
      look_ahead(n, t + at_once_);
      T* const z = z_.row(n, t);
      if (index_ == 0) {
        load_.row(n, t, [&](auto row) { project_to(row, z); });
      } else {
        project_to(Blocked<T>{x + i * x_size_, x_stride_}, z);
      }
    }
  }

  // To what row t will read and write, for the product of a row before it.
  void look_ahead(int64_t n, int64_t t) {
    const int64_t pool = before_sizes_.block.pool;
    ahead_.clear();
    if (z_before_) z_before_->fetch(ahead_, n, t * pool, pool);
    x_.fetch(ahead_, n, t, 1);
    z_.fetch(ahead_, n, t, 1);
  }

  template <class Row>
  void project_to(Row x, T* z) {
    ahead_.spread(packed_.panels.steps(sizes_.bins, Row::kGroup));
    project(x, sizes_.bins, packed_.panels, z, z_.group_stride(), [&] { ahead_.step(); });
    z_.clear_margins(z);
  }

  // Rows of block i's input from t on, as many as at_once_ at most.
  void find_input(int64_t n, int64_t t, int64_t rows, T* x) {
    const int64_t pool = before_sizes_.block.pool, groups = ceil_div(before_sizes_.block.out, L);
    if (after_lone_) {
      const Cross<T> first = lone_->crosses(t * pool, pool);
      for (int64_t i = 0; i < pool; ++i) window_[i] = first.from(i * lone_->stride());
      const LonePassed<T> passed(job_);
      LaneBits<T>* const bits = passed.row(n, t);
      LoneTaps<T>::pooled(packed_.before, groups, window_, pool, sizes_.bins, x, x_stride_, bits,
                          passed.group_stride());
      passed.clear_end(bits);
    } else {
      for (int64_t i = 0; i < rows * pool; ++i) window_[i] = (*z_before_)(n, t * pool + i);
      const auto one = pool == 2   ? pooled_norm<T, 2, 1>
                       : pool == 1 ? pooled_norm<T, 1, 1>
                                   : pooled_norm<T, 0, 1>;
      const auto pair = pool == 2   ? pooled_norm<T, 2, kMostAtOnce>
                        : pool == 1 ? pooled_norm<T, 1, kMostAtOnce>
                                    : pooled_norm<T, 0, kMostAtOnce>;
      uint8_t* const counts = keeps_counts_ ? counts_.row(n, t) : nullptr;
      (rows == kMostAtOnce ? pair : one)(packed_.before, groups, window_, z_before_->group_stride(),
                                         pool, sizes_.bins, x, x_stride_, x_size_, counts,
                                         counts_.row_size());
      for (int64_t i = 0; keeps_counts_ && i < rows; ++i) {
        counts_.clear_end(counts + i * counts_.row_size());
      }
    }
    for (int64_t i = 0; !is_last_ && i < rows; ++i) x_.clear_margins(x + i * x_size_);
  }

  const Train& job_;
  int64_t index_;
  bool is_last_, after_lone_, takes_statistics_, keeps_counts_;
  Sizes sizes_, before_sizes_;
  Packed packed_;
  Load<T> load_;
  Statistics<T> statistics_;
  std::optional<LoneRows<T>> lone_;
  std::optional<KeptCross<T>> z_before_, z_cross_;  // as a cross reads them
  Kept<T> x_, z_;
  Counts<T> counts_;
  Ahead ahead_;
  int64_t at_once_;  // rows
  int64_t x_stride_ = 0, x_size_ = 0;
  Cross<T>* window_ = nullptr;
  T* x_rows_ = nullptr;
};

}  // namespace fastsep::FASTSEP_ISA

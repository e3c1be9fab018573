// The inference sweep: clips stream through all blocks depth first along time. A row of input is
// projected into the first block's ring of z rows; as soon as a pooled row can be finished it is
// passed on to the next block, so that no map between blocks is ever written to memory. Fewer clips
// than threads are cut into spans of time, which stream at the same time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>

#include "../kernels.h"
#include "../parts/ahead.h"
#include "../parts/cross.h"
#include "../parts/dtypes.h"
#include "../parts/product.h"
#include "../parts/rows.h"
#include "../parts/scratch.h"
#include "../parts/seams.h"
#include "../parts/vec.h"
#include "limit.h"
#include "load.h"
#include "packed.h"
#include "sizes.h"
#include "spans.h"

namespace fastsep::FASTSEP_ISA {

// dot: products of bfloat16 pairs, for which rows are rounded on their way into each block.
template <class S, bool dot = false>
class InferSweep {
  using T = Compute<S>;
  static constexpr int64_t L = kLanes<T>;

  struct Stage : Sizes {
    Stage(const Sizes& sizes, bool separate, Bump& weights, Bump& scratch)
        : Sizes(sizes),
          batch(!lone && !separate && block.relu && block.pool == 2 && reach_t == 2 && reach_f == 2
                    ? 2
                    : 1),
          packed(weights, block, separate),
          z(scratch,
            least(most(batch * block.pool + 2 * reach_t, 2 * block.pool + reach_t), frames),
            lone ? 1 : block.out, bins, frames, reach_f, lone ? 1 : L),
          pairs(scratch.take<uint32_t>(dot ? row_size<T>(block.in, bins) : 0)),
          y_size(row_size<T>(block.out, bins_out)),
          y(scratch.take<T>(batch * y_size)),
          window(scratch.take<Cross<T>>(block.pool)) {}

    // How often the work on one row of input or output stops to look ahead.
    int64_t steps_in() const { return lone ? 0 : packed.panels.steps(bins); }
    int64_t steps_out() const {
      const int64_t panels = ceil_div(block.out, kTileVectors * L);
      return lone ? panels * bins_out : block.pool * steps_in();
    }

    int64_t batch;  // how many pooled rows are finished at once, if there are as many
    Packed<S, dot> packed;
    // Of z, or of x if lone. As many rows as the pooled rows finished at once reach; or, where a
    // span starts, as it may take (reach + 2 pool - 1) with the first of its own.
    Ring<T> z;
    uint32_t* pairs;  // the row to project, if dot
    int64_t y_size;
    T* y;              // the finished rows, blocked, no padding
    Cross<T>* window;  // the crosses of one pooled row

    int64_t begin = 0, end = 0;  // input rows of this span
    int64_t next = 0, left = 0;  // pooled rows of this span: the next one, and how many are left
    bool fresh = true;           // none of them is finished

    // Rows next to the seams at the span's lower and upper end (in time), and how many are given.
    struct {
      Seam<T> give, take;
      int64_t given = 0;
    } seams[2];
  };

 public:
  static size_t weights_bytes(const Infer& job) {
    Bump bump(nullptr);
    bump.take<T>(1);
    for (int64_t i = 0; i < job.num_blocks; ++i) Packed<S, dot>(bump, job.blocks[i], job.separate);
    return bump.used();
  }

  static void pack(const Infer& job, void* buffer) {
    Bump bump(buffer);
    Limit<S> limit;
    T* at = bump.take<T>(1);
    for (int64_t i = 0; i < job.num_blocks; ++i) {
      Packed<S, dot>(bump, job.blocks[i], job.separate).pack(job.blocks[i], job.separate);
      limit.add(job.blocks[i]);
    }
    *at = limit.value();
  }

  static size_t scratch_bytes(const Infer& job) {
    Bump weights(nullptr), scratch(nullptr);
    InferSweep(job, weights, scratch);
    return scratch.used();
  }

  static bool run(const Infer& job, const void* weights, void* scratch, void* seams, int64_t clip,
                  int64_t span) {
    Bump packed(const_cast<void*>(weights)), bump(scratch);
    InferSweep sweep(job, packed, bump);
    if (seams != nullptr) {
      sweep.plan_together(seams, span);
    } else {
      sweep.plan_alone(span);
    }
    return sweep.run_span(clip);
  }

  static size_t seams_bytes(const Infer& job) {
    Bump weights(nullptr), scratch(nullptr), bump(nullptr);
    InferSweep(job, weights, scratch).each_seam(bump, [](auto...) {});
    return bump.used();
  }

  static void clear_seams(const Infer& job, void* seams) {
    Bump weights(nullptr), scratch(nullptr), bump(seams);
    InferSweep(job, weights, scratch)
        .each_seam(bump, [](int64_t, int64_t, int64_t, const Seam<T>& seam) { seam.clear(); });
  }

  static int64_t most_spans(const Infer& job, int64_t wanted) {
    return Spans::most_of(job.blocks, job.num_blocks, job.input.frames, job.input.bins, wanted);
  }

 private:
  InferSweep(const Infer& job, Bump& weights, Bump& scratch)
      : job_(job),
        spans_(job.spans),
        limit_(weights.take<T>(1)),
        stages_(scratch.take<Stage>(job.num_blocks)),
        load_(job.input, (job.blocks[0].in == 1 && !job.separate) || (job.input.x.c != 1 && !dot),
              scratch) {
    each_sizes([&](int64_t i, const Sizes& sizes) {
      const Stage stage(sizes, job_.separate, weights, scratch);
      if (stages_ != nullptr) new (stages_ + i) Stage(stage);
    });
  }

  template <class F>
  void each_sizes(F f) const {
    each_block(job_.blocks, job_.num_blocks, job_.input.frames, job_.input.bins,
               [&](int64_t i, Sizes sizes) {
                 sizes.lone &= !job_.separate;
                 f(i, sizes);
               });
  }

  // All seams, in the order of their buffer: f(number of the span above, stage, whether that span
  // is the one that gives, seam).
  template <class F>
  void each_seam(Bump& bump, F f) const {
    Bump none(nullptr);
    for (int64_t k = 1; k < spans_.count(); ++k) {
      each_sizes([&](int64_t i, const Sizes& sizes) {
        const int64_t size = Stage(sizes, job_.separate, none, none).z.row_size();
        const Gap gap = spans_.gap(sizes, k, i);
        f(k, i, 0, Seam<T>(bump, gap.below, gap.at, size));
        f(k, i, 1, Seam<T>(bump, gap.at, gap.above, size));
      });
    }
  }

  // Spans that run at the same time give each other the rows next to the cuts. Pairs of them start
  // at the cut between them, where they wait for each other before either has done much, and run
  // apart.
  void plan_together(void* seams, int64_t span) {
    step_ = span % 2 == 0 ? -1 : 1;
    for (int64_t i = 0; i < job_.num_blocks; ++i) {
      plan(stages_[i], spans_.together(stages_[i], span, i));
    }
    Bump bump(seams);
    each_seam(bump, [&](int64_t k, int64_t i, int64_t above_gives, const Seam<T>& seam) {
      if (k != span && k != span + 1) return;
      auto& own = stages_[i].seams[k - span];
      const bool above = k == span;
      (above == (above_gives == 1) ? own.give : own.take) = seam;
    });
  }

  // Alone, a span computes all that its share of the last block's output needs, block by block
  // backwards.
  void plan_alone(int64_t span) {
    const int64_t last = job_.num_blocks - 1;
    int64_t first = spans_.cut(stages_[last].frames_out, span, job_.num_blocks);
    int64_t stop = spans_.cut(stages_[last].frames_out, span + 1, job_.num_blocks);
    for (int64_t i = last; i >= 0; --i) {
      const Share share = Spans::alone(stages_[i], first, stop);
      plan(stages_[i], share);
      first = share.begin;
      stop = share.end;
    }
  }

  void plan(Stage& stage, const Share& share) const {
    stage.begin = share.begin;
    stage.end = share.end;
    stage.next = step_ > 0 ? share.first : share.stop - 1;
    stage.left = share.stop - share.first;
  }

  // Whether x was within the limit for merged taps, in the rows that the clip's output reaches:
  // others, some cuts into spans never load.
  bool run_span(int64_t n) {
    bool right = true;
    const int64_t reached = Spans::reached(stages_, job_.num_blocks);
    for (int64_t i = 0; i < job_.num_blocks; ++i) stages_[i].z.clear();
    const Stage& first = stages_[0];
    look_ahead(n);
    for (int64_t i = 0; i < first.end - first.begin; ++i) {
      const int64_t t = step_ > 0 ? first.begin + i : first.end - 1 - i;
      const bool last = i + 1 == first.end - first.begin;
      x_ahead_.clear();
      if (!last) load_.fetch(x_ahead_, n, t + step_);
      x_ahead_.spread(first.steps_in());
      if (first.lone) x_ahead_.step();  // at once: there is no product to spread it over
      const auto take = [&](auto row) {
        right = right &&
                (job_.separate || t >= reached || within(row, first.block.in, first.bins, *limit_));
        push(0, n, t, row);
      };
      load_.row(n, t, take, first.lone ? first.z[t] : nullptr);
    }
    for (int64_t i = 0; i < job_.num_blocks; ++i) {
      cross_seam(i, n, step_ > 0 ? 1 : 0, true);
    }
    return right;
  }

  // Takes the rows beyond a seam; at the end of the span they let the stage's last rows finish.
  void cross_seam(int64_t index, int64_t n, int64_t side, bool at_end) {
    const Stage& stage = stages_[index];
    const Seam<T>& seam = stage.seams[side].take;
    if (seam.rows() == 0) return;
    seam.await_given(n + 1);
    for (int64_t i = 0; i < seam.rows(); ++i) {
      const int64_t t = step_ > 0 ? seam.begin() + i : seam.stop() - 1 - i;
      seam.take(t, stage.z.row(t));
      if (at_end) finish_until(index, n, t);
    }
    seam.announce_taken(n + 1);
  }

  template <class Row>
  void push(int64_t index, int64_t n, int64_t t, Row row) {
    Stage& stage = stages_[index];
    const auto ahead = [&, first = index == 0, last = index + 1 == job_.num_blocks] {
      if (first) x_ahead_.step();
      if (last) y_ahead_.step();
    };
    if (stage.lone) {
      if constexpr (!std::is_same_v<Row, Planar<T>>) {  // else it is there already
        for (int64_t f = 0; f < stage.bins; ++f) stage.z[t][f] = row.at(f, 0);
      }
    } else if constexpr (dot && std::is_same_v<Row, Blocked<T>>) {
      round_to_pairs(row, stage.block.in, stage.bins, stage.pairs);
      project(BlockedPairs{stage.pairs, pairs_stride(stage.bins)}, stage.bins, stage.packed.panels,
              stage.z[t], stage.z.group_stride(), ahead);
    } else {
      project(row, stage.bins, stage.packed.panels, stage.z[t], stage.z.group_stride(), ahead);
    }
    for (auto& seam : stage.seams) {
      if (!seam.give.holds(t)) continue;
      if (seam.given == 0) seam.give.await_taken(n);
      seam.give.give(t, stage.z.row(t));
      if (++seam.given == seam.give.rows()) seam.give.announce_given(n + 1);
    }
    finish_until(index, n, t);
  }

  // Row t of z was the last to come: finishes the pooled rows that reach no further.
  void finish_until(int64_t index, int64_t n, int64_t t) {
    Stage& stage = stages_[index];
    const int64_t pool = stage.block.pool;
    while (stage.left > 0) {
      const int64_t count = least(stage.batch, stage.left);
      const int64_t first = step_ > 0 ? stage.next : stage.next - count + 1;
      if (step_ > 0 ? least((first + count) * pool - 1 + stage.reach_t, stage.frames - 1) > t
                    : most(first * pool - stage.reach_t, 0) < t) {
        return;
      }
      if (stage.fresh) cross_seam(index, n, step_ > 0 ? 0 : 1, false);
      stage.fresh = false;
      stage.next += count * step_;
      stage.left -= count;
      finish(stage, first, count);
      const int64_t stride = blocked_stride<T>(stage.bins_out);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = step_ > 0 ? i : count - 1 - i;
        const T* y = stage.y + row * stage.y_size;
        if (index + 1 < job_.num_blocks) {
          push(index + 1, n, first + row, Blocked<T>{y, stride});
        } else {
          store_blocked<S>(y, stride, job_.y, n, first + row, stage.block.out, stage.bins_out);
        }
      }
      if (index + 1 == job_.num_blocks) look_ahead(n);
    }
  }

  // To the pooled rows that the last block will finish next.
  void look_ahead(int64_t n) {
    const Stage& last = stages_[job_.num_blocks - 1];
    const int64_t count = least(last.batch, last.left);
    if (count == 0) return;
    y_ahead_.clear();
    y_ahead_.add_rows<S>(job_.y, n, step_ > 0 ? last.next : last.next - count + 1, count,
                         last.block.out, last.bins_out);
    y_ahead_.spread(count * last.steps_out());
  }

  // Pooled rows q to q + count - 1.
  void finish(const Stage& stage, int64_t q, int64_t count) {
    const int64_t pool = stage.block.pool, d = stage.reach_t;
    if (count == 2) {
      const T* rows[8];
      for (int64_t i = 0; i < 8; ++i) rows[i] = stage.z[2 * q - 2 + i];
      pooled_cross_pair<T>(stage.packed.taps, ceil_div(stage.block.out, L), rows,
                           stage.z.group_stride(), stage.bins_out, stage.y,
                           blocked_stride<T>(stage.bins_out), stage.y_size);
      return;
    }
    for (int64_t i = 0; i < pool; ++i) {
      const int64_t t = q * pool + i;
      stage.window[i] = {stage.z[t - d], stage.z[t], stage.z[t + d],
                         stage.reach_f * (stage.lone ? 1 : L)};
    }
    if (job_.separate) {
      const auto cross = stage.block.relu ? separate_cross<T, true> : separate_cross<T, false>;
      cross(stage.packed.taps, ceil_div(stage.block.out, L), stage.window, stage.z.group_stride(),
            pool, stage.bins_out, stage.y, blocked_stride<T>(stage.bins_out));
    } else if (!stage.block.relu) {
      finish<1, false>(stage);
    } else if (pool == 1) {
      finish<1, true>(stage);
    } else if (pool == 2) {
      finish<2, true>(stage);
    } else {
      finish<0, true>(stage);
    }
  }

  template <int P, bool with_relu>
  void finish(const Stage& stage) {
    const int64_t groups = ceil_div(stage.block.out, L), stride = blocked_stride<T>(stage.bins_out);
    const int64_t pool = stage.block.pool;
    if (stage.lone) {
      const bool last = &stage == stages_ + job_.num_blocks - 1;
      for (int64_t g = 0; g < groups; g += kTileVectors) {
        with_count<kTileVectors>(least(kTileVectors, groups - g), [&](auto nv) {
          pooled_lone<T, P, with_relu, decltype(nv)::value>(
              stage.packed.taps + g * Taps<T>::kSize, stage.window, pool, stage.bins_out,
              stage.y + g * stride, stride,
              [&] {
                if (last) y_ahead_.step();
              },
              [](int64_t, const Vec<T>*) {});
        });
      }
      return;
    }
    pooled_cross<T, P, with_relu>(stage.packed.taps, groups, stage.window, stage.z.group_stride(),
                                  pool, stage.bins_out, stage.y, stride);
  }

  const Infer& job_;
  Spans spans_;
  const T* limit_;
  Stage* stages_;
  Load<S> load_;
  int64_t step_ = 1;  // along time
  Ahead x_ahead_, y_ahead_;
};

template <class S, bool dot>
constexpr InferKernels kInfer = {
    .weights_bytes = InferSweep<S, dot>::weights_bytes,
    .pack = InferSweep<S, dot>::pack,
    .scratch_bytes = InferSweep<S, dot>::scratch_bytes,
    .run = InferSweep<S, dot>::run,
    .seams_bytes = InferSweep<S, dot>::seams_bytes,
    .clear_seams = InferSweep<S, dot>::clear_seams,
    .most_spans = InferSweep<S, dot>::most_spans,
};

// bfloat16 tensors, and float32 ones on request, take dot products where the machine has them.
inline const InferKernels& infer_kernels(const Infer& job) {
  return with_storage(job.dtype, [&]<class S>() -> const InferKernels& {
    if constexpr (kDotBf16 && std::is_same_v<S, BFloat16>) return kInfer<S, true>;
    if constexpr (kDotBf16 && std::is_same_v<S, float>) {
      if (job.bf16) return kInfer<S, true>;
    }
    return kInfer<S, false>;
  });
}

}  // namespace fastsep::FASTSEP_ISA

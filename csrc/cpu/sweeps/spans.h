// Spans of time: a clip cut into pieces for as many threads, every map of it at corresponding rows.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "../parts/vec.h"
#include "sizes.h"

namespace fastsep::FASTSEP_ISA {

// One span's rows of one block: the input rows [begin, end) that it is given, and the pooled rows
// [first, stop) that it has to finish.
struct Share {
  int64_t begin, end, first, stop;
};

// The rows next to a cut that the spans there reach across it: [below, at) and [at, above).
struct Gap {
  int64_t below, at, above;
};

class Spans {
 public:
  explicit Spans(int64_t count) : count_(count) {}

  int64_t count() const { return count_; }

  // The first of the `frames` rows that go into block i (or come out of the last one) which belongs
  // to span k. Rounded down and up in turns, lest one span have the longer part in every block.
  int64_t cut(int64_t frames, int64_t k, int64_t i) const {
    return (frames * k + (i % 2 == 0 ? 0 : count_ - 1)) / count_;
  }

  // Where spans give each other the rows next to the cuts: each its own rows of every map.
  Share together(const Sizes& sizes, int64_t k, int64_t i) const {
    return {cut(sizes.frames, k, i), cut(sizes.frames, k + 1, i), cut(sizes.frames_out, k, i + 1),
            cut(sizes.frames_out, k + 1, i + 1)};
  }

  // Where a span computes all that its rows [first, stop) of a block's output need.
  static Share alone(const Sizes& sizes, int64_t first, int64_t stop) {
    return {most(first * sizes.block.pool - sizes.reach_t, 0),
            least(stop * sizes.block.pool + sizes.reach_t, sizes.frames), first, stop};
  }

  // How many rows of the input the output of all blocks reaches, from the first one on.
  template <class S>
  static int64_t reached(const S* sizes, int64_t num_blocks) {
    int64_t rows = sizes[num_blocks - 1].frames_out;
    for (int64_t i = num_blocks - 1; i >= 0; --i) rows = alone(sizes[i], 0, rows).end;
    return rows;
  }

  // At the cut between spans k - 1 and k in the map that goes into block i.
  Gap gap(const Sizes& sizes, int64_t k, int64_t i) const {
    const int64_t at = cut(sizes.frames, k, i);
    const int64_t centre = cut(sizes.frames_out, k, i + 1) * sizes.block.pool;
    return {least(centre - sizes.reach_t, at), at, least(centre + sizes.reach_t, sizes.frames)};
  }

  // The most spans, up to `wanted`, of which each has all the rows that its neighbours reach, in
  // every block, and some of the output.
  static int64_t most_of(const Block* blocks, int64_t num_blocks, int64_t frames, int64_t bins,
                         int64_t wanted) {
    while (wanted > 1 && !Spans(wanted).long_enough(blocks, num_blocks, frames, bins)) --wanted;
    return wanted;
  }

 private:
  bool long_enough(const Block* blocks, int64_t num_blocks, int64_t frames, int64_t bins) const {
    bool all = true;
    each_block(blocks, num_blocks, frames, bins, [&](int64_t i, const Sizes& sizes) {
      for (int64_t k = 0; k < count_; ++k) {
        const Share share = together(sizes, k, i);
        all &= share.end - share.begin >= sizes.reach_t + 2 * sizes.block.pool;
      }
      if (i + 1 == num_blocks) all &= sizes.frames_out >= count_;
    });
    return all;
  }

  int64_t count_;
};

}  // namespace fastsep::FASTSEP_ISA

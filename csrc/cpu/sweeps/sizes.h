// Where a block stands in its stack: the sizes of its maps, and how far its taps reach in them.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "../parts/vec.h"

namespace fastsep::FASTSEP_ISA {

struct Sizes {
  Sizes(const Block& b, int64_t t, int64_t f)
      : block(b),
        frames(t),
        bins(f),
        frames_out(t / b.pool),
        bins_out(f / b.pool),
        reach_t(least(b.dilation, t)),
        reach_f(least(b.dilation, f)),
        lone(b.in == 1) {}

  Block block;
  int64_t frames, bins, frames_out, bins_out;
  int64_t reach_t, reach_f;  // dilation, but never past the map
  bool lone;                 // one input channel: the cross reads x itself and there is no z
};

// Calls f(index, sizes) for the blocks of a stack in their order.
template <class F>
void each_block(const Block* blocks, int64_t count, int64_t frames, int64_t bins, F f) {
  for (int64_t i = 0; i < count; ++i) {
    const Sizes sizes(blocks[i], frames, bins);
    f(i, sizes);
    frames = sizes.frames_out;
    bins = sizes.bins_out;
  }
}

}  // namespace fastsep::FASTSEP_ISA

// The weights of one block of a stack, packed for the inference sweep.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "../parts/cross.h"
#include "../parts/dtypes.h"
#include "../parts/product.h"
#include "../parts/scratch.h"
#include "../parts/vec.h"

namespace fastsep::FASTSEP_ISA {

// dot: as pairs of bfloat16. separate: taps as they are, nothing merged into them.
template <class S, bool dot>
struct Packed {
  using T = Compute<S>;

  Packed(Bump& bump, const Block& block, bool separate)
      : panels{nullptr, dot ? ceil_div(block.in, 2) : block.in, block.out},
        taps(bump.take<T>(ceil_div(block.out, kLanes<T>) *
                          (separate ? SeparateTaps<T>::kSize : Taps<T>::kSize))) {
    panels.base = bump.take<T>(Panels<T>::size(panels.in, panels.out));
  }

  void pack(const Block& block, bool separate) const {
    const S* p = static_cast<const S*>(block.pointwise);
    if constexpr (dot) {
      panels.pack_each([&](int64_t o, int64_t k) {
        BFloat16 low, high = {0};
        narrow(widen(p[o * block.in + 2 * k]), low);
        if (2 * k + 1 < block.in) narrow(widen(p[o * block.in + 2 * k + 1]), high);
        return float_of(uint32_t{high.bits} << 16 | low.bits);
      });
    } else {
      panels.pack(p, block.in, 1);
    }
    if (separate) {
      SeparateTaps<T>::template pack<S>(block, taps);
      return;
    }
    // A lone input channel's pointwise weights go into the taps, and so does what the sum over a
    // pooling window is divided by.
    Taps<T>::template pack<S>(
        block, taps, [&](int64_t c) { return block.in == 1 ? widen(p[c]) : T(1); },
        T(1) / T(block.pool * block.pool));
  }

  Panels<T> panels;
  T* taps;
};

}  // namespace fastsep::FASTSEP_ISA

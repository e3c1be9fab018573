// The two depthwise convolutions as one five-point cross over rows of z, and what may follow it.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "dtypes.h"
#include "vec.h"

namespace fastsep::FASTSEP_ISA {

// Rows a cross reads for one output row; `reach` is the distance to the side taps in elements.
template <class T>
struct Cross {
  const T *up, *middle, *down;
  int64_t reach;

  FASTSEP_INLINE Cross from(int64_t offset) const {
    return {up + offset, middle + offset, down + offset, reach};
  }
};

// What it reads at one position.
template <class T>
struct CrossValues {
  Vec<T> up, left, centre, right, down;

  FASTSEP_INLINE static CrossValues read(const Cross<T>& z, int64_t at) {
    return {load(z.up + at), load(z.middle + at - z.reach), load(z.middle + at),
            load(z.middle + at + z.reach), load(z.down + at)};
  }
};

// Weights of one group of L channels.
template <class T>
struct Taps {
  Vec<T> up, left, centre, right, down, bias;

  FASTSEP_INLINE Vec<T> apply(const CrossValues<T>& z) const {
    Vec<T> y = bias + centre * z.centre;
    y += up * z.up;
    y += left * z.left;
    y += right * z.right;
    y += down * z.down;
    return y;
  }
  FASTSEP_INLINE Vec<T> apply(const Cross<T>& z, int64_t at) const {
    return apply(CrossValues<T>::read(z, at));
  }

  FASTSEP_INLINE static Taps read(const T* packed) {
    constexpr int64_t L = kLanes<T>;
    return {load(packed),         load(packed + L),     load(packed + 2 * L),
            load(packed + 3 * L), load(packed + 4 * L), load(packed + 5 * L)};
  }

  static constexpr int64_t kSize = 6 * kLanes<T>;

  // The transposed cross, which carries gradients from y back to z; `to` may be the same.
  static void flip(const T* packed, int64_t groups, T* to) {
    for (; groups > 0; --groups, packed += kSize, to += kSize) {
      const Taps taps = read(packed);
      const Vec<T> flipped[] = {taps.down, taps.right, taps.centre, taps.left, taps.up, {}};
      for (int64_t i = 0; i < 6; ++i) store(to + i * kLanes<T>, flipped[i]);
    }
  }

  // factor(c) scales the taps of channel c, share all of them and the bias.
  template <class S, class Factor>
  static void pack(const Block& block, T* to, Factor factor, T share = 1) {
    constexpr int64_t L = kLanes<T>;
    const S* time = static_cast<const S*>(block.time_taps);
    const S* freq = static_cast<const S*>(block.freq_taps);
    const S* bias = static_cast<const S*>(block.bias);
    for (int64_t c = 0; c < ceil_div(block.out, L) * L; ++c) {
      T* lane = to + c / L * kSize + c % L;
      if (c >= block.out) {
        for (int64_t i = 0; i < 6; ++i) lane[i * L] = 0;
        continue;
      }
      const T p = share * factor(c);
      lane[0 * L] = p * widen(time[3 * c]);
      lane[1 * L] = p * widen(freq[3 * c]);
      lane[2 * L] = p * (widen(time[3 * c + 1]) + widen(freq[3 * c + 1]));
      lane[3 * L] = p * widen(freq[3 * c + 2]);
      lane[4 * L] = p * widen(time[3 * c + 2]);
      lane[5 * L] = bias != nullptr ? share * widen(bias[c]) : T(0);
    }
  }
};

// Weights of one group of L channels with nothing merged: right whatever z is, and slower.
template <class T>
struct SeparateTaps {
  Vec<T> time[3], freq[3], bias;

  // In the order of the reference.
  FASTSEP_INLINE Vec<T> apply(const Cross<T>& z, int64_t at) const {
    const Vec<T> middle = load(z.middle + at);
    Vec<T> y = time[0] * load(z.up + at) + freq[0] * load(z.middle + at - z.reach);
    y += time[1] * middle + freq[1] * middle;
    y += time[2] * load(z.down + at) + freq[2] * load(z.middle + at + z.reach);
    return y + bias;
  }

  FASTSEP_INLINE static SeparateTaps read(const T* packed) {
    SeparateTaps taps;
    for (int k = 0; k < 3; ++k) {
      taps.time[k] = load(packed + k * kLanes<T>);
      taps.freq[k] = load(packed + (3 + k) * kLanes<T>);
    }
    taps.bias = load(packed + 6 * kLanes<T>);
    return taps;
  }

  static constexpr int64_t kSize = 7 * kLanes<T>;

  template <class S>
  static void pack(const Block& block, T* to) {
    constexpr int64_t L = kLanes<T>;
    const S* time = static_cast<const S*>(block.time_taps);
    const S* freq = static_cast<const S*>(block.freq_taps);
    const S* bias = static_cast<const S*>(block.bias);
    for (int64_t c = 0; c < ceil_div(block.out, L) * L; ++c) {
      T* lane = to + c / L * kSize + c % L;
      const bool there = c < block.out;
      for (int64_t k = 0; k < 3; ++k) {
        lane[k * L] = there ? widen(time[3 * c + k]) : T(0);
        lane[(3 + k) * L] = there ? widen(freq[3 * c + k]) : T(0);
      }
      lane[6 * L] = there && bias != nullptr ? widen(bias[c]) : T(0);
    }
  }
};

// One pooled output row of some groups: the sum over pool x pool of (ReLU of) the cross, which is
// the mean where the taps hold its 1 / pool^2. P is the pooling size at compile time, or 0 to take
// it from `pool`; rows holds one cross per pooled row, of the first group.
template <class T, int P, bool with_relu>
void pooled_cross(const T* packed_taps, int64_t groups, const Cross<T>* rows, int64_t z_stride,
                  int64_t pool, int64_t bins_out, T* y, int64_t y_stride) {
  constexpr int64_t L = kLanes<T>;
  const int64_t p = P > 0 ? P : pool;
  for (int64_t g = 0; g < groups; ++g, packed_taps += Taps<T>::kSize, y += y_stride) {
    const Taps<T> taps = Taps<T>::read(packed_taps);
    for (int64_t f = 0; f < bins_out; ++f) {
      Vec<T> sum = {};
      for (int64_t i = 0; i < p; ++i) {
        Vec<T> of_row = {};
        for (int64_t k = 0; k < p; ++k) {
          Vec<T> value = taps.apply(rows[i], g * z_stride + (f * p + k) * L);
          if (with_relu) value = relu<T>(value);
          of_row = k == 0 ? value : of_row + value;
        }
        sum = i == 0 ? of_row : sum + of_row;
      }
      store(y + f * L, sum);
    }
  }
}

// pooled_cross for two rows at once of a block with dilation 2 and pooling 2, to the same bits:
// they share half of the rows of z that each reads, and those come from the second cache. rows: the
// eight of z that the four rows of the cross reach; the second output row is y_row elements on.
template <class T>
void pooled_cross_pair(const T* packed_taps, int64_t groups, const T* const* rows, int64_t z_stride,
                       int64_t bins_out, T* y, int64_t y_stride, int64_t y_row) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t g = 0; g < groups; ++g, packed_taps += Taps<T>::kSize, y += y_stride) {
    const Taps<T> taps = Taps<T>::read(packed_taps);
    const T* z[8];
    for (int i = 0; i < 8; ++i) z[i] = rows[i] + g * z_stride;
    for (int64_t f = 0; f < bins_out; ++f) {
#pragma GCC unroll 2
      for (int row = 0; row < 2; ++row) {
        Vec<T> value[4];
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) {
          const int t = 2 * row + n / 2;
          const int64_t at = (2 * f + n % 2) * L;
          Vec<T> v = taps.bias + taps.centre * load(z[t + 2] + at);
          v += taps.up * load(z[t] + at);
          v += taps.left * load(z[t + 2] + at - 2 * L);
          v += taps.right * load(z[t + 2] + at + 2 * L);
          v += taps.down * load(z[t + 4] + at);
          value[n] = relu<T>(v);
        }
        store(y + row * y_row + f * L, (value[0] + value[1]) + (value[2] + value[3]));
      }
    }
  }
}

// pooled_cross for NV groups of a block with one input channel, straight from its rows of scalars:
// each is read once for all groups. between() is called after every output, seen(i, value) before
// ReLU with position i's values, where those of an output's window follow each other.
template <class T, int P, bool with_relu, int NV, class Between, class Seen>
void pooled_lone(const T* packed_taps, const Cross<T>* rows, int64_t pool, int64_t bins_out, T* y,
                 int64_t y_stride, Between between, Seen seen) {
  constexpr int64_t L = kLanes<T>;
  Taps<T> taps[NV];
  for (int j = 0; j < NV; ++j) taps[j] = Taps<T>::read(packed_taps + j * Taps<T>::kSize);
  const int64_t p = P > 0 ? P : pool;
  for (int64_t f = 0; f < bins_out; ++f) {
    Vec<T> sum[NV] = {};
    for (int64_t i = 0; i < p; ++i) {
      const Cross<T> x = rows[i];
      for (int64_t k = 0; k < p; ++k) {
        const int64_t at = f * p + k;
        Vec<T> value[NV];
        // Tap by tap over all groups: sums of their own have no latency to wait for.
#define FASTSEP_EACH_GROUP _Pragma("GCC unroll 4") for (int j = 0; j < NV; ++j)
        FASTSEP_EACH_GROUP value[j] = taps[j].bias + taps[j].centre * x.middle[at];
        FASTSEP_EACH_GROUP value[j] += taps[j].up * x.up[at];
        FASTSEP_EACH_GROUP value[j] += taps[j].left * x.middle[at - x.reach];
        FASTSEP_EACH_GROUP value[j] += taps[j].right * x.middle[at + x.reach];
        FASTSEP_EACH_GROUP value[j] += taps[j].down * x.down[at];
        seen((f * p + i) * p + k, value);
        FASTSEP_EACH_GROUP if (with_relu) value[j] = relu<T>(value[j]);
        FASTSEP_EACH_GROUP sum[j] = i + k == 0 ? value[j] : sum[j] + value[j];
#undef FASTSEP_EACH_GROUP
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store(y + j * y_stride + f * L, sum[j]);
    between();
  }
}

// pooled_cross with separate taps; the mean over a window is taken at its end.
template <class T, bool with_relu>
void separate_cross(const T* packed_taps, int64_t groups, const Cross<T>* rows, int64_t z_stride,
                    int64_t pool, int64_t bins_out, T* y, int64_t y_stride) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t g = 0; g < groups; ++g, packed_taps += SeparateTaps<T>::kSize, y += y_stride) {
    const SeparateTaps<T> taps = SeparateTaps<T>::read(packed_taps);
    for (int64_t f = 0; f < bins_out; ++f) {
      Vec<T> sum = {};
      for (int64_t i = 0; i < pool; ++i) {
        for (int64_t k = 0; k < pool; ++k) {
          const Vec<T> value = taps.apply(rows[i], g * z_stride + (f * pool + k) * L);
          sum += with_relu ? relu<T>(value) : value;
        }
      }
      store(y + f * L, sum / T(pool * pool));
    }
  }
}

// One row of dz, the cross turned around, which carries gradients from y back to z. What is outside
// the map is left out, as PyTorch does: an infinite tap would make NaN of its 0. up, down: whether
// those rows of dy are inside.
template <class T>
void turned_cross(const T* packed_taps, int64_t groups, const Cross<T>& dy, bool up, bool down,
                  int64_t dy_stride, int64_t bins, T* dz, int64_t dz_stride) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t g = 0; g < groups; ++g, packed_taps += SeparateTaps<T>::kSize, dz += dz_stride) {
    const SeparateTaps<T> taps = SeparateTaps<T>::read(packed_taps);
    const Cross<T> from = dy.from(g * dy_stride);
    for (int64_t f = 0; f < bins * L; f += L) {
      const Vec<T> middle = load(from.middle + f);
      Vec<T> sum = taps.time[1] * middle + taps.freq[1] * middle;
      if (down) sum += taps.time[0] * load(from.down + f);
      if (up) sum += taps.time[2] * load(from.up + f);
      if (f + from.reach < bins * L) sum += taps.freq[0] * load(from.middle + f + from.reach);
      if (f >= from.reach) sum += taps.freq[2] * load(from.middle + f - from.reach);
      store(dz + f, sum);
    }
  }
}

// What positions of one group add to the sums that are the gradients of its taps and bias.
template <class T>
struct TapSums {
  Vec<T> up = {}, left = {}, centre = {}, right = {}, down = {}, bias = {};

  FASTSEP_INLINE void add(const CrossValues<T>& z, Vec<T> dy) {
    up += dy * z.up;
    left += dy * z.left;
    centre += dy * z.centre;
    right += dy * z.right;
    down += dy * z.down;
    bias += dy;
  }

  // sums: laid out as Taps.
  FASTSEP_INLINE void add_to(T* sums) const {
    for (const Vec<T>& sum : {up, left, centre, right, down, bias}) {
      store(sums, load(sums) + sum);
      sums += kLanes<T>;
    }
  }
};

// Those of a row.
template <class T>
void add_tap_gradients(const Cross<T>& z, const T* dy, int64_t bins, T* sums) {
  TapSums<T> row;
  for (int64_t f = 0; f < bins * kLanes<T>; f += kLanes<T>) {
    row.add(CrossValues<T>::read(z, f), load(dy + f));
  }
  row.add_to(sums);
}

}  // namespace fastsep::FASTSEP_ISA

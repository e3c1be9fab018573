// Rows: one time frame of a map, in a layout the sweeps compute on.
//
//   planar   [C][F]              as a contiguous tensor has it; only ever read by scalars
//   blocked  [C / L][F + pad][L] lanes are L neighbouring channels; what every kernel writes
#pragma once

#include <cstdint>
#include <cstring>

#include "../kernels.h"
#include "dtypes.h"
#include "vec.h"

namespace fastsep::FASTSEP_ISA {

// Rows as the products read them, scalar by scalar: each_channel calls f(p) for one channel after
// the other, with p[i * kStep] the scalar at position i, and between() after every kGroup of them.
template <class T>
struct Planar {
  static constexpr int64_t kStep = 1, kGroup = 16;
  const T* base;
  int64_t channel_stride;
  template <class F, class Between>
  FASTSEP_INLINE void each_channel(int64_t channels, F f, Between between) const {
    const T* p = base;
    for (; channels >= kGroup; channels -= kGroup) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kGroup; ++i, p += channel_stride) f(p);
      between();
    }
    for (int64_t i = 0; i < channels; ++i, p += channel_stride) f(p);
  }
  FASTSEP_INLINE T at(int64_t position, int64_t channel) const {
    return base[channel * channel_stride + position];
  }
  FASTSEP_INLINE Planar from(int64_t position) const { return {base + position, channel_stride}; }
};

// Groups of `width` channels side by side.
template <class S, int64_t width, class F, class Between>
FASTSEP_INLINE void each_in_groups(const S* base, int64_t group_stride, int64_t channels, F f,
                                   Between between) {
  for (; channels >= width; channels -= width, base += group_stride) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < width; ++i) f(base + i);
    between();
  }
  for (int64_t i = 0; i < channels; ++i) f(base + i);
}

template <class T>
struct Blocked {
  static constexpr int64_t kStep = kLanes<T>, kGroup = kStep;
  const T* base;
  int64_t group_stride;
  template <class F, class Between>
  FASTSEP_INLINE void each_channel(int64_t channels, F f, Between between) const {
    each_in_groups<T, kStep>(base, group_stride, channels, f, between);
  }
  FASTSEP_INLINE T at(int64_t position, int64_t channel) const {
    constexpr int64_t L = kLanes<T>;
    return base[channel / L * group_stride + position * L + channel % L];
  }
  FASTSEP_INLINE Blocked from(int64_t position) const {
    return {base + position * kLanes<T>, group_stride};
  }
};

// A blocked row in bfloat16, read two neighbouring channels at a time.
struct BlockedPairs {
  static constexpr int64_t kStep = kLanes<float> / 2, kGroup = kStep;
  const uint32_t* base;
  int64_t group_stride;
  template <class F, class Between>
  FASTSEP_INLINE void each_channel(int64_t pairs, F f, Between between) const {
    each_in_groups<uint32_t, kStep>(base, group_stride, pairs, f, between);
  }
  FASTSEP_INLINE BlockedPairs from(int64_t position) const {
    return {base + position * kStep, group_stride};
  }
};

FASTSEP_INLINE int64_t pairs_stride(int64_t bins) { return (bins | 1) * BlockedPairs::kStep; }

// Lanes beyond the last channel become 0: with an odd channel they share a pair.
inline void round_to_pairs(Blocked<float> row, int64_t channels, int64_t bins, uint32_t* pairs) {
  constexpr int64_t L = kLanes<float>;
  for (int64_t c = 0; c < channels; c += L) {
    BFloat16* to = reinterpret_cast<BFloat16*>(pairs + c / L * pairs_stride(bins));
    const float* from = row.base + c / L * row.group_stride;
    const int64_t lanes = least(L, channels - c);
    for (int64_t f = 0; f < bins; ++f, from += L, to += L) {
      store_as(to, load(from));
      if (lanes < L) std::memset(to + lanes, 0, size_t(L - lanes) * sizeof *to);
    }
  }
}

// Distances between channels and between groups of channels. In odd numbers of cache lines: a
// product reads every channel at the same positions, which must not fall into the same cache sets.
template <class T>
FASTSEP_INLINE int64_t planar_stride(int64_t bins) {
  constexpr int64_t line = 64 / sizeof(T);
  return (ceil_div(bins, line) | 1) * line;
}

template <class T>
FASTSEP_INLINE int64_t blocked_stride(int64_t bins) {
  return (bins | 1) * kLanes<T>;
}

// Room for a row in either layout.
template <class T>
FASTSEP_INLINE int64_t row_size(int64_t channels, int64_t bins) {
  return most(channels * planar_stride<T>(bins),
              ceil_div(channels, kLanes<T>) * blocked_stride<T>(bins));
}

// Row (n, t) of a tensor.
template <class S>
FASTSEP_INLINE S* row_of(const Map& map, int64_t n, int64_t t) {
  return static_cast<S*>(map.data) + n * map.n + t * map.t;
}

template <class S, class T = Compute<S>>
void load_planar(const Map& map, int64_t n, int64_t t, int64_t channels, int64_t bins, T* row) {
  const S* source = row_of<S>(map, n, t);
  for (int64_t c = 0; c < channels; ++c) {
    const S* channel = source + c * map.c;
    T* to = row + c * planar_stride<T>(bins);
    if (map.f == 1) {
      for (int64_t f = 0; f < bins; ++f) to[f] = widen(channel[f]);
    } else {
      for (int64_t f = 0; f < bins; ++f) to[f] = widen(channel[f * map.f]);
    }
  }
}

// Lanes beyond the last channel become 0. step: distance between positions.
template <class S, class T = Compute<S>>
void load_blocked(const Map& map, int64_t n, int64_t t, int64_t channels, int64_t bins, T* row,
                  int64_t group_stride, int64_t step = kLanes<T>) {
  constexpr int64_t L = kLanes<T>;
  const S* source = row_of<S>(map, n, t);
  for (int64_t c = 0; c < channels; c += L, row += group_stride, source += L * map.c) {
    const int64_t lanes = least(L, channels - c);
    int64_t f = 0;
    if (map.f == 1 && lanes == L) {
      for (; f + L <= bins; f += L) {
        Vec<T> square[L];
        for (int64_t l = 0; l < L; ++l) square[l] = load_as<S>(source + l * map.c + f);
        transpose<T>(square);
        for (int64_t i = 0; i < L; ++i) store(row + (f + i) * step, square[i]);
      }
    }
    for (; map.c == 1 && lanes == L && f < bins; ++f)
      store(row + f * step, load_as<S>(source + f * map.f));
    if (map.f == 0 && bins > 0) {  // the gradient of a sum over bins
      Vec<T> all = {};
      for (int64_t l = 0; l < lanes; ++l) all[l] = widen(source[l * map.c]);
      for (; f < bins; ++f) store(row + f * step, all);
    }
    for (; f < bins; ++f) {
      for (int64_t l = 0; l < lanes; ++l) row[f * step + l] = widen(source[l * map.c + f * map.f]);
      for (int64_t l = lanes; l < L; ++l) row[f * step + l] = 0;
    }
  }
}

template <class S, class T = Compute<S>>
void store_blocked(const T* row, int64_t group_stride, const Map& map, int64_t n, int64_t t,
                   int64_t channels, int64_t bins) {
  constexpr int64_t L = kLanes<T>;
  S* target = row_of<S>(map, n, t);
  for (int64_t c = 0; c < channels; c += L, row += group_stride, target += L * map.c) {
    const int64_t lanes = least(L, channels - c);
    int64_t f = 0;
    if (map.f == 1) {
      for (; f + L <= bins; f += L) {
        Vec<T> square[L];
        for (int64_t i = 0; i < L; ++i) square[i] = load(row + (f + i) * L);
        transpose<T>(square);
        for (int64_t l = 0; l < lanes; ++l) store_as<S>(target + l * map.c + f, square[l]);
      }
    }
    for (; map.c == 1 && lanes == L && f < bins; ++f)
      store_as<S>(target + f * map.f, load(row + f * L));
    for (; f < bins; ++f) {
      for (int64_t l = 0; l < lanes; ++l) narrow(row[f * L + l], target[l * map.c + f * map.f]);
    }
  }
}

}  // namespace fastsep::FASTSEP_ISA

// The two depthwise convolutions as one five-point cross over rows of z, and what may follow it.
#pragma once

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

// Weights of one group of L channels.
template <class T>
struct Taps {
  Vec<T> up, left, centre, right, down, bias;

  FASTSEP_INLINE Vec<T> apply(const Cross<T>& z, int64_t at) const {
    Vec<T> y = bias + centre * load(z.middle + at);
    y += up * load(z.up + at);
    y += down * load(z.down + at);
    y += left * load(z.middle + at - z.reach);
    y += right * load(z.middle + at + z.reach);
    return y;
  }

  // The same on a row of one channel, with the pointwise weights already in the taps.
  FASTSEP_INLINE Vec<T> apply_scalars(const Cross<T>& x, int64_t at) const {
    Vec<T> y = bias + centre * x.middle[at];
    y += up * x.up[at];
    y += down * x.down[at];
    y += left * x.middle[at - x.reach];
    y += right * x.middle[at + x.reach];
    return y;
  }

  // The transposed cross, which carries gradients from y back to z.
  FASTSEP_INLINE Taps flipped() const { return {down, right, centre, left, up, Vec<T>{}}; }

  FASTSEP_INLINE static Taps read(const T* packed) {
    constexpr int64_t L = kLanes<T>;
    return {load(packed),         load(packed + L),     load(packed + 2 * L),
            load(packed + 3 * L), load(packed + 4 * L), load(packed + 5 * L)};
  }

  static constexpr int64_t kSize = 6 * kLanes<T>;

  // factor(c) scales the taps of channel c.
  template <class S, class Factor>
  static void pack(const Block& block, T* to, Factor factor) {
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
      const T p = factor(c);
      lane[0 * L] = p * widen(time[3 * c]);
      lane[1 * L] = p * widen(freq[3 * c]);
      lane[2 * L] = p * (widen(time[3 * c + 1]) + widen(freq[3 * c + 1]));
      lane[3 * L] = p * widen(freq[3 * c + 2]);
      lane[4 * L] = p * widen(time[3 * c + 2]);
      lane[5 * L] = bias != nullptr ? widen(bias[c]) : T(0);
    }
  }
};

// One pooled output row of one group: mean over pool x pool of (ReLU of) the cross. P is the
// pooling size at compile time, or 0 to take it from `pool`; rows holds one cross per pooled row.
template <class T, int P, bool rectify>
void pooled_cross(const Taps<T>& taps, const Cross<T>* rows, int64_t pool, int64_t bins_out, T* y) {
  constexpr int64_t L = kLanes<T>;
  const int64_t p = P > 0 ? P : pool;
  const T share = T(1) / T(p * p);
  for (int64_t f = 0; f < bins_out; ++f) {
    Vec<T> sum = {};
    for (int64_t i = 0; i < p; ++i) {
      for (int64_t k = 0; k < p; ++k) {
        const Vec<T> value = taps.apply(rows[i], (f * p + k) * L);
        sum += rectify ? relu<T>(value) : value;
      }
    }
    store(y + f * L, P == 1 ? sum : sum * share);
  }
}

// The same for NV groups of a block with one input channel, straight from its rows of scalars: each
// is read once for all groups.
template <class T, int P, bool rectify, int NV>
void pooled_direct(const T* packed_taps, const Cross<T>* rows, int64_t pool, int64_t bins_out, T* y,
                   int64_t group_stride) {
  constexpr int64_t L = kLanes<T>;
  Taps<T> taps[NV];
  for (int j = 0; j < NV; ++j) taps[j] = Taps<T>::read(packed_taps + j * Taps<T>::kSize);
  const int64_t p = P > 0 ? P : pool;
  const T share = T(1) / T(p * p);
  for (int64_t f = 0; f < bins_out; ++f) {
    Vec<T> sum[NV] = {};
    for (int64_t i = 0; i < p; ++i) {
      for (int64_t k = 0; k < p; ++k) {
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
          const Vec<T> value = taps[j].apply_scalars(rows[i], f * p + k);
          sum[j] += rectify ? relu<T>(value) : value;
        }
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j)
      store(y + j * group_stride + f * L, P == 1 ? sum[j] : sum[j] * share);
  }
}

}  // namespace fastsep::FASTSEP_ISA

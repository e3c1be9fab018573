// The two depthwise convolutions as one five-point cross over rows of z, and what may follow it.
#pragma once

namespace fastsep::FASTSEP_ISA {

// Rows a cross reads for one output row; `reach` is the distance to the side taps in elements.
template <class T>
struct Cross {
  const T *up, *middle, *down;
  int64_t reach;
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

  // The transposed cross, which carries gradients from y back to z.
  FASTSEP_INLINE Taps flipped() const { return {down, right, centre, left, up, Vec<T>{}}; }

  FASTSEP_INLINE static Taps read(const T* packed) {
    constexpr int64_t L = kLanes<T>;
    return {load(packed),         load(packed + L),     load(packed + 2 * L),
            load(packed + 3 * L), load(packed + 4 * L), load(packed + 5 * L)};
  }

  static constexpr int64_t kSize = 6 * kLanes<T>;

  template <class S>
  static void pack(const Block& block, T* to) {
    constexpr int64_t L = kLanes<T>;
    const S* time = static_cast<const S*>(block.time_taps);
    const S* freq = static_cast<const S*>(block.freq_taps);
    const S* bias = static_cast<const S*>(block.bias);
    for (int64_t c = 0; c < ceil_div(block.out, L) * L; ++c) {
      T* lane = to + c / L * kSize + c % L;
      const bool real = c < block.out;
      lane[0 * L] = real ? widen(time[3 * c]) : T(0);
      lane[1 * L] = real ? widen(freq[3 * c]) : T(0);
      lane[2 * L] = real ? widen(time[3 * c + 1]) + widen(freq[3 * c + 1]) : T(0);
      lane[3 * L] = real ? widen(freq[3 * c + 2]) : T(0);
      lane[4 * L] = real ? widen(time[3 * c + 2]) : T(0);
      lane[5 * L] = real && bias != nullptr ? widen(bias[c]) : T(0);
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

}  // namespace fastsep::FASTSEP_ISA

// The one matrix product: tiles of M scalars by NV vectors, accumulated in registers.
//
//   project    z[f, c] = sum_k x[f, k] w[k, c]      positions by channels, reduced over channels
//   correlate  s[k, c] += sum_f x[f, k] g[f, c]     channels by channels, reduced over positions
#pragma once

#include <cstdint>
#include <type_traits>

#include "../kernels.h"
#include "rows.h"
#include "vec.h"

namespace fastsep::FASTSEP_ISA {

constexpr int kTileRows = 6;  // with kTileVectors this fills the registers of each instruction set
constexpr int kTileVectors = FASTSEP_VECTOR_BYTES == 64 ? 4 : 2;

template <class T, int M, int NV>
struct Tile {
  Vec<T> sum[M][NV] = {};

  template <class Scalar>
  FASTSEP_INLINE void add(Scalar scalar, const T* vectors, int64_t stride) {
    Vec<T> v[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) v[j] = load(vectors + j * stride);
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i) {
      const auto s = scalar(i);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) multiply_add(sum[i][j], s, v[j]);
    }
  }
};

// Calls f with a compile-time count, 1 to limit.
template <int limit, class F>
FASTSEP_INLINE void with_count(int64_t count, F f) {
  if constexpr (limit > 1) {
    if (count < limit) return with_count<limit - 1>(count, f);
  }
  f(std::integral_constant<int, limit>());
}

// Weights (out, in) packed as panels of up to kTileVectors vectors of output channels: [in][NV][L].
template <class T>
class Panels {
 public:
  T* base;
  int64_t in, out;

  static int64_t size(int64_t in, int64_t out) { return in * ceil_div(out, kLanes<T>) * kLanes<T>; }

  // How often `project` calls between() for one row whose kGroup this is.
  int64_t steps(int64_t bins, int64_t group = 16) const {
    return ceil_div(out, kTileVectors * kLanes<T>) * ceil_div(bins, kTileRows) * (in / group);
  }

  // Of weights o * out_stride + i * in_stride elements on, from input channel i to output channel
  // o.
  template <class S>
  void pack(const S* weights, int64_t out_stride, int64_t in_stride) const {
    const Map map{const_cast<S*>(weights), 0, out_stride, 0, in_stride};
    each_group([&](int64_t first, int64_t lanes, T* to, int64_t width) {
      Map group = map;
      group.data = const_cast<S*>(weights) + first * out_stride;
      load_blocked<S, T>(group, 0, 0, lanes, in, to, 0, width);
    });
  }

  // element(o, i) is the weight from input channel i to output channel o.
  template <class Element>
  void pack_each(Element element) const {
    each_group([&](int64_t first, int64_t lanes, T* to, int64_t width) {
      for (int64_t i = 0; i < in; ++i, to += width) {
        for (int64_t l = 0; l < kLanes<T>; ++l) to[l] = l < lanes ? element(first + l, i) : T(0);
      }
    });
  }

 private:
  // f(first output of a group, outputs in it, its place, distance between inputs there)
  template <class F>
  void each_group(F f) const {
    constexpr int64_t L = kLanes<T>;
    for (int64_t first = 0; first < out; first += L) {
      const int64_t panel = first - first % (kTileVectors * L);
      const int64_t width = least(kTileVectors * L, ceil_div(out - panel, L) * L);
      f(first, least(L, out - first), base + panel * in + first - panel, width);
    }
  }
};

// Where positions go: one after the other, or as a list says.
template <class T>
struct InOrder {
  static constexpr bool kScattered = false;
  FASTSEP_INLINE int64_t operator()(int64_t f) const { return f * kLanes<T>; }
};
struct AsListed {
  static constexpr bool kScattered = true;
  const int32_t* to;
  FASTSEP_INLINE int64_t operator()(int64_t f) const { return to[f]; }
};

// Position f goes to z + place(f). between() is called after every Row::kGroup of input channels in
// each tile.
template <class T, class Row, class Place, class Between>
void project_to(Place place, Row x, int64_t bins, Panels<T> weights, T* z, int64_t group_stride,
                Between between) {
  constexpr int64_t L = kLanes<T>;
  const T* panel = weights.base;
  [[maybe_unused]] const int64_t rows_a_step =
      ceil_div(kTileRows, most(weights.in / Row::kGroup, 1));
  int64_t groups = ceil_div(weights.out, L);
  while (groups > 0) {
    const int64_t width = least(kTileVectors, groups);
    with_count<kTileVectors>(width, [&](auto nv) {
      constexpr int NV = decltype(nv)::value;
      int64_t f = 0;
      for (int64_t tiles = ceil_div(bins, kTileRows); tiles > 0; --tiles) {
        // Tiles of even size: a last one of one or two rows would not hide its latencies.
        with_count<kTileRows>(ceil_div(bins - f, tiles), [&](auto m) {
          constexpr int M = decltype(m)::value;
          Tile<T, M, NV> tile;
          const T* w = panel;
          // Scattered stores wait for their cache lines one after the other; fetched as the tile
          // is computed, a few at a time, they are there.
          [[maybe_unused]] int64_t fetched = 0;
          const auto step = [&]() __attribute__((always_inline)) {
            if constexpr (Place::kScattered) {
              for (const int64_t stop = least(fetched + rows_a_step, M); fetched < stop;
                   ++fetched) {
#pragma GCC unroll 4
                for (int j = 0; j < NV; ++j) {
                  __builtin_prefetch(z + j * group_stride + place(f + fetched), 1);
                }
              }
            }
            between();
          };
          x.from(f).each_channel(
              weights.in,
              [&](const auto* p) __attribute__((always_inline)) {
                tile.add([&](int i) { return p[i * Row::kStep]; }, w, L);
                w += NV * L;
              },
              step);
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j) {
#pragma GCC unroll 6
            for (int i = 0; i < M; ++i) {
              store(z + j * group_stride + place(f + i), tile.sum[i][j]);
            }
          }
          f += M;
        });
      }
    });
    panel += weights.in * width * L;
    z += width * group_stride;
    groups -= width;
  }
}

template <class T, class Row, class Between>
void project(Row x, int64_t bins, Panels<T> weights, T* z, int64_t group_stride, Between between) {
  project_to(InOrder<T>(), x, bins, weights, z, group_stride, between);
}

// sums: [in][groups of out][L]; g: blocked row of `out` channels.
template <class T, class Row>
void correlate(Row x, int64_t in, const T* g, int64_t group_stride, int64_t out, int64_t bins,
               T* sums) {
  constexpr int64_t L = kLanes<T>;
  const int64_t groups = ceil_div(out, L);
  for (int64_t j = 0; j < groups; j += kTileVectors) {
    with_count<kTileVectors>(least(kTileVectors, groups - j), [&](auto nv) {
      constexpr int NV = decltype(nv)::value;
      int64_t k = 0;
      for (int64_t tiles = ceil_div(in, kTileRows); tiles > 0; --tiles) {  // of even size, as above
        with_count<kTileRows>(ceil_div(in - k, tiles), [&](auto m) {
          constexpr int M = decltype(m)::value;
          Tile<T, M, NV> tile;
          for (int64_t f = 0; f < bins; ++f) {
            tile.add([&](int i) { return x.at(f, k + i); }, g + j * group_stride + f * L,
                     group_stride);
          }
#pragma GCC unroll 6
          for (int i = 0; i < M; ++i) {
#pragma GCC unroll 4
            for (int n = 0; n < NV; ++n) {
              T* to = sums + ((k + i) * groups + j + n) * L;
              store(to, load<T>(to) + tile.sum[i][n]);
            }
          }
          k += M;
        });
      }
    });
  }
}

}  // namespace fastsep::FASTSEP_ISA

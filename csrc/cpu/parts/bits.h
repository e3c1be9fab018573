// Sets of positions along a row, 64 to a word; bits beyond the row are 0.
#pragma once

#include <cstdint>

#include "vec.h"

namespace fastsep::FASTSEP_ISA {

FASTSEP_INLINE int64_t words_of(int64_t positions) { return ceil_div(positions, 64); }

FASTSEP_INLINE bool has_bit(const uint64_t* set, uint64_t i) { return set[i / 64] >> i % 64 & 1; }

// The positions of word w that are below `positions`.
FASTSEP_INLINE uint64_t bits_below(int64_t positions, int64_t w) {
  const int64_t left = positions - 64 * w;
  return left >= 64 ? ~uint64_t{0} : left <= 0 ? 0 : (uint64_t{1} << left) - 1;
}

// Adds positions start to stop - 1.
inline void add_bits(uint64_t* set, int64_t start, int64_t stop) {
  for (int64_t w = start / 64; 64 * w < stop; ++w) {
    set[w] |= bits_below(stop, w) & ~bits_below(start, w);
  }
}

// Calls f(i) for the positions of word w, in their order.
template <class F>
FASTSEP_INLINE void each_bit(uint64_t word, int64_t w, F f) {
  for (; word != 0; word &= word - 1) f(64 * w + __builtin_ctzll(word));
}

// Calls f(start, stop) for the runs of neighbours in word w, in their order.
template <class F>
FASTSEP_INLINE void each_run(uint64_t word, int64_t w, F f) {
  while (word != 0) {
    const int64_t start = __builtin_ctzll(word);
    const uint64_t ends = ~(word >> start) << start;
    const int64_t stop = ends == 0 ? 64 : __builtin_ctzll(ends);
    f(64 * w + start, 64 * w + stop);
    word &= stop == 64 ? 0 : ~uint64_t{0} << stop;
  }
}

// Bit i of the result: bit 2 i or 2 i + 1 of x.
FASTSEP_INLINE uint64_t halved(uint64_t x) {
  x = (x | x >> 1) & 0x5555555555555555;
  x = (x | x >> 1) & 0x3333333333333333;
  x = (x | x >> 2) & 0x0f0f0f0f0f0f0f0f;
  x = (x | x >> 4) & 0x00ff00ff00ff00ff;
  x = (x | x >> 8) & 0x0000ffff0000ffff;
  return (x | x >> 16) & 0x00000000ffffffff;
}

// The other way: bits 2 i and 2 i + 1 of the result are bit i of x.
FASTSEP_INLINE uint64_t doubled(uint64_t x) {
  x &= 0x00000000ffffffff;
  x = (x | x << 16) & 0x0000ffff0000ffff;
  x = (x | x << 8) & 0x00ff00ff00ff00ff;
  x = (x | x << 4) & 0x0f0f0f0f0f0f0f0f;
  x = (x | x << 2) & 0x3333333333333333;
  x = (x | x << 1) & 0x5555555555555555;
  return x | x << 1;
}

// The pairs of neighbours of which one is in the set.
inline void pairs_of(const uint64_t* set, int64_t positions, uint64_t* pairs) {
  for (int64_t w = 0; w < words_of(positions); ++w) {
    if (w % 2 == 0) {
      pairs[w / 2] = halved(set[w]);
    } else {
      pairs[w / 2] |= halved(set[w]) << 32;
    }
  }
}

// Which of the first `positions` have themselves, a neighbour, or their like above or below in the
// set; the rows have words for so many `cells`.
inline void reached_from(const uint64_t* row, const uint64_t* above, const uint64_t* below,
                         int64_t cells, int64_t positions, uint64_t* reached) {
  for (int64_t w = 0; w < words_of(positions); ++w) {
    uint64_t set = row[w] | row[w] << 1 | row[w] >> 1 | above[w] | below[w];
    if (w > 0) set |= row[w - 1] >> 63;
    if (w + 1 < words_of(cells)) set |= row[w + 1] << 63;
    reached[w] = set & bits_below(positions, w);
  }
}

}  // namespace fastsep::FASTSEP_ISA

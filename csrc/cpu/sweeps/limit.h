// How large the input of a stack may be for merged taps. Merged, both centre taps meet z as one,
// and a lone channel's pointwise weights meet x as part of the taps. That is the same as long as
// nothing on the way overflows, merged or not, and no product of weights loses digits to underflow;
// inf - inf is NaN only where the two stay apart.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../kernels.h"
#include "../parts/dtypes.h"
#include "../parts/rows.h"
#include "../parts/vec.h"

namespace fastsep::FASTSEP_ISA {

// The largest absolute value, NaN above infinity: as integers, the bits of numbers are in their
// order.
template <class S, class T = Compute<S>>
T largest_size(const S* p, int64_t count) {
  using Bits = decltype(Vec<T>{} < Vec<T>{});
  const Bits sizes = ~(Bits)(-Vec<T>{});  // all but the sign
  Bits largest = {};
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    const Bits size = (Bits)load_as<S>(p + i) & sizes;
    largest = size > largest ? size : largest;
  }
  for (; i < count; ++i) {
    const Bits size = (Bits)(Vec<T>{} + widen(p[i])) & sizes;
    largest = size > largest ? size : largest;
  }
  T most = 0;
  for (int64_t l = 0; l < kLanes<T> && most == most; ++l) {
    const T size = ((Vec<T>)largest)[l];
    if (!(size <= most)) most = size;
  }
  return most;
}

// Whether -limit < value < limit for so many values, or all of a row; NaN is not.
template <class T>
bool within(const T* p, int64_t count, T limit) {
  const Vec<T> high = Vec<T>{} + limit, low = -high;
  auto inside = high == high;
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    const Vec<T> v = load_as<T>(p + i);
    inside &= (v < high) & (v > low);
  }
  bool all = true;
  for (; i < count; ++i) all &= p[i] < limit && p[i] > -limit;
  for (int64_t l = 0; l < kLanes<T>; ++l) all &= inside[l] != 0;
  return all;
}

template <class T>
bool within(const Planar<T>& row, int64_t channels, int64_t bins, T limit) {
  bool all = true;
  for (int64_t c = 0; c < channels; ++c)
    all &= within(row.base + c * row.channel_stride, bins, limit);
  return all;
}

template <class T>
bool within(const Blocked<T>& row, int64_t channels, int64_t bins, T limit) {
  constexpr int64_t L = kLanes<T>;
  bool all = true;
  for (int64_t g = 0; g < ceil_div(channels, L); ++g) {
    all &= within(row.base + g * row.group_stride, bins * L, limit);
  }
  return all;
}

// add() the blocks in their order; value() is then the limit. From the largest weights, not from
// sums of them: what weights and inputs are in practice is far below the limit either way.
template <class S>
class Limit {
  using T = Compute<S>;
  static constexpr bool kSingle = std::is_same_v<T, float>;
  static constexpr double kLargest = kSingle ? 0x1p126 : 0x1p1022;  // of a sum of absolute values
  static constexpr double kNormal = kSingle ? 0x1p-126 : 0x1p-1022;
  // A packed tap that loses digits is off by half the smallest subnormal number: times this, six of
  // them are small beside the smallest normal number.
  static constexpr double kLossy = kSingle ? 0x1p18 : 0x1p47;

 public:
  void add(const Block& block) {
    const S* pointwise = static_cast<const S*>(block.pointwise);
    const S* taps[] = {static_cast<const S*>(block.time_taps),
                       static_cast<const S*>(block.freq_taps)};
    const S* bias = static_cast<const S*>(block.bias);
    const double window = double(block.pool) * double(block.pool);
    const double p = double(largest_size(pointwise, block.in * block.out));
    const double of_taps = 3 * double(largest_size(taps[0], 3 * block.out)) +
                           3 * double(largest_size(taps[1], 3 * block.out));
    const double offset = bias != nullptr ? double(largest_size(bias, block.out)) : 0;
    const double z = p * double(block.in), y = z * of_taps;  // per unit of the block's input
    const double packed = of_taps * (block.in == 1 ? p : 1);
    if (!(p < kLargest && of_taps < kLargest && offset < kLargest && packed < kLargest)) limit_ = 0;
    allow(z, kLargest);
    allow(y, kLargest / window - offset);
    for (int64_t c = 0; c < block.out; ++c) {
      if (loses_digits(block, taps, c, window)) allow(meets_taps(block, c), kLossy);
    }
    gain_ = larger(y * gain_, 0x1p-1022);
    offset_ = y * offset_ + offset;
  }

  T value() const { return T(limit_); }

 private:
  static double larger(double a, double b) { return a > b ? a : b; }

  static double size_of(S value) { return __builtin_fabs(double(widen(value))); }

  static bool loses_digits(const Block& block, const S* const* taps, int64_t c, double window) {
    const S* pointwise = static_cast<const S*>(block.pointwise);
    const double share = (block.in == 1 ? size_of(pointwise[c]) : 1) / window;
    bool loses = false;
    for (int64_t k = 3 * c; share > 0 && k < 3 * c + 3; ++k) {
      for (const double size : {size_of(taps[0][k]), size_of(taps[1][k])}) {
        loses |= size > 0 && size * share < kNormal;
      }
    }
    return loses;
  }

  // What a channel's packed taps meet per unit of the block's input: z, or x itself.
  static double meets_taps(const Block& block, int64_t c) {
    if (block.in == 1) return 1;
    const S* row = static_cast<const S*>(block.pointwise) + c * block.in;
    double sum = 0;
    for (int64_t k = 0; k < block.in; ++k) sum += size_of(row[k]);
    return sum;
  }

  // Lets factor times the block's input be at most this large.
  void allow(double factor, double most) {
    const double x = (most / factor - offset_) / gain_;
    if (!(x > 0)) limit_ = 0;
    if (x < limit_) limit_ = x;
  }

  double limit_ = kLargest;
  double gain_ = 1, offset_ = 0;  // the block's input is at most gain |x| + offset
};

}  // namespace fastsep::FASTSEP_ISA

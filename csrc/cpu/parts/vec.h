// Vectors of the compiler's own (GCC and Clang), as wide as the instruction set being compiled.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastsep::FASTSEP_ISA {

#define FASTSEP_INLINE inline __attribute__((always_inline))

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(FASTSEP_VECTOR_BYTES)));
  typedef T unaligned __attribute__((vector_size(FASTSEP_VECTOR_BYTES), aligned(sizeof(T))));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
constexpr int64_t kLanes = FASTSEP_VECTOR_BYTES / sizeof(T);

template <class T>
FASTSEP_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}

template <class T>
FASTSEP_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<Vec<T>*>(p) = v;
}

// Keeps NaN: x86's max then returns its second operand, and a comparison with NaN is false.
template <class T>
FASTSEP_INLINE Vec<T> relu(Vec<T> v) {
  const Vec<T> zero = {};
#if FASTSEP_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_max_ps(zero, v);
  if constexpr (sizeof(T) == 8) return _mm512_max_pd(zero, v);
#elif FASTSEP_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return _mm256_max_ps(zero, v);
  if constexpr (sizeof(T) == 8) return _mm256_max_pd(zero, v);
#endif
  return v < zero ? zero : v;
}

// Integers as many as a vector has lanes.
template <class T, class Integer>
struct IntegersOf {
  typedef Integer type __attribute__((vector_size(kLanes<T> * sizeof(Integer))));
};
template <class T, class Integer>
using Integers = typename IntegersOf<T, Integer>::type;

// A bit for each lane.
template <class T>
using LaneBits = std::conditional_t<(kLanes<T> > 8), uint16_t, uint8_t>;

// Of the lanes that relu lets through, NaN among them.
template <class T>
FASTSEP_INLINE LaneBits<T> passed_lanes(Vec<T> v) {
  const Vec<T> zero = {};
#if FASTSEP_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask(v, zero, _CMP_NLE_UQ);
  if constexpr (sizeof(T) == 8) return _mm512_cmp_pd_mask(v, zero, _CMP_NLE_UQ);
#elif FASTSEP_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return _mm256_movemask_ps(_mm256_cmp_ps(v, zero, _CMP_NLE_UQ));
  if constexpr (sizeof(T) == 8) return _mm256_movemask_pd(_mm256_cmp_pd(v, zero, _CMP_NLE_UQ));
#endif
  const auto stopped = v <= zero;
  LaneBits<T> bits = 0;
  for (int64_t l = 0; l < kLanes<T>; ++l) bits |= LaneBits<T>((stopped[l] == 0 ? 1 : 0) << l);
  return bits;
}

// v in the lanes whose bit is set, 0 in all others.
template <class T>
FASTSEP_INLINE Vec<T> only_lanes(LaneBits<T> bits, Vec<T> v) {
#if FASTSEP_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_maskz_mov_ps(bits, v);
  if constexpr (sizeof(T) == 8) return _mm512_maskz_mov_pd(bits, v);
#endif
  using Whole = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  Integers<T, Whole> lane = {};
  for (int64_t l = 0; l < kLanes<T>; ++l) lane[l] = Whole(1) << l;
  const Vec<T> zero = {};
  return (lane & Whole(bits)) != 0 ? v : zero;
}

template <class T>
FASTSEP_INLINE void multiply_add(Vec<T>& sum, T scalar, Vec<T> v) {
  sum += scalar * v;
}

// Two products of bfloat16 a lane, where the machine has them: `pair` holds two neighbouring input
// channels of a position, each lane of v their two weights for one output channel.
#ifdef FASTSEP_DOT_BF16
constexpr bool kDotBf16 = true;
FASTSEP_INLINE void multiply_add(Vec<float>& sum, uint32_t pair, Vec<float> v) {
  sum = _mm512_dpbf16_ps(sum, __m512bh(_mm512_set1_epi32(int(pair))), __m512bh(v));
}
#else
constexpr bool kDotBf16 = false;
FASTSEP_INLINE void multiply_add(Vec<float>&, uint32_t, Vec<float>) {}
#endif

// Lanes a0 b0 a1 b1 ... of the first (half = 0) or second halves of a and b.
template <int half, class V, class Index, Index... i>
FASTSEP_INLINE V interleave(V a, V b, std::integer_sequence<Index, i...>) {
  constexpr int lanes = sizeof...(i);
  return __builtin_shufflevector(a, b, (half * lanes / 2 + i / 2 + (i % 2) * lanes)...);
}

// Transposes a square of vectors by log2(lanes) perfect shuffles.
template <class T>
FASTSEP_INLINE void transpose(Vec<T>* rows) {
  constexpr int lanes = kLanes<T>;
  const auto all = std::make_integer_sequence<int, lanes>();
  for (int step = 1; step < lanes; step *= 2) {
    Vec<T> next[lanes];
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + lanes / 2], all);
      next[2 * i + 1] = interleave<1>(rows[i], rows[i + lanes / 2], all);
    }
    for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
}

FASTSEP_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FASTSEP_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
FASTSEP_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastsep::FASTSEP_ISA

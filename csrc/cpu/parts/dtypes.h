// Storage types and their conversion to and from the type computed in (float, or double for
// double).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../kernels.h"
#include "vec.h"

namespace fastsep::FASTSEP_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class S>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeType<S>::type;

FASTSEP_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

FASTSEP_INLINE float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

FASTSEP_INLINE float widen(float x) { return x; }
FASTSEP_INLINE double widen(double x) { return x; }
FASTSEP_INLINE float widen(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }

FASTSEP_INLINE float widen(Half x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000)
                                                                     << 16;
  float value = float_of(magnitude) * 0x1p112f;  // moves the exponent's bias, subnormals included
  if (magnitude >= 0x7c00u << 13) value = float_of(magnitude | 0x7f800000);  // inf and NaN
  return float_of(bits_of(value) | sign);
}

FASTSEP_INLINE void narrow(float x, float& to) { to = x; }
FASTSEP_INLINE void narrow(double x, double& to) { to = x; }

FASTSEP_INLINE void narrow(float x, BFloat16& to) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  to.bits = uint16_t(x != x ? 0x7fc0 : rounded);
}

FASTSEP_INLINE void narrow(float x, Half& to) {
  const uint32_t sign = bits_of(x) >> 16 & 0x8000, magnitude = bits_of(x) & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;  // NaN
  } else if (magnitude >= 0x477ff000) {
    half = 0x7c00;  // 65520 and beyond round to infinity
  } else if (magnitude < 0x38800000) {
    half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);  // subnormal: the adder rounds
  } else {
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  to.bits = uint16_t(half | sign);
}

// Calls f with the storage type as its template argument.
template <class F>
decltype(auto) with_storage(DType dtype, F f) {
  switch (dtype) {
    case DType::f64:
      return f.template operator()<double>();
    case DType::bf16:
      return f.template operator()<BFloat16>();
    case DType::f16:
      return f.template operator()<Half>();
    default:
      return f.template operator()<float>();
  }
}

// L consecutive elements from or to memory of any alignment.
template <class S, class T = Compute<S>>
FASTSEP_INLINE Vec<T> load_as(const S* p) {
  Vec<T> v;
  if constexpr (std::is_same_v<S, T>) {
    v = *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
  } else {
    for (int64_t i = 0; i < kLanes<T>; ++i) v[i] = widen(p[i]);
  }
  return v;
}

template <class S, class T = Compute<S>>
FASTSEP_INLINE void store_as(S* p, Vec<T> v) {
  if constexpr (std::is_same_v<S, T>) {
    *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v;
#ifdef FASTSEP_DOT_BF16
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    const __m256bh rounded = _mm512_cvtneps_pbh(v);
    std::memcpy(p, &rounded, sizeof rounded);
#endif
  } else {
    for (int64_t i = 0; i < kLanes<T>; ++i) narrow(v[i], p[i]);
  }
}

// Neighbouring elements as doubles.
template <class T>
FASTSEP_INLINE Vec<double> widened(const T* p) {
  if constexpr (std::is_same_v<T, double>) {
    return load_as<double>(p);
  } else {
    typedef T Half __attribute__((vector_size(sizeof(T) * kLanes<double>), aligned(sizeof(T))));
    return __builtin_convertvector(*reinterpret_cast<const Half*>(p), Vec<double>);
  }
}

}  // namespace fastsep::FASTSEP_ISA

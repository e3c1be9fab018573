// The two AVX-512 BF16 instructions that the kernels use, out of AVX-512 F: lets a machine without
// them run that build. Included ahead of it with -include. Unlike the instructions, it does not
// flush subnormal numbers.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f")

struct EmulatedPairs {
  EmulatedPairs(__m512i x) : bits(x) {}
  EmulatedPairs(__m512 x) : bits(__m512i(x)) {}
  __m512 high() const {
    return __m512(_mm512_and_si512(bits, _mm512_set1_epi32(int(0xffff0000u))));
  }
  __m512 low() const { return __m512(_mm512_slli_epi32(bits, 16)); }
  __m512i bits;
};

inline __m512 emulated_dot(__m512 sum, EmulatedPairs a, EmulatedPairs b) {
  sum = _mm512_fmadd_ps(a.high(), b.high(), sum);
  return _mm512_fmadd_ps(a.low(), b.low(), sum);
}

inline __m256i emulated_round(__m512 x) {
  const __m512i bits = __m512i(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_set1_epi32(rounded, nan, 0x7fc0));
}

#pragma GCC pop_options

#define __m512bh EmulatedPairs
#define __m256bh __m256i
#define _mm512_dpbf16_ps emulated_dot
#define _mm512_cvtneps_pbh emulated_round

#endif

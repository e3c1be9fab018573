// AVX-512 (F, DQ, BW, VL).
#if defined(__x86_64__)
#include "standard.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#define FASTSEP_ISA avx512
#define FASTSEP_VECTOR_BYTES 64
#include "isa.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif

const fastsep::Kernels& fastsep::kernels_avx512() { return avx512::kernels; }
#endif

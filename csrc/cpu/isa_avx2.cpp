// AVX2 with FMA.
#if defined(__x86_64__)
#include "standard.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define FASTSEP_ISA avx2
#define FASTSEP_VECTOR_BYTES 32
#include "isa.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif

const fastsep::Kernels& fastsep::kernels_avx2() { return avx2::kernels; }
#endif

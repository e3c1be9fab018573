// AVX-512 (F, DQ, BW, VL).
#if defined(__x86_64__)
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include <sched.h>

#include <immintrin.h>

#include "kernels.h"

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

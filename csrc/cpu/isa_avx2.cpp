// AVX2 with FMA.
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

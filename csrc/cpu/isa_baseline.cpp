// What every machine of the architecture has: SSE2 on x86-64, NEON on AArch64.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include <sched.h>

#include "kernels.h"

#define FASTSEP_ISA baseline
#define FASTSEP_VECTOR_BYTES 16
#include "isa.inc"

const fastsep::Kernels& fastsep::kernels_baseline() { return baseline::kernels; }

// What every machine of the architecture has: SSE2 on x86-64, NEON on AArch64.
#include "standard.h"

#define FASTSEP_ISA baseline
#define FASTSEP_VECTOR_BYTES 16
#include "isa.inc"

const fastsep::Kernels& fastsep::kernels_baseline() { return baseline::kernels; }

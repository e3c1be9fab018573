// Every header of others that parts/ and sweeps/ use. An instruction set includes this before it
// sets the compiler's target: inline code of theirs compiled for it would run on any machine, if
// the linker happens to keep that copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>

#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

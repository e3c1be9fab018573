// What one thread of this machine can do: multiply-adds a second and bytes copied a second.
// Compiled twice, for the vector width of FASTSEP_VECTOR_BYTES.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

using Vec = float __attribute__((vector_size(FASTSEP_VECTOR_BYTES)));
using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

// GFLOP/s of independent fused multiply-adds on registers.
extern "C" double fma_gflops(double seconds) {
  constexpr int kSums =
      FASTSEP_VECTOR_BYTES == 64 ? 24 : 12;  // hide the latency, fit the registers
  constexpr int64_t kRounds = 100000;
  Vec sums[kSums], a = Vec{} + 0.999f, b = Vec{} + 1e-3f;
  asm volatile("" : "+x"(a), "+x"(b));  // or the compiler would compute the result itself
  for (int i = 0; i < kSums; ++i) sums[i] = Vec{} + float(i);
  int64_t rounds = 0;
  const auto start = Clock::now();
  while (since(start) < seconds) {
    for (int64_t r = 0; r < kRounds; ++r) {
#pragma GCC unroll 24
      for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * a + b;
    }
    rounds += kRounds;
  }
  const double elapsed = since(start);
  for (int i = 0; i < kSums; ++i) asm volatile("" ::"x"(sums[i]));
  return 2.0 * double(rounds) * kSums * (FASTSEP_VECTOR_BYTES / 4) / elapsed * 1e-9;
}

// GB/s copied, counting bytes read and bytes written, between buffers far larger than the caches.
extern "C" double copy_gbps(double seconds) {
  constexpr size_t kBytes = size_t{256} << 20;
  char* from = static_cast<char*>(std::malloc(kBytes));
  char* to = static_cast<char*>(std::malloc(kBytes));
  std::memset(from, 1, kBytes);
  std::memset(to, 2, kBytes);
  double copied = 0;
  const auto start = Clock::now();
  while (since(start) < seconds) {
    std::memcpy(to, from, kBytes);
    asm volatile("" ::"r"(to) : "memory");
    copied += 2.0 * kBytes;
  }
  const double elapsed = since(start);
  std::free(from);
  std::free(to);
  return copied / elapsed * 1e-9;
}

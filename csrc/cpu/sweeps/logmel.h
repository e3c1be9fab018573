// The log-mel sweep, a group of neighbouring frames at a time, one in each lane: their power, bin
// by bin; the filters, each over its own bins; decibels. A frame's result is the same in every
// lane.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "../kernels.h"
#include "../parts/decibels.h"
#include "../parts/dtypes.h"
#include "../parts/scratch.h"
#include "../parts/vec.h"

namespace fastsep::FASTSEP_ISA {

class LogMelSweep {
  static constexpr int64_t L = kLanes<float>;

 public:
  static int64_t groups(const LogMel& job) { return ceil_div(job.frames, L); }

  static size_t scratch_bytes(const LogMel& job) {
    Bump bump(nullptr);
    bump.take<float>(job.bins * L);
    return bump.used();
  }

  static void run(const LogMel& job, void* scratch, int64_t n, int64_t group) {
    Bump bump(scratch);
    float* power = bump.take<float>(job.bins * L);
    const int64_t t = group * L, frames = least(L, job.frames - t);
    const float* x = job.spectrum + n * job.clip_stride + t * job.frame_stride;
    find_power(job, x, frames, power);
    filter(job, power, frames, job.y + (n * job.frames + t) * job.filters);
  }

 private:
  // (bins, L). Lanes without a frame of their own repeat the last one.
  static void find_power(const LogMel& job, const float* x, int64_t frames, float* power) {
    int64_t f = 0;
    for (; f + L <= job.bins; f += L) {
      Vec<float> square[L];
      for (int64_t l = 0; l < L; ++l) {
        square[l] = power_of(x + least(l, frames - 1) * job.frame_stride + 2 * f);
      }
      transpose<float>(square);
      for (int64_t l = 0; l < L; ++l) store(power + (f + l) * L, square[l]);
    }
    for (; f < job.bins; ++f) {
      for (int64_t l = 0; l < L; ++l) {
        const float* pair = x + least(l, frames - 1) * job.frame_stride + 2 * f;
        power[f * L + l] = pair[0] * pair[0] + pair[1] * pair[1];
      }
    }
  }

  // Of L neighbouring bins of a frame.
  static FASTSEP_INLINE Vec<float> power_of(const float* pairs) {
    return power_of(load_as<float>(pairs), load_as<float>(pairs + L),
                    std::make_integer_sequence<int, int(L)>());
  }

  template <int... i>
  static FASTSEP_INLINE Vec<float> power_of(Vec<float> a, Vec<float> b,
                                            std::integer_sequence<int, i...>) {
    const Vec<float> real = __builtin_shufflevector(a, b, (2 * i)...);
    const Vec<float> imaginary = __builtin_shufflevector(a, b, (2 * i + 1)...);
    return real * real + imaginary * imaginary;
  }

  // L filters of L frames at a time, turned round so that a frame's are next to each other.
  static void filter(const LogMel& job, const float* power, int64_t frames, float* y) {
    const float* weight = job.weights;
    for (int64_t m = 0; m < job.filters; m += L) {
      const int64_t filters = least(L, job.filters - m);
      Vec<float> square[L] = {};
      for (int64_t i = 0; i < filters; ++i) {
        const int32_t* band = job.bands + 2 * (m + i);
        Vec<float> sum = {};
        for (int64_t f = band[0]; f < band[1]; ++f)
          multiply_add(sum, *weight++, load(power + f * L));
        const Vec<float> floor = Vec<float>{} + 1e-10f;
        square[i] = decibels(sum < floor ? floor : sum);  // keeps NaN
      }
      transpose<float>(square);
      for (int64_t l = 0; l < frames; ++l) {
        float* to = y + l * job.filters + m;
        if (filters == L) {
          store_as<float>(to, square[l]);
        } else {
          for (int64_t i = 0; i < filters; ++i) to[i] = square[l][i];
        }
      }
    }
  }
};

inline constexpr LogMelKernels kLogMel = {
    .groups = LogMelSweep::groups,
    .scratch_bytes = LogMelSweep::scratch_bytes,
    .run = LogMelSweep::run,
};

inline const LogMelKernels& logmel_kernels(const LogMel&) { return kLogMel; }

}  // namespace fastsep::FASTSEP_ISA

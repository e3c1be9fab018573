// The log-mel sweep, a group of neighbouring frames at a time, one in each lane: their samples
// times the window; the power spectrum; the filters, each over its own bins; decibels. A frame's
// result is the same in every lane.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernels.h"
#include "../parts/decibels.h"
#include "../parts/dtypes.h"
#include "../parts/fft.h"
#include "../parts/scratch.h"
#include "../parts/vec.h"

namespace fastsep::FASTSEP_ISA {

class LogMelSweep {
  static constexpr int64_t L = kLanes<float>;

 public:
  static int64_t groups(const LogMel& job) { return ceil_div(job.frames, L); }

  static size_t scratch_bytes(const LogMel& job) {
    Bump bump(nullptr);
    bump.take<float>(job.size * L);
    bump.take<float>((job.size / 2 + 1) * L);
    return bump.used();
  }

  static void run(const LogMel& job, void* scratch, int64_t n, int64_t group) {
    Bump bump(scratch);
    float* z = bump.take<float>(job.size * L);
    float* power = bump.take<float>((job.size / 2 + 1) * L);
    const int64_t t = group * L, frames = least(L, job.frames - t);
    cut_out(job, job.samples + n * job.num_samples, t, frames, z);
    transform(z, job.size / 2, job.twiddles);
    power_spectrum(z, job.size / 2, job.turns, job.places, power);
    filter(job, power, frames, job.y + (n * job.frames + t) * job.filters);
  }

 private:
  // (size, L): frames from t on, times half of the window, as power_spectrum takes them. Lanes
  // without a frame of their own repeat the last one.
  static void cut_out(const LogMel& job, const float* samples, int64_t t, int64_t frames,
                      float* z) {
    int64_t first[L];
    for (int64_t l = 0; l < L; ++l) {
      first[l] = (t + least(l, frames - 1)) * job.hop - job.size / 2;
    }
    if (first[0] >= 0 && first[L - 1] + job.size <= job.num_samples) {
      for (int64_t i = 0; i < job.size; i += L) {
        Vec<float> square[L];
        for (int64_t l = 0; l < L; ++l) square[l] = load_as<float>(samples + first[l] + i);
        transpose<float>(square);
        for (int64_t l = 0; l < L; ++l) {
          store(z + (i + l) * L, square[l] * (0.5f * job.window[i + l]));
        }
      }
      return;
    }
    const int64_t last = job.num_samples - 1;
    for (int64_t l = 0; l < L; ++l) {
      for (int64_t i = 0; i < job.size; ++i) {
        int64_t at = first[l] + i;
        if (at < 0) at = -at;
        if (at > last) at = 2 * last - at;
        z[i * L + l] = samples[at] * (0.5f * job.window[i]);
      }
    }
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

// Log-mels of waveforms.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <map>
#include <mutex>

#include "fft_tables.h"
#include "isa.h"
#include "operators.h"
#include "tensors.h"
#include "threads.h"

namespace fastsep {

using torch::headeronly::ScalarType;

namespace {

void check_bands(const Tensor& bands, int64_t bins, int64_t weights) {
  const int32_t* band = static_cast<const int32_t*>(bands.data_ptr());
  int64_t total = 0;
  for (int64_t m = 0; m < bands.size(0); ++m, band += 2) {
    STD_TORCH_CHECK(0 <= band[0] && band[0] <= band[1] && band[1] <= bins, "band ", m, " is from ",
                    band[0], " to ", band[1], " of ", bins, " bins");
    total += band[1] - band[0];
  }
  STD_TORCH_CHECK(total == weights, "the bands hold ", total, " bins but there are ", weights,
                  " weights");
}

// Of a size that was seen before, as it was made then; never destroyed, as threads may outlive what
// is destroyed at exit.
const FftTables& tables_of(int64_t size) {
  static std::mutex& mutex = *new std::mutex;
  static auto& known = *new std::map<int64_t, FftTables>;
  const std::lock_guard<std::mutex> lock(mutex);
  return known.try_emplace(size, size).first->second;
}

}  // namespace

Tensor log_mel(Tensor waveform, Tensor window, int64_t hop, Tensor bands, Tensor weights) {
  STD_TORCH_CHECK(
      waveform.dim() == 2 && waveform.is_cpu() && waveform.scalar_type() == ScalarType::Float,
      "waveform must be a float32 CPU tensor (N, samples)");
  STD_TORCH_CHECK(window.dim() == 1 && window.is_cpu() && window.scalar_type() == ScalarType::Float,
                  "window must be a float32 CPU tensor (n_fft,)");
  STD_TORCH_CHECK(bands.dim() == 2 && bands.size(1) == 2 && bands.is_cpu() &&
                      bands.scalar_type() == ScalarType::Int,
                  "bands must be an int32 CPU tensor (M, 2)");
  STD_TORCH_CHECK(
      weights.dim() == 1 && weights.is_cpu() && weights.scalar_type() == ScalarType::Float,
      "weights must be a float32 CPU tensor (W,)");
  const int64_t size = window.size(0), samples = waveform.size(1);
  STD_TORCH_CHECK(size >= kLeastFft && (size & (size - 1)) == 0,
                  "the window's length must be a power of two from ", kLeastFft, " on");
  STD_TORCH_CHECK(samples > size / 2, "reflecting the ends needs more than ", size / 2,
                  " samples, got ", samples);
  STD_TORCH_CHECK(hop > 0, "hop must be at least 1");
  waveform = made_contiguous(waveform);
  window = made_contiguous(window);
  bands = made_contiguous(bands);
  weights = made_contiguous(weights);
  check_bands(bands, size / 2 + 1, weights.size(0));
  LogMel job{};
  job.samples = static_cast<const float*>(waveform.data_ptr());
  job.num_samples = samples;
  job.frames = 1 + samples / hop;
  job.hop = hop;
  job.window = static_cast<const float*>(window.data_ptr());
  job.size = size;
  const FftTables& tables = tables_of(size);
  job.twiddles = tables.twiddles.data();
  job.turns = tables.turns.data();
  job.places = tables.places.data();
  job.bands = static_cast<const int32_t*>(bands.data_ptr());
  job.weights = static_cast<const float*>(weights.data_ptr());
  job.filters = bands.size(0);
  Tensor y = new_vector(weights, {waveform.size(0), job.frames, job.filters});
  job.y = static_cast<float*>(y.data_ptr());
  const LogMelKernels& k = kernels().logmel(job);
  const int64_t groups = k.groups(job), items = waveform.size(0) * groups;
  for_each_range(items, k.scratch_bytes(job), [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t i = begin; i < end; ++i) k.run(job, scratch, i / groups, i % groups);
  });
  return y;
}

}  // namespace fastsep

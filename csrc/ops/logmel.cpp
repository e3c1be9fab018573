// Log-mels of a spectrum.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

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

}  // namespace

Tensor log_mel(Tensor spectrum, Tensor bands, Tensor weights) {
  STD_TORCH_CHECK(spectrum.dim() == 3 && spectrum.is_cpu() &&
                      spectrum.scalar_type() == ScalarType::ComplexFloat,
                  "spectrum must be a complex64 CPU tensor (N, F, T)");
  STD_TORCH_CHECK(bands.dim() == 2 && bands.size(1) == 2 && bands.is_cpu() &&
                      bands.scalar_type() == ScalarType::Int,
                  "bands must be an int32 CPU tensor (M, 2)");
  STD_TORCH_CHECK(
      weights.dim() == 1 && weights.is_cpu() && weights.scalar_type() == ScalarType::Float,
      "weights must be a float32 CPU tensor (W,)");
  Tensor frames = torch::stable::transpose(spectrum, 1, 2);
  if (frames.stride(2) != 1) frames = torch::stable::contiguous(frames);
  bands = made_contiguous(bands);
  weights = made_contiguous(weights);
  check_bands(bands, frames.size(2), weights.size(0));
  Tensor y = new_vector(weights, {frames.size(0), frames.size(1), bands.size(0)});
  LogMel job{};
  job.spectrum = static_cast<const float*>(frames.data_ptr());
  job.clip_stride = 2 * frames.stride(0);
  job.frame_stride = 2 * frames.stride(1);
  job.frames = frames.size(1);
  job.bins = frames.size(2);
  job.bands = static_cast<const int32_t*>(bands.data_ptr());
  job.weights = static_cast<const float*>(weights.data_ptr());
  job.filters = bands.size(0);
  job.y = static_cast<float*>(y.data_ptr());
  const LogMelKernels& k = kernels().logmel(job);
  const int64_t groups = k.groups(job), items = frames.size(0) * groups;
  for_each_range(items, k.scratch_bytes(job), [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t i = begin; i < end; ++i) k.run(job, scratch, i / groups, i % groups);
  });
  return y;
}

}  // namespace fastsep

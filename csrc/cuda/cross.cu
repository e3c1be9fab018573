// The depthwise cross with bias, ReLU and average pooling in one pass over z = pointwise x.
// Compiled, but not run on a GPU by us yet: reached only through use_backend("cuda").
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <optional>
#include <type_traits>

namespace fastsep {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Shape {
  int64_t channels, frames, bins, dilation, pool;
};

// One thread computes one output value. T accumulates, S is stored.
template <class S, class T>
__global__ void cross_kernel(const S* z, const S* time, const S* freq, const S* bias, S* y,
                             Shape shape, int64_t count, bool relu) {
  const int64_t frames_out = shape.frames / shape.pool, bins_out = shape.bins / shape.pool;
  const int64_t d = shape.dilation;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t column = i % bins_out, row = i / bins_out % frames_out;
    const int64_t plane = i / (bins_out * frames_out), c = plane % shape.channels;
    const S* map = z + plane * shape.frames * shape.bins;
    T sum = 0;
    for (int64_t t = row * shape.pool; t < (row + 1) * shape.pool; ++t) {
      for (int64_t f = column * shape.pool; f < (column + 1) * shape.pool; ++f) {
        const S* at = map + t * shape.bins + f;
        // Both centre taps by themselves, and 0 outside the map: inf - inf and inf * 0 are NaN.
        const auto term = [&](S tap, bool inside, int64_t offset) {
          return T(tap) * (inside ? T(at[offset]) : T(0));
        };
        T value = bias == nullptr ? T(0) : T(bias[c]);
        value += term(time[3 * c + 1], true, 0);
        value += term(freq[3 * c + 1], true, 0);
        value += term(time[3 * c], t >= d, -d * shape.bins);
        value += term(time[3 * c + 2], t + d < shape.frames, d * shape.bins);
        value += term(freq[3 * c], f >= d, -d);
        value += term(freq[3 * c + 2], f + d < shape.bins, d);
        sum += relu && value < T(0) ? T(0) : value;  // keeps NaN
      }
    }
    y[i] = S(sum / T(shape.pool * shape.pool));
  }
}

template <class S>
void launch(const Tensor& z, const Tensor& time, const Tensor& freq,
            const std::optional<Tensor>& bias, const Tensor& y, Shape shape, bool relu) {
  using T = std::conditional_t<std::is_same_v<S, double>, double, float>;
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(z.get_device_index(), &stream));
  const int64_t count = y.numel(), threads = 256;
  const int64_t blocks = std::min<int64_t>((count + threads - 1) / threads, 1 << 20);
  cross_kernel<S, T><<<unsigned(blocks), unsigned(threads), 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const S*>(z.data_ptr()), static_cast<const S*>(time.data_ptr()),
      static_cast<const S*>(freq.data_ptr()),
      bias.has_value() ? static_cast<const S*>(bias->data_ptr()) : nullptr,
      static_cast<S*>(y.data_ptr()), shape, count, relu);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// z (N, C, T, F); taps (C, 3); bias (C,) -> (N, C, T // pool, F // pool), contiguous.
Tensor cross(Tensor z, Tensor time, Tensor freq, std::optional<Tensor> bias, int64_t dilation,
             int64_t pool, bool relu) {
  STD_TORCH_CHECK(z.dim() == 4 && z.is_cuda(), "z must be a CUDA tensor (N, C, T, F)");
  STD_TORCH_CHECK(dilation >= 1 && pool >= 1, "dilation and pool must be at least 1");
  for (const Tensor* w : {&time, &freq, bias.has_value() ? &*bias : &time}) {
    STD_TORCH_CHECK(w->is_cuda() && w->get_device_index() == z.get_device_index() &&
                        w->scalar_type() == z.scalar_type(),
                    "weights must be on z's device and of its dtype");
    STD_TORCH_CHECK(w->numel() == (bias.has_value() && w == &*bias ? 1 : 3) * z.size(1),
                    "taps must have shape (C, 3) and bias (C,)");
  }
  z = torch::stable::contiguous(z);
  time = torch::stable::contiguous(time);
  freq = torch::stable::contiguous(freq);
  if (bias.has_value()) bias = torch::stable::contiguous(*bias);
  // A tap further away than the map is long reads nothing, however far.
  const int64_t longest = std::max<int64_t>(std::max(z.size(2), z.size(3)), 1);
  const Shape shape = {z.size(1), z.size(2), z.size(3), std::min(dilation, longest), pool};
  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  Tensor y = torch::stable::empty({z.size(0), z.size(1), z.size(2) / pool, z.size(3) / pool},
                                  z.scalar_type(), std::nullopt, z.device());
  if (y.numel() == 0) return y;
  switch (z.scalar_type()) {
    case ScalarType::Float:
      launch<float>(z, time, freq, bias, y, shape, relu);
      break;
    case ScalarType::Double:
      launch<double>(z, time, freq, bias, y, shape, relu);
      break;
    case ScalarType::BFloat16:
      launch<torch::headeronly::BFloat16>(z, time, freq, bias, y, shape, relu);
      break;
    case ScalarType::Half:
      launch<torch::headeronly::Half>(z, time, freq, bias, y, shape, relu);
      break;
    default:
      STD_TORCH_CHECK(false, "z must be float32, float64, bfloat16 or float16");
  }
  return y;
}

}  // namespace
}  // namespace fastsep

STABLE_TORCH_LIBRARY(fastsep_cuda, m) {
  m.def(
      "cross(Tensor z, Tensor time_taps, Tensor freq_taps, Tensor? bias, int dilation, int pool, "
      "bool relu) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastsep_cuda, CUDA, m) { m.impl("cross", TORCH_BOX(&fastsep::cross)); }

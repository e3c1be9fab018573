// Gradients of the operator and of one block.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "arena.h"
#include "isa.h"
#include "operators.h"
#include "tensors.h"
#include "threads.h"

namespace fastsep {
namespace {

constexpr int64_t kGroups = 16;  // partial sums: enough for the threads there are, few to add up

Gradients gradients(const Tensor& grad, const Tensor& x, const HeldBlock& held, const Block& block,
                    bool needs_x) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.is_cpu() && grad.scalar_type() == x.scalar_type() &&
                      grad.size(0) == x.size(0) && grad.size(1) == block.out &&
                      grad.size(2) == x.size(2) / block.pool &&
                      grad.size(3) == x.size(3) / block.pool,
                  "grad does not have the shape, dtype and device of the output");
  const auto dims = [](const Tensor& t) {
    return std::vector<int64_t>(t.sizes().begin(), t.sizes().end());
  };
  Tensor dx = needs_x ? new_map(x, dims(x)) : new_vector(x, {0});
  Tensor d_pointwise = new_vector(x, dims(held.pointwise));
  Tensor d_time = new_vector(x, dims(held.time_taps)), d_freq = new_vector(x, dims(held.freq_taps));
  Tensor d_bias = new_vector(x, {block.out});

  Gradient job{};
  job.dtype = dtype_of(x);
  job.input = input_of(x);
  job.block = block;
  job.grad = map_of(grad);
  if (needs_x) job.dx = map_of(dx);
  job.d_pointwise = d_pointwise.data_ptr();
  job.d_time_taps = d_time.data_ptr();
  job.d_freq_taps = d_freq.data_ptr();
  job.d_bias = d_bias.data_ptr();
  const Input& input = job.input;
  job.spans = spans_of(input);
  const int64_t items = input.bins == 0 || input.frames == 0 ? 0 : input.clips * job.spans;
  job.groups = std::min(items, kGroups);

  const GradientKernels& k = kernels().gradient(job);
  const size_t weights_bytes = aligned(k.weights_bytes(job));
  const size_t partial_bytes = k.partial_bytes(job);
  char* weights =
      static_cast<char*>(shared_arena().get(weights_bytes + size_t(job.groups) * partial_bytes));
  char* partials = weights + weights_bytes;
  k.pack(job, weights);
  for_each_range(job.groups, k.scratch_bytes(job), [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t group = begin; group < end; ++group) {
      k.run(job, weights, scratch, partials + size_t(group) * partial_bytes, group);
    }
  });
  k.reduce(job, partials);
  shared_arena().trim();
  return {dx, d_pointwise, d_time, d_freq, d_bias};
}

}  // namespace

Gradients sep_conv2d_backward(Tensor grad, Tensor x, Tensor pointwise, Tensor time_taps,
                              Tensor freq_taps, int64_t dilation, bool needs_x) {
  check_map(x);
  const HeldBlock held(x, pointwise, time_taps, freq_taps, std::nullopt);
  return gradients(grad, x, held, held.block(x.size(1), dilation, 1, false), needs_x);
}

Gradients sep_conv2d_block_backward(Tensor grad, Tensor x, Tensor pointwise, Tensor time_taps,
                                    Tensor freq_taps, Tensor bias, int64_t dilation, int64_t pool,
                                    bool needs_x) {
  check_map(x);
  const HeldBlock held(x, pointwise, time_taps, freq_taps, bias);
  return gradients(grad, x, held, held.block(x.size(1), dilation, pool, true), needs_x);
}

}  // namespace fastsep

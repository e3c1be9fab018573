// A stack in training with batch norm, and its gradients.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "arena.h"
#include "isa.h"
#include "operators.h"
#include "pool.h"
#include "tensors.h"
#include "threads.h"

namespace fastsep {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kGroups = 32;  // partial sums: enough for the threads there are, few to add up

// Everything that both directions are told of a stack, held while a job points into it.
struct HeldStack {
  HeldStack(const Tensor& x, const std::vector<Tensor>& pointwise,
            const std::vector<Tensor>& time_taps, const std::vector<Tensor>& freq_taps,
            const std::vector<Tensor>& gamma, const std::vector<Tensor>& beta,
            const std::vector<double>& eps, const std::vector<int64_t>& dilation,
            const std::vector<int64_t>& pool, const std::optional<Tensor>& scale,
            const std::optional<Tensor>& shift, const std::optional<Tensor>& stripes)
      : input(x, scale, shift, stripes) {
    const size_t n = pointwise.size();
    STD_TORCH_CHECK(n > 0 && time_taps.size() == n && freq_taps.size() == n && gamma.size() == n &&
                        beta.size() == n && eps.size() == n && dilation.size() == n &&
                        pool.size() == n,
                    "a stack needs as many of each kind as it has blocks, and one at least");
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                    "x must be float32 or float64 in training");
    job.dtype = dtype_of(x);
    job.input = input.input();
    weights.reserve(n);
    for (size_t i = 0; i < n; ++i) {
      weights.emplace_back(x, pointwise[i], time_taps[i], freq_taps[i], std::nullopt);
      TrainBlock b{};
      b.block = weights.back().block(i == 0 ? x.size(1) : blocks.back().block.out, dilation[i],
                                     pool[i], true);
      b.gamma = per_channel(x, gamma[i], b.block.out);
      b.beta = per_channel(x, beta[i], b.block.out);
      b.eps = eps[i];
      blocks.push_back(b);
    }
    job.blocks = blocks.data();
    job.num_blocks = int64_t(n);
    job.spans = spans_of(job.input);
    job.groups = std::min(job.input.clips * job.spans, kGroups);
  }

  const void* per_channel(const Tensor& x, const Tensor& values, int64_t channels) {
    STD_TORCH_CHECK(values.dim() == 1 && values.size(0) == channels && values.is_cpu() &&
                        values.scalar_type() == x.scalar_type(),
                    "gamma and beta must be CPU tensors (Cout,) of x's dtype");
    held.push_back(made_contiguous(values));
    return held.back().data_ptr();
  }

  HeldInput input;
  std::vector<HeldBlock> weights;
  std::vector<Tensor> held;
  std::vector<TrainBlock> blocks;
  Train job{};
};

// A map without elements has no statistics and adds nothing to a gradient.
bool is_empty(const Train& job) {
  return job.input.clips == 0 || job.input.frames == 0 || job.input.bins == 0;
}

void run_pass(const TrainPass& pass, const Train& job, int64_t i) {
  const size_t weights_bytes = aligned(pass.weights_bytes(job, i));
  const size_t partial_bytes = pass.partial_bytes(job, i);
  char* weights =
      static_cast<char*>(shared_arena().get(weights_bytes + size_t(job.groups) * partial_bytes));
  char* partials = weights + weights_bytes;
  pass.pack(job, i, weights);
  for_each_range(
      job.groups, pass.scratch_bytes(job, i), [&](int64_t begin, int64_t end, void* scratch) {
        for (int64_t group = begin; group < end; ++group) {
          pass.run(job, i, weights, scratch, partials + size_t(group) * partial_bytes, group);
        }
      });
  pass.finish(job, i, partials);
}

// (2, channels) of float64: mean and biased variance; given ones come as tensors of x's dtype.
Tensor new_statistics(const Tensor& x, const Tensor& mean, const Tensor& var, int64_t channels) {
  Tensor statistics = torch::stable::empty({2, channels}, ScalarType::Double, std::nullopt,
                                           x.device(), std::nullopt, std::nullopt);
  if (mean.numel() == 0 && channels > 0) return statistics;
  double* to = static_cast<double*>(statistics.data_ptr());
  for (const Tensor* given : {&mean, &var}) {
    STD_TORCH_CHECK(given->dim() == 1 && given->size(0) == channels && given->is_cpu() &&
                        given->scalar_type() == x.scalar_type(),
                    "frozen statistics must be CPU tensors (Cout,) of x's dtype");
    const Tensor values = made_contiguous(*given);
    for (int64_t c = 0; c < channels; ++c) {
      *to++ = x.scalar_type() == ScalarType::Double
                  ? static_cast<const double*>(values.data_ptr())[c]
                  : double(static_cast<const float*>(values.data_ptr())[c]);
    }
  }
  return statistics;
}

void fill(const Tensor& t, double value) { torch::stable::fill_(t, value); }

}  // namespace

TrainResult sep_conv2d_bn_stack(Tensor x, std::vector<Tensor> pointwise,
                                std::vector<Tensor> time_taps, std::vector<Tensor> freq_taps,
                                std::vector<Tensor> gamma, std::vector<Tensor> beta,
                                std::vector<Tensor> mean, std::vector<Tensor> var,
                                std::vector<double> eps, std::vector<int64_t> dilation,
                                std::vector<int64_t> pool, std::optional<Tensor> scale,
                                std::optional<Tensor> shift, std::optional<Tensor> stripes,
                                bool save) {
  check_map(x);
  HeldStack stack(x, pointwise, time_taps, freq_taps, gamma, beta, eps, dilation, pool, scale,
                  shift, stripes);
  Train& job = stack.job;
  const int64_t n = job.num_blocks;
  STD_TORCH_CHECK(int64_t(mean.size()) == n && int64_t(var.size()) == n,
                  "a stack needs as many of each kind as it has blocks");
  const TrainKernels& k = kernels().train(job);
  std::vector<Tensor> statistics, kept, saved;
  int64_t frames = job.input.frames, bins = job.input.bins;
  for (int64_t i = 0; i < n; ++i) {
    TrainBlock& b = stack.blocks[size_t(i)];
    b.frozen = mean[size_t(i)].numel() > 0 || b.block.out == 0;
    statistics.push_back(new_statistics(x, mean[size_t(i)], var[size_t(i)], b.block.out));
    b.statistics = static_cast<double*>(statistics.back().data_ptr());
    kept.push_back(new_pooled(x, {k.x_size(job, i)}));
    kept.push_back(new_pooled(x, {k.z_size(job, i)}));
    b.x = kept[size_t(2 * i)].data_ptr();
    b.z = kept[size_t(2 * i + 1)].data_ptr();
    frames /= b.block.pool;
    bins /= b.block.pool;
  }
  Tensor y = new_map(x, {job.input.clips, stack.blocks.back().block.out, frames, bins});
  job.y = map_of(y);
  if (is_empty(job)) {
    for (int64_t i = 0; i < n; ++i) {
      if (!stack.blocks[size_t(i)].frozen) {
        fill(statistics[size_t(i)], 0);
      }
    }
  }
  for (int64_t i = 0; i <= n && !is_empty(job); ++i) {
    const bool lone = i == 0 && stack.blocks[0].block.in == 1;
    if (!lone) run_pass(k.forward, job, i);
    if (i == n || stack.blocks[size_t(i)].frozen) continue;
    if (lone) {
      run_pass(k.lone_statistics, job, i);
    } else if (job.spans > 1) {
      run_pass(k.statistics, job, i);
    }
  }
  shared_arena().trim();
  for (const Tensor& t : kept) saved.push_back(save ? t : new_vector(x, {0}));
  return {y, statistics, saved};
}

TrainGradients sep_conv2d_bn_stack_backward(
    Tensor grad, Tensor x, std::vector<Tensor> pointwise, std::vector<Tensor> time_taps,
    std::vector<Tensor> freq_taps, std::vector<Tensor> gamma, std::vector<Tensor> beta,
    std::vector<Tensor> statistics, std::vector<int64_t> frozen, std::vector<double> eps,
    std::vector<int64_t> dilation, std::vector<int64_t> pool, std::optional<Tensor> scale,
    std::optional<Tensor> shift, std::optional<Tensor> stripes, std::vector<Tensor> saved,
    std::vector<int64_t> needs, bool needs_x, bool needs_affine) {
  check_map(x);
  HeldStack stack(x, pointwise, time_taps, freq_taps, gamma, beta, eps, dilation, pool, scale,
                  shift, stripes);
  Train& job = stack.job;
  const size_t n = stack.blocks.size();
  STD_TORCH_CHECK(
      statistics.size() == n && frozen.size() == n && needs.size() == n && saved.size() == 2 * n,
      "backward needs what forward gave, and as many of each kind as blocks");
  const TrainKernels& k = kernels().train(job);
  needs_affine = needs_affine && scale.has_value();
  size_t first = 0;  // the first block of which anything is wanted
  while (first < n && needs[first] == 0) ++first;
  if (needs_x || needs_affine) first = 0;

  int64_t frames = job.input.frames, bins = job.input.bins;
  std::vector<Tensor> gradients, grads, held;
  std::vector<std::vector<double>> sums(n);
  for (size_t i = 0; i < n; ++i) {
    TrainBlock& b = stack.blocks[i];
    STD_TORCH_CHECK(statistics[i].dim() == 2 && statistics[i].size(0) == 2 &&
                        statistics[i].size(1) == b.block.out && statistics[i].is_cpu() &&
                        statistics[i].scalar_type() == ScalarType::Double,
                    "statistics must be float64 CPU tensors (2, Cout)");
    held.push_back(made_contiguous(statistics[i]));
    b.statistics = static_cast<double*>(held.back().data_ptr());
    b.frozen = frozen[i] != 0;
    const int64_t sizes[] = {k.x_size(job, int64_t(i)), k.z_size(job, int64_t(i))};
    for (size_t j = 0; j < 2; ++j) {
      const Tensor& kept = saved[2 * i + j];
      STD_TORCH_CHECK(
          kept.is_cpu() && kept.scalar_type() == x.scalar_type() && kept.numel() == sizes[j],
          "backward needs what forward saved, under the same instruction set");
      held.push_back(made_contiguous(kept));
      (j == 0 ? b.x : b.z) = held.back().data_ptr();
    }
    sums[i].resize(size_t(2 * b.block.out));
    b.sums = sums[i].data();
    const auto wanted = [&](int64_t bit, std::vector<int64_t> shape) {
      gradients.push_back(new_vector(x, (needs[i] & bit) != 0 ? shape : std::vector<int64_t>{0}));
      if (is_empty(job)) fill(gradients.back(), 0);
      return (needs[i] & bit) != 0 ? gradients.back().data_ptr() : nullptr;
    };
    const int64_t out = b.block.out;
    b.d_pointwise = wanted(1, {out, b.block.in});
    b.d_time_taps = wanted(2, {out, 3});
    b.d_freq_taps = wanted(2, {out, 3});
    b.d_gamma = wanted(2, {out});
    b.d_beta = wanted(2, {out});
    frames /= b.block.pool;
    bins /= b.block.pool;
  }
  STD_TORCH_CHECK(grad.dim() == 4 && grad.is_cpu() && grad.scalar_type() == x.scalar_type() &&
                      grad.size(0) == x.size(0) && grad.size(1) == stack.blocks.back().block.out &&
                      grad.size(2) == frames && grad.size(3) == bins,
                  "grad does not have the shape, dtype and device of the output");
  job.y = map_of(grad);
  Tensor dx =
      needs_x ? new_map(x, {x.size(0), x.size(1), x.size(2), x.size(3)}) : new_vector(x, {0});
  Tensor d_scale = new_vector(x, {needs_affine ? x.size(3) : 0});
  Tensor d_shift = new_vector(x, {needs_affine ? x.size(3) : 0});
  if (is_empty(job)) {
    fill(d_scale, 0);
    fill(d_shift, 0);
    return {dx, gradients, d_scale, d_shift};
  }
  if (needs_x) job.dx = map_of(dx);
  if (needs_affine) {
    job.d_scale = d_scale.data_ptr();
    job.d_shift = d_shift.data_ptr();
  }
  // The gradients of the maps between blocks; a block needs those around it only.
  const bool lone = stack.blocks[0].block.in == 1;
  for (size_t i = first; i < n; ++i) {
    stack.blocks[i].wanted = true;
    if (i + 1 == n || (i == 0 && lone && !needs_x)) continue;
    grads.push_back(new_pooled(x, {k.grad_size(job, int64_t(i))}));
    stack.blocks[i].grad = grads.back().data_ptr();
  }
  for (size_t i = n; i-- > first;) {
    if (i == 0 && lone) {
      if (n == 1) run_pass(k.lone_backward, job, 0);
      if (needs_x) run_pass(k.lone_dx, job, 0);
    } else {
      if (k.needs_sums(job, int64_t(i))) run_pass(k.sums, job, int64_t(i));
      run_pass(k.backward, job, int64_t(i));
    }
  }
  shared_arena().trim();
  return {dx, gradients, d_scale, d_shift};
}

}  // namespace fastsep

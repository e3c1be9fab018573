// The operators without gradients: one block or operator is a stack of one.
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <vector>

#include "arena.h"
#include "infer.h"
#include "isa.h"
#include "operators.h"
#include "tensors.h"
#include "threads.h"

namespace fastsep {
namespace {

// Clips first to first + count of a job.
Infer part_of(Infer job, int64_t first, int64_t count) {
  const int64_t size = size_of(job.dtype);
  Input& input = job.input;
  input.x.data = static_cast<char*>(input.x.data) + first * input.x.n * size;
  job.y.data = static_cast<char*>(job.y.data) + first * job.y.n * size;
  if (input.stripes != nullptr) input.stripes += first * input.num_stripes * 3;
  input.clips = count;
  return job;
}

// Calls f(item, weights, scratch) for each item, on torch's threads. Each thread packs the weights
// for itself: they would take longer to come from another core than to pack.
template <class F>
void for_each_packed(const InferKernels& k, const Infer& job, int64_t items, const F& f) {
  const size_t weights_bytes = aligned(k.weights_bytes(job));
  for_each_range(items, weights_bytes + k.scratch_bytes(job),
                 [&](int64_t begin, int64_t end, char* weights) {
                   k.pack(job, weights);
                   for (int64_t item = begin; item < end; ++item) {
                     f(item, weights, weights + weights_bytes);
                   }
                 });
}

// Clips to be run again, each noted by any of the threads that work on it.
using Again = std::vector<std::atomic<bool>>;

// As many clips as threads, or a multiple: each clip streams through all blocks on one thread.
void run_whole(const InferKernels& k, Infer job, int64_t count, Again& again) {
  job.spans = 1;
  for_each_packed(k, job, count, [&](int64_t clip, const void* weights, void* scratch) {
    if (!k.run(job, weights, scratch, nullptr, clip, 0)) again[size_t(clip)] = true;
  });
}

// Fewer clips than threads, from `first` on: each thread takes one span of time of every clip.
void run_spans(const InferKernels& k, const Infer& all, int64_t first, int64_t threads,
               Again& again) {
  Infer job = part_of(all, first, all.input.clips - first);
  job.spans = k.most_spans(job, threads);
  void* seams = shared_arena().get(k.seams_bytes(job));
  k.clear_seams(job, seams);
  Meeting meeting(job.spans);
  for_each_packed(k, job, job.spans, [&](int64_t span, const void* weights, void* scratch) {
    void* shared = meeting.attend() ? seams : nullptr;
    for (int64_t clip = 0; clip < job.input.clips; ++clip) {
      if (!k.run(job, weights, scratch, shared, clip, span)) again[size_t(first + clip)] = true;
    }
  });
  shared_arena().trim();
}

// The clips that are too large for merged taps, or not finite.
void run_again(const InferKernels& k, Infer job, const Again& again) {
  std::vector<int64_t> clips;
  for (int64_t clip = 0; clip < job.input.clips; ++clip) {
    if (again[size_t(clip)]) clips.push_back(clip);
  }
  job.spans = 1;
  job.separate = true;
  for_each_packed(k, job, int64_t(clips.size()),
                  [&](int64_t item, const void* weights, void* scratch) {
                    k.run(job, weights, scratch, nullptr, clips[size_t(item)], 0);
                  });
}

Tensor infer(const Tensor& x, const Input& input, const std::vector<Block>& blocks, bool bf16) {
  Tensor y = new_map(x, shape_after(blocks, input, input.clips));
  if (y.numel() > 0) run_infer(infer_job(x, input, blocks, map_of(y), bf16));
  return y;
}

}  // namespace

Infer infer_job(const Tensor& x, const Input& input, const std::vector<Block>& blocks, const Map& y,
                bool bf16) {
  Infer job{};
  job.dtype = dtype_of(x);
  job.input = input;
  job.blocks = blocks.data();
  job.num_blocks = int64_t(blocks.size());
  job.y = y;
  job.bf16 = bf16;
  job.spans = 1;
  return job;
}

void run_infer(const Infer& job) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t rest = job.input.clips % threads, whole = job.input.clips - rest;
  const InferKernels& k = kernels().infer(job);
  Again again(size_t(job.input.clips));
  if (whole > 0) run_whole(k, job, whole, again);
  if (rest > 0) run_spans(k, job, whole, threads, again);
  run_again(k, job, again);
}

Tensor sep_conv2d(Tensor x, Tensor pointwise, Tensor time_taps, Tensor freq_taps,
                  std::optional<Tensor> bias, int64_t dilation) {
  check_map(x);
  const HeldBlock held(x, pointwise, time_taps, freq_taps, bias);
  return infer(x, input_of(x), {held.block(x.size(1), dilation, 1, false)}, false);
}

Tensor sep_conv2d_block(Tensor x, Tensor pointwise, Tensor time_taps, Tensor freq_taps, Tensor bias,
                        int64_t dilation, int64_t pool) {
  check_map(x);
  const HeldBlock held(x, pointwise, time_taps, freq_taps, bias);
  return infer(x, input_of(x), {held.block(x.size(1), dilation, pool, true)}, false);
}

Tensor sep_conv2d_stack(Tensor x, std::vector<Tensor> pointwise, std::vector<Tensor> time_taps,
                        std::vector<Tensor> freq_taps, std::vector<Tensor> bias,
                        std::vector<int64_t> dilation, std::vector<int64_t> pool,
                        std::optional<Tensor> scale, std::optional<Tensor> shift,
                        std::optional<Tensor> stripes, bool bf16) {
  check_map(x);
  const HeldBlocks held(x, pointwise, time_taps, freq_taps, bias, dilation, pool);
  const HeldInput input(x, scale, shift, stripes);
  return infer(x, input.input(), held.blocks(), bf16);
}

}  // namespace fastsep

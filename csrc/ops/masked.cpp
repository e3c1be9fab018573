// A stack on masked copies of each clip, sharing what the masks do not touch.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "arena.h"
#include "head.h"
#include "infer.h"
#include "isa.h"
#include "operators.h"
#include "pool.h"
#include "tensors.h"
#include "threads.h"

namespace fastsep {

using torch::headeronly::ScalarType;

namespace {

// What the copies that a thread computes at the same time may take, of which they use a third: more
// of them share the work on the clip, fewer stay in cache. In several groups they share it with the
// clip's own maps.
constexpr size_t kTogetherBytes = size_t{36} << 20, kGroupBytes = size_t{20} << 20;
// What a thread may take to keep a clip's own maps for more copies; else they are computed again.
constexpr size_t kKeptBytes = size_t{64} << 20;

// Decides how many copies are computed at the same time, of `count`.
void plan(const MaskedKernels& k, Masked& job, int64_t count) {
  job.keep = false;
  job.together = 1;
  const size_t one = k.scratch_bytes(job);
  job.together = 2;
  const size_t each = k.scratch_bytes(job) - one;
  const size_t bytes = size_t(count) * each <= kTogetherBytes ? kTogetherBytes : kGroupBytes;
  const int64_t most = std::max<int64_t>(1, int64_t(bytes / std::max<size_t>(1, each)));
  const int64_t groups = (count + most - 1) / most;
  job.together = (count + groups - 1) / groups;
  if (groups == 1) return;
  const size_t without = k.scratch_bytes(job);
  job.keep = true;
  job.keep = k.scratch_bytes(job) - without <= kKeptBytes;
}

// Clips whose copies have to be computed one by one.
using Noted = std::vector<std::atomic<bool>>;

void run_shared(const MaskedKernels& k, Masked job, Noted& direct) {
  // Fewer clips than threads: several take a share of each clip's copies.
  const int64_t clips = job.infer.input.clips, copies = job.copies;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts = std::min(copies, (threads + clips - 1) / clips);
  plan(k, job, (copies + parts - 1) / parts);
  const size_t weights_bytes = aligned(k.weights_bytes(job));
  for_each_range(clips * parts, weights_bytes + k.scratch_bytes(job),
                 [&](int64_t begin, int64_t end, char* weights) {
                   k.pack(job, weights);
                   char* const scratch = weights + weights_bytes;
                   for (int64_t item = begin; item < end; ++item) {
                     const int64_t clip = item / parts, part = item % parts;
                     const int64_t first = part * copies / parts;
                     const int64_t count = (part + 1) * copies / parts - first;
                     if (!k.run(job, weights, scratch, clip, first, count)) {
                       direct[size_t(clip)] = true;
                     }
                   }
                 });
}

// The copies of one clip by themselves, into the maps y.
void run_direct(const Masked& job, int64_t clip, const Map& y) {
  Infer each = job.infer;
  each.input.clips = job.copies;
  each.input.x.data =
      static_cast<char*>(each.input.x.data) + clip * each.input.x.n * size_of(each.dtype);
  each.input.x.n = 0;
  each.input.stripes += clip * job.copies * each.input.num_stripes * 3;
  each.y = y;
  run_infer(each);
}

}  // namespace

Tensor sep_conv2d_masked_stack(Tensor x, std::vector<Tensor> pointwise,
                               std::vector<Tensor> time_taps, std::vector<Tensor> freq_taps,
                               std::vector<Tensor> bias, std::vector<int64_t> dilation,
                               std::vector<int64_t> pool, std::optional<Tensor> scale,
                               std::optional<Tensor> shift, Tensor stripes, bool bf16, bool head,
                               std::vector<Tensor> head_weight, std::vector<Tensor> head_bias) {
  check_map(x);
  STD_TORCH_CHECK(stripes.dim() == 4 && stripes.size(0) == x.size(0) && stripes.size(3) == 3 &&
                      stripes.is_cpu() && stripes.scalar_type() == ScalarType::Int,
                  "stripes must be a CPU int32 tensor (N, K, S, 3)");
  const HeldBlocks held(x, pointwise, time_taps, freq_taps, bias, dilation, pool);
  const HeldInput input(x, scale, shift, std::nullopt);
  const Tensor masks = made_contiguous(stripes);
  const int64_t clips = x.size(0), copies = stripes.size(1);
  const auto shape = shape_after(held.blocks(), input.input(), clips * copies);
  Masked job{};
  std::optional<HeldHead> layers;
  Head behind{};
  Tensor y;
  if (head) {
    layers.emplace(x, shape[1], std::move(head_weight), std::move(head_bias));
    y = new_vector(x, {shape[0], layers->width()});
    behind = layers->job(x, shape[1], shape[2], shape[3], y.data_ptr());
    job.head = &behind;
  } else {
    y = new_pooled(x, shape);
  }
  if (y.numel() == 0) return y;

  job.infer = infer_job(x, input.input(), held.blocks(), head ? Map{} : map_of(y), bf16);
  job.infer.input.stripes = static_cast<const int32_t*>(masks.data_ptr());
  job.infer.input.num_stripes = stripes.size(2);
  job.copies = copies;
  const MaskedKernels& k = kernels().masked(job);

  Noted direct(static_cast<size_t>(clips));
  if (k.takes(job)) {
    run_shared(k, job, direct);
  } else {
    for (auto& clip : direct) clip = true;
  }
  for (int64_t clip = 0; clip < clips; ++clip) {
    if (!direct[size_t(clip)]) continue;
    const int64_t first = clip * copies, size = size_of(job.infer.dtype);
    if (head) {
      const Tensor maps = new_pooled(x, shape_after(held.blocks(), input.input(), copies));
      run_direct(job, clip, map_of(maps));
      Head of_clip = behind;
      of_clip.x = map_of(maps);
      of_clip.y = static_cast<char*>(behind.y) + first * layers->width() * size;
      run_head(of_clip, copies);
    } else {
      Map maps = job.infer.y;
      maps.data = static_cast<char*>(maps.data) + first * maps.n * size;
      run_direct(job, clip, maps);
    }
  }
  return y;
}

}  // namespace fastsep

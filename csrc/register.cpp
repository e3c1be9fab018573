// The CPU operators as PyTorch sees them, through the stable ABI: checks, outputs, threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/arena.h"
#include "cpu/kernels.h"

namespace fastsep {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Instruction sets.

struct InstructionSet {
  const char* name;
  bool supported;
  const Kernels* kernels;
};

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

const std::vector<InstructionSet>& instruction_sets() {  // best first
  static const std::vector<InstructionSet> all = {
#if defined(__x86_64__)
      {"avx512bf16", has_avx512() && __builtin_cpu_supports("avx512bf16"), &kernels_avx512bf16()},
      {"avx512", has_avx512(), &kernels_avx512()},
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), &kernels_avx2()},
#endif
      {"baseline", true, &kernels_baseline()},
  };
  return all;
}

std::atomic<const InstructionSet*> chosen{nullptr};

const InstructionSet& instruction_set() {
  const InstructionSet* current = chosen.load(std::memory_order_relaxed);
  if (current == nullptr) {
    const auto& all = instruction_sets();
    current = &*std::find_if(all.begin(), all.end(), [](const auto& isa) { return isa.supported; });
    chosen.store(current, std::memory_order_relaxed);
  }
  return *current;
}

const Kernels& kernels() { return *instruction_set().kernels; }

std::string isa() { return instruction_set().name; }

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const auto& isa : instruction_sets()) {
    if (isa.supported) names.push_back(isa.name);
  }
  return names;
}

void set_isa(std::string name) {
  std::string known;
  for (const auto& isa : instruction_sets()) {
    if (name == isa.name) {
      STD_TORCH_CHECK(isa.supported, "this machine cannot run instruction set ", name);
      chosen.store(&isa, std::memory_order_relaxed);
      return;
    }
    known += known.empty() ? isa.name : std::string(", ") + isa.name;
  }
  STD_TORCH_CHECK(false, "there is no instruction set ", name, "; choose from ", known);
}

// Tensors.

DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      STD_TORCH_CHECK(false, "x must be float32, float64, bfloat16 or float16");
  }
}

Map map_of(const Tensor& x) {
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

bool is_channels_last(const Tensor& x) {
  if (x.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {  // as torch.channels_last: strides of size 1 do not count
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

Tensor new_map(const Tensor& like, const std::vector<int64_t>& shape) {
  const auto format =
      is_channels_last(like) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              format);
}

Tensor new_vector(const Tensor& like, const std::vector<int64_t>& shape) {
  return torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device());
}

// Asks PyTorch only where there is something to do: one clip is so fast that the calls would show.
Tensor made_contiguous(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// A block's weights, made contiguous and kept alive as long as the Block that points into them.
struct HeldBlock {
  Tensor pointwise, time_taps, freq_taps;
  std::optional<Tensor> bias;

  HeldBlock(const Tensor& x, const Tensor& p, const Tensor& a, const Tensor& b,
            const std::optional<Tensor>& c)
      : pointwise(made_contiguous(p)),
        time_taps(made_contiguous(a)),
        freq_taps(made_contiguous(b)) {
    if (c.has_value()) bias = made_contiguous(*c);
    STD_TORCH_CHECK(p.dim() == 2, "pointwise must have shape (Cout, Cin)");
    const int64_t out = p.size(0);
    for (const Tensor* taps : {&a, &b}) {
      STD_TORCH_CHECK(taps->dim() == 2 && taps->size(0) == out && taps->size(1) == 3,
                      "time_taps and freq_taps must have shape (Cout, 3)");
    }
    STD_TORCH_CHECK(!c.has_value() || (c->dim() == 1 && c->size(0) == out),
                    "bias must have shape (Cout,)");
    for (const Tensor* weight : {&p, &a, &b, c.has_value() ? &*c : &p}) {
      STD_TORCH_CHECK(weight->is_cpu() && weight->scalar_type() == x.scalar_type(),
                      "weights must be CPU tensors of x's dtype");
    }
  }

  Block block(int64_t channels, int64_t dilation, int64_t pool, bool relu) const {
    STD_TORCH_CHECK(pointwise.size(1) == channels, "pointwise has ", pointwise.size(1),
                    " input channels but x has ", channels);
    STD_TORCH_CHECK(dilation >= 1 && pool >= 1, "dilation and pool must be at least 1");
    return {pointwise.data_ptr(),
            time_taps.data_ptr(),
            freq_taps.data_ptr(),
            bias.has_value() ? bias->data_ptr() : nullptr,
            pointwise.size(1),
            pointwise.size(0),
            dilation,
            pool,
            relu};
  }
};

void check_map(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_cpu(), "x must be a CPU tensor (N, C, T, F)");
}

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

Arena& scratch_arena() {
  thread_local Arena arena;
  return arena;
}

Arena& shared_arena() {  // of the calling thread; its workers use it while it waits
  thread_local Arena arena;
  return arena;
}

// Calls f(begin, end, scratch) for ranges of items, on torch's threads.
template <class F>
void for_each_range(int64_t items, size_t scratch_bytes, const F& f) {
  torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    f(begin, end, static_cast<char*>(scratch_arena().get(scratch_bytes)));
    scratch_arena().trim();
  });
}

// Forward.

// Clips first to first + count of a job.
Forward part_of(Forward job, int64_t first, int64_t count) {
  const int64_t size = job.dtype == DType::f64 ? 8 : job.dtype == DType::f32 ? 4 : 2;
  job.x.data = static_cast<char*>(job.x.data) + first * job.x.n * size;
  job.y.data = static_cast<char*>(job.y.data) + first * job.y.n * size;
  if (job.stripes != nullptr) job.stripes += first * job.num_stripes * 3;
  job.clips = count;
  return job;
}

// Calls f(item, weights, scratch) for each item, on torch's threads. Each thread packs the weights
// for itself: they would take longer to come from another core than to pack.
template <class F>
void for_each_packed(const Kernels& k, const Forward& job, int64_t items, const F& f) {
  const size_t weights_bytes = aligned(k.forward_weights_bytes(job));
  for_each_range(items, weights_bytes + k.forward_scratch_bytes(job),
                 [&](int64_t begin, int64_t end, char* weights) {
                   k.forward_pack(job, weights);
                   for (int64_t item = begin; item < end; ++item) {
                     f(item, weights, weights + weights_bytes);
                   }
                 });
}

// As many clips as threads, or a multiple: each clip streams through all blocks on one thread.
void run_whole(const Kernels& k, Forward job) {
  job.strips = 1;
  for_each_packed(k, job, job.clips, [&](int64_t clip, const void* weights, void* scratch) {
    k.forward_run(job, weights, scratch, nullptr, clip, 0);
  });
}

// Finds out whether a number of tasks run at the same time: a thread pool promises nothing.
class Meeting {
 public:
  explicit Meeting(int64_t expected) : expected_(expected) {}

  // Called by each task; all get the same answer.
  bool attend() {
    if (arrived_.fetch_add(1) + 1 == expected_) decide(kTogether);
    const auto patience = std::chrono::steady_clock::now() + std::chrono::microseconds(500);
    while (decision_.load() == kOpen) {
      if (std::chrono::steady_clock::now() > patience) decide(kApart);
    }
    return decision_.load() == kTogether;
  }

 private:
  enum Decision { kOpen, kTogether, kApart };
  void decide(Decision decision) {
    Decision open = kOpen;
    decision_.compare_exchange_strong(open, decision);
  }

  const int64_t expected_;
  std::atomic<int64_t> arrived_{0};
  std::atomic<Decision> decision_{kOpen};
};

// Fewer clips than threads: each thread takes one strip of time of every clip.
void run_strips(const Kernels& k, Forward job, int64_t threads) {
  job.strips = k.forward_strips(job, threads);
  void* seams = shared_arena().get(k.forward_seams_bytes(job));
  k.forward_clear_seams(job, seams);
  Meeting meeting(job.strips);
  for_each_packed(k, job, job.strips, [&](int64_t strip, const void* weights, void* scratch) {
    void* shared = meeting.attend() ? seams : nullptr;
    for (int64_t clip = 0; clip < job.clips; ++clip) {
      k.forward_run(job, weights, scratch, shared, clip, strip);
    }
  });
  shared_arena().trim();
}

Tensor forward(const Tensor& x, const std::vector<Block>& blocks, const Tensor* scale,
               const Tensor* shift, const Tensor* stripes, bool bf16) {
  int64_t frames = x.size(2), bins = x.size(3);
  for (const Block& block : blocks) {
    frames /= block.pool;
    bins /= block.pool;
  }
  Tensor y = new_map(x, {x.size(0), blocks.back().out, frames, bins});
  if (y.numel() == 0) return y;

  Forward job{};
  job.dtype = dtype_of(x);
  job.bf16 = bf16;
  job.clips = x.size(0);
  job.frames = x.size(2);
  job.bins = x.size(3);
  job.blocks = blocks.data();
  job.num_blocks = int64_t(blocks.size());
  job.x = map_of(x);
  job.y = map_of(y);
  if (scale != nullptr && shift != nullptr) {
    job.scale = scale->data_ptr();
    job.shift = shift->data_ptr();
  }
  if (stripes != nullptr) {
    job.stripes = static_cast<const int32_t*>(stripes->data_ptr());
    job.num_stripes = stripes->size(1);
  }
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t rest = job.clips % threads, whole = job.clips - rest;
  const Kernels& k = kernels();  // once: another thread may choose an instruction set meanwhile
  if (whole > 0) run_whole(k, part_of(job, 0, whole));
  if (rest > 0) run_strips(k, part_of(job, whole, rest), threads);
  return y;
}

Tensor sep_conv2d(Tensor x, Tensor pointwise, Tensor time_taps, Tensor freq_taps,
                  std::optional<Tensor> bias, int64_t dilation) {
  check_map(x);
  const HeldBlock held(x, pointwise, time_taps, freq_taps, bias);
  return forward(x, {held.block(x.size(1), dilation, 1, false)}, nullptr, nullptr, nullptr, false);
}

Tensor sep_conv2d_block(Tensor x, Tensor pointwise, Tensor time_taps, Tensor freq_taps, Tensor bias,
                        int64_t dilation, int64_t pool) {
  check_map(x);
  const HeldBlock held(x, pointwise, time_taps, freq_taps, bias);
  return forward(x, {held.block(x.size(1), dilation, pool, true)}, nullptr, nullptr, nullptr,
                 false);
}

Tensor sep_conv2d_stack(Tensor x, std::vector<Tensor> pointwise, std::vector<Tensor> time_taps,
                        std::vector<Tensor> freq_taps, std::vector<Tensor> bias,
                        std::vector<int64_t> dilation, std::vector<int64_t> pool,
                        std::optional<Tensor> scale, std::optional<Tensor> shift,
                        std::optional<Tensor> stripes, bool bf16) {
  check_map(x);
  const size_t n = pointwise.size();
  STD_TORCH_CHECK(n > 0 && time_taps.size() == n && freq_taps.size() == n && bias.size() == n &&
                      dilation.size() == n && pool.size() == n,
                  "a stack needs as many weights of each kind as it has blocks, and one at least");
  std::vector<HeldBlock> held;
  std::vector<Block> blocks;
  held.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    held.emplace_back(x, pointwise[i], time_taps[i], freq_taps[i], bias[i]);
    const int64_t channels = i == 0 ? x.size(1) : blocks.back().out;
    blocks.push_back(held.back().block(channels, dilation[i], pool[i], true));
  }
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "scale and shift come together");
  for (auto* per_bin : {&scale, &shift}) {
    if (!per_bin->has_value()) continue;
    STD_TORCH_CHECK((*per_bin)->dim() == 1 && (*per_bin)->size(0) == x.size(3) &&
                        (*per_bin)->is_cpu() && (*per_bin)->scalar_type() == x.scalar_type(),
                    "scale and shift must be CPU tensors (F,) of x's dtype");
    *per_bin = made_contiguous(**per_bin);
  }
  if (stripes.has_value()) {
    STD_TORCH_CHECK(stripes->dim() == 3 && stripes->size(0) == x.size(0) && stripes->size(2) == 3 &&
                        stripes->is_cpu() && stripes->scalar_type() == ScalarType::Int,
                    "stripes must be a CPU int32 tensor (N, S, 3)");
    stripes = made_contiguous(*stripes);
  }
  const auto pointer = [](const std::optional<Tensor>& t) { return t.has_value() ? &*t : nullptr; };
  return forward(x, blocks, pointer(scale), pointer(shift), pointer(stripes), bf16);
}

// The network's tail.

Tensor global_pool_mlp(Tensor x, std::vector<Tensor> weight, std::vector<Tensor> bias) {
  check_map(x);
  STD_TORCH_CHECK(x.size(2) > 0 && x.size(3) > 0, "x must have at least one frame and one bin");
  STD_TORCH_CHECK(weight.size() == bias.size(), "an MLP needs as many weights as biases");
  std::vector<Linear> layers;
  int64_t width = x.size(1);
  for (size_t i = 0; i < weight.size(); ++i) {
    Tensor &w = weight[i], &b = bias[i];
    for (const Tensor* t : {&w, &b}) {
      STD_TORCH_CHECK(t->is_cpu() && t->scalar_type() == x.scalar_type(),
                      "weights must be CPU tensors of x's dtype");
    }
    STD_TORCH_CHECK(w.dim() == 2 && w.size(1) == width && b.dim() == 1 && b.size(0) == w.size(0),
                    "layer ", i, " must have a weight (out, ", width, ") and a bias (out,)");
    w = made_contiguous(w);
    b = made_contiguous(b);
    layers.push_back({w.data_ptr(), b.data_ptr(), width, w.size(0)});
    width = w.size(0);
  }
  Tensor y = new_vector(x, {x.size(0), width});
  const Tail job{dtype_of(x),
                 x.size(1),
                 x.size(2),
                 x.size(3),
                 map_of(x),
                 layers.data(),
                 int64_t(layers.size()),
                 y.data_ptr()};
  const Kernels& k = kernels();
  for_each_range(x.size(0), k.tail_scratch_bytes(job),
                 [&](int64_t begin, int64_t end, void* scratch) {
                   for (int64_t n = begin; n < end; ++n) k.tail_run(job, scratch, n);
                 });
  return y;
}

// Backward.

constexpr int64_t kGroups = 16;  // partial sums: enough for the threads there are, few to add up

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward(const Tensor& grad, const Tensor& x, const HeldBlock& held, const Block& block,
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

  Backward job{};
  job.dtype = dtype_of(x);
  job.clips = x.size(0);
  job.frames = x.size(2);
  job.bins = x.size(3);
  job.block = block;
  job.x = map_of(x);
  job.grad = map_of(grad);
  if (needs_x) job.dx = map_of(dx);
  job.d_pointwise = d_pointwise.data_ptr();
  job.d_time_taps = d_time.data_ptr();
  job.d_freq_taps = d_freq.data_ptr();
  job.d_bias = d_bias.data_ptr();
  // Strips and groups follow from the shape alone: the order of every sum is fixed.
  const int64_t clips = std::max<int64_t>(job.clips, 1);
  job.strips = std::clamp<int64_t>(8 / clips, 1, std::max<int64_t>(job.frames / 32, 1));
  const int64_t items = job.bins == 0 || job.frames == 0 ? 0 : job.clips * job.strips;
  job.groups = std::min(items, kGroups);

  const Kernels& k = kernels();
  const size_t weights_bytes = aligned(k.backward_weights_bytes(job));
  const size_t partial_bytes = k.backward_partial_bytes(job);
  char* weights =
      static_cast<char*>(shared_arena().get(weights_bytes + size_t(job.groups) * partial_bytes));
  char* partials = weights + weights_bytes;
  k.backward_pack(job, weights);
  for_each_range(job.groups, k.backward_scratch_bytes(job),
                 [&](int64_t begin, int64_t end, void* scratch) {
                   for (int64_t group = begin; group < end; ++group) {
                     void* partial = partials + size_t(group) * partial_bytes;
                     k.backward_run(job, weights, scratch, partial, group);
                   }
                 });
  k.backward_reduce(job, partials);
  shared_arena().trim();
  return {dx, d_pointwise, d_time, d_freq, d_bias};
}

Gradients sep_conv2d_backward(Tensor grad, Tensor x, Tensor pointwise, Tensor time_taps,
                              Tensor freq_taps, int64_t dilation, bool needs_x) {
  check_map(x);
  const HeldBlock held(x, pointwise, time_taps, freq_taps, std::nullopt);
  return backward(grad, x, held, held.block(x.size(1), dilation, 1, false), needs_x);
}

Gradients sep_conv2d_block_backward(Tensor grad, Tensor x, Tensor pointwise, Tensor time_taps,
                                    Tensor freq_taps, Tensor bias, int64_t dilation, int64_t pool,
                                    bool needs_x) {
  check_map(x);
  const HeldBlock held(x, pointwise, time_taps, freq_taps, bias);
  return backward(grad, x, held, held.block(x.size(1), dilation, pool, true), needs_x);
}

}  // namespace
}  // namespace fastsep

STABLE_TORCH_LIBRARY(fastsep_cpu, m) {
  m.def("isa() -> str");
  m.def("supported_isas() -> str[]");
  m.def("set_isa(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastsep_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&fastsep::isa));
  m.impl("supported_isas", TORCH_BOX(&fastsep::supported_isas));
  m.impl("set_isa", TORCH_BOX(&fastsep::set_isa));
}

STABLE_TORCH_LIBRARY_IMPL(fastsep, CPU, m) {
  m.impl("sep_conv2d", TORCH_BOX(&fastsep::sep_conv2d));
  m.impl("sep_conv2d_backward", TORCH_BOX(&fastsep::sep_conv2d_backward));
  m.impl("sep_conv2d_block", TORCH_BOX(&fastsep::sep_conv2d_block));
  m.impl("sep_conv2d_block_backward", TORCH_BOX(&fastsep::sep_conv2d_block_backward));
  m.impl("sep_conv2d_stack", TORCH_BOX(&fastsep::sep_conv2d_stack));
  m.impl("global_pool_mlp", TORCH_BOX(&fastsep::global_pool_mlp));
}

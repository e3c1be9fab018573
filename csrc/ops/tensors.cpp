#include "tensors.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "arena.h"

namespace fastsep {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

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

int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

Map map_of(const Tensor& x) {
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

void check_map(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_cpu(), "x must be a CPU tensor (N, C, T, F)");
}

Input input_of(const Tensor& x) {
  Input input{};
  input.x = map_of(x);
  input.clips = x.size(0);
  input.channels = x.size(1);
  input.frames = x.size(2);
  input.bins = x.size(3);
  return input;
}

int64_t spans_of(const Input& input) {
  const int64_t clips = std::max<int64_t>(input.clips, 1);
  return std::clamp<int64_t>(8 / clips, 1, std::max<int64_t>(input.frames / 32, 1));
}

namespace {

bool is_channels_last(const Tensor& x) {
  if (x.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {  // as torch.channels_last: strides of size 1 do not count
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

// torch's own words for a lack of memory do not come through the stable ABI.
Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, MemoryFormat format) {
  try {
    return torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(),
                                std::nullopt, format);
  } catch (const std::exception&) {
    size_t bytes = like.element_size();
    for (const int64_t size : shape) bytes *= size_t(size);
    throw OutOfMemory(bytes, "a result");
  }
}

}  // namespace

Tensor new_map(const Tensor& like, const std::vector<int64_t>& shape) {
  const auto format =
      is_channels_last(like) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return new_tensor(like, shape, format);
}

Tensor new_channels_last(const Tensor& like, const std::vector<int64_t>& shape) {
  return new_tensor(like, shape, MemoryFormat::ChannelsLast);
}

Tensor new_vector(const Tensor& like, const std::vector<int64_t>& shape) {
  return new_tensor(like, shape, MemoryFormat::Contiguous);
}

Tensor made_contiguous(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

HeldBlock::HeldBlock(const Tensor& x, const Tensor& p, const Tensor& a, const Tensor& b,
                     const std::optional<Tensor>& c)
    : pointwise(made_contiguous(p)), time_taps(made_contiguous(a)), freq_taps(made_contiguous(b)) {
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

Block HeldBlock::block(int64_t channels, int64_t dilation, int64_t pool, bool relu) const {
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

HeldBlocks::HeldBlocks(const Tensor& x, const std::vector<Tensor>& pointwise,
                       const std::vector<Tensor>& time_taps, const std::vector<Tensor>& freq_taps,
                       const std::vector<Tensor>& bias, const std::vector<int64_t>& dilation,
                       const std::vector<int64_t>& pool) {
  const size_t n = pointwise.size();
  STD_TORCH_CHECK(n > 0 && time_taps.size() == n && freq_taps.size() == n && bias.size() == n &&
                      dilation.size() == n && pool.size() == n,
                  "a stack needs as many weights of each kind as it has blocks, and one at least");
  held_.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    held_.emplace_back(x, pointwise[i], time_taps[i], freq_taps[i], bias[i]);
    const int64_t channels = i == 0 ? x.size(1) : blocks_.back().out;
    blocks_.push_back(held_.back().block(channels, dilation[i], pool[i], true));
  }
}

std::vector<int64_t> shape_after(const std::vector<Block>& blocks, const Input& input,
                                 int64_t clips) {
  int64_t frames = input.frames, bins = input.bins;
  for (const Block& block : blocks) {
    frames /= block.pool;
    bins /= block.pool;
  }
  return {clips, blocks.back().out, frames, bins};
}

HeldInput::HeldInput(const Tensor& x, const std::optional<Tensor>& scale,
                     const std::optional<Tensor>& shift, const std::optional<Tensor>& stripes)
    : input_(input_of(x)) {
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "scale and shift come together");
  if (scale.has_value()) {
    for (const Tensor* per_bin : {&*scale, &*shift}) {
      STD_TORCH_CHECK(per_bin->dim() == 1 && per_bin->size(0) == x.size(3) && per_bin->is_cpu() &&
                          per_bin->scalar_type() == x.scalar_type(),
                      "scale and shift must be CPU tensors (F,) of x's dtype");
    }
    input_.scale = hold(*scale);
    input_.shift = hold(*shift);
  }
  if (stripes.has_value()) {
    STD_TORCH_CHECK(stripes->dim() == 3 && stripes->size(0) == x.size(0) && stripes->size(2) == 3 &&
                        stripes->is_cpu() && stripes->scalar_type() == ScalarType::Int,
                    "stripes must be a CPU int32 tensor (N, S, 3)");
    input_.stripes = static_cast<const int32_t*>(hold(*stripes));
    input_.num_stripes = stripes->size(1);
  }
}

const void* HeldInput::hold(const Tensor& t) {
  held_.push_back(made_contiguous(t));
  return held_.back().data_ptr();
}

}  // namespace fastsep

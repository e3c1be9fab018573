// From torch's tensors to the plain data of jobs, and back: checks, weights held, outputs made.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "../cpu/kernels.h"

namespace fastsep {

using torch::stable::Tensor;

DType dtype_of(const Tensor& x);
int64_t size_of(DType dtype);  // bytes
Map map_of(const Tensor& x);
void check_map(const Tensor& x);

// Into how many spans of time gradients cut a clip, from the shape alone: the order of every sum is
// fixed, whatever the threads.
int64_t spans_of(const Input& input);

// x as an operator's input, with nothing to do as it is loaded.
Input input_of(const Tensor& x);

// Uninitialised, of the dtype of `like`; a map is channels_last where `like` is, or always.
Tensor new_map(const Tensor& like, const std::vector<int64_t>& shape);
Tensor new_channels_last(const Tensor& like, const std::vector<int64_t>& shape);
Tensor new_vector(const Tensor& like, const std::vector<int64_t>& shape);

// Asks torch only where there is something to do: one clip is so fast that the calls would show.
Tensor made_contiguous(const Tensor& x);

// x with what is to be done as it is loaded: a per-bin affine and stripes, made contiguous and kept
// alive as long as the Input that points into them.
class HeldInput {
 public:
  HeldInput(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
            const std::optional<Tensor>& stripes);

  const Input& input() const { return input_; }

 private:
  const void* hold(const Tensor& t);

  Input input_;
  std::vector<Tensor> held_;
};

// A block's weights, made contiguous and kept alive as long as the Block that points into them.
struct HeldBlock {
  Tensor pointwise, time_taps, freq_taps;
  std::optional<Tensor> bias;

  HeldBlock(const Tensor& x, const Tensor& pointwise, const Tensor& time_taps,
            const Tensor& freq_taps, const std::optional<Tensor>& bias);

  // channels: of the map that goes into the block.
  Block block(int64_t channels, int64_t dilation, int64_t pool, bool relu) const;
};

// The weights of a stack's blocks.
class HeldBlocks {
 public:
  HeldBlocks(const Tensor& x, const std::vector<Tensor>& pointwise,
             const std::vector<Tensor>& time_taps, const std::vector<Tensor>& freq_taps,
             const std::vector<Tensor>& bias, const std::vector<int64_t>& dilation,
             const std::vector<int64_t>& pool);

  const std::vector<Block>& blocks() const { return blocks_; }

 private:
  std::vector<HeldBlock> held_;
  std::vector<Block> blocks_;
};

// Of what the blocks make of so many clips of the input.
std::vector<int64_t> shape_after(const std::vector<Block>& blocks, const Input& input,
                                 int64_t clips);

}  // namespace fastsep

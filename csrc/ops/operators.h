// The operators; schemas and meanings are in fastsep/ops.py.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace fastsep {

Tensor sep_conv2d(Tensor x, Tensor pointwise, Tensor time_taps, Tensor freq_taps,
                  std::optional<Tensor> bias, int64_t dilation);
Tensor sep_conv2d_block(Tensor x, Tensor pointwise, Tensor time_taps, Tensor freq_taps, Tensor bias,
                        int64_t dilation, int64_t pool);
Tensor sep_conv2d_stack(Tensor x, std::vector<Tensor> pointwise, std::vector<Tensor> time_taps,
                        std::vector<Tensor> freq_taps, std::vector<Tensor> bias,
                        std::vector<int64_t> dilation, std::vector<int64_t> pool,
                        std::optional<Tensor> scale, std::optional<Tensor> shift,
                        std::optional<Tensor> stripes, bool bf16);

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
Gradients sep_conv2d_backward(Tensor grad, Tensor x, Tensor pointwise, Tensor time_taps,
                              Tensor freq_taps, int64_t dilation, bool needs_x);
Gradients sep_conv2d_block_backward(Tensor grad, Tensor x, Tensor pointwise, Tensor time_taps,
                                    Tensor freq_taps, Tensor bias, int64_t dilation, int64_t pool,
                                    bool needs_x);

Tensor global_pool_mlp(Tensor x, std::vector<Tensor> weight, std::vector<Tensor> bias);

}  // namespace fastsep

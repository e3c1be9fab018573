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

Tensor sep_conv2d_masked_stack(Tensor x, std::vector<Tensor> pointwise,
                               std::vector<Tensor> time_taps, std::vector<Tensor> freq_taps,
                               std::vector<Tensor> bias, std::vector<int64_t> dilation,
                               std::vector<int64_t> pool, std::optional<Tensor> scale,
                               std::optional<Tensor> shift, Tensor stripes, bool bf16, bool head,
                               std::vector<Tensor> head_weight, std::vector<Tensor> head_bias);

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
Gradients sep_conv2d_backward(Tensor grad, Tensor x, Tensor pointwise, Tensor time_taps,
                              Tensor freq_taps, int64_t dilation, bool needs_x);
Gradients sep_conv2d_block_backward(Tensor grad, Tensor x, Tensor pointwise, Tensor time_taps,
                                    Tensor freq_taps, Tensor bias, int64_t dilation, int64_t pool,
                                    bool needs_x);

using TrainResult = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>>;
TrainResult sep_conv2d_bn_stack(Tensor x, std::vector<Tensor> pointwise,
                                std::vector<Tensor> time_taps, std::vector<Tensor> freq_taps,
                                std::vector<Tensor> gamma, std::vector<Tensor> beta,
                                std::vector<Tensor> mean, std::vector<Tensor> var,
                                std::vector<double> eps, std::vector<int64_t> dilation,
                                std::vector<int64_t> pool, std::optional<Tensor> scale,
                                std::optional<Tensor> shift, std::optional<Tensor> stripes,
                                bool save);
using TrainGradients = std::tuple<Tensor, std::vector<Tensor>, Tensor, Tensor>;
TrainGradients sep_conv2d_bn_stack_backward(
    Tensor grad, Tensor x, std::vector<Tensor> pointwise, std::vector<Tensor> time_taps,
    std::vector<Tensor> freq_taps, std::vector<Tensor> gamma, std::vector<Tensor> beta,
    std::vector<Tensor> statistics, std::vector<int64_t> frozen, std::vector<double> eps,
    std::vector<int64_t> dilation, std::vector<int64_t> pool, std::optional<Tensor> scale,
    std::optional<Tensor> shift, std::optional<Tensor> stripes, std::vector<Tensor> saved,
    std::vector<int64_t> needs, bool needs_x, bool needs_affine);

Tensor global_pool_mlp(Tensor x, std::vector<Tensor> weight, std::vector<Tensor> bias);

Tensor bin_statistics(Tensor x);

Tensor log_mel(Tensor waveform, Tensor window, int64_t hop, Tensor bands, Tensor weights);

}  // namespace fastsep

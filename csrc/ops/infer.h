// A stack without gradients, for the operators that come down to it.
#pragma once

#include <cstdint>
#include <vector>

#include "tensors.h"

namespace fastsep {

// y: of the result, which `blocks` and it have to outlive.
Infer infer_job(const Tensor& x, const Input& input, const std::vector<Block>& blocks, const Map& y,
                bool bf16);

// On torch's threads.
void run_infer(const Infer& job);

}  // namespace fastsep

// The network's head: of a map, or behind other sweeps.
#pragma once

#include <cstdint>
#include <vector>

#include "../cpu/kernels.h"
#include "tensors.h"

namespace fastsep {

// Its layers as plain data, their tensors held meanwhile.
class HeldHead {
 public:
  HeldHead(const Tensor& x, int64_t channels, std::vector<Tensor> weight, std::vector<Tensor> bias);

  int64_t width() const { return width_; }  // of what comes out

  // On maps like `maps`, of so many channels, frames and bins; its x is still to be set.
  Head job(const Tensor& maps, int64_t channels, int64_t frames, int64_t bins, void* y) const;

 private:
  std::vector<Tensor> weight_, bias_;
  std::vector<Linear> layers_;
  int64_t width_;
};

void run_head(const Head& job, int64_t clips);

}  // namespace fastsep

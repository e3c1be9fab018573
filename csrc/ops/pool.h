// Memory of large tensors that are made at every call: what a stack in training keeps from forward
// to backward, and masked copies.
#pragma once

#include <cstdint>
#include <vector>

#include "tensors.h"

namespace fastsep {

// Uninitialised, of the dtype of `like`; one-dimensional, or a map in channels_last. Large ones
// come from a pool and cannot be resized: fresh memory costs page faults, a quarter of a training
// step. Pieces that are free stay in the pool, never more than were in use at once, but the system
// may take their pages whenever it needs some.
Tensor new_pooled(const Tensor& like, const std::vector<int64_t>& shape);

}  // namespace fastsep

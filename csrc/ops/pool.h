// Memory for what a stack in training keeps from forward to backward.
#pragma once

#include "tensors.h"

namespace fastsep {

// Uninitialised, of the dtype of `like`, one-dimensional. Large ones come from a pool: fresh memory
// costs page faults, a quarter of a training step. Pieces that are free stay in the pool, never
// more than were in use at once, but the system may take their pages whenever it needs some.
Tensor new_kept(const Tensor& like, int64_t size);

}  // namespace fastsep

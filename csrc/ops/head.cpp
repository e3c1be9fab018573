// The network's head.
#include <torch/headeronly/util/Exception.h>

#include "isa.h"
#include "operators.h"
#include "tensors.h"
#include "threads.h"

namespace fastsep {

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
  Head job{};
  job.dtype = dtype_of(x);
  job.x = map_of(x);
  job.channels = x.size(1);
  job.frames = x.size(2);
  job.bins = x.size(3);
  job.layers = layers.data();
  job.num_layers = int64_t(layers.size());
  job.y = y.data_ptr();
  const HeadKernels& k = kernels().head(job);
  for_each_range(x.size(0), k.scratch_bytes(job), [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t n = begin; n < end; ++n) k.run(job, scratch, n);
  });
  return y;
}

}  // namespace fastsep

// The network's head.
#include "head.h"

#include <torch/headeronly/util/Exception.h>

#include <utility>

#include "isa.h"
#include "operators.h"
#include "tensors.h"
#include "threads.h"

namespace fastsep {

HeldHead::HeldHead(const Tensor& x, int64_t channels, std::vector<Tensor> weight,
                   std::vector<Tensor> bias)
    : weight_(std::move(weight)), bias_(std::move(bias)), width_(channels) {
  STD_TORCH_CHECK(weight_.size() == bias_.size(), "an MLP needs as many weights as biases");
  for (size_t i = 0; i < weight_.size(); ++i) {
    Tensor &w = weight_[i], &b = bias_[i];
    for (const Tensor* t : {&w, &b}) {
      STD_TORCH_CHECK(t->is_cpu() && t->scalar_type() == x.scalar_type(),
                      "weights must be CPU tensors of x's dtype");
    }
    STD_TORCH_CHECK(w.dim() == 2 && w.size(1) == width_ && b.dim() == 1 && b.size(0) == w.size(0),
                    "layer ", i, " must have a weight (out, ", width_, ") and a bias (out,)");
    w = made_contiguous(w);
    b = made_contiguous(b);
    layers_.push_back({w.data_ptr(), b.data_ptr(), width_, w.size(0)});
    width_ = w.size(0);
  }
}

Head HeldHead::job(const Tensor& maps, int64_t channels, int64_t frames, int64_t bins,
                   void* y) const {
  STD_TORCH_CHECK(frames > 0 && bins > 0, "x must have at least one frame and one bin");
  Head job{};
  job.dtype = dtype_of(maps);
  job.channels = channels;
  job.frames = frames;
  job.bins = bins;
  job.layers = layers_.data();
  job.num_layers = int64_t(layers_.size());
  job.y = y;
  return job;
}

void run_head(const Head& job, int64_t clips) {
  const HeadKernels& k = kernels().head(job);
  for_each_range(clips, k.scratch_bytes(job), [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t n = begin; n < end; ++n) k.run(job, scratch, n);
  });
}

Tensor global_pool_mlp(Tensor x, std::vector<Tensor> weight, std::vector<Tensor> bias) {
  check_map(x);
  const HeldHead head(x, x.size(1), std::move(weight), std::move(bias));
  Tensor y = new_vector(x, {x.size(0), head.width()});
  Head job = head.job(x, x.size(1), x.size(2), x.size(3), y.data_ptr());
  job.x = map_of(x);
  run_head(job, x.size(0));
  return y;
}

}  // namespace fastsep

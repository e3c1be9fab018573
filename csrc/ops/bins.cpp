// Mean and variance of a map's bins.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>

#include "isa.h"
#include "operators.h"
#include "tensors.h"
#include "threads.h"

namespace fastsep {

using torch::headeronly::ScalarType;

Tensor bin_statistics(Tensor x) {
  check_map(x);
  constexpr int64_t kGroups = 32;  // partial sums, so that the result depends on shapes only
  const Tensor held = made_contiguous(x);
  Bins job{};
  job.dtype = dtype_of(x);
  job.x = held.data_ptr();
  job.rows = x.size(0) * x.size(1) * x.size(2);
  job.bins = x.size(3);
  job.groups = std::min(job.rows, kGroups);
  job.partials =
      static_cast<double*>(shared_arena().get(size_t(2 * job.groups * job.bins) * sizeof(double)));
  const BinsKernels& k = kernels().bins(job);
  for_each_range(job.groups, 0, [&](int64_t begin, int64_t end, void*) {
    for (int64_t group = begin; group < end; ++group) k.run(job, group);
  });
  Tensor y = torch::stable::empty({2, job.bins}, ScalarType::Double, std::nullopt, x.device(),
                                  std::nullopt, std::nullopt);
  double* const to = static_cast<double*>(y.data_ptr());
  k.finish(job, to, to + job.bins);
  return y;
}

}  // namespace fastsep

// All operators of the CPU library, in one list.
#include <torch/csrc/stable/library.h>

#include "isa.h"
#include "operators.h"

STABLE_TORCH_LIBRARY(fastsep_cpu, m) {
  m.def("isa() -> str");
  m.def("supported_isas() -> str[]");
  m.def("set_isa(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastsep_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&fastsep::isa));
  m.impl("supported_isas", TORCH_BOX(&fastsep::supported_isas));
  m.impl("set_isa", TORCH_BOX(&fastsep::set_isa));
}

STABLE_TORCH_LIBRARY_IMPL(fastsep, CPU, m) {
  m.impl("sep_conv2d", TORCH_BOX(&fastsep::sep_conv2d));
  m.impl("sep_conv2d_backward", TORCH_BOX(&fastsep::sep_conv2d_backward));
  m.impl("sep_conv2d_block", TORCH_BOX(&fastsep::sep_conv2d_block));
  m.impl("sep_conv2d_block_backward", TORCH_BOX(&fastsep::sep_conv2d_block_backward));
  m.impl("sep_conv2d_stack", TORCH_BOX(&fastsep::sep_conv2d_stack));
  m.impl("sep_conv2d_masked_stack", TORCH_BOX(&fastsep::sep_conv2d_masked_stack));
  m.impl("sep_conv2d_bn_stack", TORCH_BOX(&fastsep::sep_conv2d_bn_stack));
  m.impl("sep_conv2d_bn_stack_backward", TORCH_BOX(&fastsep::sep_conv2d_bn_stack_backward));
  m.impl("global_pool_mlp", TORCH_BOX(&fastsep::global_pool_mlp));
  m.impl("bin_statistics", TORCH_BOX(&fastsep::bin_statistics));
  m.impl("log_mel", TORCH_BOX(&fastsep::log_mel));
}

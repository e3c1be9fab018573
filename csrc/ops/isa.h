// Which instruction set's kernels run.
#pragma once

#include <string>
#include <vector>

#include "../cpu/kernels.h"

namespace fastsep {

// Of the chosen instruction set: the best that the machine supports, or what set_isa said. Ask once
// a call: another thread may choose another meanwhile.
const Kernels& kernels();

std::string isa();
std::vector<std::string> supported_isas();  // best first
void set_isa(std::string name);

}  // namespace fastsep

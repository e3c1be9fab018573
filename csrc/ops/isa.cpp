#include "isa.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastsep {
namespace {

struct InstructionSet {
  const char* name;
  bool supported;
  const Kernels* kernels;
};

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

const std::vector<InstructionSet>& instruction_sets() {  // best first
  static const std::vector<InstructionSet> all = {
#if defined(__x86_64__)
      {"avx512bf16", has_avx512() && __builtin_cpu_supports("avx512bf16"), &kernels_avx512bf16()},
      {"avx512", has_avx512(), &kernels_avx512()},
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), &kernels_avx2()},
#endif
      {"baseline", true, &kernels_baseline()},
  };
  return all;
}

std::string listed(const std::vector<std::string>& names) {
  std::string list;
  for (const auto& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

std::atomic<const InstructionSet*> chosen{nullptr};

const InstructionSet& instruction_set() {
  const InstructionSet* current = chosen.load(std::memory_order_relaxed);
  if (current == nullptr) {
    const auto& all = instruction_sets();
    current = &*std::find_if(all.begin(), all.end(), [](const auto& isa) { return isa.supported; });
    chosen.store(current, std::memory_order_relaxed);
  }
  return *current;
}

}  // namespace

const Kernels& kernels() { return *instruction_set().kernels; }

std::string isa() { return instruction_set().name; }

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const auto& isa : instruction_sets()) {
    if (isa.supported) names.push_back(isa.name);
  }
  return names;
}

void set_isa(std::string name) {  // throws no STD_TORCH_CHECK, whose text begins with a source file
  std::vector<std::string> known;
  for (const auto& isa : instruction_sets()) {
    if (name == isa.name) {
      if (!isa.supported) {
        throw std::runtime_error("this machine cannot run instruction set " + name + "; it runs " +
                                 listed(supported_isas()));
      }
      chosen.store(&isa, std::memory_order_relaxed);
      return;
    }
    known.push_back(isa.name);
  }
  throw std::runtime_error("there is no instruction set " + name + "; choose from " +
                           listed(known));
}

}  // namespace fastsep

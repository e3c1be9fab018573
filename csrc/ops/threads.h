// Work shared out over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "arena.h"

namespace fastsep {

// Calls f(begin, end, scratch) for ranges of items, on torch's threads. What is thrown there loses
// its words on the way out, so a lack of memory is carried out and thrown here.
template <class F>
void for_each_range(int64_t items, size_t scratch_bytes, const F& f) {
  std::atomic<bool> lacking{false};
  torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    void* scratch = scratch_arena().find(scratch_bytes);
    if (scratch == nullptr) {
      lacking = true;
      return;
    }
    f(begin, end, static_cast<char*>(scratch));
    scratch_arena().trim();
  });
  if (lacking) throw OutOfMemory(scratch_bytes, "a thread's own work");
}

// Finds out whether a number of tasks run at the same time: a thread pool promises nothing.
class Meeting {
 public:
  explicit Meeting(int64_t expected) : expected_(expected) {}

  // Called by each task; all get the same answer.
  bool attend() {
    if (arrived_.fetch_add(1) + 1 == expected_) decide(kTogether);
    const auto patience = std::chrono::steady_clock::now() + std::chrono::microseconds(500);
    while (decision_.load() == kOpen) {
      if (std::chrono::steady_clock::now() > patience) decide(kApart);
    }
    return decision_.load() == kTogether;
  }

 private:
  enum Decision { kOpen, kTogether, kApart };
  void decide(Decision decision) {
    Decision open = kOpen;
    decision_.compare_exchange_strong(open, decision);
  }

  const int64_t expected_;
  std::atomic<int64_t> arrived_{0};
  std::atomic<Decision> decision_{kOpen};
};

}  // namespace fastsep

// Buffers that are reused from call to call: fresh memory costs page faults, which can cost more
// than the arithmetic done in it.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace fastsep {

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { std::free(data_); }

  // At least `bytes` bytes aligned to 64, with undefined contents; replaces what it gave before.
  void* get(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = 0;
      data_ = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = bytes;
    }
    return data_;
  }

  // Gives back what is more than a thread should hold on to between calls.
  void trim() {
    if (size_ <= kKept) return;
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
  }

 private:
  static constexpr size_t kAlignment = 64, kKept = size_t{8} << 20;
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fastsep

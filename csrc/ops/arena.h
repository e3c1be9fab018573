// Buffers that are reused from call to call: fresh memory costs page faults, which can cost more
// than the arithmetic done in it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <string>

#include "pages.h"

namespace fastsep {

// Rounded up to what keeps the next piece of a buffer aligned.
inline size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Python's MemoryError, with this text.
class OutOfMemory : public std::bad_alloc {
 public:
  OutOfMemory(size_t bytes, const char* purpose)
      : text_("fastsep cannot get " + std::to_string(bytes) + " bytes of memory for " + purpose +
              "; free some, or compute fewer or smaller maps at a time") {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { release(); }

  // At least `bytes` bytes aligned to 64, with undefined contents; replaces what it gave before.
  void* get(size_t bytes) {
    void* data = find(bytes);
    if (data == nullptr) throw OutOfMemory(bytes, "what the threads share");
    return data;
  }

  // As get, but null where there is no memory: for torch's threads, which must not throw.
  void* find(size_t bytes) noexcept {
    if (data_ == nullptr || bytes > size_) {
      release();
      if (bytes > kKept) bytes = whole_pages(bytes);
      data_ = bytes > kKept ? map_pages(bytes)
                            : std::aligned_alloc(64, aligned(std::max<size_t>(bytes, 1)));
      if (data_ == nullptr) return nullptr;
      size_ = bytes;
    }
    return data_;
  }

  // Offers the system what is more than a thread should hold on to between calls.
  void trim() {
    if (size_ > kKept) offer_pages(data_, size_);
  }

 private:
  void release() noexcept {
    if (size_ > kKept) {
      unmap_pages(data_, size_);
    } else {
      std::free(data_);
    }
    data_ = nullptr;
    size_ = 0;
  }

  static constexpr size_t kKept = size_t{8} << 20;
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Of a thread's own work.
inline Arena& scratch_arena() {
  thread_local Arena arena;
  return arena;
}

// Of the calling thread; its workers use it while it waits.
inline Arena& shared_arena() {
  thread_local Arena arena;
  return arena;
}

}  // namespace fastsep

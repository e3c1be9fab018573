#include "pool.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "arena.h"
#include "pages.h"

namespace fastsep {

#if defined(__linux__)
namespace {

constexpr size_t kLeast = size_t{1} << 20;

class Pool {
 public:
  void* take(size_t bytes) {
    bytes = whole_pages(bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto fit = free_.lower_bound(bytes);
    void* piece = nullptr;
    if (fit != free_.end() && fit->first <= bytes + bytes / 4) {
      bytes = fit->first;
      piece = fit->second;
      free_bytes_ -= bytes;
      free_.erase(fit);
    } else {
      shrink(most_ > used_bytes_ + bytes ? most_ - used_bytes_ - bytes : 0);
      piece = map_pages(bytes);
      if (piece == nullptr) throw OutOfMemory(bytes, "a result");
    }
    used_[piece] = bytes;
    used_bytes_ += bytes;
    most_ = std::max(most_, used_bytes_);
    return piece;
  }

  void give(void* piece) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto entry = used_.find(piece);
    const size_t bytes = entry->second;
    used_.erase(entry);
    used_bytes_ -= bytes;
    offer_pages(piece, bytes);
    free_.emplace(bytes, piece);
    free_bytes_ += bytes;
  }

 private:
  // Until the free pieces hold no more than so many bytes; the largest go first.
  void shrink(size_t bytes) {
    while (free_bytes_ > bytes) {
      const auto largest = std::prev(free_.end());
      unmap_pages(largest->second, largest->first);
      free_bytes_ -= largest->first;
      free_.erase(largest);
    }
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  std::map<void*, size_t> used_;
  size_t free_bytes_ = 0, used_bytes_ = 0, most_ = 0;
};

// Never destroyed: tensors may outlive what the library destroys at exit.
Pool& pool() {
  static Pool& pool = *new Pool;
  return pool;
}

}  // namespace
#endif

Tensor new_pooled(const Tensor& like, const std::vector<int64_t>& shape) {
  const bool map = shape.size() == 4;
#if defined(__linux__)
  std::vector<int64_t> strides(shape.size());
  int64_t size = 1;
  for (const size_t dim : map ? std::vector<size_t>{1, 3, 2, 0} : std::vector<size_t>{0}) {
    strides[dim] = size;
    size *= shape[dim];
  }
  const size_t bytes = size_t(size) * like.element_size();
  if (bytes >= kLeast) {
    return torch::stable::from_blob(pool().take(bytes), {shape.data(), shape.size()},
                                    {strides.data(), strides.size()}, like.device(),
                                    like.scalar_type(), [](void* piece) { pool().give(piece); });
  }
#endif
  return map ? new_channels_last(like, shape) : new_vector(like, shape);
}

}  // namespace fastsep

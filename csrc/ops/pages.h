// Large pieces of memory straight from the system, to which they go back: malloc would keep tens of
// MB for itself.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

namespace fastsep {

constexpr size_t kHugePage = size_t{2} << 20;

inline size_t whole_pages(size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

// So many whole pages of zeros, huge ones where the system has them: there are fewer faults, and
// what is scattered needs fewer entries of its tables. Null where there is no memory.
inline void* map_pages(size_t bytes) noexcept {
  const size_t whole = bytes + kHugePage;
  void* base = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  char* const first = static_cast<char*>(base);
  char* const piece =
      first + (kHugePage - reinterpret_cast<uintptr_t>(first) % kHugePage) % kHugePage;
  if (piece > first) munmap(first, size_t(piece - first));
  char *const end = piece + bytes, *const last = first + whole;
  if (last > end) munmap(end, size_t(last - end));
#if defined(MADV_HUGEPAGE)
  madvise(piece, bytes, MADV_HUGEPAGE);
#endif
  return piece;
}

inline void unmap_pages(void* piece, size_t bytes) noexcept { munmap(piece, bytes); }

// Lets the system take the memory when it needs some; what it does not take costs no page faults
// when it is written again. The contents are lost.
inline void offer_pages(void* piece, size_t bytes) noexcept { madvise(piece, bytes, MADV_FREE); }

}  // namespace fastsep

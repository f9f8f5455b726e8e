// A sequence's outputs are fresh memory that a kernel touches once. On Linux its page faults cost more than the neurons
// do, unless the pages are huge and freed memory stays with the process for the next iteration.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#ifdef __linux__
#include <malloc.h>
#include <sys/mman.h>
#endif

namespace snnfast {

// glibc gives freed memory back to the kernel as soon as 128 KiB to 64 MiB of it lie together, depending on what was
// freed before; a training step frees and takes as much again every time. A limit that the user set stays in force.
inline void keep_freed_memory() {
#ifdef __GLIBC__
  for (const char* setting : {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}) {
    if (std::getenv(setting)) return;
  }
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
#endif
}

inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kHugePage = std::uintptr_t{1} << 21;
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline void prepare_fresh_memory(void* data, std::size_t bytes) {
  constexpr std::size_t kLarge = std::size_t{1} << 20;
  if (bytes < kLarge) return;
  static const bool kept = (keep_freed_memory(), true);
  static_cast<void>(kept);
  prefer_huge_pages(data, bytes);
}

}  // namespace snnfast

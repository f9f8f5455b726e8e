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

// A training step frees its tensors and takes as many again. glibc maps those above 32 MiB anew each time, and gives
// smaller ones back as soon as enough of them lie together. Kept, they are found again only if torch starts them on a
// page (snnfast/_ext.py asks for it): at its usual 64 bytes, what alignment cuts off a freed block stays in small
// lists, and the next tensor of the same size does not fit. A limit that the user set stays in force.
inline void keep_freed_memory([[maybe_unused]] bool on_pages) {
#ifdef __GLIBC__
  for (const char* setting :
       {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"}) {
    if (std::getenv(setting)) return;
  }
  if (on_pages) {
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, -1);
  } else {
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
  }
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

inline constexpr int kPage = 4096;  // bytes

inline void prepare_fresh_memory(void* data, std::size_t bytes) {
  constexpr std::size_t kLarge = std::size_t{2} << 20;
  if (bytes < kLarge) return;
  static const bool kept = (keep_freed_memory(reinterpret_cast<std::uintptr_t>(data) % kPage == 0), true);
  static_cast<void>(kept);
  prefer_huge_pages(data, bytes);
}

}  // namespace snnfast

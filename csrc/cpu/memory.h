// Memory of our own for large results. A kernel touches a sequence's outputs once, so that their page faults cost more
// than the neurons do, unless pages are huge and the next iteration finds the memory that the last one freed. The
// process' own allocator stays as it is: blocks are mapped, kept and given back here.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace snnfast {

inline constexpr int kPage = 4096, kHugePage = 2 << 20;  // bytes

inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const auto begin = (address + kHugePage - 1) / kHugePage * kHugePage, end = (address + bytes) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Blocks in use, and idle ones for those who ask next. Idle ones are given back that lie beyond the limit, that would
// make the blocks in all more than were ever in use at once and 32 MiB, or that many others were preferred to. From any
// thread.
namespace blocks {

// At least so many bytes, to be given back by `give`; null: too few, too many or turned off, ask somebody else.
void* take(std::size_t bytes);
void give(void* data);

// Whether a block in use starts here.
bool has(void* data);

// Bytes that may lie idle; 0: nothing is taken from here any more.
std::size_t limit();
void set_limit(std::size_t bytes);

// Gives back all that is idle: so many bytes.
std::size_t trim();

}  // namespace blocks
}  // namespace snnfast

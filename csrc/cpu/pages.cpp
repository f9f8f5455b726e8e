#include "pages.h"

#include <atomic>
#include <cstdint>

#include "memory.h"

#ifdef __linux__
#include <time.h>
#endif

namespace snnfast::pages {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
namespace {

constexpr int kCollapse = 25;         // MADV_COLLAPSE, that older headers lack, and older kernels refuse
constexpr int64_t kSlow = 1'000'000;  // ns of a huge page, for which small ones may take as long
constexpr int kUntried = 63;          // blocks after a slow one that have small pages without a trial

// Of this thread alone: others may run meanwhile.
int64_t nanoseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

}  // namespace

bool prefer_huge(void* data, std::size_t bytes) {
  static std::atomic<int> untried{0};
  if (bytes < kHugePage) return true;
  if (untried.load() > 0) {
    --untried;
    return false;
  }
  prefer_huge_pages(data, kHugePage);
  const int64_t start = nanoseconds();
  *static_cast<volatile char*>(data) = 0;
  if (nanoseconds() - start > kSlow) {
    untried = kUntried;
    return false;
  }
  prefer_huge_pages(data, bytes);
  return true;
}

void make_huge(void* data, std::size_t bytes) {
  prefer_huge_pages(data, bytes);
  madvise(data, bytes / kHugePage * kHugePage, kCollapse);
}
#else
bool prefer_huge(void*, std::size_t) { return true; }
void make_huge(void*, std::size_t) {}
#endif

}  // namespace snnfast::pages

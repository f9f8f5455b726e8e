#include "memory.h"

#include <algorithm>
#include <bit>
#include <deque>
#include <iterator>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pages.h"

#ifdef __linux__
#include <pthread.h>
#endif

namespace snnfast::blocks {
namespace {

constexpr std::size_t kLeast = std::size_t{1} << 20, kMost = std::size_t{1} << 46;  // bytes of a block
constexpr std::size_t kUsualLimit = std::size_t{2} << 30;
constexpr std::uint64_t kPatience = 1024;  // blocks taken while one lay idle
// Beside what was in use at once: an evaluation between steps of training asks for other sizes.
constexpr std::size_t kSpare = std::size_t{32} << 20;

struct Block {
  void* data;
  std::size_t bytes;
  bool has_huge_pages = false;
  int uses = 0;
  std::uint64_t since = 0;  // blocks taken before it lay idle
};

struct State {
  std::mutex mutex;
  std::unordered_map<void*, Block> in_use;
  std::deque<Block> idle;  // those of longest standing first
  std::size_t used = 0, idle_bytes = 0, peak = 0, limit = kUsualLimit;
  std::uint64_t taken = 0;
  bool watching_forks = false;

  // The smallest block that is large enough, and by a quarter too large at most, that lay idle last: windows of a step
  // more or less would otherwise drive each other's blocks out.
  std::deque<Block>::iterator fitting(std::size_t size) {
    auto best = idle.end();
    for (auto one = idle.begin(); one != idle.end(); ++one) {
      if (one->bytes < size || one->bytes > size + size / 4) continue;
      if (best == idle.end() || one->bytes <= best->bytes) best = one;
    }
    return best;
  }

  Block remove(std::deque<Block>::iterator one) {
    const Block block = *one;
    idle_bytes -= block.bytes;
    idle.erase(one);
    return block;
  }
};

// It outlives whoever still has a block when the process ends.
State& state() {
  static State* const state = new State;
  return *state;
}

// Eight sizes from each power of two to the next: an eighth of a new block is unused at most.
std::size_t size_class(std::size_t bytes) {
  const std::size_t step = std::bit_floor(bytes) / 8;
  return (bytes + step - 1) / step * step;
}

// From the system, on a huge page where one fits; without data where the system has none.
Block map([[maybe_unused]] std::size_t bytes) {
#ifdef __linux__
  const std::size_t spare = bytes >= kHugePage ? kHugePage - kPage : 0;
  void* const mapped = mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return {nullptr, bytes};
  char* const first = static_cast<char*>(mapped);
  const std::size_t before = spare ? -reinterpret_cast<std::uintptr_t>(mapped) % kHugePage : 0;
  if (before > 0) munmap(first, before);
  if (spare > before) munmap(first + before + bytes, spare - before);
  return {first + before, bytes, pages::prefer_huge(first + before, bytes)};
#else
  return {nullptr, bytes};
#endif
}

void unmap([[maybe_unused]] const std::vector<Block>& some) {
#ifdef __linux__
  for (const Block& block : some) munmap(block.data, block.bytes);
#endif
}

// A child that is forked while another thread is in here would find the lock taken for ever.
void watch_forks([[maybe_unused]] State& all) {
#ifdef __linux__
  if (std::exchange(all.watching_forks, true)) return;
  const auto unlock = [] { state().mutex.unlock(); };
  pthread_atfork([] { state().mutex.lock(); }, unlock, unlock);
#endif
}

}  // namespace

void* take(std::size_t bytes) {
  if (bytes < kLeast || bytes > kMost) return nullptr;
  Block block{nullptr, size_class(bytes)};
  State& all = state();
  std::vector<Block> old;
  {
    const std::lock_guard lock(all.mutex);
    if (all.limit == 0) return nullptr;
    watch_forks(all);
    ++all.taken;
    const auto found = all.fitting(block.bytes);
    if (found != all.idle.end()) block = all.remove(found);
    all.used += block.bytes;
    const std::size_t room = std::max(all.peak, all.used) - all.used + kSpare;
    while (!all.idle.empty() && (all.idle_bytes > room || all.taken - all.idle.front().since > kPatience)) {
      old.push_back(all.remove(all.idle.begin()));
    }
  }
  unmap(old);
  if (block.data == nullptr) block = map(block.bytes);
  // What lies idle is no reason to fail.
  if (block.data == nullptr && trim() > 0) block = map(block.bytes);
  if (block.data != nullptr && !block.has_huge_pages && ++block.uses == pages::kUsesWorthIt) {
    pages::make_huge(block.data, block.bytes);
    block.has_huge_pages = true;
  }
  const std::lock_guard lock(all.mutex);
  if (block.data == nullptr) {
    all.used -= block.bytes;
  } else {
    all.in_use.emplace(block.data, block);
    all.peak = std::max(all.peak, all.used);
  }
  return block.data;
}

void give(void* data) {
  State& all = state();
  std::vector<Block> old;
  {
    const std::lock_guard lock(all.mutex);
    const auto found = all.in_use.find(data);
    // Torch frees what it fails to make a tensor of, or leaves it to the caller.
    if (found == all.in_use.end()) return;
    Block block = found->second;
    block.since = all.taken;
    all.in_use.erase(found);
    all.used -= block.bytes;
    // Where all that is used in turn does not fit, what is idle already is as likely to be asked for.
    if (all.idle_bytes + block.bytes <= all.limit) {
      all.idle.push_back(block);
      all.idle_bytes += block.bytes;
    } else {
      old.push_back(block);
    }
  }
  unmap(old);
}

bool has(void* data) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  return all.in_use.count(data) > 0;
}

std::size_t limit() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  return all.limit;
}

void set_limit(std::size_t bytes) {
  State& all = state();
  std::vector<Block> old;
  {
    const std::lock_guard lock(all.mutex);
    all.limit = bytes;
    while (all.idle_bytes > bytes) old.push_back(all.remove(all.idle.begin()));
  }
  unmap(old);
}

std::size_t trim() {
  State& all = state();
  std::vector<Block> old;
  std::size_t bytes = 0;
  {
    const std::lock_guard lock(all.mutex);
    old.assign(all.idle.begin(), all.idle.end());
    all.idle.clear();
    bytes = std::exchange(all.idle_bytes, 0);
    all.peak = all.used;
  }
  unmap(old);
  return bytes;
}

}  // namespace snnfast::blocks

// In the place of CUDA's: kernels run on the CPU, every thread of theirs a fiber of one thread.
//
// All blocks of a launch run at once. A fiber runs until it waits: at a barrier, for the lanes of its warp, or for
// another block. Those that may go on are taken in an order drawn from a seed, so that what is not synchronised shows
// in the results; a launch in which nobody can go on, or in which the threads of a block wait at different barriers, is
// an error, as is one that a GPU would refuse. SNNFAST_EMULATED_{MULTIPROCESSORS,SHARED,THREADS,COOPERATIVE} say what
// the device has, SNNFAST_EMULATED_SEED the order. Under the address sanitizer a block touches its own shared memory
// alone.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(...)
#define ASAN_UNPOISON_MEMORY_REGION(...)
#endif

#define __global__
#define __device__
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxThreadsPerMultiProcessor,
  cudaDevAttrCooperativeLaunch
};
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline dim3 threadIdx(0, 0, 0), blockIdx(0, 0, 0), blockDim, gridDim;

namespace emulation {

inline constexpr int kLanes = 32;
inline constexpr std::size_t kStack = 64 << 10, kMostShared = 256 << 10;
inline constexpr long kMostTurns = 10'000'000;

inline int setting(const char* name, int otherwise) {
  const char* value = std::getenv((std::string("SNNFAST_EMULATED_") + name).c_str());
  return value ? std::atoi(value) : otherwise;
}

struct Warp {
  int lanes = 0, arrived = 0;
  unsigned generation = 0;
  unsigned values[2][kLanes];
};

struct Block {
  unsigned number;
  dim3 index;
  std::vector<Warp> warps;
  int threads = 0, arrived = 0;
  unsigned generation = 0, barrier = 0;  // in this line of the source
  std::vector<unsigned char> shared;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Block* block;
  dim3 index;
  bool started = false, done = false;
  std::function<bool()> may_go_on;  // empty: at once
};

// One launch at a time.
class Machine {
 public:
  static Machine*& current() {
    static Machine* machine = nullptr;
    return machine;
  }

  Machine(const cudaLaunchConfig_t& config, std::function<void()> kernel, unsigned char* shared)
      : config_(config), kernel_(std::move(kernel)), shared_(shared), random_(setting("SEED", 0)) {}

  void run() {
    struct OwnMemory {
      unsigned char* const beyond;
      const std::size_t bytes;
      OwnMemory(unsigned char* shared, std::size_t own) : beyond(shared + own), bytes(kMostShared - own) {
        ASAN_POISON_MEMORY_REGION(beyond, bytes);
      }
      ~OwnMemory() { ASAN_UNPOISON_MEMORY_REGION(beyond, bytes); }
    } const own_memory(shared_, config_.dynamicSmemBytes);
    const bool together = config_.numAttrs > 0;
    const unsigned blocks = config_.gridDim.x * config_.gridDim.y;
    for (unsigned first = 0; first < blocks; first += together ? blocks : 1) {
      start(first, together ? blocks : first + 1);
      current() = this;
      for (long turns = 0; turn(); ++turns) {
        if (turns == kMostTurns) throw std::runtime_error("emulated kernel: blocks wait for what never comes");
      }
      current() = nullptr;
      if (error_) std::rethrow_exception(error_);
      for (const Fiber& fiber : fibers_) {
        if (!fiber.done) throw std::runtime_error("emulated kernel: threads wait for what never comes");
      }
    }
  }

  void wait(std::function<bool()> may_go_on) {
    Fiber& fiber = *running_;
    fiber.may_go_on = std::move(may_go_on);
    swapcontext(&fiber.context, &scheduler_);
  }

  Block& block() { return *running_->block; }
  int lane() const { return static_cast<int>(running_->index.x) % kLanes; }
  Warp& warp() { return block().warps[running_->index.x / kLanes]; }

 private:
  void start(unsigned first, unsigned end) {
    fibers_.clear();
    blocks_.clear();
    held_ = nullptr;
    for (unsigned index = first; index < end; ++index) {
      blocks_.push_back(std::make_unique<Block>());
      Block& block = *blocks_.back();
      block.number = index;
      block.index = dim3(index % config_.gridDim.x, index / config_.gridDim.x, 0);
      block.threads = static_cast<int>(config_.blockDim.x);
      block.warps.resize((config_.blockDim.x + kLanes - 1) / kLanes);
      block.shared.assign(config_.dynamicSmemBytes, 0xff);
      for (unsigned thread = 0; thread < config_.blockDim.x; ++thread) {
        Fiber fiber{};
        fiber.block = &block;
        fiber.index = dim3(thread, 0, 0);
        ++block.warps[thread / kLanes].lanes;
        fibers_.push_back(std::move(fiber));
      }
    }
    order_.resize(fibers_.size());
    std::iota(order_.begin(), order_.end(), 0);
  }

  // Lets fibers that may go on do so, block by block, since blocks share the place of their shared memory. Half of the
  // blocks, and some of the fibers, are passed over: none can count on another's pace.
  bool turn() {
    std::shuffle(order_.begin(), order_.end(), random_);
    const std::vector<bool> passed = draw(blocks_.size());
    std::stable_sort(order_.begin(), order_.end(),
                     [this](std::size_t a, std::size_t b) { return fibers_[a].block < fibers_[b].block; });
    bool any = false;
    for (const std::size_t k : order_) {
      Fiber& fiber = fibers_[k];
      if (fiber.done || (fiber.may_go_on && !fiber.may_go_on())) continue;
      any = true;
      if (passed[fiber.block->number - blocks_[0]->number] || random_() % 8 == 0) continue;
      fiber.may_go_on = nullptr;
      resume(fiber);
      if (error_) return false;
    }
    return any;
  }

  std::vector<bool> draw(std::size_t count) {
    std::vector<bool> drawn(count);
    for (std::size_t k = 0; k < count; ++k) drawn[k] = count > 1 && random_() % 2;
    return drawn;
  }

  void resume(Fiber& fiber) {
    if (held_ != fiber.block) {
      if (held_) std::copy_n(shared_, held_->shared.size(), held_->shared.data());
      held_ = fiber.block;
      std::copy(held_->shared.begin(), held_->shared.end(), shared_);
    }
    running_ = &fiber;
    threadIdx = fiber.index;
    blockIdx = fiber.block->index;
    blockDim = config_.blockDim;
    gridDim = config_.gridDim;
    if (!fiber.started) {
      fiber.started = true;
      fiber.stack = std::make_unique<char[]>(kStack);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = &scheduler_;
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Machine::enter), 0);
    }
    swapcontext(&scheduler_, &fiber.context);
    if (fiber.done) fiber.stack.reset();
  }

  static void enter() {
    Machine& machine = *current();
    try {
      machine.kernel_();
    } catch (...) {
      machine.error_ = std::current_exception();
    }
    machine.running_->done = true;
  }

  const cudaLaunchConfig_t& config_;
  std::function<void()> kernel_;
  unsigned char* shared_;
  std::mt19937 random_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Fiber> fibers_;
  std::vector<std::size_t> order_;
  Fiber* running_ = nullptr;
  Block* held_ = nullptr;
  ucontext_t scheduler_;
  std::exception_ptr error_;
};

// Waits until `count` have come to this point.
inline void gather(int& arrived, unsigned& generation, int count) {
  const unsigned mine = generation;
  if (++arrived == count) {
    arrived = 0;
    ++generation;
    return;
  }
  Machine::current()->wait([&generation, mine] { return generation != mine; });
}

// What every lane of the warp gave.
inline const unsigned* exchanged(unsigned value) {
  Machine& machine = *Machine::current();
  Warp& warp = machine.warp();
  unsigned* values = warp.values[warp.generation % 2];
  values[machine.lane()] = value;
  gather(warp.arrived, warp.generation, warp.lanes);
  return values;
}

}  // namespace emulation

inline void __syncthreads(std::source_location here = std::source_location::current()) {
  emulation::Block& block = emulation::Machine::current()->block();
  if (block.arrived == 0) block.barrier = here.line();
  if (block.barrier != here.line()) throw std::runtime_error("emulated kernel: threads wait at different barriers");
  emulation::gather(block.arrived, block.generation, block.threads);
}

inline void __nanosleep(unsigned) {
  emulation::Machine::current()->wait([] { return true; });
}

inline void __threadfence() {}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const unsigned* values = emulation::exchanged(predicate);
  unsigned word = 0;
  for (int lane = 0; lane < emulation::kLanes; ++lane) word |= values[lane] << lane;
  return word;
}

inline unsigned __shfl_sync(unsigned, unsigned value, int lane) { return emulation::exchanged(value)[lane]; }

inline int __ffs(int word) { return __builtin_ffs(word); }

template <typename T>
T __ldcg(const T* address) {
  return *address;
}

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address = before + value;
  return before;
}

namespace emulation {

inline constexpr int kGivenShared = 48 << 10;  // which a launch need not ask for

// The least that was ever asked for each kernel, as if another thread had asked for it just before the launch.
inline std::map<const void*, int>& asked_shared() {
  static std::map<const void*, int> asked;
  return asked;
}

inline bool may_share(const void* kernel, std::size_t bytes) {
  const auto asked = asked_shared().find(kernel);
  const int limit = asked == asked_shared().end() ? 0 : asked->second;
  return bytes <= static_cast<std::size_t>(std::max(limit, kGivenShared));
}

}  // namespace emulation

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  if (bytes > emulation::setting("SHARED", 232448)) return cudaErrorInvalidValue;
  const auto asked = emulation::asked_shared().try_emplace(reinterpret_cast<const void*>(kernel), bytes).first;
  asked->second = std::min(asked->second, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  constexpr std::pair<const char*, int> kHopper[] = {
      {"MULTIPROCESSORS", 132}, {"SHARED", 232448}, {"THREADS", 2048}, {"COOPERATIVE", 1}};
  *value = emulation::setting(kHopper[attribute].first, kHopper[attribute].second);
  return cudaSuccess;
}

inline int aoti_torch_get_current_cuda_stream(int, void** stream) {
  *stream = nullptr;
  return 0;
}

namespace snnfast {
alignas(16) inline unsigned char snnfast_shared[emulation::kMostShared];
}

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), const Args&... args) {
  const bool cooperative = config->numAttrs > 0;
  const auto blocks = static_cast<unsigned>(emulation::setting("MULTIPROCESSORS", 132));
  const bool fits = emulation::may_share(reinterpret_cast<const void*>(kernel), config->dynamicSmemBytes);
  const bool together = config->gridDim.x <= blocks && emulation::setting("COOPERATIVE", 1) != 0;
  const unsigned x = config->gridDim.x, y = config->gridDim.y, threads = config->blockDim.x;
  const bool sized = x > 0 && x < 1u << 31 && y > 0 && y < 1u << 16 && threads > 0 && threads <= 1024;
  if (!fits || !sized || (cooperative && !together)) return cudaErrorInvalidValue;
  emulation::Machine(*config, [&] { kernel(args...); }, snnfast::snnfast_shared).run();
  return cudaSuccess;
}

// Kernels that are registered for CUDA after this are registered for the CPU.
#define CUDA CPU

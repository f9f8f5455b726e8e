// How kernels are launched, and what little of a device they ask for beside arithmetic.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>

namespace snnfast {

inline constexpr int kWarp = 32;

struct Grid {
  int64_t blocks;
  int threads;
  int64_t rows = 1;          // of so many blocks
  std::size_t shared = 0;    // bytes of dynamic shared memory
  bool cooperative = false;  // blocks wait for each other: all must run at once
};

inline cudaStream_t current_stream(const torch::stable::Tensor& on) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int64_t device_attribute(const torch::stable::Tensor& on, cudaDeviceAttr attribute) {
  int value = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, on.get_device_index()));
  return value;
}

// Bytes that a block may have.
inline int64_t most_shared(const torch::stable::Tensor& on) {
  return device_attribute(on, cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

// On the tensor's device and the stream that is current there.
template <typename... Params, typename... Args>
void launch(const torch::stable::Tensor& on, const Grid& grid, void (*kernel)(Params...), const Args&... args) {
  constexpr std::size_t kWithoutAsking = 48 << 10;
  const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
  if (grid.shared > kWithoutAsking) {
    // Always for as much as there is: another thread may ask for the same kernel before this one launches it.
    const int bytes = static_cast<int>(most_shared(on));
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  }
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.rows));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = grid.shared;
  config.stream = current_stream(on);
  config.attrs = &cooperative;
  config.numAttrs = grid.cooperative ? 1 : 0;
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args...));
}

// Asks for what will be read soon.
__device__ inline void prefetch([[maybe_unused]] const void* address) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

}  // namespace snnfast

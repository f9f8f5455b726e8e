#include <cuda_runtime.h>

#include <string>

#include "device.h"

namespace snnfast {
namespace {

__global__ void any_kernel() {}

}  // namespace

const char* architectures() {
  static const std::string names = [] {
    std::string list;
    for (const int architecture : {__CUDA_ARCH_LIST__}) {
      list.append(list.empty() ? "" : ", ");
      list.append(std::to_string(architecture / 100) + "." + std::to_string(architecture / 10 % 10));
    }
    return list;
  }();
  return names.c_str();
}

const char* why_no_kernel_runs(int device) {
  int current = 0;
  cudaError_t error = cudaGetDevice(&current);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, any_kernel);
    cudaSetDevice(current);
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // which others would else take for their own
  return cudaGetErrorString(error);
}

}  // namespace snnfast

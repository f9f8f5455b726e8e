// In the place of PyTorch's: a failed call of the emulated runtime is an exception.
#pragma once

#include <stdexcept>

#define STD_CUDA_CHECK(EXPR) \
  if ((EXPR) != cudaSuccess) throw std::runtime_error("emulated CUDA call failed: " #EXPR)

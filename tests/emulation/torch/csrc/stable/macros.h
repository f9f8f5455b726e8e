// PyTorch's own, but for what asks the CUDA runtime: a failed call of the emulated one is an exception.
#pragma once

#include_next <torch/csrc/stable/macros.h>

#include <stdexcept>

#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(EXPR) \
  if ((EXPR) != cudaSuccess) throw std::runtime_error("emulated CUDA call failed: " #EXPR)

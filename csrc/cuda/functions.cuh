// ATen's elementwise operators as its CUDA kernels compute them, for generated cells (snnfast/cells/operators.py).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "../neuron/functions.h"

namespace snnfast::aten {

// The larger one; NaN where either is. Of two zeros, the one that a GPU's maximum is.
template <typename T>
__device__ T maximum(T a, T b) {
  return a != a ? a : (b != b ? b : std::fmax(a, b));
}

template <typename T>
__device__ T minimum(T a, T b) {
  return a != a ? a : (b != b ? b : std::fmin(a, b));
}

template <typename T>
__device__ T sigmoid(T a) {
  return T(1) / (T(1) + std::exp(-a));
}

// The types of 16 bits that sequences are stored in; what is computed with them is float.
struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  __device__ explicit BFloat16(float a) : bits(static_cast<uint16_t>(bfloat16_bits(a) >> 16)) {}
  __device__ operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

struct Float16 {
  uint16_t bits;
  Float16() = default;
#ifdef __CUDA_ARCH__
  __device__ explicit Float16(float a) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(a)); }
  __device__ operator float() const {
    float a;
    asm("cvt.f32.f16 %0, %1;" : "=f"(a) : "h"(bits));
    return a;
  }
#else
  explicit Float16(float a) : bits(std::bit_cast<uint16_t>(static_cast<_Float16>(a))) {}
  operator float() const { return std::bit_cast<_Float16>(bits); }
#endif
};

__device__ inline float as_float16(float a) { return Float16(a); }

}  // namespace snnfast::aten

// ATen's elementwise operators that its CPU and its CUDA kernels compute alike, for generated cells
// (snnfast/cells/operators.py).
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <bit>
#include <cmath>
#include <cstdint>

namespace snnfast::aten {

template <typename T>
C10_HOST_DEVICE T sign(T a) {
  return (a > T(0) ? T(1) : T(0)) - (a < T(0) ? T(1) : T(0));
}

// a * b + c, rounded once.
template <typename T>
C10_HOST_DEVICE T fused(T a, T b, T c) {
  return std::fma(a, b, c);
}

// The upper half of the nearest bfloat16, ties to even.
C10_HOST_DEVICE inline uint32_t bfloat16_bits(float a) {
  const uint32_t bits = std::bit_cast<uint32_t>(a);
  return a != a ? bits | 0x400000u : bits + 0x7fff + ((bits >> 16) & 1);
}

C10_HOST_DEVICE inline float as_bfloat16(float a) { return std::bit_cast<float>(bfloat16_bits(a) & 0xffff0000u); }

}  // namespace snnfast::aten

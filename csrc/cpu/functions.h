// ATen's elementwise operators as its CPU kernels compute them, for generated cells (snnfast/cells/operators.py).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../neuron/functions.h"

namespace snnfast::aten {

// The larger one; NaN where either is.
template <typename T>
T maximum(T a, T b) {
  return a != a ? a : (b != b ? b : (a > b ? a : b));
}

template <typename T>
T minimum(T a, T b) {
  return a != a ? a : (b != b ? b : (a < b ? a : b));
}

// The same by a bound that is a number; what equals it stays, also where the signs of zeros differ.
template <typename T>
T at_least(T a, T low) {
  return a < low ? low : a;
}

template <typename T>
T at_most(T a, T high) {
  return high < a ? high : a;
}

inline float as_float16(float a) { return static_cast<float>(static_cast<_Float16>(a)); }

// Functions that ATen gives whole rows to: MKL's vector maths, in its mode, where torch is built with that.
inline constexpr int64_t kMode = 0x2 | 0x140000 | 0x100;  // high accuracy, denormals kept, errors ignored

template <typename T>
void mkl(const void* function, int width, const T* from, T* to) {
  using Function = void (*)(const int*, const T*, T*, const int64_t*);
  reinterpret_cast<Function>(const_cast<void*>(function))(&width, from, to, &kMode);
}

// 1 / (1 + exp(0 - a)), with Sleef's exp of so many values at once. Rows reach beyond their width.
template <typename T, int kLanes>
void sigmoid(const void* exp, int width, const T* from, T* to) {
  using V [[gnu::vector_size(kLanes * sizeof(T))]] = T;
  using Function = V (*)(V);
  const Function function = reinterpret_cast<Function>(const_cast<void*>(exp));
  for (int first = 0; first < width; first += kLanes) {
    V lanes;
    std::memcpy(&lanes, from + first, sizeof(V));
    lanes = T(1) / (T(1) + function(T(0) - lanes));
    std::memcpy(to + first, &lanes, sizeof(V));
  }
}

}  // namespace snnfast::aten

// ATen's elementwise operators as its CPU kernels compute them, for generated cells (snnfast/cells/operators.py).
#pragma once

#include <bit>
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

// 1 / (1 + exp(0 - a)), in a form that becomes part of a loop of vectors: exp is Sleef's with one ulp, as its builds
// for AVX2 and AVX-512 compute it. The bounds change no result, and keep half of the power of two in range.
inline float sigmoid(float a) {
  constexpr float kWhole = 0x1.8p23f;  // added, it leaves no bits for fractions
  const float x = 0.0f - a, above = -86.0f > x ? -86.0f : x, bounded = 89.0f < above ? 89.0f : above;
  const float shifted = bounded * 1.442695040888963407f + kWhole, whole = shifted - kWhole;
  float rest = std::fma(whole, -0.693145751953125f, bounded);
  rest = std::fma(whole, -1.428606765330187045e-06f, rest);
  float sum = 0.000198527617612853646278381f;
  sum = std::fma(sum, rest, 0.00139304355252534151077271f);
  sum = std::fma(sum, rest, 0.00833336077630519866943359f);
  sum = std::fma(sum, rest, 0.0416664853692054748535156f);
  sum = std::fma(sum, rest, 0.166666671633720397949219f);
  sum = std::fma(sum, rest, 0.5f);
  sum = 1.0f + std::fma(rest * rest, sum, rest);
  const float half = sum * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + (126u << 23));
  return 1.0f / (1.0f + (half + half));
}

// The same by calls of Sleef's exp of so many values at once. Rows reach beyond their width.
template <typename T, int kLanes>
void sigmoids(const void* exp, int width, const T* from, T* to) {
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

// What every neuron model shares: the spike condition, the reset mechanisms, the options of a call.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <bit>
#include <cstdint>
#include <type_traits>

namespace snnfast {

enum class Reset { kSubtract, kZero, kNone };

struct NeuronOptions {
  Reset reset_mechanism;
  bool inclusive;  // fires at the threshold, not only above it

  C10_HOST_DEVICE bool subtracts() const { return reset_mechanism == Reset::kSubtract; }
  C10_HOST_DEVICE bool zeroes() const { return reset_mechanism == Reset::kZero; }
};

// An absent gradient: the one value that leaves every number it is added to as it was, -0 included.
template <typename T>
inline constexpr T kAbsent = -T(0);

template <typename T>
using BitsOf = std::conditional_t<sizeof(T) == sizeof(uint32_t), uint32_t, uint64_t>;

// Where autograd has no gradient it computes nothing, and a membrane that is NaN there makes no NaN.
template <typename T>
C10_HOST_DEVICE bool is_absent(T grad) {
  return std::bit_cast<BitsOf<T>>(grad) == std::bit_cast<BitsOf<T>>(kAbsent<T>);
}

// One of two values. By bits: of several choices by one condition the compiler makes branches, which do not vectorise.
template <typename T>
C10_HOST_DEVICE T chosen(bool first, T a, T b) {
  using Bits = BitsOf<T>;
  const Bits mask = Bits(0) - Bits(first);
  return std::bit_cast<T>((std::bit_cast<Bits>(a) & mask) | (std::bit_cast<Bits>(b) & ~mask));
}

// `nothing` where a gradient is absent, else `something`.
template <typename T>
C10_HOST_DEVICE T if_absent(T grad, T nothing, T something) {
  return chosen(is_absent(grad), nothing, something);
}

// A gradient that is not absent, even where it is -0.
template <typename T>
C10_HOST_DEVICE T reached_by(T grad) {
  return grad + T(0);
}

// Heaviside step of mem - threshold: 0 for NaN; at 0 it is 1 where inclusive.
template <typename T>
C10_HOST_DEVICE T fires(T mem_shift, bool inclusive) {
  return (mem_shift > T(0)) | (inclusive & (mem_shift == T(0))) ? T(1) : T(0);
}

// A factor that snnTorch clamps to [0, 1] at every step. Its gradient is that of the clamped value: whether the clamp
// lets it through is PyTorch's rule, for which Python clamps a factor that learns.
template <typename T>
struct Decay {
  T value;
  C10_HOST_DEVICE explicit Decay(T factor) : value(factor < T(0) ? T(0) : (factor > T(1) ? T(1) : factor)) {}
};

}  // namespace snnfast

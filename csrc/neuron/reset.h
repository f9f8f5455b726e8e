// The spike condition and the reset mechanisms that every neuron model shares.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <array>
#include <string_view>

namespace snnfast {

enum class Reset { kSubtract, kZero, kNone };

inline constexpr std::array<std::pair<std::string_view, Reset>, 3> kResets{{
    {"subtract", Reset::kSubtract},
    {"zero", Reset::kZero},
    {"none", Reset::kNone},
}};

// Heaviside step of mem - threshold: strictly greater, and 0 for NaN.
template <typename T>
C10_HOST_DEVICE T fires(T mem_shift) {
  return mem_shift > T(0) ? T(1) : T(0);
}

}  // namespace snnfast

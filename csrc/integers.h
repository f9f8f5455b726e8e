// Arithmetic of sizes.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>

namespace snnfast {

// a / b, rounded up. a: 0 or more; up to the largest integer there is.
C10_HOST_DEVICE constexpr int64_t divided_up(int64_t a, int64_t b) { return a / b + (a % b != 0); }

}  // namespace snnfast

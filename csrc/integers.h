// Arithmetic of sizes.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>

namespace snnfast {

C10_HOST_DEVICE constexpr int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace snnfast

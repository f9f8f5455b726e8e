// Tensors for an operator's results on the CPU, large ones in memory of our own.
#pragma once

#include "../op/tensors.h"

namespace snnfast {

// As new_empty.
Tensor fresh(const Tensor& like, Sizes sizes, ScalarType dtype);

}  // namespace snnfast

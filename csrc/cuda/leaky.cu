#include <torch/csrc/stable/library.h>

#include "../op/leaky.h"
#include "backend.cuh"

STABLE_TORCH_LIBRARY_IMPL(snnfast, CUDA, m) {
  m.impl("leaky_fwd", TORCH_BOX(&snnfast::leaky_fwd<snnfast::Cuda>));
  m.impl("leaky_bwd", TORCH_BOX(&snnfast::leaky_bwd<snnfast::Cuda>));
}

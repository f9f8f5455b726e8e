#include "../op/leaky.h"

#include <torch/csrc/stable/library.h>

#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(snnfast, CPU, m) {
  m.impl("leaky_fwd", TORCH_BOX(&snnfast::leaky_fwd<snnfast::Cpu>));
  m.impl("leaky_bwd", TORCH_BOX(&snnfast::leaky_bwd<snnfast::Cpu>));
}

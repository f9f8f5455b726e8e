// Which GPUs this binary has kernels for.
#pragma once

namespace snnfast {

// The compute capabilities that the kernels were compiled for: "8.0, 9.0".
const char* architectures();

// CUDA's word for why no kernel of this binary runs on a device; null: they run.
const char* why_no_kernel_runs(int device);

}  // namespace snnfast

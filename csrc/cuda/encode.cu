#include <algorithm>

#include "../op/encode.h"
#include "backend.cuh"

namespace snnfast {
namespace {

template <typename Code>
__global__ void __launch_bounds__(kThreads, 1) encode_kernel(const Code code) {
  for (int64_t row = blockIdx.y; row < code.rows(); row += gridDim.y) {
    for_neurons<1>(code.neurons, [&](int64_t i) { code.encode(row, i); });
  }
}

struct CudaEncoders : Cuda {
  template <typename Code>
  static void encode(const Tensor& on, const Code& code) {
    constexpr int64_t kMaxRows = 65535;  // of a grid
    Grid many = grid(on, code.neurons, 1);
    many.rows = std::min(code.rows(), kMaxRows);
    launch(on, many, encode_kernel<Code>, code);
  }
};

}  // namespace
}  // namespace snnfast

SNNFAST_ENCODERS(CUDA, CudaEncoders)

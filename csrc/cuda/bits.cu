#include "../op/bits.h"
#include "backend.cuh"

namespace snnfast {
namespace {

// A warp packs 32 spikes at once, four bytes.
template <typename S>
__global__ void __launch_bounds__(kThreads, 1) pack_kernel(const Packing<S> packing) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x, bytes = bytes_of(packing.spikes);
  // The whole warp goes round: a ballot needs every lane.
  for (int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x - lane; first < packing.spikes; first += stride) {
    const int64_t i = first + lane;
    const unsigned word = __ballot_sync(~0u, i < packing.spikes && packing.fired(i));
    const int64_t byte = first / kByte + lane;
    if (lane < kWarp / kByte && byte < bytes) packing.bits[byte] = static_cast<uint8_t>(word >> kByte * lane);
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, 1) unpack_kernel(const Unpacking<S> unpacking) {
  for_neurons<1>(unpacking.spikes, [&](int64_t i) { unpacking.unpack(i); });
}

struct CudaBits : Cuda {
  template <typename S>
  static void pack(const Tensor& on, const Packing<S>& packing) {
    launch(on, grid(on, packing.spikes, 1), pack_kernel<S>, packing);
  }

  template <typename S>
  static void unpack(const Tensor& on, const Unpacking<S>& unpacking) {
    launch(on, grid(on, unpacking.spikes, 1), unpack_kernel<S>, unpacking);
  }
};

}  // namespace
}  // namespace snnfast

SNNFAST_BITS(CUDA, CudaBits)

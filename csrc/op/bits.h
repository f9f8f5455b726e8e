// The operators that keep spikes as bits, over any backend: checks, allocation, dispatch.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../checks.h"
#include "../dispatch.h"
#include "../encode/bits.h"
#include "tensors.h"

namespace snnfast {

template <typename Backend>
struct BitsOp {
  using SpikeTypes = std::tuple<float, double, Half, BFloat16>;

  // spk [...] -> a bit of each that is not 0, in row-major order
  static Tensor pack(Tensor spk) {
    spk = readable(spk);
    const int64_t spikes = spk.numel(), bytes = bytes_of(spikes);
    const Tensor bits = Backend::empty(spk, Sizes(&bytes, 1), ScalarType::Byte);
    dispatch_dtype<SpikeTypes>(spk.scalar_type(), [&](auto spike) {
      using S = decltype(spike);
      if (spikes > 0) Backend::pack(spk, Packing<S>{spikes, data<S>(spk), mutable_data<uint8_t>(bits)});
    });
    return bits;
  }

  // height, laid out over the trailing dimensions of `shape` -> [*shape]: a spike of this height for a bit, else 0
  static Tensor unpack(Tensor bits, Tensor height, std::vector<int64_t> shape) {
    const int64_t spikes = checked_numel("shape", shape);
    check_tensor("bits", bits, height, ScalarType::Byte, bytes_of(spikes));
    check_param("height", height, bits, height.scalar_type(), spikes);
    bits = readable(bits);
    height = readable(height);
    const Tensor spk = Backend::empty(bits, shape, height.scalar_type());
    dispatch_dtype<SpikeTypes>(height.scalar_type(), [&](auto spike) {
      using S = decltype(spike);
      const Unpacking<S> unpacking{spikes, data<uint8_t>(bits), periodic<S>(height), mutable_data<S>(spk)};
      if (spikes > 0) Backend::unpack(bits, unpacking);
    });
    return spk;
  }
};

}  // namespace snnfast

// Registers the operators for a device: SNNFAST_BITS(CPU, CpuBits).
#define SNNFAST_BITS(DEVICE, BACKEND)                \
  STABLE_TORCH_LIBRARY_IMPL(snnfast, DEVICE, m) {    \
    using Op = snnfast::BitsOp<snnfast::BACKEND>;    \
    m.impl("pack_spikes", TORCH_BOX(&Op::pack));     \
    m.impl("unpack_spikes", TORCH_BOX(&Op::unpack)); \
  }

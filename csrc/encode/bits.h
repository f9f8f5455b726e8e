// Spikes as one bit each: spike i is bit i % 8 of byte i / 8, and what the last byte has beyond the last spike is 0.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>

#include "../dispatch.h"
#include "../integers.h"
#include "../op/scan.h"

namespace snnfast {

inline constexpr int kByte = 8;

C10_HOST_DEVICE inline int64_t bytes_of(int64_t spikes) { return divided_up(spikes, kByte); }

template <typename S>
struct Packing {
  int64_t spikes;
  const S* spk;
  uint8_t* bits;

  C10_HOST_DEVICE bool fired(int64_t i) const { return static_cast<StateOf<S>>(spk[i]) != 0; }
};

template <typename S>
struct Unpacking {
  int64_t spikes;
  const uint8_t* bits;
  Periodic<S> height;  // of a spike
  S* spk;

  C10_HOST_DEVICE void unpack(int64_t i) const { spk[i] = bits[i / kByte] >> i % kByte & 1 ? height[i] : S(0); }
};

}  // namespace snnfast

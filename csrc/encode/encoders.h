// The encoders: what each makes of data, and of which data one spike is made. Sequences are [steps, neurons].
//
// An encoder is done row by row, each a step or, in RateCode, the steps of one draw: `encode(row, i)` writes neuron i's
// spikes of a row, whatever was written before.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>
#include <type_traits>

#include "../integers.h"
#include "../op/scan.h"
#include "philox.h"

namespace snnfast {

// Spikes with the probability clamp(gain * x + offset, 0, 1); never for NaN.
template <typename T>
struct Odds {
  T gain, offset;

  // How many of the 2^30 equally likely draws fire: their share of p, rounded up.
  C10_HOST_DEVICE int32_t firing(T x) const {
    const T p = x * gain + offset;
    const T positive = p > T(0) ? p : T(0);
    const T share = (positive < T(1) ? positive : T(1)) * T(1 << 30);
    const int32_t whole = static_cast<int32_t>(share);
    return whole + (static_cast<T>(whole) < share);
  }
};

C10_HOST_DEVICE inline bool fires(uint32_t word, int32_t firing) { return static_cast<int32_t>(word >> 2) < firing; }

// Draws for the steps kWords * row and on come from the counter (i, row). X: type of the data, T: of the probability.
template <typename X, typename S, typename T>
struct RateCode {
  int64_t steps, neurons;
  int64_t silent;  // steps before the first that may fire
  Rows<X> x;       // of the steps after those
  const int64_t* seed;
  Odds<T> odds;
  S* spk;

  C10_HOST_DEVICE int64_t rows() const { return divided_up(steps, kWords); }

  C10_HOST_DEVICE int32_t firing(int64_t step, int64_t i) const {
    return odds.firing(static_cast<T>(x.at(step - silent)[i]));
  }

  C10_HOST_DEVICE void encode(int64_t row, int64_t i) const {
    uint64_t words[kWords];
    philox(static_cast<uint64_t>(*seed), static_cast<uint64_t>(i), static_cast<uint64_t>(row), words);
    for (int word = 0; word < kWords; ++word) {
      const int64_t step = row * kWords + word;
      if (step >= steps) return;
      const bool fired = step >= silent && fires(static_cast<uint32_t>(words[word]), firing(step, i));
      spk[step * neurons + i] = fired ? S(1) : S(0);
    }
  }
};

// `on` in the step of a neuron's one spike, `off` in all others; a time that is no step of the sequence is no spike.
template <typename T, typename S>
struct LatencyCode {
  int64_t steps, neurons;
  const T* times;  // [neurons], whole numbers
  bool ramp;       // whether a line leads from `off` at step 0 to the spike
  T on, off, rise;
  S* spk;

  C10_HOST_DEVICE int64_t rows() const { return steps; }

  C10_HOST_DEVICE void encode(int64_t step, int64_t i) const {
    const T time = times[i], now = static_cast<T>(step);
    T value = time == now ? on : off;
    // The reciprocal, since PyTorch divides a number by a tensor so.
    if (ramp && now < time && time < static_cast<T>(steps)) value = T(1) / time * now * rise + off;
    spk[step * neurons + i] = static_cast<S>(value);
  }
};

// 1 where x rises by the threshold or more from one step to the next, -1 with `off_spike` where it falls so.
template <typename X, typename S>
struct DeltaCode {
  int64_t steps, neurons;
  const X* x;  // [steps, neurons]
  X threshold;
  bool padding;  // before the first step: the same data; else zeros
  bool off_spike;
  S* spk;

  C10_HOST_DEVICE int64_t rows() const { return steps; }

  C10_HOST_DEVICE void encode(int64_t step, int64_t i) const {
    const int64_t at = step * neurons + i;
    const X now = x[at];
    const X before = step > 0 ? x[at - neurons] : (padding ? now : X(0));
    const X change = now - before;
    const int rises = change >= threshold, falls = off_spike && change <= -threshold;
    spk[at] = static_cast<S>(static_cast<float>(rises - falls));
  }
};

}  // namespace snnfast

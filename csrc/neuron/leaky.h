// The leaky integrate-and-fire neuron of snnTorch 1.0.0 (snntorch.Leaky), one time step forward and backward:
//
//   charge[t] = clamp(beta, 0, 1) * mem[t-1] + x[t] - R[t] * threshold   subtract
//   charge[t] = clamp(beta, 0, 1) * (1 - R[t]) * mem[t-1] + x[t]         zero
//   charge[t] = clamp(beta, 0, 1) * mem[t-1] + x[t]                      none
//
// and fires as firing.h says.
#pragma once

#include "firing.h"

namespace snnfast {

template <typename T, bool kDelay>
struct Leaky {
  using Scalar = T;
  enum Param { kBeta, kThreshold, kGradedSpikesFactor, kParams };
  enum State { kMem, kStates };
  enum Carry { kCarries = kStates };
  static constexpr const char* kParamNames[] = {"beta", "threshold", "graded_spikes_factor"};
  static constexpr const char* kStateNames[] = {"mem"};
  static constexpr State kCarriedTo[] = {kMem};
  static constexpr int kNeeded = 1;
  static constexpr int kExtras = Firing<T, kDelay>::kExtras;

  Decay<T> beta;
  Firing<T, kDelay> firing;

  C10_HOST_DEVICE Leaky(const T* params, NeuronOptions options)
      : beta(params[kBeta]), firing{params[kThreshold], params[kGradedSpikesFactor], options} {}

  C10_HOST_DEVICE T step(T x, T* state, T* extra) const {
    const T reset = firing.above(state[kMem]);
    T mem = (beta.value * kept(state[kMem], reset)) + x;
    if (firing.options.subtracts()) mem = mem - reset * firing.threshold;
    const T spk = firing.fire(mem, reset, extra);
    state[kMem] = mem;
    return spk;
  }

  template <typename Surrogate>
  C10_HOST_DEVICE T step_backward(const Surrogate& surrogate, T grad_spk, T evaluated, const T* state, const T* extra,
                                  const T* previous, T* carry, T* grad_params) const {
    const T reset = firing.above(previous[kMem]);
    const T grad = firing.backward(surrogate, grad_spk, evaluated, state[kMem], extra, reset, carry[kMem],
                                   grad_params[kThreshold], grad_params[kGradedSpikesFactor]);
    if (firing.options.subtracts()) grad_params[kThreshold] = grad_params[kThreshold] - grad * reset;
    grad_params[kBeta] = grad * kept(previous[kMem], reset);
    carry[kMem] = firing.options.zeroes() ? grad * beta.value * (T(1) - reset) : grad * beta.value;
    return grad;
  }

 private:
  C10_HOST_DEVICE T kept(T mem, T reset) const { return firing.options.zeroes() ? (T(1) - reset) * mem : mem; }
};

}  // namespace snnfast

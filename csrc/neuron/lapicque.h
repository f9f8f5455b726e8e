// Lapicque's RC neuron of snnTorch 1.0.0 (snntorch.Lapicque):
//
//   base      = x[t] * R * (1 / (R C)) * time_step + (1 - time_step / (R C)) * mem[t-1]
//   charge[t] = base - R[t] * threshold   subtract;   base - R[t] * base   zero;   base   none
//
// and fires as firing.h says, always with the reset delay. The constants arrive as the tensors snnTorch makes of them.
#pragma once

#include "firing.h"

namespace snnfast {

template <typename T, bool>
struct Lapicque {
  using Scalar = T;
  enum Param { kResistance, kRate, kTimeStep, kDecay, kThreshold, kGradedSpikesFactor, kParams };
  enum State { kMem, kStates };
  // snnTorch resets to zero with a second evaluation of the step, whose gradients arrive first.
  enum Carry { kMemAgain = kStates, kCarries };
  static constexpr const char* kParamNames[] = {"R", "rate", "time_step", "decay", "threshold", "graded_spikes_factor"};
  static constexpr const char* kStateNames[] = {"mem"};
  static constexpr State kCarriedTo[] = {kMem, kMem};
  static constexpr int kNeeded = 1;
  static constexpr int kExtras = 0;

  T resistance, rate, time_step, decay;
  Firing<T, true> firing;

  C10_HOST_DEVICE Lapicque(const T* params, NeuronOptions options)
      : resistance(params[kResistance]),
        rate(params[kRate]),
        time_step(params[kTimeStep]),
        decay(params[kDecay]),
        firing{params[kThreshold], params[kGradedSpikesFactor], options} {}

  C10_HOST_DEVICE T step(T x, T* state, T* extra) const {
    const T reset = firing.above(state[kMem]);
    T mem = ((x * resistance) * rate) * time_step + decay * state[kMem];
    if (firing.options.subtracts()) mem = mem - reset * firing.threshold;
    if (firing.options.zeroes()) mem = mem - reset * mem;
    const T spk = firing.fire(mem, reset, extra);
    state[kMem] = mem;
    return spk;
  }

  template <typename Surrogate>
  C10_HOST_DEVICE T step_backward(const Surrogate& surrogate, T grad_spk, T evaluated, const T* state, const T* extra,
                                  const T* previous, T* carry, T* grad_params) const {
    const T reset = firing.above(previous[kMem]);
    const T grad =
        firing.backward(surrogate, grad_spk, evaluated, state[kMem], extra, reset, carry[kMem] + carry[kMemAgain],
                        grad_params[kThreshold], grad_params[kGradedSpikesFactor]);
    const T again = firing.options.zeroes() ? -grad * reset : -T(0);
    const T grad_base = again + grad;
    // What the current added, found again in the membrane; where a reset to zero took it, grad_base is zero.
    const T base = firing.options.subtracts() ? state[kMem] + reset * firing.threshold : state[kMem];
    const T grad_log = grad_base * (base - decay * previous[kMem]);
    if (firing.options.subtracts()) grad_params[kThreshold] = grad_params[kThreshold] - grad * reset;
    grad_params[kResistance] = grad_log / resistance;
    grad_params[kRate] = grad_log / rate;
    grad_params[kTimeStep] = grad_log / time_step;
    grad_params[kDecay] = grad_base * previous[kMem];
    carry[kMem] = again * decay;
    carry[kMemAgain] = grad * decay;
    return ((again * time_step) * rate) * resistance + ((grad * time_step) * rate) * resistance;
  }
};

}  // namespace snnfast

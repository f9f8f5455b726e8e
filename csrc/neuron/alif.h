// The adaptive leaky integrate-and-fire neuron of Bellec et al. (2018, LSNN; 2020, e-prop): every spike adds to a trace
// that raises the threshold and decays.
//
//   charge[t]     = clamp(beta, 0, 1) * mem[t-1] + x[t]
//   spike[t]      = H(charge[t] - (threshold + strength * adaptation[t-1]))
//   mem[t]        = charge[t] - spike[t] * threshold   subtract;   (1 - spike[t]) * charge[t]   zero;   charge[t] none
//   adaptation[t] = clamp(rho, 0, 1) * adaptation[t-1] + spike[t]
//
// The output is spike[t] * graded_spikes_factor. As in both papers the spike's surrogate gradient flows through the
// adaptation, and as in e-prop none through the reset. Backward adds in the order of the reference loop's graph.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include "reset.h"

namespace snnfast {

template <typename T, bool>
struct Alif {
  using Scalar = T;
  enum Param { kBeta, kRho, kStrength, kThreshold, kGradedSpikesFactor, kParams };
  enum State { kMem, kAdaptation, kStates };
  enum Carry { kCarries = kStates };
  static constexpr const char* kParamNames[] = {"beta", "rho", "strength", "threshold", "graded_spikes_factor"};
  static constexpr const char* kStateNames[] = {"mem", "adaptation"};
  static constexpr State kCarriedTo[] = {kMem, kAdaptation};
  static constexpr int kNeeded = 2;
  static constexpr int kExtras = 1;  // the charge

  Decay<T> beta, rho;
  T strength, threshold, graded_spikes_factor;
  NeuronOptions options;

  C10_HOST_DEVICE Alif(const T* params, NeuronOptions options)
      : beta(params[kBeta]),
        rho(params[kRho]),
        strength(params[kStrength]),
        threshold(params[kThreshold]),
        graded_spikes_factor(params[kGradedSpikesFactor]),
        options(options) {}

  C10_HOST_DEVICE T step(T x, T* state, T* extra) const {
    const T charge = beta.value * state[kMem] + x;
    const T spike = fires(above(charge, state[kAdaptation]), options.inclusive);
    extra[0] = charge;
    state[kMem] = options.subtracts() ? charge - spike * threshold : kept(spike) * charge;
    state[kAdaptation] = rho.value * state[kAdaptation] + spike;
    return spike * graded_spikes_factor;
  }

  template <typename Surrogate>
  C10_HOST_DEVICE T step_backward(const Surrogate& surrogate, T grad_spk, T evaluated, const T*, const T* extra,
                                  const T* previous, T* carry, T* grad_params) const {
    const T u = above(extra[0], previous[kAdaptation]);
    const T spike = fires(u, options.inclusive);
    const T grad_adaptation = carry[kAdaptation];
    const T with_output = reached_by(grad_spk * graded_spikes_factor + grad_adaptation);
    const T grad_spike = if_absent(grad_spk, grad_adaptation, with_output);
    const T through_spike = surrogate.backward(grad_spike, u, evaluated);
    const T grad_u = if_absent(grad_spike, kAbsent<T>, through_spike);
    const T grad_charge = carry[kMem] * kept(spike) + grad_u;
    grad_params[kBeta] = grad_charge * previous[kMem];
    grad_params[kRho] = grad_adaptation * previous[kAdaptation];
    grad_params[kStrength] = -grad_u * previous[kAdaptation];
    grad_params[kThreshold] = options.subtracts() ? -grad_u - carry[kMem] * spike : -grad_u;
    grad_params[kGradedSpikesFactor] = grad_spk * spike;
    carry[kMem] = grad_charge * beta.value;
    const T to_adaptation = grad_adaptation * rho.value + -grad_u * strength;
    carry[kAdaptation] = if_absent(grad_spike, kAbsent<T>, to_adaptation);
    return grad_charge;
  }

 private:
  C10_HOST_DEVICE T above(T charge, T adaptation) const { return charge - (threshold + strength * adaptation); }

  // What a reset to zero leaves of the charge.
  C10_HOST_DEVICE T kept(T spike) const { return options.zeroes() ? T(1) - spike : T(1); }
};

}  // namespace snnfast

// The alpha-function neuron of snnTorch 1.0.0 (snntorch.Alpha): an excitatory and an inhibitory current make the
// membrane.
//
//   exc = clamp(alpha, 0, 1) * syn_exc[t-1] + x[t]
//   inh = clamp(beta, 0, 1) * syn_inh[t-1] - x[t]
//   mem = tau_alpha * (exc + inh)
//   zero:      each of the three minus R[t] times itself
//   subtract:  exc - threshold * R[t];   inh - inh * R[t];   mem + syn_inh[t-1] * R[t]
//
// and fires as firing.h says, always with the reset delay. tau_alpha, a function of alpha and beta, comes from Python.
#pragma once

#include "firing.h"

namespace snnfast {

template <typename T, bool>
struct Alpha {
  using Scalar = T;
  enum Param { kAlpha, kBeta, kTau, kThreshold, kGradedSpikesFactor, kParams };
  enum State { kMem, kExc, kInh, kStates };
  // The terms in which snnTorch's graph hands gradients to the step before.
  enum Carry { kExcAgain = kStates, kInhAgain, kInhThird, kCarries };
  static constexpr const char* kParamNames[] = {"alpha", "beta", "tau_alpha", "threshold", "graded_spikes_factor"};
  static constexpr const char* kStateNames[] = {"mem", "syn_exc", "syn_inh"};
  static constexpr State kCarriedTo[] = {kMem, kExc, kInh, kExc, kInh, kInh};
  static constexpr int kNeeded = 1;
  static constexpr int kExtras = 0;

  Decay<T> alpha, beta;
  T tau;
  Firing<T, true> firing;

  C10_HOST_DEVICE Alpha(const T* params, NeuronOptions options)
      : alpha(params[kAlpha]),
        beta(params[kBeta]),
        tau(params[kTau]),
        firing{params[kThreshold], params[kGradedSpikesFactor], options} {}

  C10_HOST_DEVICE T step(T x, T* state, T* extra) const {
    const T reset = firing.above(state[kMem]);
    T exc = alpha.value * state[kExc] + x;
    T inh = beta.value * state[kInh] - x;
    T mem = tau * (exc + inh);
    if (firing.options.subtracts()) {
      exc = exc - firing.threshold * reset;
      inh = inh - inh * reset;
      mem = mem - -state[kInh] * reset;
    }
    if (firing.options.zeroes()) {
      exc = exc - exc * reset;
      inh = inh - inh * reset;
      mem = mem - mem * reset;
    }
    const T spk = firing.fire(mem, reset, extra);
    state[kMem] = mem;
    state[kExc] = exc;
    state[kInh] = inh;
    return spk;
  }

  template <typename Surrogate>
  C10_HOST_DEVICE T step_backward(const Surrogate& surrogate, T grad_spk, T evaluated, const T* state, const T* extra,
                                  const T* previous, T* carry, T* grad_params) const {
    const bool zeroes = firing.options.zeroes(), subtracts = firing.options.subtracts();
    const T reset = firing.above(previous[kMem]);
    const T grad = firing.backward(surrogate, grad_spk, evaluated, state[kMem], extra, reset, carry[kMem],
                                   grad_params[kThreshold], grad_params[kGradedSpikesFactor]);
    const T grad_exc = carry[kExc] + carry[kExcAgain];
    const T grad_inh = (carry[kInh] + carry[kInhAgain]) + carry[kInhThird];
    const T exc = grad_exc + grad * tau;
    const T inh = grad_inh + grad * tau;
    const T mem_again = -grad * reset;
    const T exc_again = zeroes ? -grad_exc * reset + mem_again * tau : -T(0);
    const T inh_alone = subtracts ? -grad_inh * reset : -T(0);
    const T inh_again = zeroes ? -grad_inh * reset + mem_again * tau : inh_alone;
    const T charged = subtracts ? state[kMem] - previous[kInh] * reset : state[kMem];
    grad_params[kThreshold] = subtracts ? grad_params[kThreshold] - grad_exc * reset : grad_params[kThreshold];
    grad_params[kAlpha] = (exc + exc_again) * previous[kExc];
    grad_params[kBeta] = (inh + inh_again) * previous[kInh];
    grad_params[kTau] = (zeroes ? grad + mem_again : grad) * (charged / tau);
    carry[kMem] = -T(0);
    carry[kExc] = exc_again * alpha.value;
    carry[kExcAgain] = exc * alpha.value;
    carry[kInh] = subtracts ? -mem_again : -T(0);
    carry[kInhAgain] = inh_again * beta.value;
    carry[kInhThird] = inh * beta.value;
    return ((-inh_again + exc_again) - inh) + exc;
  }
};

}  // namespace snnfast

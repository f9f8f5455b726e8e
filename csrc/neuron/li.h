// The leaky integrator of Norse 1.1.0 (norse/torch/functional/leaky_integrator.py), one time step forward and backward:
//
//   jump = i[t-1] + x[t]
//   v[t] = v[t-1] + mem_rate * ((v_leak - v[t-1]) + jump)
//   i[t] = jump - syn_rate * jump
//
// It never fires: its output is v[t].
#pragma once

#include "synapse.h"

namespace snnfast {

template <typename T, bool kDelay>
struct Li {
  using Scalar = T;
  enum Param { kMemRate, kSynRate, kVLeak, kParams };
  enum State { kI, kV, kStates };
  enum Carry { kLeaked = kStates, kCarries };
  static constexpr const char* kParamNames[] = {"mem_rate", "syn_rate", "v_leak"};
  static constexpr const char* kStateNames[] = {"i", "v"};
  static constexpr State kCarriedTo[] = {kI, kV, kV};
  static constexpr int kNeeded = 0;
  static constexpr int kExtras = 0;
  static constexpr bool kSpikes = false;

  Synapse<T> synapse;

  C10_HOST_DEVICE Li(const T* params, NeuronOptions) : synapse{params[kMemRate], params[kSynRate], params[kVLeak]} {}

  C10_HOST_DEVICE T step(T x, T* state, T*) const {
    const T jump = state[kI] + x;
    state[kV] = synapse.integrate(state[kV], jump);
    state[kI] = synapse.decay(jump);
    return state[kV];
  }

  template <typename Surrogate>
  C10_HOST_DEVICE T step_backward(const Surrogate&, T grad_output, T, const T* state, const T*, const T* previous,
                                  T* carry, T* grad_params) const {
    carry[kV] = (grad_output + carry[kV]) + carry[kLeaked];
    const T jump = synapse.jump(state[kI], state[kV], previous[kV]);
    return synapse.backward(carry[kV], jump, previous[kV], carry[kLeaked], carry[kI], grad_params[kMemRate],
                            grad_params[kSynRate], grad_params[kVLeak]);
  }
};

}  // namespace snnfast

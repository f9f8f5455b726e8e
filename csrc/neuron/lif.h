// The current-based LIF neuron of Norse 1.1.0 (norse/torch/functional/lif.py), one time step forward and backward:
//
//   jump     = i[t-1] + x[t] (+ rec[t])
//   decayed  = v[t-1] + mem_rate * ((v_leak - v[t-1]) + jump)
//   spk[t]   = H(decayed - v_th)
//   v[t]     = (1 - spk[t]) * decayed + spk[t] * v_reset
//   i[t]     = jump - syn_rate * jump
//
// Operations stand in Norse's order and are rounded one by one; backward adds in the order of its autograd graph, whose
// reset has a gradient in the feed-forward neuron and none in the recurrent one.
#pragma once

#include "synapse.h"

namespace snnfast {

template <typename T, bool kRecur>
struct CurrentBasedLif {
  using Scalar = T;
  enum Param { kMemRate, kSynRate, kVLeak, kVTh, kVReset, kParams };
  enum State { kV, kI, kStates };
  enum Carry { kLeaked = kStates, kCarries };
  static constexpr const char* kParamNames[] = {"mem_rate", "syn_rate", "v_leak", "v_th", "v_reset"};
  static constexpr const char* kStateNames[] = {"v", "i"};
  static constexpr State kCarriedTo[] = {kV, kI, kV};
  static constexpr int kNeeded = 0;
  static constexpr int kExtras = 1;  // the decayed voltage, which fires
  static constexpr bool kRecurrent = kRecur;

  Synapse<T> synapse;
  T v_th, v_reset;
  bool inclusive;

  C10_HOST_DEVICE CurrentBasedLif(const T* params, NeuronOptions options)
      : synapse{params[kMemRate], params[kSynRate], params[kVLeak]},
        v_th(params[kVTh]),
        v_reset(params[kVReset]),
        inclusive(options.inclusive) {}

  C10_HOST_DEVICE T step(T x, T* state, T* extra) const { return jumped(state[kI] + x, state, extra); }

  C10_HOST_DEVICE T step(T x, T rec, T* state, T* extra) const { return jumped((state[kI] + x) + rec, state, extra); }

  template <typename Surrogate>
  C10_HOST_DEVICE T step_backward(const Surrogate& surrogate, T grad_spk, T evaluated, const T* state, const T* extra,
                                  const T* previous, T* carry, T* grad_params) const {
    const T decayed = extra[0];
    const T u = decayed - v_th;
    const T spk = fires(u, inclusive);
    const T grad_v = carry[kV] + carry[kLeaked];
    if constexpr (!kRecur) {
      const T with_reset = reached_by((grad_spk + grad_v * v_reset) - grad_v * decayed);
      grad_spk = if_absent(grad_v, grad_spk, with_reset);
    }
    const T through_spike = surrogate.backward(grad_spk, u, evaluated);
    const T grad_u = if_absent(grad_spk, kAbsent<T>, through_spike);
    const T grad_decayed = grad_v * (T(1) - spk) + grad_u;
    grad_params[kVTh] = -grad_u;
    grad_params[kVReset] = grad_v * spk;
    carry[kV] = grad_decayed;
    const T jump = synapse.jump(state[kI], decayed, previous[kV]);
    return synapse.backward(grad_decayed, jump, previous[kV], carry[kLeaked], carry[kI], grad_params[kMemRate],
                            grad_params[kSynRate], grad_params[kVLeak]);
  }

  template <typename Surrogate>
  C10_HOST_DEVICE T step_backward(const Surrogate& surrogate, T grad_spk, T evaluated, const T* state, const T* extra,
                                  const T* previous, T* carry, T* grad_params, T* grad_rec) const {
    grad_rec[0] = step_backward(surrogate, grad_spk, evaluated, state, extra, previous, carry, grad_params);
    grad_rec[1] = -T(0);
    return grad_rec[0];
  }

 private:
  C10_HOST_DEVICE T jumped(T jump, T* state, T* extra) const {
    const T decayed = synapse.integrate(state[kV], jump);
    const T spk = fires(decayed - v_th, inclusive);
    extra[0] = decayed;
    state[kV] = (T(1) - spk) * decayed + spk * v_reset;
    state[kI] = synapse.decay(jump);
    return spk;
  }
};

template <typename T, bool kDelay>
using Lif = CurrentBasedLif<T, false>;

template <typename T, bool kDelay>
using LifRecurrent = CurrentBasedLif<T, true>;

}  // namespace snnfast

// The second-order neuron of snnTorch 1.0.0 (snntorch.Synaptic): a synaptic current that decays charges the membrane.
//
//   syn[t]    = clamp(alpha, 0, 1) * syn[t-1] + x[t]
//   charge[t] = clamp(beta, 0, 1) * mem[t-1] + syn[t]
//   charge[t] = charge[t] - R[t] * threshold   subtract;   charge[t] - R[t] * charge[t]   zero: of the membrane alone
//
// and fires as firing.h says. snntorch.RSynaptic is the same with rec[t], what its own spikes bring back, after x[t].
#pragma once

#include "firing.h"
#include "recurrence.h"

namespace snnfast {

template <typename T, bool kDelay, bool kTakesRec>
struct SecondOrder {
  using Scalar = T;
  enum Param { kAlpha, kBeta, kThreshold, kGradedSpikesFactor, kParams };
  enum State { kMem, kSyn, kStates };
  // snnTorch resets to zero with a second evaluation of the step, whose gradients arrive first.
  enum Carry { kMemAgain = kStates, kSynAgain, kCarries };
  static constexpr const char* kParamNames[] = {"alpha", "beta", "threshold", "graded_spikes_factor"};
  static constexpr const char* kStateNames[] = {"mem", "syn"};
  static constexpr State kCarriedTo[] = {kMem, kSyn, kMem, kSyn};
  static constexpr int kNeeded = 1;
  static constexpr int kExtras = Firing<T, kDelay>::kExtras;
  static constexpr bool kRecurrent = kTakesRec;

  Decay<T> alpha, beta;
  Firing<T, kDelay> firing;

  C10_HOST_DEVICE SecondOrder(const T* params, NeuronOptions options)
      : alpha(params[kAlpha]), beta(params[kBeta]), firing{params[kThreshold], params[kGradedSpikesFactor], options} {}

  C10_HOST_DEVICE T height() const { return firing.graded_spikes_factor; }

  C10_HOST_DEVICE T step(T x, T* state, T* extra) const { return charge(alpha.value * state[kSyn] + x, state, extra); }

  C10_HOST_DEVICE T step(T x, T rec, T* state, T* extra) const {
    return charge((alpha.value * state[kSyn] + x) + rec, state, extra);
  }

  template <typename Surrogate>
  C10_HOST_DEVICE T step_backward(const Surrogate& surrogate, T grad_spk, T evaluated, const T* state, const T* extra,
                                  const T* previous, T* carry, T* grad_params) const {
    T grad_rec[2];
    return step_backward(surrogate, grad_spk, evaluated, state, extra, previous, carry, grad_params, grad_rec);
  }

  template <typename Surrogate>
  C10_HOST_DEVICE T step_backward(const Surrogate& surrogate, T grad_spk, T evaluated, const T* state, const T* extra,
                                  const T* previous, T* carry, T* grad_params, T* grad_rec) const {
    const T reset = firing.above(previous[kMem]);
    const T grad =
        firing.backward(surrogate, grad_spk, evaluated, state[kMem], extra, reset, carry[kMem] + carry[kMemAgain],
                        grad_params[kThreshold], grad_params[kGradedSpikesFactor]);
    const T again = firing.options.zeroes() && !is_absent(grad) ? -grad * reset : -T(0);
    const T grad_syn = (carry[kSyn] + carry[kSynAgain]) + grad;
    if (firing.options.subtracts()) grad_params[kThreshold] = grad_params[kThreshold] - grad * reset;
    grad_params[kAlpha] = (again + grad_syn) * previous[kSyn];
    grad_params[kBeta] = (again + grad) * previous[kMem];
    carry[kMem] = again * beta.value;
    carry[kMemAgain] = grad * beta.value;
    carry[kSyn] = again * alpha.value;
    carry[kSynAgain] = grad_syn * alpha.value;
    grad_rec[0] = again;
    grad_rec[1] = grad_syn;
    return again + grad_syn;
  }

 private:
  C10_HOST_DEVICE T charge(T syn, T* state, T* extra) const {
    const T reset = firing.above(state[kMem]);
    T mem = beta.value * state[kMem] + syn;
    if (firing.options.subtracts()) mem = mem - reset * firing.threshold;
    if (firing.options.zeroes()) mem = mem - mem * reset;
    const T spk = firing.fire(mem, reset, extra);
    state[kMem] = mem;
    state[kSyn] = syn;
    return spk;
  }
};

template <typename T, bool kDelay>
using Synaptic = SecondOrder<T, kDelay, false>;

template <typename T, bool kDelay>
using RSynaptic = SecondOrder<T, kDelay, true>;

template <typename T, bool kDelay>
using RSynapticOneToOne = OneToOne<RSynaptic<T, kDelay>>;

}  // namespace snnfast

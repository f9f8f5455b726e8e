// The recurrent leaky neuron of snnTorch 1.0.0 (snntorch.RLeaky), given what its own spikes bring back, rec[t]:
//
//   base      = clamp(beta, 0, 1) * mem[t-1] + x[t] + rec[t]
//   charge[t] = base - R[t] * threshold   subtract;   base - R[t] * base   zero;   base   none
//
// and fires as firing.h says. Unlike Leaky's, its reset to zero takes the current along.
#pragma once

#include "firing.h"
#include "recurrence.h"

namespace snnfast {

template <typename T, bool kDelay>
struct RLeaky {
  using Scalar = T;
  enum Param { kBeta, kThreshold, kGradedSpikesFactor, kParams };
  enum State { kMem, kStates };
  // snnTorch resets to zero with a second evaluation of the step, whose gradients arrive first.
  enum Carry { kMemAgain = kStates, kCarries };
  static constexpr const char* kParamNames[] = {"beta", "threshold", "graded_spikes_factor"};
  static constexpr const char* kStateNames[] = {"mem"};
  static constexpr State kCarriedTo[] = {kMem, kMem};
  static constexpr int kNeeded = 1;
  static constexpr int kExtras = Firing<T, kDelay>::kExtras;
  static constexpr bool kRecurrent = true;

  Decay<T> beta;
  Firing<T, kDelay> firing;

  C10_HOST_DEVICE RLeaky(const T* params, NeuronOptions options)
      : beta(params[kBeta]), firing{params[kThreshold], params[kGradedSpikesFactor], options} {}

  C10_HOST_DEVICE T height() const { return firing.graded_spikes_factor; }

  C10_HOST_DEVICE T step(T x, T rec, T* state, T* extra) const {
    const T reset = firing.above(state[kMem]);
    T mem = (beta.value * state[kMem] + x) + rec;
    if (firing.options.subtracts()) mem = mem - reset * firing.threshold;
    if (firing.options.zeroes()) mem = mem - reset * mem;
    const T spk = firing.fire(mem, reset, extra);
    state[kMem] = mem;
    return spk;
  }

  template <typename Surrogate>
  C10_HOST_DEVICE T step_backward(const Surrogate& surrogate, T grad_spk, T evaluated, const T* state, const T* extra,
                                  const T* previous, T* carry, T* grad_params, T* grad_rec) const {
    const T reset = firing.above(previous[kMem]);
    const T grad =
        firing.backward(surrogate, grad_spk, evaluated, state[kMem], extra, reset, carry[kMem] + carry[kMemAgain],
                        grad_params[kThreshold], grad_params[kGradedSpikesFactor]);
    const T again = firing.options.zeroes() ? -grad * reset : -T(0);
    if (firing.options.subtracts()) grad_params[kThreshold] = grad_params[kThreshold] - grad * reset;
    grad_params[kBeta] = (again + grad) * previous[kMem];
    carry[kMem] = again * beta.value;
    carry[kMemAgain] = grad * beta.value;
    grad_rec[0] = again;
    grad_rec[1] = grad;
    return again + grad;
  }
};

template <typename T, bool kDelay>
using RLeakyOneToOne = OneToOne<RLeaky<T, kDelay>>;

}  // namespace snnfast

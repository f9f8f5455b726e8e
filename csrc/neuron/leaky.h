// The leaky integrate-and-fire neuron of snnTorch 1.0.0 (snntorch.Leaky), one time step forward and backward:
//
//   R[t]   = H(mem[t-1] - threshold)                                  the delayed reset, without gradient
//   mem[t] = clamp(beta, 0, 1) * mem[t-1] + x[t] - R[t] * threshold   subtract
//   mem[t] = clamp(beta, 0, 1) * (1 - R[t]) * mem[t-1] + x[t]         zero
//   mem[t] = clamp(beta, 0, 1) * mem[t-1] + x[t]                      none
//   spk[t] = H(mem[t] - threshold) * graded_spikes_factor
//
// Without the reset delay (kDelay = false) the membrane that fired, here `charge`, is reset in the same step:
//   D[t]   = spk[t] / graded_spikes_factor - R[t]
//   mem[t] = charge[t] - D[t] * threshold   subtract;   charge[t] - D[t] * charge[t]   zero
//
// Operations stand in snnTorch's order and are rounded one by one; backward adds in the order of its autograd graph.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include "reset.h"

namespace snnfast {

struct LeakyOptions {
  Reset reset_mechanism;
};

template <typename T, bool kDelay>
struct Leaky {
  using Scalar = T;
  using Options = LeakyOptions;
  enum Param { kBeta, kThreshold, kGradedSpikesFactor, kParams };
  enum State { kMem, kStates };
  enum Extra { kCharge };
  static constexpr int kExtras = kDelay ? 0 : 1;

  T beta, threshold, graded_spikes_factor;
  Reset reset_mechanism;

  C10_HOST_DEVICE Leaky(const T* params, Options options)
      : beta(params[kBeta]),
        threshold(params[kThreshold]),
        graded_spikes_factor(params[kGradedSpikesFactor]),
        reset_mechanism(options.reset_mechanism) {}

  // state: mem[t-1] on entry, mem[t] on exit. Returns spk[t].
  C10_HOST_DEVICE T step(T x, T* state, [[maybe_unused]] T* extra) const {
    const T reset = fires(state[kMem] - threshold);
    T mem = (decay() * kept(state[kMem], reset)) + x;
    if (subtracts()) mem = mem - reset * threshold;
    const T spk = fires(mem - threshold) * graded_spikes_factor;
    if constexpr (!kDelay) {
      extra[kCharge] = mem;
      const T again = spk / graded_spikes_factor - reset;
      if (subtracts()) mem = mem - again * threshold;
      if (zeroes()) mem = mem - again * mem;
    }
    state[kMem] = mem;
    return spk;
  }

  // state, extra: after step t; previous: mem[t-1]. grad_state: dL/dmem[t] on entry (from outside and from step t+1),
  // dL/dmem[t-1] on exit. grad_params: this step's share of the parameters' gradients. Returns dL/dx[t].
  template <typename Surrogate>
  C10_HOST_DEVICE T step_backward(const Surrogate& surrogate, T grad_spk, T evaluated, const T* state,
                                  [[maybe_unused]] const T* extra, const T* previous, T* grad_state,
                                  T* grad_params) const {
    const T reset = fires(previous[kMem] - threshold);
    T charge = state[kMem];
    if constexpr (!kDelay) charge = extra[kCharge];
    const T u = charge - threshold;
    T grad_mem = grad_state[kMem];
    T grad_threshold = -T(0);
    T grad_graded = -T(0);
    if constexpr (!kDelay) {
      const T fired = fires(u) * graded_spikes_factor / graded_spikes_factor;
      const T again = fired - reset;
      const T grad_reset = -grad_mem;
      T grad_again = -T(0);
      if (subtracts()) {
        grad_again = grad_reset * threshold;
        grad_threshold = grad_reset * again;
      }
      if (zeroes()) {
        grad_again = grad_reset * charge;
        grad_mem = grad_mem + grad_reset * again;
      }
      if (subtracts() || zeroes()) {
        grad_spk = grad_spk + grad_again / graded_spikes_factor;
        grad_graded = -grad_again * (fired / graded_spikes_factor);
      }
    }
    const T grad_u = surrogate.backward(grad_spk * graded_spikes_factor, u, evaluated);
    grad_mem = grad_mem + grad_u;
    grad_threshold = grad_threshold - grad_u;
    if (subtracts()) grad_threshold = grad_threshold - grad_mem * reset;
    grad_params[kThreshold] = grad_threshold;
    grad_params[kGradedSpikesFactor] = grad_graded + grad_spk * fires(u);
    grad_params[kBeta] = clamped() ? T(0) : grad_mem * kept(previous[kMem], reset);
    const T carry = grad_mem * decay();
    grad_state[kMem] = zeroes() ? carry * (T(1) - reset) : carry;
    return grad_mem;
  }

 private:
  C10_HOST_DEVICE bool subtracts() const { return reset_mechanism == Reset::kSubtract; }
  C10_HOST_DEVICE bool zeroes() const { return reset_mechanism == Reset::kZero; }
  C10_HOST_DEVICE bool clamped() const { return !(beta >= T(0) && beta <= T(1)); }
  C10_HOST_DEVICE T decay() const { return beta < T(0) ? T(0) : (beta > T(1) ? T(1) : beta); }
  C10_HOST_DEVICE T kept(T mem, T reset) const { return zeroes() ? (T(1) - reset) * mem : mem; }
};

}  // namespace snnfast

// How snnTorch 1.0.0's neurons fire (snntorch/_neurons/neurons.py), once their membrane is charged:
//
//   R[t]   = H(mem[t-1] - threshold)                                  the delayed reset, without gradient
//   spk[t] = H(charge[t] - threshold) * graded_spikes_factor
//   mem[t] = charge[t]                                                 with the reset delay, else
//   D[t]   = spk[t] / graded_spikes_factor - R[t]
//   mem[t] = charge[t] - D[t] * threshold   subtract;   charge[t] - D[t] * charge[t]   zero
//
// Operations stand in snnTorch's order and are rounded one by one; backward adds in the order of its autograd graph.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <limits>

#include "reset.h"

namespace snnfast {

template <typename T, bool kDelay>
struct Firing {
  static constexpr int kExtras = kDelay ? 0 : 1;  // the charge, where the membrane is not

  T threshold, graded_spikes_factor;
  NeuronOptions options;

  C10_HOST_DEVICE T above(T mem) const { return fires(mem - threshold, options.inclusive); }

  // (fired * graded_spikes_factor) / graded_spikes_factor to the bit, without a division: 0 or 1, and NaN where the
  // factor is 0, infinite or NaN.
  C10_HOST_DEVICE T ungraded(T fired) const {
    const bool finite = graded_spikes_factor - graded_spikes_factor == T(0);
    return finite & (graded_spikes_factor != T(0)) ? fired : std::numeric_limits<T>::quiet_NaN();
  }

  // mem: the charge on entry, mem[t] on exit. Returns spk[t].
  C10_HOST_DEVICE T fire(T& mem, [[maybe_unused]] T reset, [[maybe_unused]] T* extra) const {
    const T fired = above(mem);
    if constexpr (!kDelay) {
      extra[0] = mem;
      const T again = ungraded(fired) - reset;
      const T taken = options.subtracts() ? threshold : mem;
      mem = options.subtracts() | options.zeroes() ? mem - again * taken : mem;
    }
    return fired * graded_spikes_factor;
  }

  // grad_mem: dL/dmem[t]. Returns dL/dcharge[t].
  template <typename Surrogate>
  C10_HOST_DEVICE T backward(const Surrogate& surrogate, T grad_spk, T evaluated, T mem,
                             [[maybe_unused]] const T* extra, [[maybe_unused]] T reset, T grad_mem, T& grad_threshold,
                             T& grad_graded) const {
    T charge = mem;
    if constexpr (!kDelay) charge = extra[0];
    const T u = charge - threshold;
    const T fired = fires(u, options.inclusive);
    bool reached = !is_absent(grad_spk);
    grad_threshold = -T(0);
    grad_graded = -T(0);
    if constexpr (!kDelay) {
      const T spike = ungraded(fired);
      const T again = spike - reset;
      const T grad_reset = -grad_mem;
      const bool by_mem = !is_absent(grad_mem);
      const bool subtracts = options.subtracts() & by_mem, zeroes = options.zeroes() & by_mem;
      const T grad_again = subtracts ? grad_reset * threshold : grad_reset * charge;
      grad_threshold = subtracts ? grad_reset * again : -T(0);
      grad_mem = zeroes ? grad_mem + grad_reset * again : grad_mem;
      grad_spk = subtracts | zeroes ? grad_spk + grad_again / graded_spikes_factor : grad_spk;
      grad_graded = subtracts | zeroes ? -grad_again * (spike / graded_spikes_factor) : -T(0);
      reached = reached | subtracts | zeroes;
    }
    const T through_spike = surrogate.backward(grad_spk * graded_spikes_factor, u, evaluated);
    // Asked of what came in: asked of the sum, whoever wants no more of it would still divide.
    const T grad_u = chosen(reached, through_spike, kAbsent<T>);
    grad_threshold = grad_threshold - grad_u;
    grad_graded = grad_graded + grad_spk * fired;
    return grad_mem + grad_u;
  }
};

}  // namespace snnfast

// What Norse 1.1.0's current-based neurons share (norse/torch/functional/{lif,leaky_integrator}.py): a voltage that
// leaks and integrates the synaptic current, and the current's decay.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include "reset.h"

namespace snnfast {

template <typename T>
struct Synapse {
  T mem_rate, syn_rate, v_leak;

  C10_HOST_DEVICE T integrate(T v, T jump) const { return v + mem_rate * ((v_leak - v) + jump); }
  C10_HOST_DEVICE T decay(T jump) const { return jump - syn_rate * jump; }

  // The current with its input, which nobody stored, from what a step made of it. Good to rounding, which is enough
  // for the parameters' gradients, the only ones that need it. A syn_rate of 1 leaves its trace in the voltage alone.
  C10_HOST_DEVICE T jump(T i, T decayed, T v) const {
    const T from_current = i / (T(1) - syn_rate);
    const T from_voltage = (decayed - v) / mem_rate - (v_leak - v);
    return syn_rate == T(1) ? from_voltage : from_current;
  }

  // grad_v: dL/dintegrate(v, jump), which goes on to v[t-1] as it is, and as grad_leaked in a second term.
  // grad_i: dL/di[t] on entry, dL/di[t-1] on exit. Returns dL/dx[t].
  C10_HOST_DEVICE T backward(T grad_v, T jump, T v, T& grad_leaked, T& grad_i, T& grad_mem_rate, T& grad_syn_rate,
                             T& grad_v_leak) const {
    const T grad_charge = grad_v * mem_rate;
    grad_mem_rate = grad_v * ((v_leak - v) + jump);
    grad_syn_rate = -(grad_i * jump);
    grad_v_leak = grad_charge;
    grad_leaked = if_absent(grad_v, grad_v, -grad_charge);
    grad_i = (grad_i - grad_i * syn_rate) + grad_charge;
    return grad_i;
  }
};

}  // namespace snnfast

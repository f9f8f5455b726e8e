// What a neuron model is to the time loops, and how they call it.
//
// A model is a template <typename T, bool kDelay> struct, made from one neuron's parameters and the call's options,
// with
//   Param, State       enums of its parameters and states, ended by kParams and kStates; the membrane comes first
//   kNeeded            how many states, from the first, step_backward reads where no gradient of a parameter is wanted;
//                      for those it may read all
//   kExtras            values of a step that backward needs beside the states
//   Carry, kCarriedTo  what backward hands to the step before: one gradient per state, then further terms of them.
//                      Terms stay apart where the library's autograd adds them one after the other to an outer gradient
//   step               state[t-1] -> state[t], extra; returns the spike
//   step_backward      carry: dL/dstate[t] on entry, with the outer gradient in the first kStates terms; dL/dstate[t-1]
//                      on exit. state, extra: after step t; previous: state[t-1]. grad_params: this step's share of the
//                      parameters' gradients. Returns dL/dx[t]
// A recurrent model takes a second current, `rec`, after x; its step_backward gives dL/drec[t] in two terms. A model
// with kSpikes = false gives an output that is no spike: its step_backward asks no surrogate. Spikes are 1, or as high
// as a model's height() says.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <iterator>
#include <type_traits>

namespace snnfast {

// Whether the lists of a model are as long as its enums say.
template <typename Neuron>
inline constexpr bool kConsistent =
    std::size(Neuron::kParamNames) == Neuron::kParams && std::size(Neuron::kStateNames) == Neuron::kStates &&
    std::size(Neuron::kCarriedTo) == Neuron::kCarries && int{Neuron::kCarries} >= int{Neuron::kStates} &&
    Neuron::kNeeded <= Neuron::kStates && Neuron::kExtras >= 0;

template <typename Neuron>
concept Recurrent = Neuron::kRecurrent;

template <typename Neuron>
concept Spiking = !requires { Neuron::kSpikes; } || Neuron::kSpikes;

// Whether backward may rerun a model's steps from the currents, in the place of reading their states: where there
// is one state, that is the smaller traffic.
template <typename Neuron>
concept Rerunnable = Neuron::kStates == 1 && Spiking<Neuron> && !Recurrent<Neuron>;

template <typename Neuron>
C10_HOST_DEVICE auto spike_height([[maybe_unused]] const Neuron& neuron) {
  if constexpr (requires { neuron.height(); }) {
    return neuron.height();
  } else {
    return typename Neuron::Scalar(1);
  }
}

template <typename Neuron, typename T>
C10_HOST_DEVICE T step(const Neuron& neuron, T x, [[maybe_unused]] T rec, T* state, T* extra) {
  if constexpr (Recurrent<Neuron>) {
    return neuron.step(x, rec, state, extra);
  } else {
    return neuron.step(x, state, extra);
  }
}

template <typename Neuron, typename Surrogate, typename T>
C10_HOST_DEVICE T step_backward(const Neuron& neuron, const Surrogate& surrogate, T grad_spk, T evaluated,
                                const T* state, const T* extra, const T* previous, T* carry, T* grad_params) {
  if constexpr (Recurrent<Neuron>) {
    T grad_rec[2];
    return neuron.step_backward(surrogate, grad_spk, evaluated, state, extra, previous, carry, grad_params, grad_rec);
  } else {
    return neuron.step_backward(surrogate, grad_spk, evaluated, state, extra, previous, carry, grad_params);
  }
}

}  // namespace snnfast

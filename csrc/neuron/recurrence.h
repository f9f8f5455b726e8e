// Elementwise recurrence: every neuron feeds itself, rec[t] = spk[t-1] * V. The spike becomes a state, V a parameter.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <array>

#include "reset.h"

namespace snnfast {

// The list of a neuron, and one more.
template <typename E, std::size_t kCount>
constexpr std::array<E, kCount + 1> and_one(const E (&list)[kCount], E last) {
  std::array<E, kCount + 1> result{};
  for (std::size_t k = 0; k < kCount; ++k) result[k] = list[k];
  result[kCount] = last;
  return result;
}

template <typename Inner>
struct OneToOne {
  using Scalar = typename Inner::Scalar;
  using T = Scalar;
  enum Param { kV = Inner::kParams, kParams };
  enum State { kSpk = Inner::kStates, kStates };
  static constexpr int kInnerTerms = int{Inner::kCarries} - int{Inner::kStates};
  enum Carry { kSpkAgain = int{kStates} + kInnerTerms, kCarries };
  static constexpr auto kParamNames = and_one<const char*>(Inner::kParamNames, "V");
  static constexpr auto kStateNames = and_one<const char*>(Inner::kStateNames, "spk");
  static constexpr int kNeeded = Inner::kNeeded;
  static constexpr int kExtras = Inner::kExtras;
  static constexpr auto kCarriedTo = [] {
    std::array<int, kCarries> to{};
    for (int k = 0; k < kStates; ++k) to[k] = k;
    for (int k = 0; k < kInnerTerms; ++k) to[kStates + k] = Inner::kCarriedTo[Inner::kStates + k];
    to[kSpkAgain] = kSpk;
    return to;
  }();

  Inner inner;
  T V;

  C10_HOST_DEVICE OneToOne(const T* params, NeuronOptions options) : inner(params, options), V(params[kV]) {}

  C10_HOST_DEVICE T step(T x, T* state, T* extra) const {
    state[kSpk] = inner.step(x, state[kSpk] * V, state, extra);
    return state[kSpk];
  }

  template <typename Surrogate>
  C10_HOST_DEVICE T step_backward(const Surrogate& surrogate, T grad_spk, T evaluated, const T* state, const T* extra,
                                  const T* previous, T* carry, T* grad_params) const {
    T terms[Inner::kCarries], grad_rec[2];
    for (int k = 0; k < Inner::kStates; ++k) terms[k] = carry[k];
    for (int k = 0; k < kInnerTerms; ++k) terms[Inner::kStates + k] = carry[kStates + k];
    const T grad = (grad_spk + carry[kSpk]) + carry[kSpkAgain];
    const T grad_x =
        inner.step_backward(surrogate, grad, evaluated, state, extra, previous, terms, grad_params, grad_rec);
    for (int k = 0; k < Inner::kStates; ++k) carry[k] = terms[k];
    for (int k = 0; k < kInnerTerms; ++k) carry[kStates + k] = terms[Inner::kStates + k];
    carry[kSpk] = grad_rec[0] * V;
    carry[kSpkAgain] = reached_by(grad_rec[1] * V);
    grad_params[kV] = (grad_rec[0] + grad_rec[1]) * previous[kSpk];
    return grad_x;
  }
};

}  // namespace snnfast

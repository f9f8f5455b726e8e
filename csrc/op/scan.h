// What a time loop reads and writes: plain pointers, the same for every backend and neuron model.
//
// Sequences are [steps, neurons], row-major; a null pointer is an input that is absent or an output nobody wants.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>

#include "../neuron/reset.h"

namespace snnfast {

// Steps that backward reruns at a time, from the states before them.
inline constexpr int64_t kChunk = 16;

// How many chunks begin after the first step.
inline int64_t chunk_starts(int64_t steps) { return steps > 0 ? (steps - 1) / kChunk : 0; }

template <typename P, int kCount>
using Slots = P[kCount > 0 ? kCount : 1];

// A sequence that is read: a step's row lies `stride` values after the row before it, 0 where all steps have the same.
template <typename T>
struct Rows {
  const T* data;  // null: absent
  int64_t stride;
  C10_HOST_DEVICE const T* at(int64_t step) const { return data + step * stride; }
  C10_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

// A parameter over the trailing neuron dimensions, repeated with this period.
template <typename T>
struct Periodic {
  const T* data;
  int64_t period;
  C10_HOST_DEVICE T operator[](int64_t neuron) const { return data[period == 1 ? 0 : neuron % period]; }
};

// S: storage type of currents and spikes; states have the neuron's Scalar type.
template <typename Neuron, typename S>
struct Scan {
  using T = typename Neuron::Scalar;
  int64_t steps, neurons;
  Rows<S> x;                          // [steps, neurons]
  const T* rec;                       // [steps, neurons]; a recurrent model's second current, null: zeros
  const T* initial[Neuron::kStates];  // [neurons]; null: zeros
  Periodic<T> params[Neuron::kParams];
  S* spk;                             // [steps, neurons]
  T* states[Neuron::kStates];         // [steps, neurons]
  T* starts[Neuron::kStates];         // [chunk_starts(steps), neurons]; the states before each chunk but the first
  Slots<T*, Neuron::kExtras> extras;  // [steps, neurons]
  T* last[Neuron::kStates];           // [neurons]

  // visit(pointer) for all that is read and written element by element.
  template <typename Visit>
  void for_pointers(const Visit& visit) const {
    visit(x.data);
    visit(rec);
    visit(spk);
    for (int k = 0; k < Neuron::kStates; ++k) {
      visit(initial[k]);
      visit(states[k]);
      visit(starts[k]);
      visit(last[k]);
    }
    for (int k = 0; k < Neuron::kExtras; ++k) visit(extras[k]);
  }
};

template <typename Neuron, typename S>
struct ScanBackward {
  using T = typename Neuron::Scalar;
  int64_t steps, neurons;
  Rows<S> grad_spk;                         // [steps, neurons]
  const T* fed;                             // [neurons]; what reaches the last step's spikes from the step after it
  Rows<T> grad_states[Neuron::kStates];     // [steps, neurons]
  const T* grad_last[Neuron::kStates];      // [neurons]
  Rows<S> x;                                // [steps, neurons]; from which, and from starts, steps are rerun
  const T* starts[Neuron::kStates];         // [chunk_starts(steps), neurons], as forward wrote them
  const T* states[Neuron::kStates];         // [steps, neurons], as forward wrote them, where there is no x
  Slots<const T*, Neuron::kExtras> extras;  // [steps, neurons], as forward wrote them, where there is no x
  const T* initial[Neuron::kStates];        // [neurons]; null: zeros
  const T* evaluated;                       // [steps, neurons]; the derivative of an `evaluated` surrogate
  Periodic<T> params[Neuron::kParams];
  S* grad_x;                         // [steps, neurons]
  T* grad_initial[Neuron::kStates];  // [neurons]
  T* grad_params[Neuron::kParams];   // [neurons], summed over time; all null or none
  bool add_params;                   // to what grad_params hold

  // visit(pointer) for all that is read and written element by element.
  template <typename Visit>
  void for_pointers(const Visit& visit) const {
    visit(grad_spk.data);
    visit(fed);
    visit(x.data);
    visit(evaluated);
    visit(grad_x);
    for (int k = 0; k < Neuron::kStates; ++k) {
      visit(grad_states[k].data);
      visit(grad_last[k]);
      visit(starts[k]);
      visit(states[k]);
      visit(initial[k]);
      visit(grad_initial[k]);
    }
    for (int k = 0; k < Neuron::kExtras; ++k) visit(extras[k]);
    for (int k = 0; k < Neuron::kParams; ++k) visit(grad_params[k]);
  }
};

// What is added to the values of a gradient that was given: none of them is then taken for an absent one.
template <typename T, typename S>
C10_HOST_DEVICE T kept_apart(const Rows<S>& gradient) {
  return gradient ? T(0) : kAbsent<T>;
}

// Kahan's sum, so that a parameter's gradient over thousands of steps is as good as its terms.
template <typename T>
struct CompensatedSum {
  T sum = T(0), lost = T(0);
  C10_HOST_DEVICE void add(T value) {
    const T term = value - lost;
    const T next = sum + term;
    lost = (next - sum) - term;
    sum = next;
  }
};

}  // namespace snnfast

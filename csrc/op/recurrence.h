// All-to-all recurrence, rec[t] = spk[t-1] W^T + bias, a product and a step at a time: for devices, and sizes, that
// cannot hold the weights where the neurons are.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "../dispatch.h"
#include "scan.h"
#include "tensors.h"

namespace snnfast {

// weight_t [N, N]: the weights, transposed; bias [N]; spk [..., N]: the spikes before the first step.
struct Feedback {
  Tensor weight_t;
  std::optional<Tensor> bias, spk;
};

inline Tensor to_state(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

template <typename Backend, typename Neuron, typename S>
void scan_by_step(const Tensor& x, const Tensor& spikes, Feedback given, Scan<Neuron, S> scan,
                  const NeuronOptions& options) {
  using T = typename Neuron::Scalar;
  auto& [weight_t, bias, spk] = given;
  const ScalarType dtype = weight_t.scalar_type();
  const int64_t steps = scan.steps;
  const Tensor zeros = torch::stable::new_zeros(x, Sequence(spikes, true).neuron_shape(), dtype);
  scan.steps = 1;
  for (int64_t t = 0; t < steps; ++t) {
    Tensor rec = zeros;
    if (spk.has_value()) rec = torch::stable::matmul(*spk, weight_t);
    if (bias.has_value()) rec = torch::stable::subtract(rec, *bias, -1.0);
    scan.rec = data<T>(rec);
    Backend::scan(x, scan, options);
    spk = to_state(torch::stable::select(spikes, 0, t), dtype);
    scan.x.data += scan.x.stride;
    scan.spk += scan.neurons;
    for (int k = 0; k < Neuron::kStates; ++k) {
      scan.initial[k] = scan.last[k];
      if (scan.states[k]) scan.states[k] += scan.neurons;
    }
    for (int k = 0; k < Neuron::kExtras; ++k) {
      if (scan.extras[k]) scan.extras[k] += scan.neurons;
    }
  }
}

// Returns dL/dspk before the first step.
template <typename Backend, typename Neuron, typename S>
Tensor scan_back_by_step(const Tensor& like, const Tensor& grad_x, const Tensor& weight,
                         const ScanBackward<Neuron, S>& all, const NeuronOptions& options,
                         const SurrogateChoice& choice) {
  using T = typename Neuron::Scalar;
  ScanBackward<Neuron, S> scan = all;
  scan.steps = 1;
  Tensor fed;  // dL/dspk[t] through step t + 1
  for (int64_t t = all.steps - 1; t >= 0; --t) {
    const int64_t at = t * all.neurons;
    const auto row = [at](auto* sequence) { return sequence ? sequence + at : nullptr; };
    scan.grad_spk.data = all.grad_spk.at(t);
    scan.evaluated = row(all.evaluated);
    scan.grad_x = all.grad_x + at;
    for (int k = 0; k < Neuron::kStates; ++k) {
      scan.states[k] = row(all.states[k]);
      scan.grad_states[k].data = all.grad_states[k].at(t);
      if (t > 0) scan.initial[k] = all.states[k] ? scan.states[k] - all.neurons : nullptr;
      if (t == 0) scan.initial[k] = all.initial[k];
      if (t + 1 < all.steps) scan.grad_last[k] = scan.grad_initial[k];
    }
    for (int k = 0; k < Neuron::kExtras; ++k) scan.extras[k] = row(all.extras[k]);
    Backend::scan_backward(like, scan, options, choice);
    fed = torch::stable::matmul(to_state(torch::stable::select(grad_x, 0, t), weight.scalar_type()), weight);
    scan.fed = data<T>(fed);
    scan.add_params = true;
  }
  return fed;
}
}  // namespace snnfast

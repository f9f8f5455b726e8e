// The leaky operators over any backend: checks, allocation, dispatch.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../dispatch.h"
#include "../neuron/leaky.h"
#include "scan.h"
#include "tensors.h"

namespace snnfast {

inline void check_leaky_params(const Tensor& beta, const Tensor& threshold, const Tensor& graded_spikes_factor,
                               const Tensor& like, ScalarType state, int64_t neurons) {
  check_param("beta", beta, like, state, neurons);
  check_param("threshold", threshold, like, state, neurons);
  check_param("graded_spikes_factor", graded_spikes_factor, like, state, neurons);
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> leaky_fwd(Tensor x, std::optional<Tensor> mem, Tensor beta, Tensor threshold,
                                                     Tensor graded_spikes_factor, bool unroll,
                                                     std::string reset_mechanism, bool reset_delay, bool save_mem,
                                                     bool save_charge) {
  const Sequence sequence(x, unroll);
  const ScalarType state = state_dtype(x.scalar_type());
  check_tensor("mem", mem, x, state, sequence.neurons);
  check_leaky_params(beta, threshold, graded_spikes_factor, x, state, sequence.neurons);
  const LeakyOptions options{reset_named(reset_mechanism)};

  x = contiguous(x);
  mem = contiguous(mem);
  const Tensor spk = Backend::empty(x, x.sizes(), x.scalar_type());
  const Tensor last = new_empty(x, sequence.neuron_shape(), state);
  const Tensor mem_seq = empty_if<Backend>(unroll && save_mem, x, x.sizes(), state);
  const Tensor charge_seq = empty_if<Backend>(!reset_delay && save_charge, x, x.sizes(), state);
  beta = contiguous(beta);
  threshold = contiguous(threshold);
  graded_spikes_factor = contiguous(graded_spikes_factor);

  dispatch_dtype<typename Backend::StorageTypes>(x.scalar_type(), [&](auto storage) {
    dispatch_bool(reset_delay, [&](auto delay) {
      using S = decltype(storage);
      using T = StateOf<S>;
      using Neuron = Leaky<T, decltype(delay)::value>;
      Scan<Neuron, S> scan{};
      scan.steps = sequence.steps;
      scan.neurons = sequence.neurons;
      scan.x = data<S>(x);
      scan.initial[Neuron::kMem] = data<T>(mem);
      scan.params[Neuron::kBeta] = periodic<T>(beta);
      scan.params[Neuron::kThreshold] = periodic<T>(threshold);
      scan.params[Neuron::kGradedSpikesFactor] = periodic<T>(graded_spikes_factor);
      scan.spk = mutable_data<S>(spk);
      scan.states[Neuron::kMem] = mutable_data<T>(mem_seq);
      scan.extras[Neuron::kCharge] = mutable_data<T>(charge_seq);
      scan.last[Neuron::kMem] = mutable_data<T>(last);
      if (sequence.neurons > 0) Backend::scan(x, scan, options);
    });
  });
  return {spk, last, mem_seq, charge_seq};
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> leaky_bwd(std::optional<Tensor> grad_spk, std::optional<Tensor> grad_mem_last,
                                             std::optional<Tensor> grad_mem_seq, Tensor mem_seq,
                                             std::optional<Tensor> charge_seq, std::optional<Tensor> mem, Tensor beta,
                                             Tensor threshold, Tensor graded_spikes_factor,
                                             std::optional<Tensor> evaluated, bool unroll, std::string reset_mechanism,
                                             std::string surrogate, std::vector<double> constants, ScalarType dtype,
                                             bool want_mem, bool want_params) {
  const Sequence sequence(mem_seq, unroll);
  const ScalarType state = state_dtype(dtype);
  const int64_t all = mem_seq.numel();
  check_tensor("mem_seq", mem_seq, mem_seq, state, all);
  check_tensor("grad_spk", grad_spk, mem_seq, dtype, all);
  check_tensor("grad_mem_last", grad_mem_last, mem_seq, state, sequence.neurons);
  check_tensor("grad_mem_seq", grad_mem_seq, mem_seq, state, all);
  check_tensor("charge_seq", charge_seq, mem_seq, state, all);
  check_tensor("mem", mem, mem_seq, state, sequence.neurons);
  check_tensor("evaluated", evaluated, mem_seq, state, all);
  STD_TORCH_CHECK(evaluated.has_value() == (surrogate == Evaluated<float>::kName),
                  "evaluated must be given with surrogate evaluated and with no other, got surrogate ", surrogate);
  check_leaky_params(beta, threshold, graded_spikes_factor, mem_seq, state, sequence.neurons);
  const LeakyOptions options{reset_named(reset_mechanism)};

  mem_seq = contiguous(mem_seq);
  grad_spk = contiguous(grad_spk);
  grad_mem_last = contiguous(grad_mem_last);
  grad_mem_seq = contiguous(grad_mem_seq);
  charge_seq = contiguous(charge_seq);
  mem = contiguous(mem);
  evaluated = contiguous(evaluated);
  beta = contiguous(beta);
  threshold = contiguous(threshold);
  graded_spikes_factor = contiguous(graded_spikes_factor);
  const Tensor grad_x = Backend::empty(mem_seq, mem_seq.sizes(), dtype);
  const Tensor grad_mem = empty_if<Backend>(want_mem, mem_seq, sequence.neuron_shape(), state);
  const Tensor grad_params = empty_if<Backend>(want_params, mem_seq, {3, sequence.neurons}, state);

  dispatch_dtype<typename Backend::StorageTypes>(dtype, [&](auto storage) {
    dispatch_bool(!charge_seq.has_value(), [&](auto delay) {
      using S = decltype(storage);
      using T = StateOf<S>;
      using Neuron = Leaky<T, decltype(delay)::value>;
      ScanBackward<Neuron, S> scan{};
      scan.steps = sequence.steps;
      scan.neurons = sequence.neurons;
      scan.grad_spk = data<S>(grad_spk);
      scan.grad_states[Neuron::kMem] = data<T>(grad_mem_seq);
      scan.grad_last[Neuron::kMem] = data<T>(grad_mem_last);
      scan.states[Neuron::kMem] = data<T>(mem_seq);
      scan.extras[Neuron::kCharge] = data<T>(charge_seq);
      scan.initial[Neuron::kMem] = data<T>(mem);
      scan.evaluated = data<T>(evaluated);
      scan.params[Neuron::kBeta] = periodic<T>(beta);
      scan.params[Neuron::kThreshold] = periodic<T>(threshold);
      scan.params[Neuron::kGradedSpikesFactor] = periodic<T>(graded_spikes_factor);
      scan.grad_x = mutable_data<S>(grad_x);
      scan.grad_initial[Neuron::kMem] = mutable_data<T>(grad_mem);
      for (int k = 0; k < Neuron::kParams; ++k) {
        scan.grad_params[k] = want_params ? mutable_data<T>(grad_params) + k * sequence.neurons : nullptr;
      }
      if (sequence.neurons > 0) Backend::scan_backward(mem_seq, scan, options, {surrogate, constants});
    });
  });
  return {grad_x, grad_mem, grad_params};
}

}  // namespace snnfast

// All-to-all recurrence over any backend: rec[t] = spk[t-1] W^T + bias, the whole sequence in one call.
//
// spk [T, ..., N] are the layer's own spikes, W [N, N]. The weights' gradients are products over all steps at once, of
// dL/dx and the spikes, and are left to the caller.
#pragma once

#include "neuron.h"

namespace snnfast {

template <typename Backend, template <typename, bool> typename Model>
struct DenseOp : NeuronOp<Backend, Model> {
  using Base = NeuronOp<Backend, Model>;
  using typename Base::Some;

  // [spikes, last states ..., the first `saved` states of all steps ..., extras with save_extras ...]
  static std::vector<Tensor> dense_forward(Tensor x, Tensor weight, std::optional<Tensor> bias,
                                           std::optional<Tensor> spk, std::vector<Tensor> states,
                                           std::vector<Tensor> params, std::string reset_mechanism, bool reset_delay,
                                           bool inclusive, int64_t saved, bool save_extras) {
    const Sequence sequence(x, true);
    const ScalarType dtype = state_dtype(x.scalar_type());
    const int64_t features = check_weight(weight, x, dtype);
    check_tensor("bias", bias, x, dtype, features);
    check_tensor("spk", spk, x, dtype, sequence.neurons);
    Base::check_forward(x, sequence, states, params, saved);
    const NeuronOptions options{reset_named(reset_mechanism), inclusive};

    x = readable(x, sequence);
    spk = readable(spk);
    bias = readable(bias);
    const Tensor weight_t = readable(torch::stable::transpose(weight, 0, 1));
    make_readable(states, params);
    const auto results = Base::outputs(x, sequence, saved, 1, save_extras ? Base::extras(reset_delay) : 0);

    dispatch_dtype<typename Backend::StorageTypes>(x.scalar_type(), [&](auto storage) {
      dispatch_bool(reset_delay, [&](auto delay) {
        using S = decltype(storage);
        using T = StateOf<S>;
        using Neuron = Model<T, decltype(delay)::value>;
        const auto scan = Base::template scan_into<Neuron, S>(results, x, sequence, saved, states, params);
        if (sequence.neurons == 0) return;
        // The last states are then the initial ones.
        if (sequence.steps == 0) return Backend::scan(x, scan, options);
        const bool done = Backend::scan_dense(x, scan, options, spk, weight_t, bias);
        if (!done) scan_by_step(x, results[0], spk, weight_t, bias, scan, options);
      });
    });
    return results;
  }

  // [dL/dx, dL/dspk before the first step, dL/dinitial states ..., dL/dparams [kParams, neurons] with want_params]
  static std::vector<Tensor> dense_backward(Tensor like, std::optional<Tensor> grad_spk, OptionalTensors grad_last,
                                            OptionalTensors grad_seqs, std::vector<Tensor> seqs,
                                            std::vector<Tensor> extras, Tensor weight, std::vector<Tensor> states,
                                            std::vector<Tensor> params, std::optional<Tensor> evaluated,
                                            std::string reset_mechanism, bool reset_delay, bool inclusive,
                                            std::string surrogate, std::vector<double> constants, ScalarType dtype,
                                            bool want_params) {
    const Sequence sequence(like, true);
    const ScalarType state = state_dtype(dtype);
    check_weight(weight, like, state);
    Base::check_saved(like, sequence, std::nullopt, grad_spk, grad_last, grad_seqs, seqs, extras, states, params,
                      evaluated, dtype, surrogate, reset_delay, want_params);
    const NeuronOptions options{reset_named(reset_mechanism), inclusive};

    grad_spk = readable(grad_spk, sequence);
    for (auto& grad : grad_seqs) grad = readable(grad, sequence);
    make_readable(grad_last, seqs, extras, states, params);
    evaluated = readable(evaluated);
    weight = readable(weight);
    std::vector<Tensor> results{Backend::empty(like, like.sizes(), dtype)};
    results.push_back(torch::stable::new_zeros(like, sequence.neuron_shape(), state));
    for (int k = 0; k < Some::kStates; ++k) results.push_back(Backend::empty(like, sequence.neuron_shape(), state));
    if (want_params) results.push_back(new_empty(like, {int64_t{Some::kParams}, sequence.neurons}, state));

    dispatch_dtype<typename Backend::StorageTypes>(dtype, [&](auto storage) {
      dispatch_bool(reset_delay, [&](auto delay) {
        using S = decltype(storage);
        using T = StateOf<S>;
        using Neuron = Model<T, decltype(delay)::value>;
        const SurrogateChoice choice{surrogate, constants};
        auto scan = Base::template scan_back<Neuron, S>(results[0], sequence, grad_spk, grad_last, grad_seqs, seqs,
                                                        extras, states, params, evaluated);
        for (int k = 0; k < Neuron::kStates; ++k) scan.grad_initial[k] = mutable_data<T>(results[2 + k]);
        if (want_params) Base::set_grad_params(scan, results.back());
        if (sequence.neurons == 0) return;
        if (sequence.steps == 0) return Backend::scan_backward(like, scan, options, choice);
        const bool done = Backend::scan_dense_backward(like, scan, options, choice, weight, results[1]);
        if (!done) results[1] = scan_back_by_step(like, results[0], weight, scan, options, choice);
      });
    });
    return results;
  }

 private:
  static int64_t check_weight(const Tensor& weight, const Tensor& like, ScalarType dtype) {
    STD_TORCH_CHECK(like.dim() >= 2, "x must have a time and a neuron dimension, got ", like.dim(), " dimensions");
    const int64_t features = like.size(-1);
    check_tensor("weight", weight, like, dtype, weight.numel());
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == features && weight.size(1) == features,
                    "weight must have shape [", features, ", ", features, "]");
    return features;
  }

  static Tensor to_state(const Tensor& tensor, ScalarType dtype) {
    return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
  }

  // A product and a step at a time: for devices, and sizes, that cannot hold the weights where the neurons are.
  template <typename Neuron, typename S>
  static void scan_by_step(const Tensor& x, const Tensor& spikes, std::optional<Tensor> spk, const Tensor& weight_t,
                           const std::optional<Tensor>& bias, Scan<Neuron, S> scan, const NeuronOptions& options) {
    using T = typename Neuron::Scalar;
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
  template <typename Neuron, typename S>
  static Tensor scan_back_by_step(const Tensor& like, const Tensor& grad_x, const Tensor& weight,
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
};

}  // namespace snnfast

// Registers a recurrent model with all its operators: SNNFAST_RECURRENT_NEURON(CPU, Cpu, rleaky, RLeaky).
#define SNNFAST_RECURRENT_NEURON(DEVICE, BACKEND, NAME, MODEL)     \
  SNNFAST_NEURON(DEVICE, BACKEND, NAME, MODEL)                     \
  STABLE_TORCH_LIBRARY_IMPL(snnfast, DEVICE, m) {                  \
    using Op = snnfast::DenseOp<snnfast::BACKEND, snnfast::MODEL>; \
    m.impl(#NAME "_dense_fwd", TORCH_BOX(&Op::dense_forward));     \
    m.impl(#NAME "_dense_bwd", TORCH_BOX(&Op::dense_backward));    \
  }

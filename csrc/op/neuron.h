// The two operators of a neuron model, over any backend: checks, allocation, dispatch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../checks.h"
#include "../dispatch.h"
#include "../neuron/model.h"
#include "scan.h"
#include "tensors.h"

namespace snnfast {

using OptionalTensors = std::vector<std::optional<Tensor>>;

template <typename Backend, template <typename, bool> typename Model>
struct NeuronOp {
  using Some = Model<float, true>;  // names and counts, the same for every dtype and delay

  // [spikes, last states ..., the first `saved` states of all steps when unrolled ..., extras with save_extras ...]
  // every: the states of all steps with 1; with kChunk those that chunks start from, which with x is all backward
  // needs.
  static std::vector<Tensor> forward(Tensor x, std::optional<Tensor> rec, std::vector<Tensor> states,
                                     std::vector<Tensor> params, bool unroll, std::string reset_mechanism,
                                     bool reset_delay, bool inclusive, int64_t saved, int64_t every, bool save_extras) {
    const Sequence sequence(x, unroll);
    const ScalarType dtype = state_dtype(x.scalar_type());
    check_tensor("rec", rec, x, dtype, x.numel());
    check_forward(x, sequence, states, params, saved);
    check_every(every, x, sequence);
    const NeuronOptions options{reset_named(reset_mechanism), inclusive};

    x = readable(x, sequence);
    rec = readable(rec);
    make_readable(states, params);
    const int64_t seqs = unroll ? saved : 0;
    const auto results = outputs(x, sequence, seqs, every, save_extras ? extras(reset_delay) : 0);

    dispatch_dtype<typename Backend::StorageTypes>(x.scalar_type(), [&](auto storage) {
      dispatch_bool(reset_delay, [&](auto delay) {
        using S = decltype(storage);
        using T = StateOf<S>;
        using Neuron = Model<T, decltype(delay)::value>;
        auto scan = scan_into<Neuron, S>(results, x, sequence, seqs, states, params);
        scan.rec = data<T>(rec);
        if (every > 1) std::swap(scan.states, scan.starts);
        if (sequence.neurons > 0) Backend::scan(x, scan, options);
      });
    });
    return results;
  }

  // [dL/dx, dL/dinitial states ... with want_states, dL/dparams [kParams, neurons] with want_params]
  // seqs, extras: as forward wrote them, for the first states; `like`: any of them or the spikes, for the shape.
  // x: where seqs hold the starts of chunks alone; nothing else may then be given of all steps.
  static std::vector<Tensor> backward(Tensor like, std::optional<Tensor> x, std::optional<Tensor> grad_spk,
                                      OptionalTensors grad_last, OptionalTensors grad_seqs, std::vector<Tensor> seqs,
                                      std::vector<Tensor> extras, std::vector<Tensor> states,
                                      std::vector<Tensor> params, std::optional<Tensor> evaluated, bool unroll,
                                      std::string reset_mechanism, bool reset_delay, bool inclusive,
                                      std::string surrogate, std::vector<double> constants, ScalarType dtype,
                                      bool want_states, bool want_params) {
    const Sequence sequence(like, unroll);
    const ScalarType state = state_dtype(dtype);
    check_saved(like, sequence, x, grad_spk, grad_last, grad_seqs, seqs, extras, states, params, evaluated, dtype,
                surrogate, reset_delay, want_params);
    const NeuronOptions options{reset_named(reset_mechanism), inclusive};

    x = readable(x, sequence);
    grad_spk = readable(grad_spk, sequence);
    for (auto& grad : grad_seqs) grad = readable(grad, sequence);
    make_readable(grad_last, seqs, extras, states, params);
    evaluated = readable(evaluated);
    std::vector<Tensor> results{Backend::empty(like, like.sizes(), dtype)};
    const int wanted = want_states ? Some::kStates : 0;
    for (int k = 0; k < wanted; ++k) results.push_back(Backend::empty(like, sequence.neuron_shape(), state));
    if (want_params) results.push_back(new_empty(like, {int64_t{Some::kParams}, sequence.neurons}, state));

    dispatch_dtype<typename Backend::StorageTypes>(dtype, [&](auto storage) {
      dispatch_bool(reset_delay, [&](auto delay) {
        using S = decltype(storage);
        using T = StateOf<S>;
        using Neuron = Model<T, decltype(delay)::value>;
        auto scan = scan_back<Neuron, S>(results[0], sequence, grad_spk, grad_last, grad_seqs, seqs, extras, states,
                                         params, evaluated);
        if (x.has_value()) {
          scan.x = rows<S>(x, sequence);
          std::swap(scan.states, scan.starts);
        }
        for (int k = 0; k < wanted; ++k) scan.grad_initial[k] = mutable_data<T>(results[1 + k]);
        if (want_params) set_grad_params(scan, results.back());
        if (sequence.neurons > 0) Backend::scan_backward(like, scan, options, {surrogate, constants});
      });
    });
    return results;
  }

 protected:
  static int extras(bool reset_delay) {
    return reset_delay ? Model<float, true>::kExtras : Model<float, false>::kExtras;
  }

  static void check_forward(const Tensor& x, const Sequence& sequence, const std::vector<Tensor>& states,
                            const std::vector<Tensor>& params, int64_t saved) {
    const ScalarType dtype = state_dtype(x.scalar_type());
    check_states(states, x, dtype, sequence.neurons);
    check_params(params, x, dtype, sequence.neurons);
    STD_TORCH_CHECK(saved >= 0 && saved <= Some::kStates, "saved must be from 0 to ", int{Some::kStates}, ", got ",
                    saved);
  }

  static void check_every(int64_t every, const Tensor& x, const Sequence& sequence) {
    const bool recomputes = sequence.unroll && can_recompute(x.scalar_type());
    STD_TORCH_CHECK(every == 1 || (every == kChunk && recomputes), "every must be 1", recomputes ? " or 16" : "",
                    ", got ", every);
  }

  static bool can_recompute(ScalarType dtype) {
    bool can = false;
    dispatch_dtype<typename Backend::StorageTypes>(
        dtype, [&](auto storage) { can = Recomputable<Some> && Backend::template kRecomputes<decltype(storage)>; });
    return can;
  }

  // Fresh memory for what a forward returns.
  static std::vector<Tensor> outputs(const Tensor& x, const Sequence& sequence, int64_t seqs, int64_t every,
                                     int extras) {
    const ScalarType dtype = state_dtype(x.scalar_type());
    std::vector<Tensor> results{Backend::empty(x, sequence.shape, x.scalar_type())};
    for (int k = 0; k < Some::kStates; ++k) results.push_back(Backend::empty(x, sequence.neuron_shape(), dtype));
    std::vector<int64_t> stored = sequence.shape;
    if (every > 1) stored[0] = chunk_starts(sequence.steps);
    for (int64_t k = 0; k < seqs; ++k) results.push_back(Backend::empty(x, stored, dtype));
    for (int k = 0; k < extras; ++k) results.push_back(Backend::empty(x, sequence.shape, dtype));
    return results;
  }

  // The scan that fills them.
  template <typename Neuron, typename S>
  static Scan<Neuron, S> scan_into(const std::vector<Tensor>& results, const Tensor& x, const Sequence& sequence,
                                   int64_t seqs, const std::vector<Tensor>& states, const std::vector<Tensor>& params) {
    using T = typename Neuron::Scalar;
    Scan<Neuron, S> scan{};
    scan.steps = sequence.steps;
    scan.neurons = sequence.neurons;
    scan.x = rows<S>(x, sequence);
    scan.spk = mutable_data<S>(results[0]);
    for (std::size_t k = 0; k < states.size(); ++k) scan.initial[k] = data<T>(states[k]);
    for (int k = 0; k < Neuron::kParams; ++k) scan.params[k] = periodic<T>(params[k]);
    auto result = std::next(results.begin());
    for (int k = 0; k < Neuron::kStates; ++k) scan.last[k] = mutable_data<T>(*result++);
    for (int64_t k = 0; k < seqs; ++k) scan.states[k] = mutable_data<T>(*result++);
    for (int k = 0; result != results.end(); ++k) scan.extras[k] = mutable_data<T>(*result++);
    return scan;
  }

  // The scan that reads what a backward is given and writes dL/dx.
  template <typename Neuron, typename S>
  static ScanBackward<Neuron, S> scan_back(const Tensor& grad_x, const Sequence& sequence,
                                           const std::optional<Tensor>& grad_spk, const OptionalTensors& grad_last,
                                           const OptionalTensors& grad_seqs, const std::vector<Tensor>& seqs,
                                           const std::vector<Tensor>& extras, const std::vector<Tensor>& states,
                                           const std::vector<Tensor>& params, const std::optional<Tensor>& evaluated) {
    using T = typename Neuron::Scalar;
    ScanBackward<Neuron, S> scan{};
    scan.steps = sequence.steps;
    scan.neurons = sequence.neurons;
    scan.grad_spk = rows<S>(grad_spk, sequence);
    for (std::size_t k = 0; k < grad_last.size(); ++k) scan.grad_last[k] = data<T>(grad_last[k]);
    for (std::size_t k = 0; k < grad_seqs.size(); ++k) scan.grad_states[k] = rows<T>(grad_seqs[k], sequence);
    for (std::size_t k = 0; k < seqs.size(); ++k) scan.states[k] = data<T>(seqs[k]);
    for (std::size_t k = 0; k < extras.size(); ++k) scan.extras[k] = data<T>(extras[k]);
    for (std::size_t k = 0; k < states.size(); ++k) scan.initial[k] = data<T>(states[k]);
    for (int k = 0; k < Neuron::kParams; ++k) scan.params[k] = periodic<T>(params[k]);
    scan.evaluated = data<T>(evaluated);
    scan.grad_x = mutable_data<S>(grad_x);
    return scan;
  }

  template <typename Neuron, typename S>
  static void set_grad_params(ScanBackward<Neuron, S>& scan, const Tensor& terms) {
    for (int k = 0; k < Neuron::kParams; ++k) {
      scan.grad_params[k] = mutable_data<typename Neuron::Scalar>(terms) + k * scan.neurons;
    }
  }

  static void check_saved(const Tensor& like, const Sequence& sequence, const std::optional<Tensor>& x,
                          const std::optional<Tensor>& grad_spk, const OptionalTensors& grad_last,
                          const OptionalTensors& grad_seqs, const std::vector<Tensor>& seqs,
                          const std::vector<Tensor>& extras, const std::vector<Tensor>& states,
                          const std::vector<Tensor>& params, const std::optional<Tensor>& evaluated, ScalarType dtype,
                          const std::string& surrogate, bool reset_delay, bool want_params) {
    const ScalarType state = state_dtype(dtype);
    const int64_t all = like.numel();
    const int64_t stored = x.has_value() ? chunk_starts(sequence.steps) * sequence.neurons : all;
    const std::size_t kept = x.has_value() ? 0 : NeuronOp::extras(reset_delay);
    check_recomputed(x, sequence, grad_seqs, seqs, evaluated);
    check_tensor("x", x, like, dtype, all);
    STD_TORCH_CHECK(
        grad_last.size() <= Some::kStates && grad_seqs.size() <= Some::kStates && seqs.size() <= Some::kStates,
        "grad_last, grad_seqs and seqs must have at most ", int{Some::kStates}, " tensors");
    const std::size_t read = want_params ? int{Some::kStates} : Some::kNeeded;
    STD_TORCH_CHECK(seqs.size() >= read, "seqs must have the first ", read, " states, got ", seqs.size());
    STD_TORCH_CHECK(extras.size() == kept, "extras must have ", kept, " tensors, got ", extras.size());
    check_tensor("grad_spk", grad_spk, like, dtype, all);
    for (const auto& grad : grad_last) check_tensor("grad_last", grad, like, state, sequence.neurons);
    for (const auto& grad : grad_seqs) check_tensor("grad_seqs", grad, like, state, all);
    for (const auto& seq : seqs) check_tensor("seqs", seq, like, state, stored);
    for (const auto& extra : extras) check_tensor("extras", extra, like, state, all);
    check_states(states, like, state, sequence.neurons);
    check_params(params, like, state, sequence.neurons);
    check_tensor("evaluated", evaluated, like, state, all);
    STD_TORCH_CHECK(evaluated.has_value() == (surrogate == Evaluated<float>::kName),
                    "evaluated must be given with surrogate evaluated and with no other, got surrogate ", surrogate);
  }

  static void check_recomputed(const std::optional<Tensor>& x, const Sequence& sequence,
                               const OptionalTensors& grad_seqs, const std::vector<Tensor>& seqs,
                               const std::optional<Tensor>& evaluated) {
    if (!x.has_value()) return;
    STD_TORCH_CHECK(sequence.unroll && can_recompute(x->scalar_type()),
                    "x must not be given for a model, dtype or device whose steps are not run again");
    STD_TORCH_CHECK(seqs.size() == Some::kStates && grad_seqs.empty() && !evaluated.has_value(),
                    "with x, seqs must be given, and neither grad_seqs nor evaluated");
  }

  static void check_states(const std::vector<Tensor>& states, const Tensor& like, ScalarType dtype, int64_t neurons) {
    STD_TORCH_CHECK(states.empty() || states.size() == Some::kStates, "states must have none or ", int{Some::kStates},
                    " tensors, got ", states.size());
    for (std::size_t k = 0; k < states.size(); ++k) {
      check_tensor(Some::kStateNames[k], states[k], like, dtype, neurons);
    }
  }

  static void check_params(const std::vector<Tensor>& params, const Tensor& like, ScalarType dtype, int64_t neurons) {
    STD_TORCH_CHECK(params.size() == Some::kParams, "params must have ", int{Some::kParams}, " tensors, got ",
                    params.size());
    for (std::size_t k = 0; k < params.size(); ++k) {
      check_param(Some::kParamNames[k], params[k], like, dtype, neurons);
    }
  }
};

}  // namespace snnfast

// Registers both operators of a model for a device: SNNFAST_NEURON(CPU, Cpu, leaky, Leaky).
#define SNNFAST_NEURON(DEVICE, BACKEND, NAME, MODEL)                \
  STABLE_TORCH_LIBRARY_IMPL(snnfast, DEVICE, m) {                   \
    using Op = snnfast::NeuronOp<snnfast::BACKEND, snnfast::MODEL>; \
    m.impl(#NAME "_fwd", TORCH_BOX(&Op::forward));                  \
    m.impl(#NAME "_bwd", TORCH_BOX(&Op::backward));                 \
  }

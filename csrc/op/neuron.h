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
#include "arguments.h"
#include "recurrence.h"
#include "scan.h"
#include "tensors.h"

namespace snnfast {

template <typename Backend, template <typename, bool> typename Model>
struct NeuronOp {
  using Some = Model<float, true>;  // names and counts, the same for every dtype and delay

  static Tensors forward(Forward given) {
    const Sequence sequence(given.x, given.unroll);
    check(given, sequence);
    const NeuronOptions options{reset_named(given.reset_mechanism), given.inclusive};

    given.x = readable(given.x, sequence);
    given.rec = readable(given.rec);
    given.spk = readable(given.spk);
    given.bias = readable(given.bias);
    if (given.weight.has_value()) given.weight = readable(torch::stable::transpose(*given.weight, 0, 1));
    make_readable(given.states, given.params);
    const Tensors results = outputs(given, sequence);

    dispatch(given.x.scalar_type(), given.reset_delay, [&]<typename Neuron, typename S>() {
      if (sequence.neurons == 0) return;
      auto scan = scan_into<Neuron, S>(results, given, sequence);
      // Without steps the last states are the initial ones.
      if (!given.weight.has_value() || sequence.steps == 0) return Backend::scan(given.x, scan, options);
      if constexpr (Recurrent<Neuron>) {
        const Feedback feedback{*given.weight, given.bias, given.spk};
        const bool done =
            Backend::scan_recurrent(given.x, scan, options, feedback.spk, feedback.weight_t, feedback.bias);
        if (!done) scan_by_step<Backend>(given.x, results[0], feedback, scan, options);
      }
    });
    return results;
  }

  static Tensors backward(Backward given) {
    const Sequence sequence(given.like, given.unroll);
    check(given, sequence);
    const NeuronOptions options{reset_named(given.reset_mechanism), given.inclusive};

    given.x = readable(given.x, sequence);
    given.grad_spk = readable(given.grad_spk, sequence);
    for (auto& grad : given.grad_seqs) grad = readable(grad, sequence);
    make_readable(given.grad_last, given.seqs, given.extras, given.states, given.params);
    given.evaluated = readable(given.evaluated);
    given.weight = readable(given.weight);
    Tensors results = gradients(given, sequence);

    dispatch(given.dtype, given.reset_delay, [&]<typename Neuron, typename S>() {
      if (sequence.neurons == 0) return;
      const auto scan = scan_back<Neuron, S>(results, given, sequence);
      const SurrogateChoice choice{given.surrogate, given.constants};
      if (!given.weight.has_value() || sequence.steps == 0) {
        return Backend::scan_backward(given.like, scan, options, choice);
      }
      if constexpr (Recurrent<Neuron>) {
        Tensor& fed = results.back();
        const bool done = Backend::scan_recurrent_backward(given.like, scan, options, choice, *given.weight, fed);
        if (!done) fed = scan_back_by_step<Backend>(given.like, results[0], *given.weight, scan, options, choice);
      }
    });
    return results;
  }

 private:
  // f<neuron, storage type>() for this dtype of currents and this reset delay.
  template <typename F>
  static void dispatch(ScalarType dtype, bool reset_delay, const F& f) {
    dispatch_dtype<typename Backend::StorageTypes>(dtype, [&](auto storage) {
      dispatch_bool(reset_delay, [&](auto delay) {
        using S = decltype(storage);
        f.template operator()<Model<StateOf<S>, decltype(delay)::value>, S>();
      });
    });
  }

  static int count_extras(bool reset_delay) {
    return reset_delay ? Model<float, true>::kExtras : Model<float, false>::kExtras;
  }

  // Fresh memory for what a forward returns.
  static Tensors outputs(const Forward& given, const Sequence& sequence) {
    const Tensor& x = given.x;
    const ScalarType dtype = state_dtype(x.scalar_type());
    Tensors results{Backend::empty(x, sequence.shape, x.scalar_type())};
    const auto add = [&](int64_t count, Sizes shape) {
      for (int64_t k = 0; k < count; ++k) results.push_back(Backend::empty(x, shape, dtype));
    };
    std::vector<int64_t> stored = sequence.shape;
    if (given.every > 1) stored[0] = chunk_starts(sequence.steps);
    add(Some::kStates, sequence.neuron_shape());
    add(given.unroll ? given.saved : 0, stored);
    add(given.save_extras ? count_extras(given.reset_delay) : 0, sequence.shape);
    return results;
  }

  // Fresh memory for what a backward returns; what is fed back adds up from zeros.
  static Tensors gradients(const Backward& given, const Sequence& sequence) {
    const ScalarType dtype = state_dtype(given.dtype);
    const Tensor& like = given.like;
    Tensors results{Backend::empty(like, like.sizes(), given.dtype)};
    const int wanted = given.want_states ? Some::kStates : 0;
    for (int k = 0; k < wanted; ++k) results.push_back(Backend::empty(like, sequence.neuron_shape(), dtype));
    if (given.want_params) results.push_back(new_empty(like, {int64_t{Some::kParams}, sequence.neurons}, dtype));
    if (given.weight.has_value()) {
      results.push_back(torch::stable::new_zeros(like, sequence.neuron_shape(), dtype));
    }
    return results;
  }

  // The scan that fills the outputs.
  template <typename Neuron, typename S>
  static Scan<Neuron, S> scan_into(const Tensors& results, const Forward& given, const Sequence& sequence) {
    using T = typename Neuron::Scalar;
    Scan<Neuron, S> scan{};
    scan.steps = sequence.steps;
    scan.neurons = sequence.neurons;
    scan.x = rows<S>(given.x, sequence);
    scan.rec = data<T>(given.rec);
    scan.spk = mutable_data<S>(results[0]);
    for (std::size_t k = 0; k < given.states.size(); ++k) scan.initial[k] = data<T>(given.states[k]);
    for (int k = 0; k < Neuron::kParams; ++k) scan.params[k] = periodic<T>(given.params[k]);
    auto result = std::next(results.begin());
    auto& stored = given.every > 1 ? scan.starts : scan.states;
    for (int k = 0; k < Neuron::kStates; ++k) scan.last[k] = mutable_data<T>(*result++);
    for (int64_t k = 0; given.unroll && k < given.saved; ++k) stored[k] = mutable_data<T>(*result++);
    for (int k = 0; result != results.end(); ++k) scan.extras[k] = mutable_data<T>(*result++);
    return scan;
  }

  // The scan that reads what a backward is given and fills the gradients.
  template <typename Neuron, typename S>
  static ScanBackward<Neuron, S> scan_back(const Tensors& results, const Backward& given, const Sequence& sequence) {
    using T = typename Neuron::Scalar;
    ScanBackward<Neuron, S> scan{};
    scan.steps = sequence.steps;
    scan.neurons = sequence.neurons;
    scan.x = rows<S>(given.x, sequence);
    scan.grad_spk = rows<S>(given.grad_spk, sequence);
    auto& stored = given.x.has_value() ? scan.starts : scan.states;
    for (std::size_t k = 0; k < given.grad_last.size(); ++k) scan.grad_last[k] = data<T>(given.grad_last[k]);
    for (std::size_t k = 0; k < given.grad_seqs.size(); ++k)
      scan.grad_states[k] = rows<T>(given.grad_seqs[k], sequence);
    for (std::size_t k = 0; k < given.seqs.size(); ++k) stored[k] = data<T>(given.seqs[k]);
    for (std::size_t k = 0; k < given.extras.size(); ++k) scan.extras[k] = data<T>(given.extras[k]);
    for (std::size_t k = 0; k < given.states.size(); ++k) scan.initial[k] = data<T>(given.states[k]);
    for (int k = 0; k < Neuron::kParams; ++k) scan.params[k] = periodic<T>(given.params[k]);
    scan.evaluated = data<T>(given.evaluated);
    auto result = results.begin();
    scan.grad_x = mutable_data<S>(*result++);
    for (int k = 0; given.want_states && k < Neuron::kStates; ++k) scan.grad_initial[k] = mutable_data<T>(*result++);
    for (int k = 0; given.want_params && k < Neuron::kParams; ++k) {
      scan.grad_params[k] = mutable_data<T>(*result) + k * scan.neurons;
    }
    return scan;
  }

  static void check(const Forward& given, const Sequence& sequence) {
    const Tensor& x = given.x;
    const ScalarType dtype = state_dtype(x.scalar_type());
    check_tensor("rec", given.rec, x, dtype, x.numel());
    check_states(given.states, x, dtype, sequence.neurons);
    check_params(given.params, x, dtype, sequence.neurons);
    STD_TORCH_CHECK(given.saved >= 0 && given.saved <= Some::kStates, "saved must be from 0 to ", int{Some::kStates},
                    ", got ", given.saved);
    const bool reruns = sequence.unroll && can_rerun(x.scalar_type());
    STD_TORCH_CHECK(given.every == 1 || (given.every == kChunk && reruns), "every must be 1", reruns ? " or 16" : "",
                    ", got ", given.every);
    check_weight(given.weight, x, dtype, given.unroll);
    STD_TORCH_CHECK(
        given.weight.has_value() ? !given.rec.has_value() : !given.bias.has_value() && !given.spk.has_value(),
        "bias and spk must be given with weight alone, and rec without it");
    if (!given.weight.has_value()) return;
    check_tensor("bias", given.bias, x, dtype, x.size(-1));
    check_tensor("spk", given.spk, x, dtype, sequence.neurons);
  }

  static void check(const Backward& given, const Sequence& sequence) {
    const Tensor& like = given.like;
    const ScalarType state = state_dtype(given.dtype);
    const int64_t all = like.numel();
    const bool reruns = given.x.has_value();
    const int64_t stored = reruns ? chunk_starts(sequence.steps) * sequence.neurons : all;
    const std::size_t kept = reruns ? 0 : count_extras(given.reset_delay);
    if (reruns) {
      STD_TORCH_CHECK(sequence.unroll && can_rerun(given.x->scalar_type()),
                      "x must not be given for a model, dtype or device whose steps are not run again");
      STD_TORCH_CHECK(given.seqs.size() == Some::kStates && given.grad_seqs.empty() && !given.evaluated.has_value(),
                      "with x, seqs must be given, and neither grad_seqs nor evaluated");
    }
    check_tensor("x", given.x, like, given.dtype, all);
    STD_TORCH_CHECK(given.grad_last.size() <= Some::kStates && given.grad_seqs.size() <= Some::kStates &&
                        given.seqs.size() <= Some::kStates,
                    "grad_last, grad_seqs and seqs must have at most ", int{Some::kStates}, " tensors");
    const std::size_t read = given.want_params ? int{Some::kStates} : Some::kNeeded;
    STD_TORCH_CHECK(given.seqs.size() >= read, "seqs must have the first ", read, " states, got ", given.seqs.size());
    STD_TORCH_CHECK(given.extras.size() == kept, "extras must have ", kept, " tensors, got ", given.extras.size());
    check_tensor("grad_spk", given.grad_spk, like, given.dtype, all);
    for (const auto& grad : given.grad_last) check_tensor("grad_last", grad, like, state, sequence.neurons);
    for (const auto& grad : given.grad_seqs) check_tensor("grad_seqs", grad, like, state, all);
    for (const auto& seq : given.seqs) check_tensor("seqs", seq, like, state, stored);
    for (const auto& extra : given.extras) check_tensor("extras", extra, like, state, all);
    check_states(given.states, like, state, sequence.neurons);
    check_params(given.params, like, state, sequence.neurons);
    check_tensor("evaluated", given.evaluated, like, state, all);
    STD_TORCH_CHECK(given.evaluated.has_value() == (given.surrogate == Evaluated<float>::kName),
                    "evaluated must be given with surrogate evaluated and with no other, got surrogate ",
                    given.surrogate);
    check_weight(given.weight, like, state, given.unroll);
    STD_TORCH_CHECK(!given.weight.has_value() || given.want_states, "want_states must be true with weight");
  }

  static bool can_rerun(ScalarType dtype) {
    bool can = false;
    dispatch_dtype<typename Backend::StorageTypes>(
        dtype, [&](auto storage) { can = Rerunnable<Some> && Backend::template kReruns<decltype(storage)>; });
    return can;
  }

  static void check_states(const Tensors& states, const Tensor& like, ScalarType dtype, int64_t neurons) {
    STD_TORCH_CHECK(states.empty() || states.size() == Some::kStates, "states must have none or ", int{Some::kStates},
                    " tensors, got ", states.size());
    for (std::size_t k = 0; k < states.size(); ++k) {
      check_tensor(Some::kStateNames[k], states[k], like, dtype, neurons);
    }
  }

  static void check_params(const Tensors& params, const Tensor& like, ScalarType dtype, int64_t neurons) {
    STD_TORCH_CHECK(params.size() == Some::kParams, "params must have ", int{Some::kParams}, " tensors, got ",
                    params.size());
    for (std::size_t k = 0; k < params.size(); ++k) {
      check_param(Some::kParamNames[k], params[k], like, dtype, neurons);
    }
  }

  static void check_weight(const OptionalTensor& weight, const Tensor& like, ScalarType dtype, bool unroll) {
    if (!weight.has_value()) return;
    STD_TORCH_CHECK(Recurrent<Some> && unroll, "weight must be given for a recurrent model's sequence alone");
    STD_TORCH_CHECK(like.dim() >= 2, "x must have a time and a neuron dimension, got ", like.dim(), " dimensions");
    const int64_t features = like.size(-1);
    check_tensor("weight", weight, like, dtype, weight->numel());
    STD_TORCH_CHECK(weight->dim() == 2 && weight->size(0) == features && weight->size(1) == features,
                    "weight must have shape [", features, ", ", features, "]");
  }
};

}  // namespace snnfast

// Registers both operators of a model for a device: SNNFAST_NEURON(CPU, Cpu, leaky, Leaky).
#define SNNFAST_NEURON(DEVICE, BACKEND, NAME, MODEL)                         \
  STABLE_TORCH_LIBRARY_IMPL(snnfast, DEVICE, m) {                            \
    using Op = snnfast::NeuronOp<snnfast::BACKEND, snnfast::MODEL>;          \
    m.impl(#NAME "_fwd", &snnfast::boxed<snnfast::Forward, &Op::forward>);   \
    m.impl(#NAME "_bwd", &snnfast::boxed<snnfast::Backward, &Op::backward>); \
  }

// The GPU's backend: which kernel runs on how many threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../dispatch.h"
#include "../op/tensors.h"
#include "dense.cuh"
#include "launch.cuh"
#include "scan.cuh"

namespace snnfast {

struct Cuda {
  using StorageTypes = std::tuple<float, double, Half, BFloat16>;

  static Tensor empty(const Tensor& like, Sizes sizes, ScalarType dtype) { return new_empty(like, sizes, dtype); }

  template <typename Neuron, typename S>
  static void scan(const Tensor& on, const Scan<Neuron, S>& scan, const NeuronOptions& options) {
    launch(on, grid(scan.neurons), scan_kernel<Neuron, S>, scan, options);
  }

  template <typename Neuron, typename S>
  static void scan_backward(const Tensor& on, const ScanBackward<Neuron, S>& scan, const NeuronOptions& options,
                            const SurrogateChoice& choice) {
    dispatch_bool(scan.grad_params[0] != nullptr, [&](auto with_params) {
      constexpr auto kernel = scan_backward_kernel<decltype(with_params)::value, Neuron, S>;
      launch(on, grid(scan.neurons), kernel, scan, options, any_surrogate<typename Neuron::Scalar>(choice));
    });
  }

  // False where the weights do not fit the chip.
  template <typename Neuron, typename S, typename T = typename Neuron::Scalar>
  static bool scan_dense(const Tensor& x, Scan<Neuron, S> scan, const NeuronOptions& options,
                         const std::optional<Tensor>& spk0, const Tensor& weight_t, const std::optional<Tensor>& bias) {
    if constexpr (std::is_same_v<T, float>) {
      const int64_t features = weight_t.size(0);
      if (!same_in_all_samples<Neuron>(scan.params, features)) return false;
      const std::optional<Team> team = forward_team(Chip(x), features, scan.neurons / features);
      if (!team.has_value() || !team->counts(scan.steps)) return false;
      const Tensor board = torch::stable::new_zeros(x, {team->board_size()}, ScalarType::Int);
      std::optional<Tensor> first;
      if (spk0.has_value()) first = torch::stable::matmul(*spk0, weight_t);
      scan.rec = data<T>(first);
      launch(x, team->grid(), dense_kernel<Neuron, S>, scan, options, data<T>(weight_t), data<T>(bias), *team,
             mutable_data<unsigned>(board));
      return true;
    }
    return false;
  }

  // fed [neurons]: dL/dspk0.
  template <typename Neuron, typename S, typename T = typename Neuron::Scalar>
  static bool scan_dense_backward(const Tensor& on, const ScanBackward<Neuron, S>& scan, const NeuronOptions& options,
                                  const SurrogateChoice& choice, const Tensor& weight, const Tensor& fed) {
    if constexpr (std::is_same_v<T, float>) {
      const int64_t features = weight.size(0);
      const std::optional<Team> team = backward_team(Chip(on), features, scan.neurons / features);
      if (!team.has_value() || !team->counts(scan.steps)) return false;
      const Tensor arrivals = torch::stable::new_zeros(on, {team->teams}, ScalarType::Int);
      dispatch_bool(scan.grad_params[0] != nullptr, [&](auto with_params) {
        constexpr auto kernel = dense_backward_kernel<decltype(with_params)::value, Neuron, S>;
        launch(on, team->grid(), kernel, scan, options, any_surrogate<T>(choice), data<T>(weight), mutable_data<T>(fed),
               *team, mutable_data<unsigned>(arrivals));
      });
      return true;
    }
    return false;
  }

  // A thread a neuron, up to a number of blocks that then go on to further neurons.
  static Grid grid(int64_t neurons) {
    constexpr int64_t kMaxBlocks = int64_t{1} << 20;
    return {std::min(divided_up(neurons, kThreads), kMaxBlocks), kThreads};
  }

 private:
  // Whether the neurons of every sample have the same parameters, and with them the same height of their spikes.
  template <typename Neuron, typename T>
  static bool same_in_all_samples(const Periodic<T> (&params)[Neuron::kParams], int64_t features) {
    return std::all_of(std::begin(params), std::end(params),
                       [features](const auto& param) { return features % param.period == 0; });
  }

  template <typename T>
  static AnySurrogate<T> any_surrogate(const SurrogateChoice& choice) {
    AnySurrogate<T> surrogate{};
    dispatch_surrogate<T>(choice, [&](const auto&, const auto& any) { surrogate = any; });
    return surrogate;
  }
};

}  // namespace snnfast

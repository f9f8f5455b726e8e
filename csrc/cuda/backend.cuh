// The GPU's backend: which kernel runs on how many threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../dispatch.h"
#include "../integers.h"
#include "../op/tensors.h"
#include "launch.cuh"
#include "recurrent.cuh"
#include "scan.cuh"

namespace snnfast {

struct Cuda {
  using StorageTypes = std::tuple<float, double, Half, BFloat16>;

  // Whether backward can rerun steps: in half precision, where the currents are half the traffic, and half the
  // memory, of the states that it would read.
  template <typename S>
  static constexpr bool kReruns = sizeof(S) < sizeof(float);

  static Tensor empty(const Tensor& like, Sizes sizes, ScalarType dtype) { return new_empty(like, sizes, dtype); }

  template <typename Neuron, typename S>
  static void scan(const Tensor& on, const Scan<Neuron, S>& scan, const NeuronOptions& options) {
    if constexpr (kHasWide<Neuron, S>) {
      if (is_wide(on, scan)) return scan_in<Wide>(on, scan, options);
    }
    scan_in<NarrowForward>(on, scan, options);
  }

  template <typename Neuron, typename S>
  static void scan_backward(const Tensor& on, const ScanBackward<Neuron, S>& scan, const NeuronOptions& options,
                            const SurrogateChoice& choice) {
    using T = typename Neuron::Scalar;
    if (scan.grad_params[0]) {
      return scan_backward_in<true, NarrowBackward<T>>(on, scan, options, any_surrogate<T>(choice));
    }
    dispatch_surrogate<T>(choice, [&](const auto& known, const auto& any) {
      if constexpr (kHasWide<Neuron, S> && kIsCommon<std::decay_t<decltype(known)>>) {
        const bool holds_chunk = !scan.x || chunk_bytes<Neuron, Wide>(kThreads) <= most_shared(on);
        if (holds_chunk && is_wide(on, scan)) return scan_backward_in<false, Wide>(on, scan, options, known);
        scan_backward_in<false, NarrowBackward<T>>(on, scan, options, known);
      } else {
        scan_backward_in<false, NarrowBackward<T>>(on, scan, options, any);
      }
    });
  }

  // False where the weights do not fit the chip.
  template <typename Neuron, typename S, typename T = typename Neuron::Scalar>
  static bool scan_recurrent(const Tensor& x, Scan<Neuron, S> scan, const NeuronOptions& options,
                             const std::optional<Tensor>& spk0, const Tensor& weight_t,
                             const std::optional<Tensor>& bias) {
    if constexpr (std::is_same_v<T, float>) {
      const int64_t features = weight_t.size(0);
      if (!same_in_all_samples<Neuron>(scan.params, features)) return false;
      const std::optional<Team> team = forward_team(Chip(x), features, scan.neurons / features);
      if (!team.has_value() || !team->counts(scan.steps)) return false;
      const Tensor board = torch::stable::new_zeros(x, {team->board_size()}, ScalarType::Int);
      std::optional<Tensor> first;
      if (spk0.has_value()) first = torch::stable::matmul(*spk0, weight_t);
      scan.rec = data<T>(first);
      launch(x, team->grid(), recurrent_kernel<Neuron, S>, scan, options, data<T>(weight_t), data<T>(bias), *team,
             mutable_data<unsigned>(board));
      return true;
    }
    return false;
  }

  // fed [neurons]: dL/dspk0.
  template <typename Neuron, typename S, typename T = typename Neuron::Scalar>
  static bool scan_recurrent_backward(const Tensor& on, const ScanBackward<Neuron, S>& scan,
                                      const NeuronOptions& options, const SurrogateChoice& choice, const Tensor& weight,
                                      const Tensor& fed) {
    if constexpr (std::is_same_v<T, float>) {
      const int64_t features = weight.size(0);
      const std::optional<Team> team = backward_team(Chip(on), features, scan.neurons / features);
      if (!team.has_value() || !team->counts(scan.steps)) return false;
      const Tensor arrivals = torch::stable::new_zeros(on, {team->teams}, ScalarType::Int);
      dispatch_bool(scan.grad_params[0] != nullptr, [&](auto with_params) {
        constexpr auto kernel = recurrent_backward_kernel<decltype(with_params)::value, Neuron, S>;
        launch(on, team->grid(), kernel, scan, options, any_surrogate<T>(choice), data<T>(weight), mutable_data<T>(fed),
               *team, mutable_data<unsigned>(arrivals));
      });
      return true;
    }
    return false;
  }

  // Few neurons in small blocks, over all multiprocessors; of many, a thread goes on to further ones.
  static Grid grid(const Tensor& on, int64_t neurons, int lanes) {
    constexpr int64_t kMaxBlocks = int64_t{1} << 20;
    const int64_t threads = divided_up(neurons, lanes);
    const bool few = threads < kThreads * device_attribute(on, cudaDevAttrMultiProcessorCount);
    const int block = few ? kWarp : kThreads;
    return {std::min(divided_up(threads, block), kMaxBlocks), block};
  }

 private:
  // Models of several states have too many of them for four neurons a thread.
  template <typename Neuron, typename S>
  static constexpr bool kHasWide = Neuron::kStates == 1 && !std::is_same_v<S, double>;

  // What most networks train with has kernels of its own; the other surrogates are chosen at every step.
  template <typename Surrogate>
  static constexpr bool kIsCommon =
      Surrogate::kName == Atan<float>::kName || Surrogate::kName == FastSigmoid<float>::kName;

  template <typename Regime, typename Neuron, typename S>
  static void scan_in(const Tensor& on, const Scan<Neuron, S>& scan, const NeuronOptions& options) {
    launch(on, grid(on, scan.neurons, Regime::kLanes), scan_kernel<Regime, Neuron, S>, scan, options);
  }

  template <bool kWithParams, typename Regime, typename Neuron, typename S, typename Surrogate>
  static void scan_backward_in(const Tensor& on, const ScanBackward<Neuron, S>& scan, const NeuronOptions& options,
                               const Surrogate& surrogate) {
    Grid blocks = grid(on, scan.neurons, Regime::kLanes);
    if constexpr (kReruns<S> && Rerunnable<Neuron>) {
      if (scan.x) {
        blocks.shared = chunk_bytes<Neuron, Regime>(blocks.threads);
        constexpr auto kernel = scan_again_kernel<kWithParams, Regime, Neuron, S, Surrogate>;
        return launch(on, blocks, kernel, scan, options, surrogate);
      }
    }
    constexpr auto kernel = scan_backward_kernel<kWithParams, Regime, Neuron, S, Surrogate>;
    launch(on, blocks, kernel, scan, options, surrogate);
  }

  // Of the shared memory in which a block reruns a chunk of steps.
  template <typename Neuron, typename Regime>
  static constexpr int64_t chunk_bytes(int threads) {
    return kChunk * threads * int64_t{sizeof(Kept<Neuron, Regime::kLanes>)};
  }

  // Whether the device is full of threads that take four neurons each, and all that they touch lies so.
  template <typename Scan>
  static bool is_wide(const Tensor& on, const Scan& scan) {
    constexpr int kLanes = Wide::kLanes;
    const int64_t neurons = scan.neurons;
    bool aligned = neurons % kLanes == 0;
    scan.for_pointers([&](const auto* pointer) {
      aligned = aligned && reinterpret_cast<std::uintptr_t>(pointer) % (kLanes * sizeof(*pointer)) == 0;
    });
    if (!aligned) return false;
    const int64_t filled = device_attribute(on, cudaDevAttrMultiProcessorCount) *
                           device_attribute(on, cudaDevAttrMaxThreadsPerMultiProcessor);
    return neurons >= filled;
  }

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

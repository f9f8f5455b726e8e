// The CPU's backend: which tiles and slabs of neurons each thread runs.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "../dispatch.h"
#include "../integers.h"
#include "../op/tensors.h"
#include "fresh.h"
#include "recurrent.h"
#include "tile.h"

namespace snnfast {

inline constexpr int64_t kStepsPerTask = 32768;  // neuron-steps worth waking another thread for

struct Cpu {
  using StorageTypes = std::tuple<float, double>;

  // Backward reads the states that forward stored: rerunning steps takes it longer.
  template <typename S>
  static constexpr bool kReruns = false;

  static Tensor empty(const Tensor& like, Sizes sizes, ScalarType dtype) { return fresh(like, sizes, dtype); }

  template <typename Neuron, typename T>
  static void scan(const torch::stable::Tensor&, const Scan<Neuron, T>& scan, const NeuronOptions& options) {
    static_assert(kConsistent<Neuron>);
    for_tiles(scan.steps, scan.neurons, Order::kForward,
              [&](int64_t first, int width) { scan_tile(scan, options, first, width); });
  }

  template <typename Neuron, typename T>
  static bool scan_recurrent(const Tensor&, const Scan<Neuron, T>& scan, const NeuronOptions& options,
                             const std::optional<Tensor>& spk0, const Tensor& weight_t,
                             const std::optional<Tensor>& bias) {
    const int64_t features = weight_t.size(0);
    const Matrix<T> matrix(data<T>(weight_t), features, features);
    for_slabs(scan.neurons, features, [&](int64_t first, int64_t samples) {
      scan_recurrent_slab(scan, options, data<T>(spk0), matrix, data<T>(bias), first, samples);
    });
    return true;
  }

  template <typename Neuron, typename T>
  static void scan_backward(const Tensor&, const ScanBackward<Neuron, T>& scan, const NeuronOptions& options,
                            const SurrogateChoice& choice) {
    dispatch_backward(scan, choice, [&](auto with_params, const auto& surrogate) {
      for_tiles(scan.steps, scan.neurons, Order::kBackward, [&](int64_t first, int width) {
        scan_backward_tile<with_params>(scan, options, surrogate, FedBack<T>{}, first, width);
      });
    });
  }

  // fed [neurons]: dL/dspk0. False where the weights do not fit the cache: products of whole steps are faster there.
  template <typename Neuron, typename T>
  static bool scan_recurrent_backward(const Tensor&, const ScanBackward<Neuron, T>& scan, const NeuronOptions& options,
                                      const SurrogateChoice& choice, const Tensor& weight, const Tensor& fed) {
    constexpr int64_t kCached = 256 << 10;
    const int64_t features = weight.size(0);
    if (features * features * int64_t{sizeof(T)} > kCached) return false;
    const Matrix<T> matrix(data<T>(weight), features, features);
    const FedBack<T> back{&matrix, mutable_data<T>(fed)};
    dispatch_backward(scan, choice, [&](auto with_params, const auto& surrogate) {
      for_slabs(scan.neurons, features, [&](int64_t first, int64_t samples) {
        const int width = static_cast<int>(samples * features);
        scan_backward_tile<with_params>(scan, options, surrogate, back, first * features, width);
      });
    });
    return true;
  }

 private:
  // Backward walks the tiles from the last to the first: forward left the last ones in the cache.
  enum class Order { kForward, kBackward };

  // body(whether the parameters want gradients, surrogate)
  template <typename Neuron, typename T, typename Body>
  static void dispatch_backward(const ScanBackward<Neuron, T>& scan, const SurrogateChoice& choice, const Body& body) {
    const SurrogateRow<T> surrogate(choice);
    dispatch_bool(scan.grad_params[0] != nullptr, [&](auto with_params) { body(with_params, surrogate); });
  }

  template <typename Body>
  static void for_tiles(int64_t steps, int64_t neurons, Order order, const Body& body) {
    const int64_t grain = std::max<int64_t>(64, kStepsPerTask / std::max<int64_t>(steps, 1));
    torch::stable::parallel_for(0, neurons, grain, [&](int64_t begin, int64_t end) {
      const int64_t tiles = divided_up(end - begin, kTile);
      for (int64_t k = 0; k < tiles; ++k) {
        const int64_t first = begin + kTile * (order == Order::kForward ? k : tiles - 1 - k);
        body(first, static_cast<int>(std::min<int64_t>(kTile, end - first)));
      }
    });
  }

  // body(first sample, samples) for as many whole samples at a time as a tile holds, in fours, which a product takes at
  // once, and one at least.
  template <typename Body>
  static void for_slabs(int64_t neurons, int64_t features, const Body& body) {
    const int64_t held = kTile / features, slab = held < 4 ? std::max<int64_t>(1, held) : held / 4 * 4;
    torch::stable::parallel_for(0, neurons / features, 1, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += slab) body(first, std::min(slab, end - first));
    });
  }
};

}  // namespace snnfast

// The CPU's time loops: parallel over tiles of neurons, vectorised over the neurons of a tile, serial over time.
//
// A tile's states stay in the cache while its loop walks through time. Every row of a tile is a plain pointer: a
// tensor's row, or a buffer of the tile where an input is absent or an output unwanted, so that the innermost loop has
// no branches.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../dispatch.h"
#include "../neuron/model.h"
#include "../op/tensors.h"
#include "memory.h"
#include "simd.h"

namespace snnfast {

inline constexpr int kTile = 2048;
inline constexpr int64_t kStepsPerTask = 32768;  // neuron-steps worth waking another thread for

template <typename T>
using Row = T[kTile];

template <typename T>
void fill(Row<T>& row, T value) {
  std::fill_n(row, kTile, value);
}

template <typename T, int kCount>
void load_params(Row<T> (&rows)[kCount], const Periodic<T> (&params)[kCount], int64_t first, int width) {
  for (int k = 0; k < kCount; ++k) {
    if (params[k].period == 1) {
      std::fill_n(rows[k], width, *params[k].data);
      continue;
    }
    int64_t at = first % params[k].period;
    for (int i = 0; i < width; ++i) {
      rows[k][i] = params[k].data[at];
      if (++at == params[k].period) at = 0;
    }
  }
}

// The next step's row lies far from this one, where no hardware prefetcher looks: touch its pages while this one is
// computed. Null rows are passed over.
template <typename T>
void prefetch_row(const T* sequence, int64_t offset, int width) {
  constexpr int kPage = 4096 / sizeof(T);
  if (!sequence) return;
  for (int i = 0; i < width; i += kPage) __builtin_prefetch(sequence + offset + i);
}

template <typename Neuron, typename T = typename Neuron::Scalar>
void step_row(const Row<T> (&params)[Neuron::kParams], const NeuronOptions& options, const T* x, const T* rec,
              const T* const (&previous)[Neuron::kStates], T* const (&next)[Neuron::kStates],
              T* const (&extras)[Neuron::kExtras + 1], T* spk, int width) {
#pragma GCC ivdep
  for (int i = 0; i < width; ++i) {
    T lane_params[Neuron::kParams], state[Neuron::kStates], extra[Neuron::kExtras + 1];
    for (int k = 0; k < Neuron::kParams; ++k) lane_params[k] = params[k][i];
    for (int k = 0; k < Neuron::kStates; ++k) state[k] = previous[k][i];
    spk[i] = step(Neuron(lane_params, options), x[i], rec[i], state, extra);
    for (int k = 0; k < Neuron::kStates; ++k) next[k][i] = state[k];
    for (int k = 0; k < Neuron::kExtras; ++k) extras[k][i] = extra[k];
  }
}

template <typename Neuron, typename T = typename Neuron::Scalar>
void scan_tile(const Scan<Neuron, T>& scan, const NeuronOptions& options, int64_t first, int width) {
  Row<T> params[Neuron::kParams], carried[Neuron::kStates], unwanted[Neuron::kExtras + 1], zeros;
  load_params(params, scan.params, first, width);
  fill(zeros, T(0));
  const T* previous[Neuron::kStates];
  T* next[Neuron::kStates];
  T* extras[Neuron::kExtras + 1] = {};
  for (int k = 0; k < Neuron::kStates; ++k) {
    fill(carried[k], T(0));
    previous[k] = scan.initial[k] ? scan.initial[k] + first : carried[k];
  }
  for (int64_t t = 0; t < scan.steps; ++t) {
    const int64_t offset = t * scan.neurons + first;
    const T* x = scan.x + offset;
    const T* rec = scan.rec ? scan.rec + offset : zeros;
    T* spk = scan.spk + offset;
    if (t + 1 < scan.steps) {
      prefetch_row(scan.x, offset + scan.neurons, width);
      prefetch_row(scan.spk, offset + scan.neurons, width);
      for (int k = 0; k < Neuron::kStates; ++k) prefetch_row(scan.states[k], offset + scan.neurons, width);
    }
    for (int k = 0; k < Neuron::kStates; ++k) next[k] = scan.states[k] ? scan.states[k] + offset : carried[k];
    for (int k = 0; k < Neuron::kExtras; ++k) extras[k] = scan.extras[k] ? scan.extras[k] + offset : unwanted[k];
    step_row<Neuron>(params, options, x, rec, previous, next, extras, spk, width);
    for (int k = 0; k < Neuron::kStates; ++k) previous[k] = next[k];
  }
  for (int k = 0; k < Neuron::kStates; ++k) std::copy_n(previous[k], width, scan.last[k] + first);
}

// rec = bias + spk W^T for one sample: only the spikes that there are, in blocks of neurons that fit the registers.
template <typename T>
void feed_back(const T* spk, const T* weight_t, const T* bias, int64_t features, int* fired, T* rec) {
  constexpr int kBlock = 64;
  int count = 0;
  for (int64_t j = 0; spk && j < features; ++j) {
    fired[count] = static_cast<int>(j);
    count += spk[j] != T(0);
  }
  for (int64_t first = 0; first < features; first += kBlock) {
    const int width = static_cast<int>(std::min<int64_t>(kBlock, features - first));
    T sum[kBlock] = {};
    if (bias) std::copy_n(bias + first, width, sum);
    for (int k = 0; k < count; ++k) {
      const T height = spk[fired[k]];
      const T* row = weight_t + fired[k] * features + first;
      if (width == kBlock) {
        for (int i = 0; i < kBlock; ++i) sum[i] += height * row[i];
      } else {
        for (int i = 0; i < width; ++i) sum[i] += height * row[i];
      }
    }
    std::copy_n(sum, width, rec + first);
  }
}

// A slab of samples whose neurons feed all others of their sample: as scan_tile, with `last` for the states between
// steps, since a slab may be wider than a tile.
template <typename Neuron, typename T = typename Neuron::Scalar>
void scan_dense_slab(const Scan<Neuron, T>& scan, const NeuronOptions& options, const T* spk0, const T* weight_t,
                     const T* bias, int64_t features, int64_t first_sample, int64_t samples) {
  Row<T> params[Neuron::kParams], unwanted[Neuron::kExtras + 1];
  std::vector<T> rec(samples * features);
  std::vector<int> fired(features + 1);
  const int64_t begin = first_sample * features, end = begin + samples * features;
  for (int k = 0; k < Neuron::kStates; ++k) {
    if (scan.initial[k]) std::copy(scan.initial[k] + begin, scan.initial[k] + end, scan.last[k] + begin);
    if (!scan.initial[k]) std::fill(scan.last[k] + begin, scan.last[k] + end, T(0));
  }
  for (int64_t t = 0; t < scan.steps; ++t) {
    const T* spikes = t > 0 ? scan.spk + (t - 1) * scan.neurons : spk0;
    for (int64_t sample = 0; sample < samples; ++sample) {
      const T* own = spikes ? spikes + begin + sample * features : nullptr;
      feed_back(own, weight_t, bias, features, fired.data(), rec.data() + sample * features);
    }
    for (int64_t first = begin; first < end; first += kTile) {
      const int width = static_cast<int>(std::min<int64_t>(kTile, end - first));
      const int64_t offset = t * scan.neurons + first;
      if (t == 0 || end - begin > kTile) load_params(params, scan.params, first, width);
      const T* previous[Neuron::kStates];
      T* next[Neuron::kStates];
      T* extras[Neuron::kExtras + 1] = {};
      for (int k = 0; k < Neuron::kStates; ++k) previous[k] = next[k] = scan.last[k] + first;
      for (int k = 0; k < Neuron::kExtras; ++k) extras[k] = scan.extras[k] ? scan.extras[k] + offset : unwanted[k];
      step_row<Neuron>(params, options, scan.x + offset, rec.data() + (first - begin), previous, next, extras,
                       scan.spk + offset, width);
      for (int k = 0; k < Neuron::kStates; ++k) {
        if (scan.states[k]) std::copy_n(next[k], width, scan.states[k] + offset);
      }
    }
  }
}

template <bool kWithParams, typename Neuron, typename Surrogate, typename T = typename Neuron::Scalar>
void scan_backward_tile(const ScanBackward<Neuron, T>& scan, const NeuronOptions& options, const Surrogate& surrogate,
                        int64_t first, int width) {
  Row<T> params[Neuron::kParams], carry[Neuron::kCarries], zeros, absent;
  Row<T> sums[kWithParams ? Neuron::kParams : 1], lost[kWithParams ? Neuron::kParams : 1];
  load_params(params, scan.params, first, width);
  fill(zeros, T(0));
  fill(absent, kAbsent<T>);
  for (auto& row : sums) fill(row, T(0));
  for (auto& row : lost) fill(row, T(0));
  for (int k = 0; k < Neuron::kStates; ++k) {
    std::copy_n(scan.grad_last[k] ? scan.grad_last[k] + first : absent, width, carry[k]);
  }
  for (int k = Neuron::kStates; k < Neuron::kCarries; ++k) fill(carry[k], kAbsent<T>);
  for (int64_t t = scan.steps - 1; t >= 0; --t) {
    const int64_t offset = t * scan.neurons + first;
    const T* grad_spk = scan.grad_spk ? scan.grad_spk + offset : absent;
    const T* fed = scan.fed ? scan.fed + offset : absent;
    const T* evaluated = scan.evaluated ? scan.evaluated + offset : zeros;
    T* grad_x = scan.grad_x + offset;
    if (t > 1) {
      prefetch_row(scan.grad_spk, offset - scan.neurons, width);
      prefetch_row(scan.grad_x, offset - scan.neurons, width);
      for (int k = 0; k < Neuron::kStates; ++k) prefetch_row(scan.states[k], offset - 2 * scan.neurons, width);
    }
    const T *grad_states[Neuron::kStates], *states[Neuron::kStates], *previous[Neuron::kStates];
    const T* extras[Neuron::kExtras + 1] = {};
    for (int k = 0; k < Neuron::kStates; ++k) {
      grad_states[k] = scan.grad_states[k] ? scan.grad_states[k] + offset : absent;
      states[k] = scan.states[k] ? scan.states[k] + offset : zeros;
      const T* initial = scan.initial[k] ? scan.initial[k] + first : zeros;
      const T* before = scan.states[k] ? states[k] - scan.neurons : zeros;
      previous[k] = t > 0 ? before : initial;
    }
    for (int k = 0; k < Neuron::kExtras; ++k) extras[k] = scan.extras[k] + offset;
#pragma GCC ivdep
    for (int i = 0; i < width; ++i) {
      T lane_params[Neuron::kParams], grad_params[Neuron::kParams];
      T terms[Neuron::kCarries], state[Neuron::kStates], before[Neuron::kStates], extra[Neuron::kExtras + 1];
      for (int k = 0; k < Neuron::kParams; ++k) lane_params[k] = params[k][i];
      for (int k = 0; k < Neuron::kStates; ++k) {
        terms[k] = grad_states[k][i] + carry[k][i];
        state[k] = states[k][i];
        before[k] = previous[k][i];
      }
      for (int k = Neuron::kStates; k < Neuron::kCarries; ++k) terms[k] = carry[k][i];
      for (int k = 0; k < Neuron::kExtras; ++k) extra[k] = extras[k][i];
      grad_x[i] = step_backward(Neuron(lane_params, options), surrogate, grad_spk[i] + fed[i], evaluated[i], state,
                                extra, before, terms, grad_params);
      for (int k = 0; k < Neuron::kCarries; ++k) carry[k][i] = terms[k];
      if constexpr (kWithParams) {
        for (int k = 0; k < Neuron::kParams; ++k) {
          CompensatedSum<T> total{sums[k][i], lost[k][i]};
          total.add(grad_params[k]);
          sums[k][i] = total.sum;
          lost[k][i] = total.lost;
        }
      }
    }
  }
  for (int k = Neuron::kStates; k < Neuron::kCarries; ++k) {
    for (int i = 0; i < width; ++i) carry[Neuron::kCarriedTo[k]][i] += carry[k][i];
  }
  for (int k = 0; k < Neuron::kStates; ++k) {
    if (scan.grad_initial[k]) std::copy_n(carry[k], width, scan.grad_initial[k] + first);
  }
  if constexpr (kWithParams) {
    for (int k = 0; k < Neuron::kParams; ++k) {
      for (int i = 0; scan.add_params && i < width; ++i) sums[k][i] += scan.grad_params[k][first + i];
      std::copy_n(sums[k], width, scan.grad_params[k] + first);
    }
  }
}

struct Cpu {
  using StorageTypes = std::tuple<float, double>;

  static Tensor empty(const Tensor& like, Sizes sizes, ScalarType dtype) {
    Tensor tensor = new_empty(like, sizes, dtype);
    prepare_fresh_memory(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
    return tensor;
  }

  template <typename Neuron, typename T>
  static void scan(const torch::stable::Tensor&, const Scan<Neuron, T>& scan, const NeuronOptions& options) {
    for_tiles(scan.steps, scan.neurons, Order::kForward,
              [&](int64_t first, int width) { scan_tile(scan, options, first, width); });
  }

  static constexpr bool kScansDense = true;

  template <typename Neuron, typename T>
  static void scan_dense(const Scan<Neuron, T>& scan, const NeuronOptions& options, const T* spk0, const T* weight_t,
                         const T* bias, int64_t features) {
    const int64_t samples = scan.neurons / features, slab = std::max<int64_t>(1, kTile / features);
    torch::stable::parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
      vectorized([&] {
        for (int64_t first = begin; first < end; first += slab) {
          scan_dense_slab(scan, options, spk0, weight_t, bias, features, first, std::min(slab, end - first));
        }
      });
    });
  }

  template <typename Neuron, typename T>
  static void scan_backward(const torch::stable::Tensor&, const ScanBackward<Neuron, T>& scan,
                            const NeuronOptions& options, const SurrogateChoice& choice) {
    dispatch_bool(scan.grad_params[0] != nullptr, [&](auto with_params) {
      const auto run = [&](const auto& surrogate) {
        for_tiles(scan.steps, scan.neurons, Order::kBackward, [&](int64_t first, int width) {
          scan_backward_tile<decltype(with_params)::value>(scan, options, surrogate, first, width);
        });
      };
      if constexpr (Spiking<Neuron>) {
        // A loop for each surrogate, but in double, where one that asks again at every element spares half the binary.
        dispatch_surrogate<T>(choice, [&](const auto& known, const auto& any) {
          if constexpr (std::is_same_v<T, double>) {
            run(any);
          } else {
            run(known);
          }
        });
      } else {
        run(Disabled<T>(nullptr));
      }
    });
  }

 private:
  // Backward walks the tiles from the last to the first: forward left the last ones in the cache.
  enum class Order { kForward, kBackward };

  template <typename Body>
  static void for_tiles(int64_t steps, int64_t neurons, Order order, const Body& body) {
    const int64_t grain = std::max<int64_t>(64, kStepsPerTask / std::max<int64_t>(steps, 1));
    torch::stable::parallel_for(0, neurons, grain, [&](int64_t begin, int64_t end) {
      vectorized([&] {
        const int64_t tiles = (end - begin + kTile - 1) / kTile;
        for (int64_t k = 0; k < tiles; ++k) {
          const int64_t first = begin + kTile * (order == Order::kForward ? k : tiles - 1 - k);
          body(first, static_cast<int>(std::min<int64_t>(kTile, end - first)));
        }
      });
    });
  }
};

}  // namespace snnfast

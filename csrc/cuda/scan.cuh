// The GPU's time loops: a thread takes one neuron, or four neighbouring ones, through time; neighbouring threads take
// neighbouring neurons.
//
// The recurrence is a chain of a few operations a step, its inputs are not: a thread keeps kAhead steps of them on
// their way. A step's place is asked for again as soon as its inputs are used, so that memory never waits for the
// neurons.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "../neuron/model.h"
#include "../op/scan.h"
#include "lanes.cuh"

namespace snnfast {

template <typename Neuron>
__device__ Neuron load_neuron(const Periodic<typename Neuron::Scalar> (&params)[Neuron::kParams],
                              const NeuronOptions& options, int64_t i) {
  typename Neuron::Scalar values[Neuron::kParams];
#pragma unroll
  for (int k = 0; k < Neuron::kParams; ++k) values[k] = params[k][i];
  return Neuron(values, options);
}

// The neurons of a thread's lanes.
template <typename Neuron, int kLanes>
struct Neurons {
  Neuron lanes[kLanes];

  template <typename Params>
  __device__ Neurons(const Params& params, const NeuronOptions& options, int64_t i)
      : Neurons(params, options, i, std::make_index_sequence<kLanes>()) {}

 private:
  template <typename Params, std::size_t... W>
  __device__ Neurons(const Params& params, const NeuronOptions& options, int64_t i, std::index_sequence<W...>)
      : lanes{load_neuron<Neuron>(params, options, i + static_cast<int64_t>(W))...} {}
};

template <typename Neuron, int kLanes>
using LaneStates = typename Neuron::Scalar[kLanes][Neuron::kStates];

template <typename States>
__device__ void assign(States& to, const States& from) {
#pragma unroll
  for (int w = 0; w < static_cast<int>(std::extent_v<States, 0>); ++w) {
#pragma unroll
    for (int k = 0; k < static_cast<int>(std::extent_v<States, 1>); ++k) to[w][k] = from[w][k];
  }
}

template <int kLanes, typename Neuron, typename T>
__device__ void load_states(LaneStates<Neuron, kLanes>& states, T* const* from, int64_t at) {
#pragma unroll
  for (int k = 0; k < Neuron::kStates; ++k) {
    const auto pack = load_or<kLanes, std::remove_const_t<T>>(T(0), from[k], at);
#pragma unroll
    for (int w = 0; w < kLanes; ++w) states[w][k] = pack.lanes[w];
  }
}

template <int kLanes, typename Neuron, typename T>
__device__ void store_states(T* const* to, int64_t at, const LaneStates<Neuron, kLanes>& states) {
#pragma unroll
  for (int k = 0; k < Neuron::kStates; ++k) {
    store<kLanes>(to[k], at, [&](int w) { return states[w][k]; });
  }
}

template <typename Regime, typename Neuron, typename S>
__global__ void __launch_bounds__(kThreads, 1) scan_kernel(const Scan<Neuron, S> scan, const NeuronOptions options) {
  using T = typename Neuron::Scalar;
  constexpr int kLanes = Regime::kLanes, kAhead = Regime::kAhead;
  static_assert(kChunk % kAhead == 0);
  for_neurons<kLanes>(scan.neurons, [&](int64_t i) {
    const Neurons<Neuron, kLanes> neurons(scan.params, options, i);
    LaneStates<Neuron, kLanes> states;
    load_states<kLanes, Neuron>(states, scan.initial, i);
    Pack<S, kLanes> x[kAhead];
    Pack<T, kLanes> rec[kAhead];
    const auto ask = [&](int j, int64_t t) {
      if (t >= scan.steps) return;
      x[j] = load<kLanes>(scan.x.at(t), i);
      if constexpr (Recurrent<Neuron>) rec[j] = load_or<kLanes>(T(0), scan.rec, t * scan.neurons + i);
    };
#pragma unroll
    for (int j = 0; j < kAhead; ++j) ask(j, j);
    for (int64_t start = 0; start < scan.steps; start += kAhead) {
      if (start > 0 && start % kChunk == 0) {
        store_states<kLanes, Neuron>(scan.starts, (start / kChunk - 1) * scan.neurons + i, states);
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (start + j >= scan.steps) break;
        const Pack<S, kLanes> x_now = x[j];
        const Pack<T, kLanes> rec_now = rec[j];
        ask(j, start + j + kAhead);
        T spk[kLanes], extras[kLanes][Neuron::kExtras + 1];
#pragma unroll
        for (int w = 0; w < kLanes; ++w) {
          spk[w] = step(neurons.lanes[w], static_cast<T>(x_now.lanes[w]), rec_now.lanes[w], states[w], extras[w]);
        }
        const int64_t at = (start + j) * scan.neurons + i;
        store<kLanes>(scan.spk, at, [&](int w) { return spk[w]; });
        store_states<kLanes, Neuron>(scan.states, at, states);
#pragma unroll
        for (int k = 0; k < Neuron::kExtras; ++k)
          store<kLanes>(scan.extras[k], at, [&](int w) { return extras[w][k]; });
      }
    }
    store_states<kLanes, Neuron>(scan.last, i, states);
  });
}

// Adds the further terms that backward carries to their states. Device code may not index an array of the host's.
template <typename Neuron, typename T, std::size_t... K>
__device__ void add_terms(T* carry, std::index_sequence<K...>) {
  constexpr int kFirst = Neuron::kStates;
  ((carry[std::integral_constant<int, Neuron::kCarriedTo[kFirst + K]>()] += carry[kFirst + K]), ...);
}

// What one backward step reads, besides the gradients carried to it.
template <typename Neuron>
struct BackwardInputs {
  using T = typename Neuron::Scalar;
  T grad_spk, evaluated, grad_states[Neuron::kStates], previous[Neuron::kStates], extras[Neuron::kExtras + 1];
};

template <int kLanes, typename Neuron, typename S>
__device__ void load_inputs(BackwardInputs<Neuron> (&inputs)[kLanes], const ScanBackward<Neuron, S>& scan, int64_t t,
                            int64_t i) {
  using T = typename Neuron::Scalar;
  const int64_t at = t * scan.neurons + i;
  const auto grad_spk = load_or<kLanes>(static_cast<S>(kAbsent<T>), scan.grad_spk, t, i);
  const auto evaluated = load_or<kLanes>(T(0), scan.evaluated, at);
  LaneStates<Neuron, kLanes> previous;
  if (t > 0) load_states<kLanes, Neuron>(previous, scan.states, at - scan.neurons);
  if (t == 0) load_states<kLanes, Neuron>(previous, scan.initial, i);
#pragma unroll
  for (int w = 0; w < kLanes; ++w) {
    inputs[w].grad_spk = static_cast<T>(grad_spk.lanes[w]) + kept_apart<T>(scan.grad_spk);
    if (scan.fed && t + 1 == scan.steps) inputs[w].grad_spk = inputs[w].grad_spk + scan.fed[i + w];
    inputs[w].evaluated = evaluated.lanes[w];
  }
#pragma unroll
  for (int k = 0; k < Neuron::kStates; ++k) {
    const auto grad_state = load_or<kLanes>(kAbsent<T>, scan.grad_states[k], t, i);
#pragma unroll
    for (int w = 0; w < kLanes; ++w) {
      inputs[w].grad_states[k] = grad_state.lanes[w];
      inputs[w].previous[k] = previous[w][k];
    }
  }
#pragma unroll
  for (int k = 0; k < Neuron::kExtras; ++k) {
    const auto extra = load<kLanes>(scan.extras[k], at);
#pragma unroll
    for (int w = 0; w < kLanes; ++w) inputs[w].extras[k] = extra.lanes[w];
  }
}

// A thread's neurons on their way back: what steps hand each other, and the parameters' gradients so far.
template <bool kWithParams, int kLanes, typename Neuron, typename S, typename Surrogate>
struct WayBack {
  using T = typename Neuron::Scalar;
  const ScanBackward<Neuron, S>& scan;
  const Surrogate& surrogate;
  const int64_t i;
  const Neurons<Neuron, kLanes> neurons;
  T carry[kLanes][Neuron::kCarries];
  CompensatedSum<T> totals[kLanes][Neuron::kParams];

  __device__ WayBack(const ScanBackward<Neuron, S>& scan, const NeuronOptions& options, const Surrogate& surrogate,
                     int64_t i)
      : scan(scan), surrogate(surrogate), i(i), neurons(scan.params, options, i) {
#pragma unroll
    for (int k = 0; k < Neuron::kCarries; ++k) {
      const auto grad_last = load_or<kLanes>(kAbsent<T>, k < Neuron::kStates ? scan.grad_last[k] : nullptr, i);
#pragma unroll
      for (int w = 0; w < kLanes; ++w) carry[w][k] = grad_last.lanes[w];
    }
  }

  // Step t, which left the lanes in these states.
  __device__ void step(int64_t t, const BackwardInputs<Neuron> (&inputs)[kLanes],
                       const LaneStates<Neuron, kLanes>& states) {
    T grad_x[kLanes];
#pragma unroll
    for (int w = 0; w < kLanes; ++w) {
      T grad_params[Neuron::kParams];
#pragma unroll
      for (int k = 0; k < Neuron::kStates; ++k) carry[w][k] = inputs[w].grad_states[k] + carry[w][k];
      grad_x[w] = step_backward(neurons.lanes[w], surrogate, inputs[w].grad_spk, inputs[w].evaluated, states[w],
                                inputs[w].extras, inputs[w].previous, carry[w], grad_params);
      if constexpr (kWithParams) {
#pragma unroll
        for (int k = 0; k < Neuron::kParams; ++k) totals[w][k].add(grad_params[k]);
      }
    }
    store<kLanes>(scan.grad_x, t * scan.neurons + i, [&](int w) { return grad_x[w]; });
  }

  __device__ void finish() {
#pragma unroll
    for (int w = 0; w < kLanes; ++w) {
      add_terms<Neuron>(carry[w], std::make_index_sequence<Neuron::kCarries - Neuron::kStates>());
    }
#pragma unroll
    for (int k = 0; k < Neuron::kStates; ++k) {
      store<kLanes>(scan.grad_initial[k], i, [&](int w) { return carry[w][k]; });
    }
    if constexpr (kWithParams) {
#pragma unroll
      for (int k = 0; k < Neuron::kParams; ++k) {
        store<kLanes>(scan.grad_params[k], i, [&](int w) {
          return scan.add_params ? scan.grad_params[k][i + w] + totals[w][k].sum : totals[w][k].sum;
        });
      }
    }
  }
};

// From the states that forward stored.
template <bool kWithParams, typename Regime, typename Neuron, typename S, typename Surrogate>
__global__ void __launch_bounds__(kThreads, 1)
    scan_backward_kernel(const ScanBackward<Neuron, S> scan, const NeuronOptions options, const Surrogate surrogate) {
  constexpr int kLanes = Regime::kLanes, kAhead = Regime::kAhead;
  for_neurons<kLanes>(scan.neurons, [&](int64_t i) {
    WayBack<kWithParams, kLanes, Neuron, S, Surrogate> back(scan, options, surrogate, i);
    LaneStates<Neuron, kLanes> states{};
    if (scan.steps > 0) load_states<kLanes, Neuron>(states, scan.states, (scan.steps - 1) * scan.neurons + i);
    BackwardInputs<Neuron> inputs[kAhead][kLanes];
    const auto ask = [&](int j, int64_t t) {
      if (t >= 0) load_inputs<kLanes>(inputs[j], scan, t, i);
    };
#pragma unroll
    for (int j = 0; j < kAhead; ++j) ask(j, scan.steps - 1 - j);
    for (int64_t start = scan.steps - 1; start >= 0; start -= kAhead) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (start - j < 0) break;
        BackwardInputs<Neuron> now[kLanes];
#pragma unroll
        for (int w = 0; w < kLanes; ++w) now[w] = inputs[j][w];
        ask(j, start - j - kAhead);
        back.step(start - j, now, states);
#pragma unroll
        for (int w = 0; w < kLanes; ++w) {
#pragma unroll
          for (int k = 0; k < Neuron::kStates; ++k) states[w][k] = now[w].previous[k];
        }
      }
    }
    back.finish();
  });
}

// What a step that is rerun leaves to its way back: of each lane the states, then the extras.
template <typename Neuron, int kLanes>
struct alignas(kLanes * sizeof(typename Neuron::Scalar)) Kept {
  typename Neuron::Scalar values[kLanes][Neuron::kStates + Neuron::kExtras];
};

// A chunk of steps that are rerun into shared memory, where every thread of the block has a place for each.
template <typename Neuron, int kLanes>
class Chunk {
 public:
  using T = typename Neuron::Scalar;
  using States = LaneStates<Neuron, kLanes>;

  __device__ Chunk() : kept_(shared_memory<Kept<Neuron, kLanes>>()) {}

  // The states before its first step.
  __device__ void begin(const States& states) { assign(before_, states); }

  // Takes the states through step j.
  template <typename S>
  __device__ void run(int j, const Neurons<Neuron, kLanes>& neurons, const Pack<S, kLanes>& x, States& states) {
    Kept<Neuron, kLanes>& to = at(j);
#pragma unroll
    for (int w = 0; w < kLanes; ++w) {
      T extra[Neuron::kExtras + 1];
      step(neurons.lanes[w], static_cast<T>(x.lanes[w]), T(0), states[w], extra);
#pragma unroll
      for (int k = 0; k < Neuron::kStates; ++k) to.values[w][k] = states[w][k];
#pragma unroll
      for (int k = 0; k < Neuron::kExtras; ++k) to.values[w][Neuron::kStates + k] = extra[k];
    }
  }

  // What step j read, and the states that it left.
  __device__ void recall(int j, const T (&grad_spk)[kLanes], BackwardInputs<Neuron> (&inputs)[kLanes],
                         States& states) const {
    const Kept<Neuron, kLanes>& from = at(j);
#pragma unroll
    for (int w = 0; w < kLanes; ++w) {
      inputs[w].grad_spk = grad_spk[w];
      inputs[w].evaluated = T(0);
#pragma unroll
      for (int k = 0; k < Neuron::kStates; ++k) {
        inputs[w].grad_states[k] = kAbsent<T>;
        inputs[w].previous[k] = j == 0 ? before_[w][k] : at(j - 1).values[w][k];
        states[w][k] = from.values[w][k];
      }
#pragma unroll
      for (int k = 0; k < Neuron::kExtras; ++k) inputs[w].extras[k] = from.values[w][Neuron::kStates + k];
    }
  }

 private:
  __device__ Kept<Neuron, kLanes>& at(int j) const { return kept_[j * blockDim.x + threadIdx.x]; }

  Kept<Neuron, kLanes>* kept_;
  States before_;
};

// From currents and the states before each chunk: a chunk of steps is rerun, then walked back.
template <bool kWithParams, typename Regime, typename Neuron, typename S, typename Surrogate>
__global__ void __launch_bounds__(kThreads, 1)
    scan_again_kernel(const ScanBackward<Neuron, S> scan, const NeuronOptions options, const Surrogate surrogate) {
  using T = typename Neuron::Scalar;
  constexpr int kLanes = Regime::kLanes, kAhead = Regime::kAhead, kSteps = kChunk;
  Chunk<Neuron, kLanes> chunk;
  for_neurons<kLanes>(scan.neurons, [&](int64_t i) {
    WayBack<kWithParams, kLanes, Neuron, S, Surrogate> back(scan, options, surrogate, i);
    Pack<S, kLanes> x[kAhead]{}, grad_spk[kAhead]{};
    const auto ask = [&](Pack<S, kLanes>& place, const Rows<S>& sequence, int64_t t) {
      if (t < 0 || t >= scan.steps) return;
      place = load_or<kLanes>(static_cast<S>(kAbsent<T>), sequence, t, i);
    };
    LaneStates<Neuron, kLanes> next, states;  // next: before the chunk that is to come
    const auto ask_start = [&](int64_t start) {
      if (start > 0) load_states<kLanes, Neuron>(next, scan.starts, (start / kSteps - 1) * scan.neurons + i);
      if (start == 0) load_states<kLanes, Neuron>(next, scan.initial, i);
    };
    const int64_t last = (scan.steps - 1) / kSteps * kSteps;
    ask_start(last);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      ask(x[j], scan.x, last + j);
      ask(grad_spk[j], scan.grad_spk, last + kSteps - kAhead + j);
    }
    for (int64_t start = last; start >= 0; start -= kSteps) {
      assign(states, next);
      chunk.begin(next);
      ask_start(start - kSteps);
      for (int first = 0; first < kSteps; first += kAhead) {
        const int64_t after = first + kAhead < kSteps ? start + first + kAhead : start - kSteps;
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const Pack<S, kLanes> x_now = x[j];
          ask(x[j], scan.x, after + j);
          chunk.run(first + j, back.neurons, x_now, states);
        }
      }
      for (int first = kSteps - kAhead; first >= 0; first -= kAhead) {
#pragma unroll
        for (int j = kAhead - 1; j >= 0; --j) {
          const int64_t t = start + first + j;
          T grad_now[kLanes];
#pragma unroll
          for (int w = 0; w < kLanes; ++w) {
            grad_now[w] = static_cast<T>(grad_spk[j].lanes[w]) + kept_apart<T>(scan.grad_spk);
          }
          ask(grad_spk[j], scan.grad_spk, t - kAhead);
          if (t >= scan.steps) continue;
          BackwardInputs<Neuron> inputs[kLanes];
          chunk.recall(first + j, grad_now, inputs, states);
          back.step(t, inputs, states);
        }
      }
    }
    back.finish();
  });
}

}  // namespace snnfast

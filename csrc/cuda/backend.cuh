// The GPU's time loops: one thread per neuron, serial over time, neighbouring threads on neighbouring neurons.
//
// The recurrence is a chain of a few operations a step, its inputs are not: each thread loads kAhead steps of inputs
// before it computes them, so that memory latency is paid once per kAhead steps.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../dispatch.h"
#include "../neuron/model.h"
#include "../op/tensors.h"

namespace snnfast {

inline constexpr int kThreads = 128;  // at one block a multiprocessor at least: registers hold kAhead steps, unspilled
inline constexpr int kAhead = 8;
inline constexpr int64_t kMaxBlocks = int64_t{1} << 20;

template <typename Neuron, typename S>
__device__ Neuron load_neuron(const Periodic<typename Neuron::Scalar> (&params)[Neuron::kParams],
                              const NeuronOptions& options, int64_t i) {
  typename Neuron::Scalar values[Neuron::kParams];
#pragma unroll
  for (int k = 0; k < Neuron::kParams; ++k) values[k] = params[k][i];
  return Neuron(values, options);
}

template <typename Neuron, typename S>
__global__ void __launch_bounds__(kThreads, 1) scan_kernel(const Scan<Neuron, S> scan, const NeuronOptions options) {
  using T = typename Neuron::Scalar;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < scan.neurons; i += stride) {
    const Neuron neuron = load_neuron<Neuron, S>(scan.params, options, i);
    T state[Neuron::kStates];
#pragma unroll
    for (int k = 0; k < Neuron::kStates; ++k) state[k] = scan.initial[k] ? scan.initial[k][i] : T(0);
    for (int64_t start = 0; start < scan.steps; start += kAhead) {
      T x[kAhead], rec[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (start + j >= scan.steps) break;
        x[j] = static_cast<T>(scan.x[(start + j) * scan.neurons + i]);
        rec[j] = Recurrent<Neuron> && scan.rec ? scan.rec[(start + j) * scan.neurons + i] : T(0);
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (start + j >= scan.steps) break;
        const int64_t at = (start + j) * scan.neurons + i;
        T extra[Neuron::kExtras + 1];
        scan.spk[at] = static_cast<S>(step(neuron, x[j], rec[j], state, extra));
#pragma unroll
        for (int k = 0; k < Neuron::kStates; ++k) {
          if (scan.states[k]) scan.states[k][at] = state[k];
        }
#pragma unroll
        for (int k = 0; k < Neuron::kExtras; ++k) {
          if (scan.extras[k]) scan.extras[k][at] = extra[k];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < Neuron::kStates; ++k) scan.last[k][i] = state[k];
  }
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

  template <typename S>
  __device__ void load(const ScanBackward<Neuron, S>& scan, int64_t t, int64_t i) {
    const int64_t at = t * scan.neurons + i;
    grad_spk = scan.grad_spk ? static_cast<T>(scan.grad_spk[at]) : kAbsent<T>;
    if (scan.fed && t + 1 == scan.steps) grad_spk = grad_spk + scan.fed[i];
    evaluated = scan.evaluated ? scan.evaluated[at] : T(0);
#pragma unroll
    for (int k = 0; k < Neuron::kStates; ++k) {
      grad_states[k] = scan.grad_states[k] ? scan.grad_states[k][at] : kAbsent<T>;
      if (t > 0) {
        previous[k] = scan.states[k] ? scan.states[k][at - scan.neurons] : T(0);
      } else {
        previous[k] = scan.initial[k] ? scan.initial[k][i] : T(0);
      }
    }
#pragma unroll
    for (int k = 0; k < Neuron::kExtras; ++k) extras[k] = scan.extras[k][at];
  }
};

template <bool kWithParams, typename Neuron, typename S>
__global__ void __launch_bounds__(kThreads, 1)
    scan_backward_kernel(const ScanBackward<Neuron, S> scan, const NeuronOptions options,
                         const AnySurrogate<typename Neuron::Scalar> surrogate) {
  using T = typename Neuron::Scalar;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < scan.neurons; i += stride) {
    const Neuron neuron = load_neuron<Neuron, S>(scan.params, options, i);
    T carry[Neuron::kCarries], state[Neuron::kStates];
    CompensatedSum<T> totals[Neuron::kParams];
#pragma unroll
    for (int k = 0; k < Neuron::kStates; ++k) {
      carry[k] = scan.grad_last[k] ? scan.grad_last[k][i] : kAbsent<T>;
      state[k] = scan.steps > 0 && scan.states[k] ? scan.states[k][(scan.steps - 1) * scan.neurons + i] : T(0);
    }
#pragma unroll
    for (int k = Neuron::kStates; k < Neuron::kCarries; ++k) carry[k] = kAbsent<T>;
    for (int64_t start = scan.steps - 1; start >= 0; start -= kAhead) {
      BackwardInputs<Neuron> inputs[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (start - j >= 0) inputs[j].load(scan, start - j, i);
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (start - j < 0) break;
        T grad_params[Neuron::kParams];
#pragma unroll
        for (int k = 0; k < Neuron::kStates; ++k) carry[k] = inputs[j].grad_states[k] + carry[k];
        const T grad_x = step_backward(neuron, surrogate, inputs[j].grad_spk, inputs[j].evaluated, state,
                                       inputs[j].extras, inputs[j].previous, carry, grad_params);
        scan.grad_x[(start - j) * scan.neurons + i] = static_cast<S>(grad_x);
        if constexpr (kWithParams) {
#pragma unroll
          for (int k = 0; k < Neuron::kParams; ++k) totals[k].add(grad_params[k]);
        }
#pragma unroll
        for (int k = 0; k < Neuron::kStates; ++k) state[k] = inputs[j].previous[k];
      }
    }
    add_terms<Neuron>(carry, std::make_index_sequence<Neuron::kCarries - Neuron::kStates>());
#pragma unroll
    for (int k = 0; k < Neuron::kStates; ++k) {
      if (scan.grad_initial[k]) scan.grad_initial[k][i] = carry[k];
    }
    if constexpr (kWithParams) {
#pragma unroll
      for (int k = 0; k < Neuron::kParams; ++k) {
        scan.grad_params[k][i] = scan.add_params ? scan.grad_params[k][i] + totals[k].sum : totals[k].sum;
      }
    }
  }
}

struct Cuda {
  using StorageTypes = std::tuple<float, double, Half, BFloat16>;

  static Tensor empty(const Tensor& like, Sizes sizes, ScalarType dtype) { return new_empty(like, sizes, dtype); }

  template <typename Neuron, typename S>
  static void scan(const torch::stable::Tensor& on, const Scan<Neuron, S>& scan, const NeuronOptions& options) {
    const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
    scan_kernel<<<blocks(scan.neurons), kThreads, 0, stream(on)>>>(scan, options);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  template <typename Neuron, typename S>
  static void scan_backward(const torch::stable::Tensor& on, const ScanBackward<Neuron, S>& scan,
                            const NeuronOptions& options, const SurrogateChoice& choice) {
    const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
    AnySurrogate<typename Neuron::Scalar> surrogate{};
    dispatch_surrogate<typename Neuron::Scalar>(choice, [&](const auto&, const auto& any) { surrogate = any; });
    dispatch_bool(scan.grad_params[0] != nullptr, [&](auto with_params) {
      scan_backward_kernel<decltype(with_params)::value>
          <<<blocks(scan.neurons), kThreads, 0, stream(on)>>>(scan, options, surrogate);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }

  template <typename Neuron, typename S, typename T = typename Neuron::Scalar>
  static bool scan_dense(const torch::stable::Tensor&, const Scan<Neuron, S>&, const NeuronOptions&, const T*, const T*,
                         const T*, int64_t) {
    return false;
  }

  template <typename Neuron, typename S, typename T = typename Neuron::Scalar>
  static bool scan_dense_backward(const torch::stable::Tensor&, const ScanBackward<Neuron, S>&, const NeuronOptions&,
                                  const SurrogateChoice&, const T*, int64_t, T*) {
    return false;
  }

 protected:
  static unsigned blocks(int64_t neurons) {
    return static_cast<unsigned>(std::min((neurons + kThreads - 1) / kThreads, kMaxBlocks));
  }

  static cudaStream_t stream(const torch::stable::Tensor& on) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &current));
    return static_cast<cudaStream_t>(current);
  }
};

}  // namespace snnfast

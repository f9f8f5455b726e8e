// The operators of the encoders, over any backend: checks, allocation, dispatch.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../dispatch.h"
#include "../encode/encoders.h"
#include "tensors.h"

namespace snnfast {

template <typename Backend>
struct EncodeOp {
  using DataTypes = std::tuple<float, double, Half, BFloat16>;
  using SpikeTypes = std::tuple<float, double, Half, BFloat16, bool>;

  // x [...] the same for all `steps`, or without them x [T, ...]: spikes [silent + T, ...].
  static Tensor rate(Tensor x, Tensor seed, std::optional<int64_t> steps, int64_t silent, double gain, double offset,
                     ScalarType dtype) {
    const Sequence sequence(x, !steps.has_value());
    check_count("silent", silent);
    if (steps.has_value()) check_count("steps", *steps);
    const int64_t total = steps.has_value() ? *steps : checked_sum("silent", silent, sequence.steps);
    check_tensor("seed", seed, x, ScalarType::Long, 1);
    x = readable(x, sequence);
    seed = readable(seed);
    const Tensor spk = fresh(x, total, sequence.neuron_shape(), dtype);
    if (spk.numel() == 0) return spk;
    dispatch_both(x.scalar_type(), dtype, [&](auto value, auto spike) {
      using X = decltype(value);
      using S = decltype(spike);
      using T = StateOf<X>;
      const Odds<T> odds{static_cast<T>(gain), static_cast<T>(offset)};
      Backend::encode(x, RateCode<X, S, T>{total, sequence.neurons, silent, rows<X>(x, sequence), data<int64_t>(seed),
                                           odds, mutable_data<S>(spk)});
    });
    return spk;
  }

  // times [...], whole numbers -> [steps, ...]
  static Tensor latency(Tensor times, int64_t steps, bool ramp, double on, double off, ScalarType dtype) {
    check_count("steps", steps);
    times = readable(times);
    const Tensor spk = fresh(times, steps, times.sizes(), dtype);
    if (spk.numel() == 0) return spk;
    dispatch_dtype<std::tuple<float, double>>(times.scalar_type(), [&](auto value) {
      using T = decltype(value);
      dispatch_dtype<SpikeTypes>(dtype, [&](auto spike) {
        using S = decltype(spike);
        Backend::encode(times, LatencyCode<T, S>{steps, times.numel(), data<T>(times), ramp, static_cast<T>(on),
                                                 static_cast<T>(off), static_cast<T>(on - off), mutable_data<S>(spk)});
      });
    });
    return spk;
  }

  // x [T, ...] -> [T, ...]
  static Tensor delta(Tensor x, double threshold, bool padding, bool off_spike, ScalarType dtype) {
    const Sequence sequence(x, true);
    x = readable(x);
    const Tensor spk = Backend::empty(x, x.sizes(), dtype);
    if (spk.numel() == 0) return spk;
    dispatch_both(x.scalar_type(), dtype, [&](auto value, auto spike) {
      using X = decltype(value);
      using S = decltype(spike);
      Backend::encode(x, DeltaCode<X, S>{sequence.steps, sequence.neurons, data<X>(x), static_cast<X>(threshold),
                                         padding, off_spike, mutable_data<S>(spk)});
    });
    return spk;
  }

 private:
  static Tensor fresh(const Tensor& like, int64_t steps, Sizes shape, ScalarType dtype) {
    std::vector<int64_t> sizes{steps};
    sizes.insert(sizes.end(), shape.begin(), shape.end());
    return Backend::empty(like, sizes, dtype);
  }

  // f(X(), S()) for the types of data and of spikes.
  template <typename F>
  static void dispatch_both(ScalarType data, ScalarType spikes, const F& f) {
    dispatch_dtype<DataTypes>(
        data, [&](auto value) { dispatch_dtype<SpikeTypes>(spikes, [&](auto spike) { f(value, spike); }); });
  }
};

}  // namespace snnfast

// Registers the operators for a device: SNNFAST_ENCODERS(CPU, CpuEncoders).
#define SNNFAST_ENCODERS(DEVICE, BACKEND)              \
  STABLE_TORCH_LIBRARY_IMPL(snnfast, DEVICE, m) {      \
    using Op = snnfast::EncodeOp<snnfast::BACKEND>;    \
    m.impl("encode_rate", TORCH_BOX(&Op::rate));       \
    m.impl("encode_latency", TORCH_BOX(&Op::latency)); \
    m.impl("encode_delta", TORCH_BOX(&Op::delta));     \
  }

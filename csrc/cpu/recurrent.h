// A slab of samples whose neurons feed all others of their sample: one task's share of all-to-all recurrence.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "product.h"
#include "tile.h"

namespace snnfast {

// rec [samples, features] = spk W^T + bias. spk and bias [features] may be null.
template <typename T>
void feed_back(const T* spk, const Matrix<T>& weight_t, const T* bias, int64_t samples, T* rec) {
  const int64_t features = weight_t.columns();
  if (spk) multiply_spikes(spk, weight_t, samples, features, rec);
  if (!spk) std::fill_n(rec, samples * features, T(0));
  for (int64_t sample = 0; bias && sample < samples; ++sample) {
    for (int64_t i = 0; i < features; ++i) rec[sample * features + i] += bias[i];
  }
}

// As scan_tile, with `last` for the states between steps, since a slab may be wider than a tile.
template <typename Neuron, typename T = typename Neuron::Scalar>
void scan_recurrent_slab(const Scan<Neuron, T>& scan, const NeuronOptions& options, const T* spk0,
                         const Matrix<T>& weight_t, const T* bias, int64_t first_sample, int64_t samples) {
  const int64_t features = weight_t.columns();
  vectorized([&] {
    Row<T> params[Neuron::kParams], unwanted[Neuron::kExtras + 1];
    std::vector<T> rec(samples * features);
    const int64_t begin = first_sample * features, end = begin + samples * features;
    for (int k = 0; k < Neuron::kStates; ++k) {
      if (scan.initial[k]) std::copy(scan.initial[k] + begin, scan.initial[k] + end, scan.last[k] + begin);
      if (!scan.initial[k]) std::fill(scan.last[k] + begin, scan.last[k] + end, T(0));
    }
    for (int64_t t = 0; t < scan.steps; ++t) {
      // Its lines: there is time for them beside the product.
      const int all = static_cast<int>(end - begin);
      if (t + 1 < scan.steps) prefetch_step<kLine>(scan, t + 1, begin, all);
      const T* spikes = t > 0 ? scan.spk + (t - 1) * scan.neurons : spk0;
      feed_back(spikes ? spikes + begin : nullptr, weight_t, bias, samples, rec.data());
      for (int64_t first = begin; first < end; first += kTile) {
        const int width = static_cast<int>(std::min<int64_t>(kTile, end - first));
        const int64_t offset = t * scan.neurons + first;
        if (t == 0 || end - begin > kTile) load_params(params, scan.params, first, width);
        const T* previous[Neuron::kStates];
        T* next[Neuron::kStates];
        T* extras[Neuron::kExtras + 1] = {};
        for (int k = 0; k < Neuron::kStates; ++k) previous[k] = next[k] = scan.last[k] + first;
        for (int k = 0; k < Neuron::kExtras; ++k) extras[k] = scan.extras[k] ? scan.extras[k] + offset : unwanted[k];
        step_row<Neuron>(params, options, scan.x.at(t) + first, rec.data() + (first - begin), previous, next, extras,
                         scan.spk + offset, width);
        for (int k = 0; k < Neuron::kStates; ++k) {
          if (scan.states[k]) std::copy_n(next[k], width, scan.states[k] + offset);
        }
      }
    }
  });
}

}  // namespace snnfast

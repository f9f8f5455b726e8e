// The CPU's time loops over a tile of neurons: vectorised over its neurons, serial over time.
//
// The innermost loops are compiled for each reset mechanism by itself: blends of what all of them compute take longer.
// A tile's states stay in the cache while its loop walks through time. Every row of a tile is a plain pointer: a
// tensor's row, or a buffer of the tile where an input is absent or an output unwanted, so that the innermost loop has
// no branches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../dispatch.h"
#include "../neuron/model.h"
#include "../op/scan.h"
#include "product.h"
#include "rows.h"
#include "simd.h"
#include "surrogate.h"

namespace snnfast {

template <int kBytes, typename Neuron, typename T = typename Neuron::Scalar>
void prefetch_step(const Scan<Neuron, T>& scan, int64_t t, int64_t first, int width) {
  const int64_t offset = t * scan.neurons + first;
  prefetch_row<kBytes>(scan.x.at(t), first, width);
  prefetch_row<kBytes>(scan.spk, offset, width);
  for (int k = 0; k < Neuron::kStates; ++k) prefetch_row<kBytes>(scan.states[k], offset, width);
  for (int k = 0; k < Neuron::kExtras; ++k) prefetch_row<kBytes>(scan.extras[k], offset, width);
}

template <typename Neuron, typename T = typename Neuron::Scalar>
void step_row(const Row<T> (&params)[Neuron::kParams], const NeuronOptions& options, const T* x, const T* rec,
              const T* const (&previous)[Neuron::kStates], T* const (&next)[Neuron::kStates],
              T* const (&extras)[Neuron::kExtras + 1], T* spk, int width) {
  dispatch_reset(options, [&](const NeuronOptions& known) {
#pragma GCC ivdep
    for (int i = 0; i < width; ++i) {
      T lane_params[Neuron::kParams], state[Neuron::kStates], extra[Neuron::kExtras + 1];
      for (int k = 0; k < Neuron::kParams; ++k) lane_params[k] = params[k][i];
      for (int k = 0; k < Neuron::kStates; ++k) state[k] = previous[k][i];
      spk[i] = step(Neuron(lane_params, known), x[i], rec[i], state, extra);
      for (int k = 0; k < Neuron::kStates; ++k) next[k][i] = state[k];
      for (int k = 0; k < Neuron::kExtras; ++k) extras[k][i] = extra[k];
    }
  });
}

template <typename Neuron, typename T = typename Neuron::Scalar>
void scan_tile(const Scan<Neuron, T>& scan, const NeuronOptions& options, int64_t first, int width) {
  vectorized([&] {
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
      const T* x = scan.x.at(t) + first;
      const T* rec = scan.rec ? scan.rec + offset : zeros;
      T* spk = scan.spk + offset;
      if (t + 1 < scan.steps) prefetch_step<kPage>(scan, t + 1, first, width);
      for (int k = 0; k < Neuron::kStates; ++k) next[k] = scan.states[k] ? scan.states[k] + offset : carried[k];
      for (int k = 0; k < Neuron::kExtras; ++k) extras[k] = scan.extras[k] ? scan.extras[k] + offset : unwanted[k];
      step_row<Neuron>(params, options, x, rec, previous, next, extras, spk, width);
      for (int k = 0; k < Neuron::kStates; ++k) previous[k] = next[k];
    }
    for (int k = 0; k < Neuron::kStates; ++k) std::copy_n(previous[k], width, scan.last[k] + first);
  });
}

// A step asks its surrogate through the first of these, gets the answer from the second, and is computed twice for it:
// of the first time the compiler keeps what leads to the question. So surrogates are compiled once, not once a neuron.
template <typename T>
struct Question {
  T *grad, *u;
  T backward(T grad_spk, T mem_shift, T) const {
    *grad = grad_spk;
    *u = mem_shift;
    return T(0);
  }
};

template <typename T>
struct Answer {
  T grad_u;
  T backward(T, T, T) const { return grad_u; }
};

// The steps of a tile, from the last to the first, each with what comes back to its spikes from the step after it.
template <bool kWithParams, typename Neuron>
class BackwardTile {
 public:
  using T = typename Neuron::Scalar;

  BackwardTile(const ScanBackward<Neuron, T>& scan, const NeuronOptions& options, const SurrogateRow<T>& surrogate,
               int64_t first, int width)
      : scan_(scan), options_(options), surrogate_(surrogate), first_(first), width_(width) {
    load_params(params_, scan.params, first, width);
    fill(zeros_, T(0));
    fill(absent_, kAbsent<T>);
    for (auto& row : sums_) fill(row, T(0));
    for (auto& row : lost_) fill(row, T(0));
    for (int k = 0; k < Neuron::kStates; ++k) {
      std::copy_n(scan.grad_last[k] ? scan.grad_last[k] + first : absent_, width, carry_[k]);
    }
    for (int k = Neuron::kStates; k < Neuron::kCarries; ++k) fill(carry_[k], kAbsent<T>);
  }

  // fed [width] or null.
  void step(int64_t t, const T* fed) {
    if (t > 1) prefetch(t);
    const Given given = given_at(t, fed);
    T* grad_x = scan_.grad_x + t * scan_.neurons + first_;
    for (int begin = 0; begin < width_; begin += kBlock) {
      const int end = std::min(begin + kBlock, width_);
      T grad[kBlock];  // dL/dspike, then dL/du
      dispatch_reset(options_, [&](const NeuronOptions& options) {
        if constexpr (Spiking<Neuron>) {
          T u[kBlock];
          ask(options, given, begin, end, grad, u);
          surrogate_(grad, u, given.evaluated + begin, end - begin);
        } else {
          std::fill_n(grad, kBlock, T(0));
        }
        finish_step(options, given, begin, end, grad, grad_x);
      });
    }
  }

  // What is left for the initial states and the parameters.
  void finish() {
    for (int k = Neuron::kStates; k < Neuron::kCarries; ++k) {
      for (int i = 0; i < width_; ++i) carry_[Neuron::kCarriedTo[k]][i] += carry_[k][i];
    }
    for (int k = 0; k < Neuron::kStates; ++k) {
      if (scan_.grad_initial[k]) std::copy_n(carry_[k], width_, scan_.grad_initial[k] + first_);
    }
    if constexpr (kWithParams) {
      for (int k = 0; k < Neuron::kParams; ++k) {
        for (int i = 0; scan_.add_params && i < width_; ++i) sums_[k][i] += scan_.grad_params[k][first_ + i];
        std::copy_n(sums_[k], width_, scan_.grad_params[k] + first_);
      }
    }
  }

 private:
  static constexpr int kBlock = 256;  // neurons between question and answer: they stay in the first cache

  // The rows that a step reads.
  struct Given {
    const T *grad_spk, *fed, *evaluated;
    const T *grad_states[Neuron::kStates], *states[Neuron::kStates], *previous[Neuron::kStates];
    const T* extras[Neuron::kExtras + 1];
  };

  Given given_at(int64_t t, const T* fed) const {
    const int64_t offset = t * scan_.neurons + first_;
    Given given{};
    given.grad_spk = row(scan_.grad_spk, t);
    const T* unfed = scan_.grad_spk ? zeros_ : absent_;  // see kept_apart
    given.fed = fed ? fed : unfed;
    given.evaluated = scan_.evaluated ? scan_.evaluated + offset : zeros_;
    for (int k = 0; k < Neuron::kStates; ++k) {
      given.grad_states[k] = row(scan_.grad_states[k], t);
      given.states[k] = scan_.states[k] ? scan_.states[k] + offset : zeros_;
      const T* initial = scan_.initial[k] ? scan_.initial[k] + first_ : zeros_;
      const T* before = scan_.states[k] ? given.states[k] - scan_.neurons : zeros_;
      given.previous[k] = t > 0 ? before : initial;
    }
    for (int k = 0; k < Neuron::kExtras; ++k) given.extras[k] = scan_.extras[k] + offset;
    return given;
  }

  void prefetch(int64_t t) const {
    const int64_t offset = t * scan_.neurons + first_;
    prefetch_row(scan_.grad_spk.at(t - 1), first_, width_);
    prefetch_row(scan_.grad_x, offset - scan_.neurons, width_);
    for (int k = 0; k < Neuron::kStates; ++k) prefetch_row(scan_.states[k], offset - 2 * scan_.neurons, width_);
    for (int k = 0; k < Neuron::kExtras; ++k) prefetch_row(scan_.extras[k], offset - scan_.neurons, width_);
  }

  // One neuron. Returns dL/dx[t].
  template <typename Surrogate>
  T neuron(const NeuronOptions& options, const Given& given, int i, const Surrogate& surrogate, T* terms,
           T* grad_params) const {
    T params[Neuron::kParams], state[Neuron::kStates], before[Neuron::kStates], extra[Neuron::kExtras + 1];
    for (int k = 0; k < Neuron::kParams; ++k) params[k] = params_[k][i];
    for (int k = 0; k < Neuron::kStates; ++k) {
      terms[k] = given.grad_states[k][i] + carry_[k][i];
      state[k] = given.states[k][i];
      before[k] = given.previous[k][i];
    }
    for (int k = Neuron::kStates; k < Neuron::kCarries; ++k) terms[k] = carry_[k][i];
    for (int k = 0; k < Neuron::kExtras; ++k) extra[k] = given.extras[k][i];
    return step_backward(Neuron(params, options), surrogate, given.grad_spk[i] + given.fed[i], given.evaluated[i],
                         state, extra, before, terms, grad_params);
  }

  void ask(const NeuronOptions& options, const Given& given, int begin, int end, T* grad, T* u) const {
#pragma GCC ivdep
    for (int i = begin; i < end; ++i) {
      T terms[Neuron::kCarries], grad_params[Neuron::kParams];
      neuron(options, given, i, Question<T>{grad + (i - begin), u + (i - begin)}, terms, grad_params);
    }
  }

  void finish_step(const NeuronOptions& options, const Given& given, int begin, int end, const T* grad_u, T* grad_x) {
#pragma GCC ivdep
    for (int i = begin; i < end; ++i) {
      T terms[Neuron::kCarries], grad_params[Neuron::kParams];
      grad_x[i] = neuron(options, given, i, Answer<T>{grad_u[i - begin]}, terms, grad_params);
      for (int k = 0; k < Neuron::kCarries; ++k) carry_[k][i] = terms[k];
      if constexpr (kWithParams) {
        for (int k = 0; k < Neuron::kParams; ++k) {
          CompensatedSum<T> total{sums_[k][i], lost_[k][i]};
          total.add(grad_params[k]);
          sums_[k][i] = total.sum;
          lost_[k][i] = total.lost;
        }
      }
    }
  }

  const T* row(const Rows<T>& gradient, int64_t t) const { return gradient ? gradient.at(t) + first_ : absent_; }

  const ScanBackward<Neuron, T>& scan_;
  const NeuronOptions& options_;
  const SurrogateRow<T>& surrogate_;
  const int64_t first_;
  const int width_;
  Row<T> params_[Neuron::kParams], carry_[Neuron::kCarries], zeros_, absent_;
  Row<T> sums_[kWithParams ? Neuron::kParams : 1], lost_[kWithParams ? Neuron::kParams : 1];
};

// All-to-all recurrence on the way back: dL/drec is dL/dx, and reaches the spikes of the step before through W.
template <typename T>
struct FedBack {
  const Matrix<T>* weight;  // null: none; a tile holds whole samples of its columns
  T* fed;                   // [neurons]; left with what reaches the spikes before the first step
};

template <bool kWithParams, typename Neuron, typename T = typename Neuron::Scalar>
void scan_backward_tile(const ScanBackward<Neuron, T>& scan, const NeuronOptions& options,
                        const SurrogateRow<T>& surrogate, const FedBack<T>& back, int64_t first, int width) {
  vectorized([&] {
    BackwardTile<kWithParams, Neuron> tile(scan, options, surrogate, first, width);
    const T* fed = scan.fed ? scan.fed + first : nullptr;
    for (int64_t t = scan.steps - 1; t >= 0; --t) {
      tile.step(t, fed);
      if (!back.weight) continue;
      const T* grad_rec = scan.grad_x + t * scan.neurons + first;
      const int64_t features = back.weight->columns();
      multiply(grad_rec, *back.weight, width / features, features, back.fed + first);
      fed = back.fed + first;
    }
    tile.finish();
  });
}

}  // namespace snnfast

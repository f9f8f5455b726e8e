// The time loops of a generated cell (snnfast/cells) on a GPU: scan.cuh's, for what a cell may have (csrc/cpu/cell.h).
//
// A cell is a struct with
//   Scalar, In, Out                          the types that it is computed in, that inputs and outputs are stored in
//   kIns, kOuts, kStates, kParams, kTerms    how many of each
//   kVariants, first_term(variant)           backward: as on a CPU
//   step(lane), step_backward(variant, lane) one neuron's, from and to the places that csrc/cpu/cell.h names
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../op/scan.h"
#include "functions.cuh"
#include "lanes.cuh"

namespace snnfast {

template <typename Cell>
struct CellScan {
  using T = typename Cell::Scalar;
  int64_t steps, neurons;
  Slots<Rows<typename Cell::In>, Cell::kIns> x;  // [steps, neurons]
  Slots<const T*, Cell::kStates> initial;        // [neurons]
  Slots<Periodic<T>, Cell::kParams> params;
  Slots<typename Cell::Out*, Cell::kOuts> out;  // [steps, neurons]
  Slots<T*, Cell::kStates> states;              // [steps, neurons]; null: not wanted
  Slots<T*, Cell::kStates> last;                // [neurons]
};

template <typename Cell>
struct CellScanBackward {
  using T = typename Cell::Scalar;
  int64_t steps, neurons;
  Slots<Rows<typename Cell::In>, Cell::kIns> x;  // [steps, neurons]
  Slots<const T*, Cell::kStates> initial;        // [neurons]
  Slots<Periodic<T>, Cell::kParams> params;
  Slots<const T*, Cell::kStates> states;                  // [steps, neurons], as forward wrote them
  Slots<Rows<typename Cell::Out>, Cell::kOuts> grad_out;  // [steps, neurons]
  Slots<Rows<T>, Cell::kStates> outer;           // gradients of the states of all steps, and of a row before them
  int64_t headed;                                // whether there is such a row: of the states before the first step
  Slots<const T*, Cell::kStates> grad_last;      // [neurons]
  Slots<typename Cell::In*, Cell::kIns> grad_x;  // [steps, neurons]
  Slots<T*, Cell::kStates> grad_initial;         // [neurons]
  Slots<T*, Cell::kTerms> terms;                 // [neurons], summed over time
};

// One neuron at one step.
template <typename Cell>
struct CellLane {
  using T = typename Cell::Scalar;
  Slots<T, Cell::kIns> x, grad_x;
  Slots<T, Cell::kOuts> out, grad_out;
  Slots<T, Cell::kStates> previous, next, grad_next, grad_previous, outer;
  Slots<T, Cell::kParams> params;
  Slots<T, Cell::kTerms> terms;
};

template <int kLanes, typename Cell, typename Params>
__device__ void load_cell_params(CellLane<Cell> (&lanes)[kLanes], const Params& params, int64_t i) {
#pragma unroll
  for (int k = 0; k < Cell::kParams; ++k) {
#pragma unroll
    for (int w = 0; w < kLanes; ++w) lanes[w].params[k] = params[k][i + w];
  }
}

template <typename Regime, typename Cell>
__device__ void run_cell(const CellScan<Cell>& scan) {
  using T = typename Cell::Scalar;
  constexpr int kLanes = Regime::kLanes, kAhead = Regime::kAhead;
  for_neurons<kLanes>(scan.neurons, [&](int64_t i) {
    CellLane<Cell> lanes[kLanes];
    load_cell_params<kLanes>(lanes, scan.params, i);
#pragma unroll
    for (int k = 0; k < Cell::kStates; ++k) {
      const auto initial = load<kLanes>(scan.initial[k], i);
#pragma unroll
      for (int w = 0; w < kLanes; ++w) lanes[w].previous[k] = initial.lanes[w];
    }
    Slots<Pack<typename Cell::In, kLanes>, Cell::kIns> x[kAhead];
    const auto ask = [&](int j, int64_t t) {
      if (t >= scan.steps) return;
#pragma unroll
      for (int k = 0; k < Cell::kIns; ++k) x[j][k] = load<kLanes>(scan.x[k].at(t), i);
    };
#pragma unroll
    for (int j = 0; j < kAhead; ++j) ask(j, j);
    for (int64_t start = 0; start < scan.steps; start += kAhead) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (start + j >= scan.steps) break;
#pragma unroll
        for (int k = 0; k < Cell::kIns; ++k) {
#pragma unroll
          for (int w = 0; w < kLanes; ++w) lanes[w].x[k] = static_cast<T>(x[j][k].lanes[w]);
        }
        ask(j, start + j + kAhead);
#pragma unroll
        for (int w = 0; w < kLanes; ++w) Cell::step(lanes[w]);
        const int64_t at = (start + j) * scan.neurons + i;
#pragma unroll
        for (int k = 0; k < Cell::kOuts; ++k) store<kLanes>(scan.out[k], at, [&](int w) { return lanes[w].out[k]; });
#pragma unroll
        for (int k = 0; k < Cell::kStates; ++k) {
          store<kLanes>(scan.states[k], at, [&](int w) { return lanes[w].next[k]; });
#pragma unroll
          for (int w = 0; w < kLanes; ++w) lanes[w].previous[k] = lanes[w].next[k];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < Cell::kStates; ++k) {
      store<kLanes>(scan.last[k], i, [&](int w) { return lanes[w].previous[k]; });
    }
  });
}

// What one backward step reads of memory, besides the states after it.
template <typename Cell, int kLanes>
struct CellInputs {
  using T = typename Cell::Scalar;
  Slots<Pack<typename Cell::In, kLanes>, Cell::kIns> x;
  Slots<Pack<typename Cell::Out, kLanes>, Cell::kOuts> grad_out;
  Slots<Pack<T, kLanes>, Cell::kStates> previous, outer;
};

// The gradient of state k after step t that comes from outside.
template <int kLanes, typename Cell>
__device__ auto load_outer(const CellScanBackward<Cell>& scan, int k, int64_t t, int64_t i) {
  using T = typename Cell::Scalar;
  return load_or<kLanes>(kAbsent<T>, t >= -scan.headed ? scan.outer[k] : Rows<T>{nullptr, 0}, t, i);
}

template <int kLanes, typename Cell>
__device__ void load_cell_inputs(CellInputs<Cell, kLanes>& inputs, const CellScanBackward<Cell>& scan, int64_t t,
                                 int64_t i) {
  using T = typename Cell::Scalar;
  using In = typename Cell::In;
  using Out = typename Cell::Out;
#pragma unroll
  for (int k = 0; k < Cell::kIns; ++k) {
    inputs.x[k] = load_or<kLanes>(static_cast<In>(kAbsent<T>), scan.x[k], t, i);
  }
#pragma unroll
  for (int k = 0; k < Cell::kOuts; ++k) {
    inputs.grad_out[k] = load_or<kLanes>(static_cast<Out>(kAbsent<T>), scan.grad_out[k], t, i);
  }
#pragma unroll
  for (int k = 0; k < Cell::kStates; ++k) {
    if (t > 0) inputs.previous[k] = load<kLanes>(scan.states[k], (t - 1) * scan.neurons + i);
    if (t == 0) inputs.previous[k] = load<kLanes>(scan.initial[k], i);
    inputs.outer[k] = load_outer<kLanes>(scan, k, t - 1, i);
  }
}

template <typename Regime, typename Cell>
__device__ void run_cell_backward(const CellScanBackward<Cell>& scan) {
  using T = typename Cell::Scalar;
  constexpr int kLanes = Regime::kLanes, kAhead = Regime::kAhead;
  for_neurons<kLanes>(scan.neurons, [&](int64_t i) {
    CellLane<Cell> lanes[kLanes];
    Slots<CompensatedSum<T>, Cell::kTerms> totals[kLanes];
    load_cell_params<kLanes>(lanes, scan.params, i);
#pragma unroll
    for (int k = 0; k < Cell::kStates; ++k) {
      const auto next = load<kLanes>(scan.states[k], (scan.steps - 1) * scan.neurons + i);
      const auto outer = load_outer<kLanes>(scan, k, scan.steps - 1, i);
      const auto last = load_or<kLanes>(kAbsent<T>, scan.grad_last[k], i);
#pragma unroll
      for (int w = 0; w < kLanes; ++w) {
        lanes[w].next[k] = next.lanes[w];
        lanes[w].grad_next[k] = outer.lanes[w] + last.lanes[w];
      }
    }
    CellInputs<Cell, kLanes> inputs[kAhead];
    const auto ask = [&](int j, int64_t t) {
      if (t >= 0) load_cell_inputs<kLanes>(inputs[j], scan, t, i);
    };
#pragma unroll
    for (int j = 0; j < kAhead; ++j) ask(j, scan.steps - 1 - j);
    for (int64_t start = scan.steps - 1; start >= 0; start -= kAhead) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int64_t t = start - j;
        if (t < 0) break;
        const int64_t back = scan.steps - 1 - t;
        const int variant = static_cast<int>(back < Cell::kVariants - 1 ? back : Cell::kVariants - 1);
        const CellInputs<Cell, kLanes> now = inputs[j];
        ask(j, t - kAhead);
#pragma unroll
        for (int w = 0; w < kLanes; ++w) {
#pragma unroll
          for (int k = 0; k < Cell::kIns; ++k) lanes[w].x[k] = static_cast<T>(now.x[k].lanes[w]);
#pragma unroll
          for (int k = 0; k < Cell::kOuts; ++k) lanes[w].grad_out[k] = static_cast<T>(now.grad_out[k].lanes[w]);
#pragma unroll
          for (int k = 0; k < Cell::kStates; ++k) {
            lanes[w].previous[k] = now.previous[k].lanes[w];
            lanes[w].outer[k] = now.outer[k].lanes[w];
          }
          Cell::step_backward(variant, lanes[w]);
          // Not from the first to the last: registers cannot be counted through.
#pragma unroll
          for (int k = 0; k < Cell::kTerms; ++k) {
            const bool own = k >= Cell::first_term(variant) && k < Cell::first_term(variant + 1);
            if (own) totals[w][k].add(lanes[w].terms[k]);
          }
        }
#pragma unroll
        for (int k = 0; k < Cell::kIns; ++k) {
          store<kLanes>(scan.grad_x[k], t * scan.neurons + i, [&](int w) { return lanes[w].grad_x[k]; });
        }
#pragma unroll
        for (int k = 0; k < Cell::kStates; ++k) {
#pragma unroll
          for (int w = 0; w < kLanes; ++w) {
            lanes[w].next[k] = lanes[w].previous[k];
            lanes[w].grad_next[k] = lanes[w].grad_previous[k];
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < Cell::kStates; ++k) {
      store<kLanes>(scan.grad_initial[k], i, [&](int w) { return lanes[w].grad_next[k]; });
    }
#pragma unroll
    for (int k = 0; k < Cell::kTerms; ++k) {
      store<kLanes>(scan.terms[k], i, [&](int w) { return totals[w][k].sum; });
    }
  });
}

}  // namespace snnfast

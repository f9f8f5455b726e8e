// The time loops of a generated cell (snnfast/cells): an elementwise step that somebody wrote in PyTorch.
//
// They differ from tile.h's in what a cell may have: any number of inputs and outputs, operators that ATen runs over
// whole rows (so that a step takes rows, not neurons), and a backward that differs at the last steps, where autograd
// has no gradient for some states. A cell is a struct with
//   Scalar, kIns, kOuts, kStates, kParams, kFunctions     the type that it is computed in, and how many of each
//   step(rows, width)                   reads rows.x, previous, params; writes rows.out, next
//   kVariants, kFirstTerm, kReads...    backward: variant v is that of the step v before the last, the last of them
//   that
//                                       of all earlier steps; terms [kFirstTerm[v], kFirstTerm[v + 1]) are its own
//   step_backward(variant, rows, width) reads rows.x, previous, next (the states after the step), params, grad_out,
//                                       grad_next, and outer, what reaches the states before the step from outside;
//                                       writes grad_x, grad_previous, terms
//   kReruns                             backward: whether it has `step` too, and runs it again for the states
// One whose states come back through weights has more: cell_recurrence.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../op/scan.h"
#include "functions.h"
#include "rows.h"

namespace snnfast {

// torch's own, so that a cell runs on its threads; its address comes with the call.
using ParallelFor = int (*)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void*);

template <typename T>
struct CellRecurrence;

// What a call is given. Sequences [steps, neurons]; null pointers are absent inputs or unwanted outputs.
template <typename T>
struct CellCall {
  int64_t steps, neurons;
  int64_t whole;  // of the neurons, those that fill whole vectors in ATen's kernels
  ParallelFor parallel_for;
  const void* const* functions;  // of libraries, by the cell's own numbers
  const Rows<T>* x;
  const T* const* initial;  // [neurons]
  const Periodic<T>* params;
  T* const* out;
  T* const* states;  // after every so many steps
  int64_t every;
  T* const* last;  // [neurons]
  // backward
  const Rows<T>* grad_out;
  const Rows<T>* outer;       // gradients of the states of all steps, and of a row before them
  int64_t headed;             // whether there is such a row: of the states before the first step
  const T* const* grad_last;  // [neurons]
  T* const* grad_x;
  T* const* grad_initial;  // [neurons]
  T* const* terms;         // [neurons], summed over time
  const CellRecurrence<T>* recurrence;
};

template <typename Cell>
struct CellRows {
  using T = typename Cell::Scalar;
  const void* const* functions;
  int whole;  // of a tile's neurons, those that fill whole vectors in ATen's kernels
  Slots<const T*, Cell::kIns> x;
  Slots<const T*, Cell::kStates> previous, grad_next, outer;
  Slots<T*, Cell::kStates> next, grad_previous;
  Slots<T*, Cell::kOuts> out;
  Slots<const T*, Cell::kOuts> grad_out;
  Slots<T*, Cell::kIns> grad_x;
  Slots<T*, Cell::kTerms> terms;
  Slots<T*, Cell::kBridges> bridges;
  Slots<const T*, Cell::kProducts> fed;
  Slots<T*, Cell::kStates> grad_late;
  Slots<Row<T>, Cell::kParams> params;
};

template <typename T>
int whole_of(const CellCall<T>& call, int64_t first, int width) {
  return static_cast<int>(std::clamp<int64_t>(call.whole - first, 0, width));
}

template <typename Cell, typename T = typename Cell::Scalar>
void load_cell_params(CellRows<Cell>& rows, const CellCall<T>& call, int64_t first, int width) {
  if constexpr (Cell::kParams > 0) {
    Periodic<T> params[Cell::kParams];
    std::copy_n(call.params, Cell::kParams, params);
    load_params(rows.params, params, first, width);
  }
}

// Where a state after step t is stored; null: nowhere.
template <typename T>
T* stored_state(const CellCall<T>& call, int k, int64_t t, int64_t first) {
  if (!call.states[k] || (t + 1) % call.every != 0) return nullptr;
  return call.states[k] + ((t + 1) / call.every - 1) * call.neurons + first;
}

template <typename Cell, typename T = typename Cell::Scalar>
void run_cell_tile(const CellCall<T>& call, int64_t first, int width) {
  CellRows<Cell> rows{.functions = call.functions, .whole = whole_of(call, first, width)};
  Slots<Row<T>, Cell::kStates> carried;
  Slots<Row<T>, Cell::kOuts> unwanted;
  load_cell_params(rows, call, first, width);
  for (int k = 0; k < Cell::kStates; ++k) rows.previous[k] = call.initial[k] + first;
  for (int64_t t = 0; t < call.steps; ++t) {
    const int64_t offset = t * call.neurons + first;
    const bool more = t + 1 < call.steps;
    for (int k = 0; k < Cell::kIns; ++k) {
      rows.x[k] = call.x[k].at(t) + first;
      if (more) prefetch_row(call.x[k].at(t + 1), first, width);
    }
    for (int k = 0; k < Cell::kOuts; ++k) {
      rows.out[k] = call.out[k] ? call.out[k] + offset : unwanted[k];
      if (more) prefetch_row(call.out[k], offset + call.neurons, width);
    }
    for (int k = 0; k < Cell::kStates; ++k) {
      T* const stored = stored_state(call, k, t, first);
      rows.next[k] = stored ? stored : carried[k];
      if (more && call.every == 1) prefetch_row(call.states[k], offset + call.neurons, width);
    }
    Cell::step(rows, width);
    for (int k = 0; k < Cell::kStates; ++k) rows.previous[k] = rows.next[k];
  }
  for (int k = 0; k < Cell::kStates; ++k) std::copy_n(rows.previous[k], width, call.last[k] + first);
}

// What a tile's backward reads and writes where there is nothing to be read, or nobody wants it.
template <typename Cell, typename T = typename Cell::Scalar>
struct CellSpares {
  Slots<Row<T>, Cell::kIns> unwanted;
  Slots<Row<T>, Cell::kTerms> term;
  Row<T> absent;

  CellSpares() { fill(absent, kAbsent<T>); }
};

// Where gradients from outside reach a state before step t + 1.
template <typename Cell, typename T = typename Cell::Scalar>
const T* outer_of(const CellCall<T>& call, CellSpares<Cell>& spares, int k, int64_t t, int64_t first) {
  return t >= -call.headed && call.outer[k] ? call.outer[k].at(t) + first : spares.absent;
}

// What comes back to the states after the last step.
template <typename Cell, typename T = typename Cell::Scalar>
void start_backward(const CellCall<T>& call, CellSpares<Cell>& spares, int64_t first, int width, T* const* carry) {
  for (int k = 0; k < Cell::kStates; ++k) {
    const T* from_outside = outer_of(call, spares, k, call.steps - 1, first);
    const T* from_last = call.grad_last[k] ? call.grad_last[k] + first : spares.absent;
    for (int i = 0; i < width; ++i) carry[k][i] = from_outside[i] + from_last[i];
  }
}

// The states of a tile's steps: as they are stored, or of a chunk of steps run again from what is stored before it.
template <typename Cell, typename T = typename Cell::Scalar>
class CellStates {
 public:
  CellStates(const CellCall<T>& call, int64_t first, int width)
      : call_(call), first_(first), width_(width), chunk_(call.steps) {
    const std::size_t values = call.every > 1 ? Cell::kStates * call.every * kTile : 0;
    if (room().size() < values) room().resize(values);
    again_ = room().data();
  }

  // State k after step t, which is one of the chunk or the one right before it; -1: before the first step.
  const T* after(int k, int64_t t) const {
    if (t < 0) return call_.initial[k] + first_;
    return t >= chunk_ ? again(k, t) : stored_state(call_, k, t, first_);
  }

  // Runs the chunk of step t again, if it is another than the last; `rows` lend what a step reads besides.
  void have(int64_t t, CellRows<Cell>& rows) {
    if constexpr (Cell::kReruns) {
      if (call_.every == 1 || t >= chunk_) return;
      const int64_t end = t + 1;
      chunk_ = t / call_.every * call_.every;
      for (int64_t step = chunk_; step < end; ++step) run(step, rows);
    }
  }

 private:
  // For a chunk, from tile to tile.
  static std::vector<T>& room() {
    static thread_local std::vector<T> kept;
    return kept;
  }

  T* again(int k, int64_t t) const { return again_ + (k * call_.every + t % call_.every) * kTile; }

  void run(int64_t t, CellRows<Cell>& rows) {
    for (int k = 0; k < Cell::kIns; ++k) {
      rows.x[k] = call_.x[k].at(t) + first_;
      if (t + 1 < call_.steps) prefetch_row(call_.x[k].at(t + 1), first_, width_);
    }
    for (int k = 0; k < Cell::kOuts; ++k) rows.out[k] = unwanted_[k];
    for (int k = 0; k < Cell::kStates; ++k) {
      rows.previous[k] = t > chunk_ ? again(k, t - 1) : after(k, t - 1);
      rows.next[k] = again(k, t);
    }
    Cell::step(rows, width_);
  }

  const CellCall<T>& call_;
  const int64_t first_;
  const int width_;
  int64_t chunk_;  // its first step
  T* again_;       // [kStates, every, kTile]
  Slots<Row<T>, Cell::kOuts> unwanted_;
};

// The rows of step t, but for grad_next and grad_previous.
template <typename Cell, typename T = typename Cell::Scalar>
void set_backward_rows(CellRows<Cell>& rows, const CellCall<T>& call, CellSpares<Cell>& spares,
                       const CellStates<Cell>& states, int64_t t, int64_t first, int width) {
  const int64_t offset = t * call.neurons + first;
  for (int k = 0; k < Cell::kIns; ++k) {
    rows.x[k] = call.x[k] ? call.x[k].at(t) + first : spares.absent;
    rows.grad_x[k] = call.grad_x[k] ? call.grad_x[k] + offset : spares.unwanted[k];
    if (t > 0 && call.x[k]) prefetch_row(call.x[k].at(t - 1), first, width);
    if (t > 0) prefetch_row(call.grad_x[k], offset - call.neurons, width);
  }
  for (int k = 0; k < Cell::kOuts; ++k) {
    rows.grad_out[k] = call.grad_out[k] ? call.grad_out[k].at(t) + first : spares.absent;
    if (t > 0 && call.grad_out[k]) prefetch_row(call.grad_out[k].at(t - 1), first, width);
  }
  for (int k = 0; k < Cell::kStates; ++k) {
    rows.next[k] = const_cast<T*>(states.after(k, t));
    rows.previous[k] = states.after(k, t - 1);
    if (t > 1 && call.every == 1) prefetch_row(call.states[k], offset - 2 * call.neurons, width);
    rows.outer[k] = outer_of(call, spares, k, t - 1, first);
  }
  for (int k = 0; k < Cell::kTerms; ++k) rows.terms[k] = spares.term[k];
}

template <typename Cell>
int variant_of(int64_t back) {
  return static_cast<int>(std::min<int64_t>(back, Cell::kVariants - 1));
}

template <typename Cell, typename T = typename Cell::Scalar>
void add_terms(int variant, const CellRows<Cell>& rows, int width, T* const* sums, T* const* lost) {
  for (int k = Cell::kFirstTerm[variant]; k < Cell::kFirstTerm[variant + 1]; ++k) {
    T* const __restrict sum = sums[k];
    T* const __restrict lost_of_it = lost[k];
    const T* const __restrict term = rows.terms[k];
    for (int i = 0; i < width; ++i) {
      CompensatedSum<T> total{sum[i], lost_of_it[i]};
      total.add(term[i]);
      sum[i] = total.sum;
      lost_of_it[i] = total.lost;
    }
  }
}

template <typename Cell, typename T = typename Cell::Scalar>
void run_cell_tile_backward(const CellCall<T>& call, int64_t first, int width) {
  CellRows<Cell> rows{.functions = call.functions, .whole = whole_of(call, first, width)};
  CellSpares<Cell> spares;
  Slots<Row<T>, Cell::kStates> carried[2];
  Slots<Row<T>, Cell::kTerms> summed, lost_of;
  Slots<T*, Cell::kStates> carry[2];
  Slots<T*, Cell::kTerms> sums, lost;
  load_cell_params(rows, call, first, width);
  for (int k = 0; k < Cell::kTerms; ++k) {
    fill(summed[k], T(0));
    fill(lost_of[k], T(0));
    sums[k] = summed[k];
    lost[k] = lost_of[k];
  }
  for (int k = 0; k < Cell::kStates; ++k) {
    for (int turn = 0; turn < 2; ++turn) carry[turn][k] = carried[turn][k];
  }
  start_backward(call, spares, first, width, carry[0]);
  CellStates<Cell> states(call, first, width);
  for (int64_t back = 0; back < call.steps; ++back) {
    const int64_t t = call.steps - 1 - back;
    states.have(t, rows);
    set_backward_rows(rows, call, spares, states, t, first, width);
    for (int k = 0; k < Cell::kStates; ++k) {
      rows.grad_next[k] = carry[back % 2][k];
      rows.grad_previous[k] = carry[1 - back % 2][k];
    }
    const int variant = variant_of<Cell>(back);
    Cell::step_backward(variant, rows, width);
    add_terms(variant, rows, width, sums, lost);
  }
  for (int k = 0; k < Cell::kStates; ++k) {
    if (call.grad_initial[k]) std::copy_n(carry[call.steps % 2][k], width, call.grad_initial[k] + first);
  }
  for (int k = 0; k < Cell::kTerms; ++k) std::copy_n(sums[k], width, call.terms[k] + first);
}

// Of fresh memory, as forward and backward have it.
template <typename Cell, typename T = typename Cell::Scalar>
void prepare_cell_memory(const CellCall<T>& call) {
  const std::size_t bytes = call.steps * call.neurons * sizeof(T);
  const auto prepare = [&](T* const* sequences, int count) {
    for (int k = 0; sequences && k < count; ++k) {
      if (sequences[k] && bytes >= kHugePage) prefer_huge_pages(sequences[k], bytes);
    }
  };
  prepare(call.out, Cell::kOuts);
  prepare(call.grad_x, Cell::kIns);
  if (!call.grad_x && call.every == 1) prepare(call.states, Cell::kStates);
}

// tile(first neuron, width) for all tiles; backward from the last to the first: forward left the last in the cache.
// per_thread: neuron-steps worth waking another thread for.
template <typename T, typename Tile>
int for_cell_tiles(const CellCall<T>& call, bool backward, const Tile& tile, int64_t per_thread = 32768) {
  const int64_t grain = std::max<int64_t>(64, per_thread / std::max<int64_t>(call.steps, 1));
  const auto body = [&](int64_t begin, int64_t end) {
    const int64_t tiles = (end - begin + kTile - 1) / kTile;
    for (int64_t k = 0; k < tiles; ++k) {
      const int64_t first = begin + kTile * (backward ? tiles - 1 - k : k);
      tile(first, static_cast<int>(std::min<int64_t>(kTile, end - first)));
    }
  };
  using Body = decltype(body);
  const auto run = [](int64_t begin, int64_t end, void* body) { (*static_cast<const Body*>(body))(begin, end); };
  return call.parallel_for(0, call.neurons, grain, run, const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace snnfast

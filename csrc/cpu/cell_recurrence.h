// All-to-all recurrence of generated cells: at every step products of states before it with weights, and then the step
// of all neurons.
//
// The products are torch's own: nobody else adds up to the same bits. torch has them of tensors, through C functions
// whose addresses come with the call. Such a cell has besides what cell.h says
//   kProducts                        how many products there are: its last inputs but for what backward reads again
//   kFirstProduct                    the input that is the first of them
//   step_late(variant, rows, width)  the rest of a step's backward, once its products are there: reads rows.fed, what
//                                    came back through the weights, and bridges, which step_backward wrote, kBridges
//                                    of them; writes grad_late, the gradients of the states that products take
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "cell.h"

namespace snnfast {

// Of torch/csrc/inductor/aoti_torch; each gives 0, or an error's number.
struct TorchProducts {
  int32_t (*from_blob)(void* data, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t offset,
                       int32_t dtype, int32_t device_type, int32_t device, void** tensor);
  int32_t (*remove)(void* tensor);
  int32_t (*mm)(void* out, void* left, void* right);
  int32_t (*addmm)(void* out, void* bias, void* left, void* right, double beta, double alpha);
  int64_t dtype;  // in torch's numbers
};

// state [rows, features] weight^T + bias, of weight [features, features] with these strides; bias [features] or null.
template <typename T>
struct CellProduct {
  int64_t state;
  const T* weight;
  int64_t strides[2];
  const T* bias;
};

template <typename T>
struct CellRecurrence {
  const TorchProducts* torch;
  int64_t features;
  const CellProduct<T>* products;
  T* const* rec;  // [steps, neurons], what the products give; null: unwanted
};

class TorchMatrix {
 public:
  TorchMatrix(const TorchProducts& torch, const void* data, int64_t dims, const int64_t* sizes, const int64_t* strides)
      : torch_(torch) {
    constexpr int32_t kCpu = 0;
    const auto dtype = static_cast<int32_t>(torch.dtype);
    if (torch.from_blob(const_cast<void*>(data), dims, sizes, strides, 0, dtype, kCpu, 0, &tensor_) != 0) {
      tensor_ = nullptr;
    }
  }
  TorchMatrix(const TorchMatrix&) = delete;
  ~TorchMatrix() {
    if (tensor_) torch_.remove(tensor_);
  }

  void* get() const { return tensor_; }

 private:
  const TorchProducts& torch_;
  void* tensor_ = nullptr;
};

// out [rows, features] = left [rows, features] times the weight, transposed or not, plus the bias; whether it is so.
template <typename T>
bool multiplied(const CellRecurrence<T>& recurrence, const CellProduct<T>& product, bool back, int64_t neurons,
                const T* left, T* out) {
  const int64_t features = recurrence.features;
  const int64_t sizes[] = {neurons / features, features}, strides[] = {features, 1};
  const int64_t square[] = {features, features}, one = 1;
  const int64_t turned[] = {product.strides[back ? 0 : 1], product.strides[back ? 1 : 0]};
  const TorchProducts& torch = *recurrence.torch;
  const TorchMatrix a(torch, left, 2, sizes, strides), b(torch, product.weight, 2, square, turned);
  const TorchMatrix to(torch, out, 2, sizes, strides);
  if (!a.get() || !b.get() || !to.get()) return false;
  if (back || !product.bias) return torch.mm(to.get(), a.get(), b.get()) == 0;
  const TorchMatrix bias(torch, product.bias, 1, &features, &one);
  return bias.get() && torch.addmm(to.get(), bias.get(), a.get(), b.get(), 1.0, 1.0) == 0;
}

// Rows of all neurons, each at an address where new tensors begin: a product's sum goes by that.
template <typename T, int kCount>
class WholeRows {
 public:
  explicit WholeRows(int64_t neurons) {
    const int64_t stride = (neurons + kLanes - 1) / kLanes * kLanes;
    values_.reset(new (std::align_val_t{kLine}) T[kCount * stride + 1]);
    for (int k = 0; k < kCount; ++k) rows_[k] = values_.get() + k * stride;
  }

  T* operator[](int k) const { return rows_[k]; }

  static bool holds(const T* row) { return reinterpret_cast<std::uintptr_t>(row) % kLine == 0; }

 private:
  static constexpr int64_t kLanes = kLine / sizeof(T);
  struct Deleter {
    void operator()(T* values) const { operator delete[](values, std::align_val_t{kLine}); }
  };
  std::unique_ptr<T[], Deleter> values_;
  Slots<T*, kCount> rows_;
};

inline constexpr int64_t kNeuronsPerThread = 8192;

template <typename Cell, typename T = typename Cell::Scalar>
int run_recurrent_cell(const CellCall<T>& all) {
  const CellRecurrence<T>& recurrence = *all.recurrence;
  const WholeRows<T, Cell::kProducts> scratch(all.neurons);
  Slots<Rows<T>, Cell::kIns> x;
  Slots<const T*, Cell::kStates> initial;
  Slots<T*, Cell::kStates> states;
  Slots<T*, Cell::kOuts> out;
  CellCall<T> step = all;
  step.steps = 1;
  step.x = x;
  step.initial = initial;
  step.states = states;
  step.out = out;
  for (int64_t t = 0; t < all.steps; ++t) {
    const int64_t at = t * all.neurons;
    for (int k = 0; k < Cell::kFirstProduct; ++k) x[k] = Rows<T>{all.x[k].at(t), 0};
    for (int p = 0; p < Cell::kProducts; ++p) {
      const CellProduct<T>& product = recurrence.products[p];
      T* sequence = recurrence.rec[p] ? recurrence.rec[p] + at : nullptr;
      T* to = sequence && scratch.holds(sequence) ? sequence : scratch[p];
      const T* state = t > 0 ? all.last[product.state] : all.initial[product.state];
      if (!multiplied(recurrence, product, false, all.neurons, state, to)) return 1;
      if (sequence && to != sequence) std::copy_n(to, all.neurons, sequence);
      x[Cell::kFirstProduct + p] = Rows<T>{to, 0};
    }
    for (int k = 0; k < Cell::kStates; ++k) {
      const T* before = all.states[k] ? all.states[k] + at - all.neurons : all.last[k];
      initial[k] = t > 0 ? before : all.initial[k];
      states[k] = all.states[k] ? all.states[k] + at : nullptr;
    }
    for (int k = 0; k < Cell::kOuts; ++k) out[k] = all.out[k] ? all.out[k] + at : nullptr;
    const auto tile = [&](int64_t first, int width) { run_cell_tile<Cell>(step, first, width); };
    if (for_cell_tiles(step, false, tile, kNeuronsPerThread) != 0) return 1;
  }
  return 0;
}

template <typename Cell, typename T = typename Cell::Scalar>
class RecurrentBackward {
 public:
  explicit RecurrentBackward(const CellCall<T>& call)
      : call_(call),
        carry_{WholeRows<T, Cell::kStates>(call.neurons), WholeRows<T, Cell::kStates>(call.neurons)},
        bridges_(call.neurons),
        lost_(call.neurons),
        fed_(call.neurons),
        scratch_(call.neurons) {
    for (int k = 0; k < Cell::kTerms; ++k) {
      std::fill_n(call.terms[k], call.neurons, T(0));
      std::fill_n(lost_[k], call.neurons, T(0));
    }
  }

  int run() {
    for (int64_t back = 0; back < call_.steps; ++back) {
      if (tiles([&](int64_t first, int width) { step(back, first, width); }) != 0) return 1;
      if (!feed_back(call_.steps - 1 - back)) return 1;
    }
    return tiles([&](int64_t first, int width) { finish(first, width); });
  }

 private:
  template <typename Tile>
  int tiles(const Tile& tile) const {
    CellCall<T> one = call_;
    one.steps = 1;
    return for_cell_tiles(one, true, tile, kNeuronsPerThread);
  }

  void step(int64_t back, int64_t first, int width) {
    CellRows<Cell> rows{.functions = call_.functions, .whole = whole_of(call_, first, width)};
    CellSpares<Cell> spares;
    load_cell_params(rows, call_, first, width);
    set_shared_rows(rows, back, first);
    if (back == 0) start_backward(call_, spares, first, width, rows.grad_late);
    if (back > 0) Cell::step_late(variant_of<Cell>(back - 1), rows, width);
    set_backward_rows(rows, call_, spares, CellStates<Cell>(call_, first, width), call_.steps - 1 - back, first, width);
    const int variant = variant_of<Cell>(back);
    Cell::step_backward(variant, rows, width);
    Slots<T*, Cell::kTerms> sums, lost;
    for (int k = 0; k < Cell::kTerms; ++k) {
      sums[k] = call_.terms[k] + first;
      lost[k] = lost_[k] + first;
    }
    add_terms(variant, rows, width, sums, lost);
  }

  // Of what is handed on from step to step.
  void set_shared_rows(CellRows<Cell>& rows, int64_t back, int64_t first) {
    for (int k = 0; k < Cell::kStates; ++k) {
      rows.grad_next[k] = rows.grad_late[k] = carry_[back % 2][k] + first;
      rows.grad_previous[k] = carry_[1 - back % 2][k] + first;
    }
    for (int k = 0; k < Cell::kBridges; ++k) rows.bridges[k] = bridges_[k] + first;
    for (int k = 0; k < Cell::kProducts; ++k) rows.fed[k] = fed_[k] + first;
  }

  bool feed_back(int64_t t) {
    for (int p = 0; p < Cell::kProducts; ++p) {
      const T* grad = call_.grad_x[Cell::kFirstProduct + p];
      if (!grad) continue;
      grad += t * call_.neurons;
      const T* from = scratch_.holds(grad) ? grad : std::copy_n(grad, call_.neurons, scratch_[0]) - call_.neurons;
      const CellProduct<T>& product = call_.recurrence->products[p];
      if (!multiplied(*call_.recurrence, product, true, call_.neurons, from, fed_[p])) return false;
    }
    return true;
  }

  void finish(int64_t first, int width) {
    CellRows<Cell> rows{.functions = call_.functions, .whole = whole_of(call_, first, width)};
    set_shared_rows(rows, call_.steps, first);
    if (call_.steps > 0) Cell::step_late(variant_of<Cell>(call_.steps - 1), rows, width);
    for (int k = 0; k < Cell::kStates; ++k) {
      if (call_.grad_initial[k]) std::copy_n(rows.grad_next[k], width, call_.grad_initial[k] + first);
    }
  }

  const CellCall<T>& call_;
  WholeRows<T, Cell::kStates> carry_[2];
  WholeRows<T, Cell::kBridges> bridges_;
  WholeRows<T, Cell::kTerms> lost_;
  WholeRows<T, Cell::kProducts> fed_;
  WholeRows<T, 1> scratch_;
};

}  // namespace snnfast

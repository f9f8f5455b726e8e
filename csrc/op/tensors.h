// What the operators need of tensors: time and neurons of a sequence, typed pointers that are null where a tensor is
// absent.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "../checks.h"
#include "scan.h"

namespace snnfast {

using torch::stable::contiguous;
using torch::stable::new_empty;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(contiguous(*tensor)) : std::nullopt;
}

template <typename... Lists>
void make_contiguous(Lists&... lists) {
  const auto each = [](auto& list) {
    for (auto& tensor : list) tensor = contiguous(tensor);
  };
  (each(lists), ...);
}

// x as [steps, neurons]: its first dimension is time when unrolled, else it is one step.
struct Sequence {
  std::vector<int64_t> shape;
  bool unroll;
  int64_t steps, neurons = 1;

  Sequence(const Tensor& x, bool unroll) : shape(x.sizes().begin(), x.sizes().end()), unroll(unroll) {
    STD_TORCH_CHECK(!unroll || !shape.empty(), "x must have a time dimension, got a tensor of 0 dimensions");
    steps = unroll ? shape[0] : 1;
    for (const int64_t size : neuron_shape()) neurons *= size;
  }

  Sizes neuron_shape() const { return Sizes(shape.data() + unroll, shape.size() - unroll); }
};

template <typename T>
const T* data(const Tensor& tensor) {
  return tensor.numel() > 0 ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

template <typename T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data<T>(*tensor) : nullptr;
}

// A sequence as kernels read it: contiguous, or one row where it is that of all steps.
inline Tensor readable(const Tensor& tensor, const Sequence& sequence) {
  const bool one_row = sequence.steps > 1 && tensor.size(0) == sequence.steps && tensor.stride(0) == 0;
  return contiguous(one_row ? torch::stable::select(tensor, 0, 0) : tensor);
}

inline std::optional<Tensor> readable(const std::optional<Tensor>& tensor, const Sequence& sequence) {
  return tensor.has_value() ? std::optional<Tensor>(readable(*tensor, sequence)) : std::nullopt;
}

template <typename T>
Rows<T> rows(const std::optional<Tensor>& tensor, const Sequence& sequence) {
  const T* first = data<T>(tensor);
  return {first, first && tensor->numel() > sequence.neurons ? sequence.neurons : 0};
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return tensor.numel() > 0 ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

template <typename T>
Periodic<T> periodic(const Tensor& param) {
  return {data<T>(param), param.numel()};
}

}  // namespace snnfast

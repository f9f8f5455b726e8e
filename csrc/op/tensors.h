// What the operators need of tensors: time and neurons of a sequence, typed pointers that are null where a tensor is
// absent.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "../checks.h"
#include "scan.h"

namespace snnfast {

using torch::stable::new_empty;

// The tensor, or its negation where torch keeps that as a bit beside the data. Torch looks for the bit before it calls
// an operator, but not in a list of optional tensors.
inline Tensor without_negation(const Tensor& tensor) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(tensor)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::resolve_neg", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// A tensor's values as kernels read them: in row-major order, each at an address that its type may have.
inline Tensor readable(const Tensor& tensor) {
  const Tensor plain = without_negation(tensor);
  const auto address = reinterpret_cast<std::uintptr_t>(plain.const_data_ptr());
  if (address % plain.element_size() != 0) return torch::stable::contiguous(torch::stable::clone(plain));
  return plain.is_contiguous() ? plain : torch::stable::contiguous(plain);
}

inline std::optional<Tensor> readable(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(readable(*tensor)) : std::nullopt;
}

template <typename... Lists>
void make_readable(Lists&... lists) {
  const auto each = [](auto& list) {
    for (auto& tensor : list) tensor = readable(tensor);
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

// A sequence as kernels read it: all steps, or one row where it is that of all of them.
inline Tensor readable(const Tensor& tensor, const Sequence& sequence) {
  const bool one_row = sequence.steps > 1 && tensor.size(0) == sequence.steps && tensor.stride(0) == 0;
  return readable(one_row ? torch::stable::select(tensor, 0, 0) : tensor);
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

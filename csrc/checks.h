// One form for every complaint an operator makes: "<argument> must <rule>, got <value>".
//
// People meet snnfast.functional's ValueError and TypeError first; these checks are the second line, which keeps a call
// of torch.ops.snnfast.* with wrong tensors from touching memory it must not.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

namespace snnfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

inline void check_count(const char* name, int64_t value) {
  STD_TORCH_CHECK(value >= 0, name, " must be 0 or more, got ", value);
}

// a + b, both 0 or more.
inline int64_t checked_sum(const char* name, int64_t a, int64_t b) {
  STD_TORCH_CHECK(a <= kMost - b, name, " must be at most ", kMost - b, " before ", b, " steps, got ", a);
  return a + b;
}

// How many elements a tensor of these sizes has.
inline int64_t checked_numel(const char* name, Sizes sizes) {
  int64_t numel = 1;
  const bool empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(size >= 0, name, " must have sizes of 0 or more, got ", size);
    if (empty) continue;
    STD_TORCH_CHECK(numel <= kMost / size, name, " must have at most ", kMost, " elements, got ", numel, " times ",
                    size, " or more");
    numel *= size;
  }
  return empty ? 0 : numel;
}

inline void check_place(const char* name, const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(tensor.device() == like.device(), name, " must be on the input's device, got device index ",
                  tensor.get_device_index(), " and ", like.get_device_index());
}

inline void check_tensor(const char* name, const Tensor& tensor, const Tensor& like, ScalarType dtype, int64_t numel) {
  check_place(name, tensor, like);
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must have dtype ", torch::headeronly::toString(dtype),
                  ", got ", torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.numel() == numel, name, " must have ", numel, " elements, got ", tensor.numel());
}

inline void check_tensor(const char* name, const std::optional<Tensor>& tensor, const Tensor& like, ScalarType dtype,
                         int64_t numel) {
  if (tensor.has_value()) check_tensor(name, *tensor, like, dtype, numel);
}

// A parameter is laid out over the trailing neuron dimensions: neuron i reads element i % numel.
inline void check_param(const char* name, const Tensor& param, const Tensor& like, ScalarType dtype, int64_t neurons) {
  check_tensor(name, param, like, dtype, param.numel());
  STD_TORCH_CHECK(neurons == 0 || (param.numel() > 0 && neurons % param.numel() == 0), name,
                  " must have a number of elements that divides the ", neurons, " neurons, got ", param.numel());
}

}  // namespace snnfast

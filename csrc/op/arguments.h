// What the two operators of a neuron model take: the one list of names and types, from which come their schemas, the
// structs that the operators read, and how torch's stack fills these. snnfast/ops/ reads the names off the schemas.
//
// Shapes: x [T, ...] when `unroll`, else one step [...]; states have x's shape less T; params are laid out over the
// trailing neuron dimensions. With `weight` [N, N] (and bias [N], spk [..., N] before the first step) a recurrent
// model's own spikes come back: rec[t] = spk[t-1] W^T + bias.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

// A whole sequence, or a step: [spikes, last states ..., the first `saved` states of all steps when unrolled ...,
// extras with save_extras ...]. every: the states of all steps with 1; with kChunk those that chunks start from, which
// with x is all that backward needs.
// clang-format off
#define SNNFAST_FORWARD(ARGUMENT)                                                                                      \
  ARGUMENT(Tensor, x) ARGUMENT(OptionalTensor, rec) ARGUMENT(Tensors, states) ARGUMENT(Tensors, params)                \
  ARGUMENT(bool, unroll) ARGUMENT(std::string, reset_mechanism) ARGUMENT(bool, reset_delay) ARGUMENT(bool, inclusive)  \
  ARGUMENT(int64_t, saved) ARGUMENT(int64_t, every) ARGUMENT(bool, save_extras)                                        \
  ARGUMENT(OptionalTensor, weight, "=None") ARGUMENT(OptionalTensor, bias, "=None")                                    \
  ARGUMENT(OptionalTensor, spk, "=None")

// Its backward: [dL/dx, dL/dstates before the first step ... with want_states, dL/dparams [kParams, neurons], before
// any sum over neurons, with want_params, dL/dspk before the first step with weight]. The weights' own gradients are
// products over all steps of dL/dx and the spikes, and are left to the caller. seqs, extras: as forward wrote them, for
// the first states; `like`: any of them or the spikes, for the shape. x: where seqs hold the starts of chunks alone;
// nothing else may then be given of all steps.
#define SNNFAST_BACKWARD(ARGUMENT)                                                                                     \
  ARGUMENT(Tensor, like) ARGUMENT(OptionalTensor, x) ARGUMENT(OptionalTensor, grad_spk)                                \
  ARGUMENT(OptionalTensors, grad_last) ARGUMENT(OptionalTensors, grad_seqs) ARGUMENT(Tensors, seqs)                    \
  ARGUMENT(Tensors, extras) ARGUMENT(Tensors, states) ARGUMENT(Tensors, params) ARGUMENT(OptionalTensor, evaluated)    \
  ARGUMENT(bool, unroll) ARGUMENT(std::string, reset_mechanism) ARGUMENT(bool, reset_delay) ARGUMENT(bool, inclusive)  \
  ARGUMENT(std::string, surrogate) ARGUMENT(Constants, constants) ARGUMENT(ScalarType, dtype)                          \
  ARGUMENT(bool, want_states) ARGUMENT(bool, want_params) ARGUMENT(OptionalTensor, weight, "=None")
// clang-format on

namespace snnfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using OptionalTensor = std::optional<Tensor>;
using OptionalTensors = std::vector<std::optional<Tensor>>;
using Constants = std::vector<double>;

inline const char* schema_type(const Tensor*) { return "Tensor"; }
inline const char* schema_type(const OptionalTensor*) { return "Tensor?"; }
inline const char* schema_type(const Tensors*) { return "Tensor[]"; }
inline const char* schema_type(const OptionalTensors*) { return "Tensor?[]"; }
inline const char* schema_type(const bool*) { return "bool"; }
inline const char* schema_type(const int64_t*) { return "int"; }
inline const char* schema_type(const std::string*) { return "str"; }
inline const char* schema_type(const Constants*) { return "float[]"; }
inline const char* schema_type(const ScalarType*) { return "ScalarType"; }

inline std::string signature(std::initializer_list<std::string> arguments) {
  std::string list = "(";
  for (const std::string& argument : arguments) list.append(list.size() == 1 ? "" : ", ").append(argument);
  return list.append(") -> Tensor[]");
}

#define SNNFAST_FIELD(TYPE, NAME, ...) TYPE NAME;
#define SNNFAST_UNBOXED(TYPE, NAME, ...) torch::stable::detail::to<TYPE>(*stack++),
#define SNNFAST_DECLARED(TYPE, NAME, ...) std::string(schema_type(static_cast<TYPE*>(nullptr))) + " " #NAME __VA_ARGS__,
#define SNNFAST_ARGUMENTS(STRUCT, LIST)                                                  \
  struct STRUCT {                                                                        \
    LIST(SNNFAST_FIELD)                                                                  \
    static STRUCT unboxed(const StableIValue* stack) { return {LIST(SNNFAST_UNBOXED)}; } \
    static std::string schema() { return signature({LIST(SNNFAST_DECLARED)}); }          \
  };

SNNFAST_ARGUMENTS(Forward, SNNFAST_FORWARD)
SNNFAST_ARGUMENTS(Backward, SNNFAST_BACKWARD)

// An operator that takes such a struct, as torch calls it.
template <typename Arguments, Tensors (*function)(Arguments)>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  *stack = torch::stable::detail::from(function(Arguments::unboxed(stack)));
}

}  // namespace snnfast

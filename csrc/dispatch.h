// From run-time values (dtype, names) to template arguments.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "neuron/reset.h"
#include "neuron/surrogate.h"

namespace snnfast {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

// Half-precision inputs keep a float32 membrane: a rounded one could disagree with the spike it caused.
template <typename S>
using StateOf = std::conditional_t<std::is_same_v<S, double>, double, float>;

inline ScalarType state_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// f(S()) for that one of the backend's storage types S that has this dtype.
template <typename StorageTypes, typename F>
void dispatch_dtype(ScalarType dtype, F&& f) {
  std::string names;
  bool known = false;
  const auto one = [&](auto storage) {
    constexpr ScalarType candidate = torch::headeronly::CppTypeToScalarType<decltype(storage)>::value;
    names.append(names.empty() ? "" : ", ").append(torch::headeronly::toString(candidate));
    if (dtype != candidate) return;
    known = true;
    f(storage);
  };
  std::apply([&](auto... storage) { (one(storage), ...); }, StorageTypes());
  STD_TORCH_CHECK(known, "dtype must be one of ", names, " on this device; got ", torch::headeronly::toString(dtype));
}

// f(std::bool_constant) for a flag that changes what a kernel loads and stores.
template <typename F>
void dispatch_bool(bool value, F&& f) {
  value ? f(std::true_type()) : f(std::false_type());
}

inline constexpr std::array<std::pair<std::string_view, Reset>, 3> kResets{{
    {"subtract", Reset::kSubtract},
    {"zero", Reset::kZero},
    {"none", Reset::kNone},
}};

inline Reset reset_named(std::string_view name) {
  std::string names;
  for (const auto& [known, reset] : kResets) {
    if (known == name) return reset;
    names.append(names.empty() ? "" : ", ").append(known);
  }
  STD_TORCH_CHECK(false, "reset_mechanism must be one of ", names, "; got '", std::string(name), "'");
}

// f(options), with a reset mechanism that the compiler knows where it inlines f.
template <typename F>
void dispatch_reset(const NeuronOptions& options, F&& f) {
  switch (options.reset_mechanism) {
    case Reset::kSubtract:
      return f(NeuronOptions{Reset::kSubtract, options.inclusive});
    case Reset::kZero:
      return f(NeuronOptions{Reset::kZero, options.inclusive});
    case Reset::kNone:
      return f(NeuronOptions{Reset::kNone, options.inclusive});
  }
}

struct SurrogateChoice {
  std::string name;
  std::vector<double> constants;
};

// f(surrogate, AnySurrogate) for the surrogate of this name.
template <typename T, typename F>
void dispatch_surrogate(const SurrogateChoice& choice, F&& f) {
  AnySurrogate<T> any{};
  T* constants = any.constants;
  for (std::size_t k = 0; k < choice.constants.size() && k < kMaxConstants; ++k) {
    constants[k] = static_cast<T>(choice.constants[k]);
  }
  std::string names;
  bool known = false;
  const auto visit = [&]<std::size_t... I>(std::index_sequence<I...>) {
    const auto one = [&](auto tag, int index) {
      using Surrogate = typename decltype(tag)::type;
      names.append(names.empty() ? "" : ", ").append(Surrogate::kName);
      if (known || Surrogate::kName != choice.name) return;
      known = true;
      STD_TORCH_CHECK(choice.constants.size() == Surrogate::kConstants, "surrogate ", choice.name, " must have ",
                      int{Surrogate::kConstants}, " constants, got ", choice.constants.size());
      any.index = index;
      f(Surrogate(constants), any);
    };
    (one(std::type_identity<std::tuple_element_t<I, Surrogates<T>>>(), static_cast<int>(I)), ...);
  };
  visit(std::make_index_sequence<std::tuple_size_v<Surrogates<T>>>());
  STD_TORCH_CHECK(known, "surrogate must be one of ", names, "; got '", choice.name, "'");
}

}  // namespace snnfast

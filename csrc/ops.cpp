// Every operator of snnfast: one pair per neuron model, all of one form. snnfast/ops.py is the only caller.
//
// Shapes: x [T, ...] when `unroll`, else one step [...]; a neuron's states have x's shape less T; parameters are laid
// out over the trailing neuron dimensions. op/neuron.h says what the lists hold.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

constexpr const char* kModels[] = {"leaky", "synaptic"};

// A whole sequence, or a step.
constexpr const char* kForward =
    "_fwd(Tensor x, Tensor? rec, Tensor[] states, Tensor[] params, bool unroll, str reset_mechanism, bool reset_delay, "
    "bool inclusive, int saved, bool save_extras) -> Tensor[]";

// Its backward. The parameters' gradients come before any sum over neurons.
constexpr const char* kBackward =
    "_bwd(Tensor like, Tensor? grad_spk, Tensor?[] grad_last, Tensor?[] grad_seqs, Tensor[] seqs, Tensor[] extras, "
    "Tensor[] states, Tensor[] params, Tensor? evaluated, bool unroll, str reset_mechanism, bool reset_delay, "
    "bool inclusive, str surrogate, float[] constants, ScalarType dtype, bool want_states, bool want_params) "
    "-> Tensor[]";

}  // namespace

STABLE_TORCH_LIBRARY(snnfast, m) {
  for (const std::string model : kModels) {
    m.def((model + kForward).c_str());
    m.def((model + kBackward).c_str());
  }
}

// Importing the module is what runs the registrations above.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}

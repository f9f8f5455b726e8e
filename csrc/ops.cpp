// Every operator of snnfast. Shapes: x [T, ...] when `unroll`, else one step [...]; a neuron's states have x's shape
// less T; parameters are laid out over the trailing neuron dimensions. snnfast/ops.py is the only caller.
#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(snnfast, m) {
  // A whole sequence of the leaky integrate-and-fire neuron. Empty where not asked for: mem_seq [T, ...] (only when
  // unrolled, with save_mem), charge_seq [T, ...] (the membrane that fired, with save_charge).
  m.def(
      "leaky_fwd(Tensor x, Tensor? mem, Tensor beta, Tensor threshold, Tensor graded_spikes_factor, bool unroll, "
      "str reset_mechanism, bool reset_delay, bool save_mem, bool save_charge) "
      "-> (Tensor spk, Tensor mem_last, Tensor mem_seq, Tensor charge_seq)");
  // Its backward: mem_seq and charge_seq as forward wrote them, dtype the input's. grad_params: [3, neurons], the
  // gradients of beta, threshold and graded_spikes_factor before any sum over neurons.
  m.def(
      "leaky_bwd(Tensor? grad_spk, Tensor? grad_mem_last, Tensor? grad_mem_seq, Tensor mem_seq, Tensor? charge_seq, "
      "Tensor? mem, Tensor beta, Tensor threshold, Tensor graded_spikes_factor, Tensor? evaluated, bool unroll, "
      "str reset_mechanism, str surrogate, float[] constants, ScalarType dtype, bool want_mem, bool want_params) "
      "-> (Tensor grad_x, Tensor grad_mem, Tensor grad_params)");
  // A step and a sequence as torch.compile captures them: one differentiable node each, made of the two above by
  // snnfast/functional.py. A state that does not fit x is taken for zeros; mem_seq is empty where not wanted.
  m.def(
      "leaky_step(Tensor x, Tensor? mem, Tensor beta, Tensor threshold, Tensor graded_spikes_factor, str surrogate, "
      "float[] constants, str reset_mechanism, bool reset_delay) -> (Tensor spk, Tensor mem)");
  m.def(
      "leaky_seq(Tensor x, Tensor? mem, Tensor beta, Tensor threshold, Tensor graded_spikes_factor, str surrogate, "
      "float[] constants, str reset_mechanism, bool reset_delay, bool want_mem_seq) "
      "-> (Tensor spk, Tensor mem_last, Tensor mem_seq)");
}

// Importing the module is what runs the registrations above.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}

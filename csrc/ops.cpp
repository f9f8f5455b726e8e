// Every operator of snnfast: pairs per neuron model, all of one form, the products with spikes, convolutions, the
// encoders, and spikes as bits.
// snnfast/ops.py is the only caller.
//
// Shapes: x [T, ...] when `unroll`, else one step [...]; a neuron's states have x's shape less T; parameters are laid
// out over the trailing neuron dimensions. op/neuron.h says what the lists hold.
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

constexpr const char* kModels[] = {
    "leaky", "synaptic", "rleaky", "rleaky_one_to_one", "rsynaptic", "rsynaptic_one_to_one", "lapicque",
    "alpha", "li",       "lif",    "lif_recurrent",     "alif"};

// Those that also run with all-to-all recurrence.
constexpr const char* kRecurrentModels[] = {"rleaky", "rsynaptic", "lif_recurrent"};

// A whole sequence, or a step.
constexpr const char* kForward =
    "_fwd(Tensor x, Tensor? rec, Tensor[] states, Tensor[] params, bool unroll, str reset_mechanism, bool reset_delay, "
    "bool inclusive, int saved, int every, bool save_extras) -> Tensor[]";

// Its backward. The parameters' gradients come before any sum over neurons.
constexpr const char* kBackward =
    "_bwd(Tensor like, Tensor? x, Tensor? grad_spk, Tensor?[] grad_last, Tensor?[] grad_seqs, Tensor[] seqs, "
    "Tensor[] extras, Tensor[] states, Tensor[] params, Tensor? evaluated, bool unroll, str reset_mechanism, "
    "bool reset_delay, bool inclusive, str surrogate, float[] constants, ScalarType dtype, bool want_states, "
    "bool want_params) -> Tensor[]";

// A whole sequence whose spikes come back through weights [N, N], and its backward but for the weights.
constexpr const char* kDenseForward =
    "_dense_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? spk, Tensor[] states, Tensor[] params, "
    "str reset_mechanism, bool reset_delay, bool inclusive, int saved, bool save_extras) -> Tensor[]";

constexpr const char* kDenseBackward =
    "_dense_bwd(Tensor like, Tensor? grad_spk, Tensor?[] grad_last, Tensor?[] grad_seqs, Tensor[] seqs, "
    "Tensor[] extras, Tensor weight, Tensor[] states, Tensor[] params, Tensor? evaluated, str reset_mechanism, "
    "bool reset_delay, bool inclusive, str surrogate, float[] constants, ScalarType dtype, bool want_params) "
    "-> Tensor[]";

// Data to spikes, all steps at once; op/encode.h says which. The seed is a tensor [] so that no host waits for it.
constexpr const char* kEncoders[] = {
    "encode_rate(Tensor x, Tensor seed, int? steps, int silent, float gain, float offset, ScalarType dtype) -> Tensor",
    "encode_latency(Tensor times, int steps, bool ramp, float on, float off, ScalarType dtype) -> Tensor",
    "encode_delta(Tensor x, float threshold, bool padding, bool off_spike, ScalarType dtype) -> Tensor"};

// Convolutions, and pooling by the largest value, of images [B, C, H, W] that are mostly zeros; cpu/convolution.cpp and
// cpu/pooling.cpp.
constexpr const char* kConvolutions[] = {
    "conv2d(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding) -> Tensor",
    "conv2d_grad_weight(Tensor grad, Tensor x, int[] weight, int[] stride, int[] padding) -> Tensor",
    "conv2d_grad_input(Tensor grad, Tensor weight, int[] x, int[] stride, int[] padding) -> Tensor",
    "max_pool2d(Tensor x, int[] size, int[] stride, int[] padding) -> Tensor[]",
    "max_pool2d_grad(Tensor grad, Tensor taps, int[] x, int[] size, int[] stride, int[] padding) -> Tensor"};

// Spikes to one bit each and back; op/bits.h says which bit is whose.
constexpr const char* kBits[] = {"pack_spikes(Tensor spk) -> Tensor",
                                 "unpack_spikes(Tensor bits, Tensor height, int[] shape) -> Tensor"};

}  // namespace

STABLE_TORCH_LIBRARY(snnfast, m) {
  m.def("spike_linear(Tensor spk, Tensor weight, Tensor? bias) -> Tensor");
  m.def("spike_linear_grad(Tensor grad, Tensor spk) -> Tensor");
  m.def("spike_linear_grad_spk(Tensor grad, Tensor weight) -> Tensor");
  for (const char* encoder : kEncoders) m.def(encoder);
  for (const char* operation : kConvolutions) m.def(operation);
  for (const char* operation : kBits) m.def(operation);
  for (const std::string model : kModels) {
    m.def((model + kForward).c_str());
    m.def((model + kBackward).c_str());
  }
  for (const std::string model : kRecurrentModels) {
    m.def((model + kDenseForward).c_str());
    m.def((model + kDenseBackward).c_str());
  }
}

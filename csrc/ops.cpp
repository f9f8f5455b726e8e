// Every operator of snnfast: pairs per neuron model, all of one form (op/arguments.h), the products with spikes,
// convolutions, the encoders, spikes as bits, and memory. snnfast/ops/ is the only caller.
#include <torch/csrc/stable/library.h>

#include <string>

#include "op/arguments.h"

namespace {

constexpr const char* kModels[] = {
    "leaky", "synaptic", "rleaky", "rleaky_one_to_one", "rsynaptic", "rsynaptic_one_to_one", "lapicque",
    "alpha", "li",       "lif",    "lif_recurrent",     "alif"};

// Data to spikes, all steps at once; op/encode.h says which. The seed is a tensor [] so that no host waits for it.
constexpr const char* kEncoders[] = {
    "encode_rate(Tensor x, Tensor seed, int? steps, int silent, float gain, float offset, ScalarType dtype) -> Tensor",
    "encode_latency(Tensor times, int steps, bool ramp, float on, float off, ScalarType dtype) -> Tensor",
    "encode_delta(Tensor x, float threshold, bool padding, bool off_spike, ScalarType dtype) -> Tensor"};

// Convolutions, and pooling by the largest value, of images [B, C, H, W] that are mostly zeros, and batch-norm of
// [T, B, C, ...]; cpu/convolution.cpp, cpu/pooling.cpp and cpu/batch_norm.cpp.
constexpr const char* kConvolutions[] = {
    "conv2d(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding) -> Tensor",
    "conv2d_grad_weight(Tensor grad, Tensor x, int[] weight, int[] stride, int[] padding, bool by_grad) "
    "-> Tensor",
    "conv2d_grad_input(Tensor grad, Tensor weight, int[] x, int[] stride, int[] padding) -> Tensor",
    "conv_transpose2d(Tensor x, Tensor weight, Tensor? bias, int[] size, int[] stride, int[] padding) -> Tensor",
    "batch_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor[]",
    "max_pool2d(Tensor x, int[] size, int[] stride, int[] padding) -> Tensor[]",
    "max_pool2d_grad(Tensor grad, Tensor taps, int[] x, int[] size, int[] stride, int[] padding) -> Tensor"};

// Spikes to one bit each and back; op/bits.h says which bit is whose.
constexpr const char* kBits[] = {"pack_spikes(Tensor spk) -> Tensor",
                                 "unpack_spikes(Tensor bits, Tensor height, int[] shape) -> Tensor"};

}  // namespace

STABLE_TORCH_LIBRARY(snnfast, m) {
  // Memory for results that generated code writes.
  m.def("fresh(Tensor like, int[] sizes) -> Tensor");
  m.def("spike_linear(Tensor spk, Tensor weight, Tensor? bias) -> Tensor");
  m.def("spike_linear_in_order(Tensor spk, Tensor weight, Tensor? bias, int[] ends) -> Tensor[]");
  m.def("spike_linear_grad(Tensor grad, Tensor spk) -> Tensor");
  m.def("spike_linear_grad_spk(Tensor grad, Tensor weight) -> Tensor");
  for (const char* encoder : kEncoders) m.def(encoder);
  for (const char* operation : kConvolutions) m.def(operation);
  for (const char* operation : kBits) m.def(operation);
  for (const std::string model : kModels) {
    m.def((model + "_fwd" + snnfast::Forward::schema()).c_str());
    m.def((model + "_bwd" + snnfast::Backward::schema()).c_str());
  }
}

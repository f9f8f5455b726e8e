// The neuron headers as Python functions over float32 arrays: their maths without an operator or a tensor in sight.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "neuron/leaky.h"
#include "neuron/model.h"
#include "neuron/surrogate.h"

namespace py = pybind11;
using Array = py::array_t<float, py::array::c_style | py::array::forcecast>;
using namespace snnfast;

namespace {

template <bool kDelay>
struct Probe {
  using Neuron = Leaky<float, kDelay>;

  static Neuron neuron(const Array& params, int reset, bool inclusive) {
    return Neuron(params.data(), {static_cast<Reset>(reset), inclusive});
  }

  // x, mem [n] -> spk, mem, charge [n]
  static py::tuple step(const Array& x, const Array& mem, const Array& params, int reset, bool inclusive) {
    Array spk(x.size()), after(x.size()), charge(x.size());
    for (py::ssize_t i = 0; i < x.size(); ++i) {
      float state = mem.data()[i], extra = 0;
      spk.mutable_data()[i] = snnfast::step(neuron(params, reset, inclusive), x.data()[i], 0.f, &state, &extra);
      after.mutable_data()[i] = state;
      charge.mutable_data()[i] = kDelay ? state : extra;
    }
    return py::make_tuple(spk, after, charge);
  }

  // grad_spk, mem, charge, before, grad_mem [n] -> grad_x, grad_before [n], grad_params [n, 3]
  static py::tuple step_backward(const Array& grad_spk, const Array& mem, const Array& charge, const Array& before,
                                 const Array& grad_mem, const Array& params, int reset, bool inclusive,
                                 const Array& constants) {
    const py::ssize_t n = mem.size();
    Array grad_x(n), grad_before(n), grad_params({n, py::ssize_t{Neuron::kParams}});
    const Atan<float> surrogate(constants.data());
    for (py::ssize_t i = 0; i < n; ++i) {
      float carry[Neuron::kCarries] = {grad_mem.data()[i]};
      grad_x.mutable_data()[i] = snnfast::step_backward(neuron(params, reset, inclusive), surrogate, grad_spk.data()[i],
                                                        0.f, mem.data() + i, charge.data() + i, before.data() + i,
                                                        carry, grad_params.mutable_data() + Neuron::kParams * i);
      grad_before.mutable_data()[i] = carry[Neuron::kMem];
    }
    return py::make_tuple(grad_x, grad_before, grad_params);
  }
};

}  // namespace

PYBIND11_MODULE(probe, m) {
  m.def("step_delayed", &Probe<true>::step);
  m.def("step_at_once", &Probe<false>::step);
  m.def("step_backward_delayed", &Probe<true>::step_backward);
  m.def("step_backward_at_once", &Probe<false>::step_backward);
}

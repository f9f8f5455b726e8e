// Importing _C_cuda registers the CUDA kernels of the operators that _C defines. Its functions say where they run.
#include <Python.h>

#include "device.h"

namespace {

PyObject* architectures(PyObject*, PyObject*) { return PyUnicode_FromString(snnfast::architectures()); }

PyObject* why_no_kernel_runs(PyObject*, PyObject* device) {
  const long index = PyLong_AsLong(device);
  if (index == -1 && PyErr_Occurred()) return nullptr;
  const char* why = snnfast::why_no_kernel_runs(static_cast<int>(index));
  if (why) return PyUnicode_FromString(why);
  Py_RETURN_NONE;
}

PyMethodDef kFunctions[] = {
    {"architectures", architectures, METH_NOARGS, "The compute capabilities that the kernels were compiled for."},
    {"why_no_kernel_runs", why_no_kernel_runs, METH_O, "CUDA's error on the device of this index, or None."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, kFunctions, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}

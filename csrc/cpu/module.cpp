// The extension module: importing it registers the operators. Its functions are for snnfast/memory.py.
#include <Python.h>

#include "memory.h"

namespace {

namespace blocks = snnfast::blocks;

PyObject* trim(PyObject*, PyObject*) { return PyLong_FromSize_t(blocks::trim()); }

PyObject* limit(PyObject*, PyObject*) { return PyLong_FromSize_t(blocks::limit()); }

PyObject* set_limit(PyObject*, PyObject* bytes) {
  const std::size_t limit = PyLong_AsSize_t(bytes);
  if (PyErr_Occurred()) return nullptr;
  blocks::set_limit(limit);
  Py_RETURN_NONE;
}

PyObject* has(PyObject*, PyObject* address) {
  void* const data = PyLong_AsVoidPtr(address);
  if (PyErr_Occurred()) return nullptr;
  return PyBool_FromLong(blocks::has(data));
}

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  static PyMethodDef methods[] = {{"trim", trim, METH_NOARGS, "Gives idle blocks back: so many bytes."},
                                  {"limit", limit, METH_NOARGS, "Bytes that may lie idle."},
                                  {"set_limit", set_limit, METH_O, "Sets them; 0: no block is taken any more."},
                                  {"has", has, METH_O, "Whether a block in use starts at this address."},
                                  {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}

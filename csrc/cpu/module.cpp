// The extension module: importing it registers the operators. Its functions are for snnfast/memory.py, products.py and
// loops/recorder.py.
#include <Python.h>

#include "memory.h"
#include "recording.h"
#include "tiles.h"

namespace {

namespace blocks = snnfast::blocks;
namespace tiles = snnfast::tiles;

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

PyObject* has_amx(PyObject*, PyObject*) { return PyBool_FromLong(tiles::has_amx()); }

// 0: none, 1: AMX, 2: the emulation. An emulation of AMX runs anywhere; AMX is not run where there is none.
template <void (*kDo)(tiles::Unit)>
PyObject* with_unit(PyObject*, PyObject* number) {
  const long unit = PyLong_AsLong(number);
  if (PyErr_Occurred()) return nullptr;
  if (unit < 0 || unit > 2 || (unit == 1 && !tiles::has_amx())) {
    PyErr_Format(PyExc_ValueError, "unit must be 0, 2, or with AMX 1, got %ld", unit);
    return nullptr;
  }
  kDo(static_cast<tiles::Unit>(unit));
  Py_RETURN_NONE;
}

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  static PyMethodDef methods[] = {
      {"trim", trim, METH_NOARGS, "Gives idle blocks back: so many bytes."},
      {"limit", limit, METH_NOARGS, "Bytes that may lie idle."},
      {"set_limit", set_limit, METH_O, "Sets them; 0: no block is taken any more."},
      {"has", has, METH_O, "Whether a block in use starts at this address."},
      {"has_amx", has_amx, METH_NOARGS, "Whether this process may use AMX for bfloat16."},
      {"use_unit", with_unit<tiles::use>, METH_O, "Has products use it where it is faster."},
      {"force_unit", with_unit<tiles::force>, METH_O, "Has this thread use it always."},
      {"set_up_recording", snnfast::recording::set_up, METH_VARARGS, "Takes what the next two need."},
      {"show", snnfast::recording::show, METH_O, "Lets Python's garbage collector see what was a placeholder."},
      {"goes_on", snnfast::recording::goes_on, METH_VARARGS, "Has the next operation of a recorded loop wait."},
      {"call_goes_on", snnfast::recording::call, METH_VARARGS, "Has a call wait that is a recorded loop's next."},
      {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}

#include "recording.h"

#include <memory>

namespace snnfast::recording {

namespace {

// The attributes of a Recorder, its Reading, and an Operation that are asked for here.
// clang-format off
#define SNNFAST_NAMES(X) \
  X(operations) X(place) X(number) X(cut) X(stepping) X(waiting) X(window_is_full) X(reading) X(fixed) X(snapshots) \
  X(function) X(modes) X(leaves) X(result) X(count) X(given) X(made) X(made_by) X(several) X(links) X(always) X(again) \
  X(counted) X(placeholders) X(is_plain)
// clang-format on

struct Names {
#define SNNFAST_NAME(name) PyObject* const name = PyUnicode_InternFromString(#name);
  SNNFAST_NAMES(SNNFAST_NAME)
#undef SNNFAST_NAME
};

const Names& names() {
  static const Names all;
  return all;
}

// A Python error is set.
struct Failed {};

struct Release {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};

class Owned : public std::unique_ptr<PyObject, Release> {
 public:
  explicit Owned(PyObject* object) : unique_ptr(object) {
    if (!object) throw Failed();
  }
  operator PyObject*() const { return get(); }
};

Owned attribute(PyObject* of, PyObject* name) { return Owned(PyObject_GetAttr(of, name)); }

void set(PyObject* of, PyObject* name, PyObject* value) {
  if (PyObject_SetAttr(of, name, value) < 0) throw Failed();
}

Py_ssize_t as_size(PyObject* number) {
  const Py_ssize_t size = PyLong_AsSsize_t(number);
  if (size == -1 && PyErr_Occurred()) throw Failed();
  return size;
}

bool is_true(PyObject* value) {
  const int is = PyObject_IsTrue(value);
  if (is < 0) throw Failed();
  return is;
}

void append(PyObject* list, PyObject* value) {
  if (PyList_Append(list, value) < 0) throw Failed();
}

// What the members of a tuple are, borrowed.
PyObject* member(PyObject* tuple, Py_ssize_t place) {
  PyObject* const found = PyTuple_GetItem(tuple, place);
  if (!found) throw Failed();
  return found;
}

Py_ssize_t size_of(PyObject* tuple) { return PyTuple_Size(tuple); }

// Set once, as the package is imported, and never given back.
PyObject *make_placeholder, *modes_now;

// Whether what is switched on is what was around the operation, which waits under nothing else.
bool is_in(PyObject* modes) {
  const Py_ssize_t known = size_of(modes);
  for (Py_ssize_t i = 0; i < size_of(modes_now); ++i) {
    const Owned now(PyObject_CallObject(member(modes_now, i), nullptr));
    const bool wanted = i < known && is_true(member(modes, i));
    if (is_true(now) != wanted) return false;
  }
  return true;
}

// Whether a constant is that of the periods before, or a number equal to it that was computed anew.
bool is_constant(PyObject* value, PyObject* what) {
  if (value == what) return true;
  if (Py_TYPE(value) != Py_TYPE(what) || !(PyFloat_CheckExact(value) || PyLong_CheckExact(value))) return false;
  const int same = PyObject_RichCompareBool(value, what, Py_EQ);
  if (same < 0) throw Failed();
  return same;
}

// The arguments of a call, in slots.
class Leaves {
 public:
  explicit Leaves(PyObject* sequence) : held_(PySequence_Tuple(sequence)) {}
  Py_ssize_t size() const { return size_of(held_); }
  PyObject* operator[](Py_ssize_t slot) const { return member(held_, slot); }

 private:
  Owned held_;  // a tuple is its own
};

// The value in the slot whose number stands first in an entry.
PyObject* leaf(const Leaves& leaves, PyObject* entry) { return leaves[as_size(member(entry, 0))]; }

// Whether a slot holds what the loop made: the entry is (slot, maker, output, which of its periods from the end).
bool is_made(PyObject* entry, const Leaves& leaves) {
  const Owned made = attribute(member(entry, 1), names().made);
  const Py_ssize_t period = PyList_Size(made) + as_size(member(entry, 3));
  if (period < 0) return false;
  PyObject* const outs = PyList_GetItem(made, period);
  return leaf(leaves, entry) == member(outs, as_size(member(entry, 2)));
}

// Whether a slot holds the tensor of the period before.
bool is_same(PyObject* slot, const Leaves& leaves, PyObject* given) {
  PyObject* const before = PyList_GetItem(given, as_size(slot));
  const Py_ssize_t count = PyList_Size(before);
  return count > 0 && PyList_GetItem(before, count - 1) == leaves[as_size(slot)];
}

bool is_number(PyObject* entry, const Leaves& leaves) {
  return reinterpret_cast<PyObject*>(Py_TYPE(leaf(leaves, entry))) == member(entry, 1);
}

template <class Fits>
bool all(PyObject* operation, PyObject* entries, Fits fits) {
  const Owned tuple = attribute(operation, entries);
  for (Py_ssize_t i = 0; i < size_of(tuple); ++i)
    if (!fits(member(tuple, i))) return false;
  return true;
}

bool fits(PyObject* operation, const Leaves& leaves, PyObject* given) {
  const Names& name = names();
  return all(operation, name.links, [&](PyObject* entry) { return is_made(entry, leaves); }) &&
         all(operation, name.always,
             [&](PyObject* entry) { return is_constant(leaf(leaves, entry), member(entry, 1)); }) &&
         all(operation, name.again, [&](PyObject* slot) { return is_same(slot, leaves, given); }) &&
         all(operation, name.counted, [&](PyObject* entry) { return is_number(entry, leaves); });
}

// Takes the arguments that are no placeholders and no constants.
void take(PyObject* operation, const Leaves& leaves, PyObject* given) {
  const auto add = [&](PyObject* slot) {
    append(PyList_GetItem(given, as_size(slot)), leaves[as_size(slot)]);
    return true;
  };
  all(operation, names().again, add);
  all(operation, names().counted, [&](PyObject* entry) { return add(member(entry, 0)); });
}

// Whether the recorder has to look at what it will read before more may wait.
bool reads_what_others_write(PyObject* recorder) {
  const Owned reading = attribute(recorder, names().reading);
  return is_true(attribute(reading, names().fixed)) || is_true(attribute(reading, names().snapshots));
}

// Python's garbage collector goes through all that lives, the more often the more is made: what waits is hidden from
// it. The recorder holds it until it is a value, so there is nothing to collect.
void hide(PyObject* object) { PyObject_GC_UnTrack(object); }

Owned placeholders_of(PyObject* recorder, PyObject* operation, PyObject* number) {
  const Owned wanted = attribute(operation, names().placeholders);  // (args, kwargs, output) of each
  Owned outs(PyTuple_New(size_of(wanted)));
  for (Py_ssize_t i = 0; i < size_of(wanted); ++i) {
    PyObject* const entry = member(wanted, i);
    Owned placeholder(PyObject_Call(make_placeholder, member(entry, 0), member(entry, 1)));
    const Owned made_by(PyTuple_Pack(4, recorder, operation, member(entry, 2), number));
    hide(made_by);
    set(placeholder, names().made_by, made_by);
    hide(placeholder);
    PyTuple_SetItem(outs, i, placeholder.release());
  }
  hide(outs);
  return outs;
}

// Where the recorder stands after an operation.
void advance(PyObject* recorder, PyObject* operations, Py_ssize_t place, PyObject* number) {
  const bool is_last = place + 1 == PyList_Size(operations);
  set(recorder, names().place, Owned(PyLong_FromSsize_t(is_last ? 0 : place + 1)));
  if (is_last) set(recorder, names().number, Owned(PyLong_FromSsize_t(as_size(number) + 1)));
}

bool is_at_full_window(PyObject* recorder, Py_ssize_t place) {
  if (place != as_size(attribute(recorder, names().cut))) return false;
  return is_true(Owned(PyObject_CallMethodObjArgs(recorder, names().window_is_full, nullptr)));
}

// The placeholders of the operation that is next, which is given these arguments; null: it does not go on. What runs
// Python comes first: another thread may have what waits computed meanwhile.
PyObject* record(PyObject* recorder, PyObject* operation, const Leaves& leaves) {
  const Names& name = names();
  const Py_ssize_t place = as_size(attribute(recorder, name.place));
  if (!is_in(attribute(operation, name.modes)) || is_at_full_window(recorder, place)) return nullptr;
  const Owned count = attribute(operation, name.count), given = attribute(operation, name.given);
  if (as_size(count) == 0 || leaves.size() != PyList_Size(given) || reads_what_others_write(recorder)) return nullptr;
  if (!fits(operation, leaves, given)) return nullptr;
  take(operation, leaves, given);
  const Owned number = attribute(recorder, name.number);
  Owned outs = placeholders_of(recorder, operation, number);
  append(attribute(operation, name.made), outs);
  set(operation, name.count, Owned(PyLong_FromSsize_t(as_size(count) + 1)));
  set(recorder, name.waiting, Py_True);
  advance(recorder, attribute(recorder, name.operations), place, number);
  return outs.release();
}

// What stands in the slots of a call of an operation; None: the call has others.
Owned leaves_of(PyObject* operation, PyObject* args, PyObject* kwargs) {
  if (is_true(attribute(operation, names().is_plain)) && PyDict_Size(kwargs) == 0) return Owned(Py_NewRef(args));
  return Owned(PyObject_CallMethodObjArgs(operation, names().leaves, args, kwargs, nullptr));
}

// What a call of an operation gives whose outputs are these.
PyObject* result_of(PyObject* operation, PyObject* outs) {
  if (attribute(operation, names().several) == Py_None) return Py_NewRef(member(outs, 0));
  return PyObject_CallMethodObjArgs(operation, names().result, outs, nullptr);
}

PyObject* next_of(PyObject* recorder, PyObject* function, PyObject* args, PyObject* kwargs) {
  const Owned operations = attribute(recorder, names().operations);
  if (PyList_Size(operations) == 0 || is_true(attribute(recorder, names().stepping))) return nullptr;
  PyObject* const operation = PyList_GetItem(operations, as_size(attribute(recorder, names().place)));
  if (!operation || attribute(operation, names().function) != function) return nullptr;
  const Owned leaves = leaves_of(operation, args, kwargs);
  if (leaves == Py_None) return nullptr;
  PyObject* const outs = record(recorder, operation, Leaves(leaves));
  return outs ? result_of(operation, Owned(outs)) : nullptr;
}

// What `run` gives, or where that is nothing and no error, `otherwise`.
template <class Run>
PyObject* or_else(PyObject* otherwise, Run run) {
  try {
    PyObject* const found = run();
    return found || PyErr_Occurred() ? found : Py_NewRef(otherwise);
  } catch (const Failed&) {
    return nullptr;
  }
}

}  // namespace

PyObject* set_up(PyObject*, PyObject* args) {
  if (!PyArg_ParseTuple(args, "OO!", &make_placeholder, &PyTuple_Type, &modes_now)) return nullptr;
  Py_INCREF(make_placeholder);
  Py_INCREF(modes_now);
  Py_RETURN_NONE;
}

PyObject* show(PyObject*, PyObject* object) {
  const bool has_gc = PyType_GetFlags(Py_TYPE(object)) & Py_TPFLAGS_HAVE_GC;
  if (has_gc && !PyObject_GC_IsTracked(object)) PyObject_GC_Track(object);
  Py_RETURN_NONE;
}

PyObject* goes_on(PyObject*, PyObject* args) {
  PyObject *recorder, *operation, *leaves;
  if (!PyArg_ParseTuple(args, "OOO", &recorder, &operation, &leaves)) return nullptr;
  return or_else(Py_None, [&] { return record(recorder, operation, Leaves(leaves)); });
}

PyObject* call(PyObject*, PyObject* args) {
  PyObject *recorder, *function, *given, *kwargs;
  if (!PyArg_ParseTuple(args, "OOO!O!", &recorder, &function, &PyTuple_Type, &given, &PyDict_Type, &kwargs))
    return nullptr;
  return or_else(Py_NotImplemented, [&] { return next_of(recorder, function, given, kwargs); });
}

}  // namespace snnfast::recording

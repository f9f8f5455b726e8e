// The quick way of snnfast/loops/recorder.py: an operation of a recorded loop that goes on as in the period before. All
// that a loop calls comes here, so this is what waiting costs.
#pragma once

#include <Python.h>

namespace snnfast::recording {

// (make, modes): what makes a placeholder, and functions that tell what is switched on around an operation, in the
// order of its `modes`; nothing else may be.
PyObject* set_up(PyObject*, PyObject* args);

// Lets Python's garbage collector see an object that was a placeholder.
PyObject* show(PyObject*, PyObject* object);

// (recorder, operation, leaves): the placeholders of an operation that is what the loop does next, if its arguments are
// the last period's but for what the loop makes and counts, and nothing has to be computed first. Else None, and
// nothing has changed.
PyObject* goes_on(PyObject*, PyObject* args);

// (recorder, function, args, kwargs): what a call gives that is the loop's next operation and goes on like that; else
// NotImplemented.
PyObject* call(PyObject*, PyObject* args);

}  // namespace snnfast::recording

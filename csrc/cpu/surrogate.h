// Surrogates over rows of neurons, compiled once for all neuron models.
#pragma once

#include "../dispatch.h"

namespace snnfast {

// What the surrogate of a choice does to a row: dL/dspike in `grad` becomes dL/du.
template <typename T>
class SurrogateRow {
 public:
  explicit SurrogateRow(const SurrogateChoice& choice);

  void operator()(T* grad, const T* u, const T* evaluated, int width) const { run_(any_, grad, u, evaluated, width); }

 private:
  AnySurrogate<T> any_;
  void (*run_)(const AnySurrogate<T>& any, T* grad, const T* u, const T* evaluated, int width);
};

}  // namespace snnfast

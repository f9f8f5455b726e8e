#include "surrogate.h"

#include <type_traits>

#include "simd.h"

namespace snnfast {

template <typename T>
SurrogateRow<T>::SurrogateRow(const SurrogateChoice& choice) {
  dispatch_surrogate<T>(choice, [&](const auto& known, const auto& any) {
    using Surrogate = std::decay_t<decltype(known)>;
    any_ = any;
    run_ = [](const AnySurrogate<T>& any, T* grad, const T* u, const T* evaluated, int width) {
      const Surrogate surrogate(any.constants);
      vectorized([&] {
#pragma GCC ivdep
        for (int i = 0; i < width; ++i) grad[i] = surrogate.backward(grad[i], u[i], evaluated[i]);
      });
    };
  });
}

template class SurrogateRow<float>;
template class SurrogateRow<double>;

}  // namespace snnfast

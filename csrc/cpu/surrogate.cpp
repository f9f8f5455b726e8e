#include "surrogate.h"

#include <type_traits>

#include "simd.h"

#if defined(__x86_64__) && defined(__GLIBC__)
// glibc 2.29 has a second exp, which sets errno otherwise. With the first one the wheel loads with older glibc too.
__asm__(".symver exp,exp@GLIBC_2.2.5");
#endif

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

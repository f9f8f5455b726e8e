// What the kernels' headers take from the standard library, CUDA's and torch's, for NVRTC, which has none of them.
#pragma once

#define C10_HOST_DEVICE __host__ __device__
#define INFINITY __builtin_huge_valf()
#define NAN __builtin_nanf("")

using int32_t = int;
using int64_t = long;
using uint16_t = unsigned short;
using uint32_t = unsigned;
using uint64_t = unsigned long;

namespace std {

using ::abs, ::ceil, ::floor, ::fma, ::fmax, ::fmin, ::nearbyint, ::trunc;
using ::acos, ::asin, ::atan, ::cos, ::erf, ::erfc, ::exp, ::log, ::log10, ::log2, ::sin, ::sqrt, ::tan, ::tanh;

using size_t = decltype(sizeof 0);

template <bool, typename A, typename>
struct conditional {
  using type = A;
};
template <typename A, typename B>
struct conditional<false, A, B> {
  using type = B;
};
template <bool first, typename A, typename B>
using conditional_t = typename conditional<first, A, B>::type;

template <typename T, T kValue>
struct integral_constant {
  static constexpr T value = kValue;
  constexpr operator T() const { return value; }
};

template <typename To, typename From>
__host__ __device__ constexpr To bit_cast(const From& from) {
  return __builtin_bit_cast(To, from);
}

}  // namespace std

// Surrogate gradients: what backward puts in the place of the Heaviside step's derivative.
//
// backward(grad, u, evaluated) returns dL/du, given grad = dL/dspike, u = mem - threshold and, for `evaluated` alone,
// the derivative that Python evaluated at this element. Operations stand in snnTorch 1.0.0's order
// (snntorch/surrogate.py), constants arrive folded in double as Python folds them: one rounding more or less changes
// the gradient's last bit.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <cmath>
#include <string_view>
#include <tuple>
#include <utility>

namespace snnfast {

inline constexpr int kMaxConstants = 2;

// constants: pi/2 * alpha, alpha/2
template <typename T>
struct Atan {
  static constexpr std::string_view kName = "atan";
  static constexpr int kConstants = 2;
  T stretch, peak;
  C10_HOST_DEVICE explicit Atan(const T* c) : stretch(c[0]), peak(c[1]) {}
  C10_HOST_DEVICE T backward(T grad, T u, T) const {
    const T z = stretch * u;
    return ((T(1) / (T(1) + z * z)) * peak) * grad;
  }
};

// constants: slope
template <typename T>
struct FastSigmoid {
  static constexpr std::string_view kName = "fast_sigmoid";
  static constexpr int kConstants = 1;
  T slope;
  C10_HOST_DEVICE explicit FastSigmoid(const T* c) : slope(c[0]) {}
  C10_HOST_DEVICE T backward(T grad, T u, T) const {
    const T d = slope * std::abs(u) + T(1);
    return grad / (d * d);
  }
};

// constants: slope. The derivative is even in u, so exp(-|slope * u|) gives it without overflow.
template <typename T>
struct Sigmoid {
  static constexpr std::string_view kName = "sigmoid";
  static constexpr int kConstants = 1;
  T slope;
  C10_HOST_DEVICE explicit Sigmoid(const T* c) : slope(c[0]) {}
  C10_HOST_DEVICE T backward(T grad, T u, T) const {
    const T e = std::exp(-std::abs(slope * u));
    const T d = e + T(1);
    return grad * slope * e / (d * d);
  }
};

template <typename T>
struct StraightThrough {
  static constexpr std::string_view kName = "straight_through_estimator";
  static constexpr int kConstants = 0;
  C10_HOST_DEVICE explicit StraightThrough(const T*) {}
  C10_HOST_DEVICE T backward(T grad, T, T) const { return grad; }
};

// constants: the surrogate's own threshold
template <typename T>
struct Triangular {
  static constexpr std::string_view kName = "triangular";
  static constexpr int kConstants = 1;
  T scale;
  C10_HOST_DEVICE explicit Triangular(const T* c) : scale(c[0]) {}
  C10_HOST_DEVICE T backward(T grad, T u, T) const {
    const T g = grad * scale;
    return u >= T(0) ? -g : g;
  }
};

template <typename T>
struct Heaviside {
  static constexpr std::string_view kName = "heaviside";
  static constexpr int kConstants = 0;
  C10_HOST_DEVICE explicit Heaviside(const T*) {}
  C10_HOST_DEVICE T backward(T grad, T u, T) const { return grad * (u > T(0) ? T(1) : T(0)); }
};

// constants: beta, slope
template <typename T>
struct SpikeRateEscape {
  static constexpr std::string_view kName = "spike_rate_escape";
  static constexpr int kConstants = 2;
  T beta, slope;
  C10_HOST_DEVICE explicit SpikeRateEscape(const T* c) : beta(c[0]), slope(c[1]) {}
  C10_HOST_DEVICE T backward(T grad, T u, T) const { return grad * slope * std::exp(-beta * std::abs(u - T(1))); }
};

// constants: slope, B
template <typename T>
struct Sfs {
  static constexpr std::string_view kName = "SFS";
  static constexpr int kConstants = 2;
  T slope, bound;
  C10_HOST_DEVICE explicit Sfs(const T* c) : slope(c[0]), bound(c[1]) {}
  C10_HOST_DEVICE T backward(T grad, T u, T) const {
    const T d = slope * std::abs(u) + T(1);
    return (grad / (d * d)) * (u > bound ? T(1) : T(0));
  }
};

// constants: slope. Without the factor slope that the derivative of logistic(slope * u) has.
template <typename T>
struct Logistic {
  static constexpr std::string_view kName = "logistic";
  static constexpr int kConstants = 1;
  T slope;
  C10_HOST_DEVICE explicit Logistic(const T* c) : slope(c[0]) {}
  C10_HOST_DEVICE T backward(T grad, T u, T) const {
    const T s = T(1) / (T(1) + std::exp(-(slope * u)));
    return grad * s * (T(1) - s);
  }
};

// The next four stand in the order of Norse 1.1.0 (norse/torch/functional/threshold.py). constants: alpha
template <typename T>
struct Triangle {
  static constexpr std::string_view kName = "triangle";
  static constexpr int kConstants = 1;
  T alpha;
  C10_HOST_DEVICE explicit Triangle(const T* c) : alpha(c[0]) {}
  C10_HOST_DEVICE T backward(T grad, T u, T) const {
    const T height = T(1) - std::abs(u);
    return grad * alpha * (height < T(0) ? T(0) : height);
  }
};

// constants: k
template <typename T>
struct Tanh {
  static constexpr std::string_view kName = "tanh";
  static constexpr int kConstants = 1;
  T k;
  C10_HOST_DEVICE explicit Tanh(const T* c) : k(c[0]) {}
  C10_HOST_DEVICE T backward(T grad, T u, T) const {
    const T t = std::tanh(u * k);
    return grad * (T(1) - t * t);
  }
};

// constants: alpha
template <typename T>
struct Circ {
  static constexpr std::string_view kName = "circ";
  static constexpr int kConstants = 1;
  T alpha;
  C10_HOST_DEVICE explicit Circ(const T* c) : alpha(c[0]) {}
  C10_HOST_DEVICE T backward(T grad, T u, T) const {
    const T square = alpha * alpha + u * u;
    const T radius = std::sqrt(square);
    return grad * (-(u * u / (T(2) * (square * radius))) + T(1) / (T(2) * radius)) * T(2) * alpha;
  }
};

// constants: k, sqrt(pi)
template <typename T>
struct Erfc {
  static constexpr std::string_view kName = "erfc";
  static constexpr int kConstants = 2;
  T k, root_of_pi;
  C10_HOST_DEVICE explicit Erfc(const T* c) : k(c[0]), root_of_pi(c[1]) {}
  C10_HOST_DEVICE T backward(T grad, T u, T) const {
    const T z = k * u;
    return T(2) * std::exp(-(z * z)) / root_of_pi * grad;
  }
};

// Any other surrogate: Python evaluated its derivative for the whole sequence.
template <typename T>
struct Evaluated {
  static constexpr std::string_view kName = "evaluated";
  static constexpr int kConstants = 0;
  C10_HOST_DEVICE explicit Evaluated(const T*) {}
  C10_HOST_DEVICE T backward(T grad, T, T evaluated) const { return evaluated * grad; }
};

// No gradient through the spike.
template <typename T>
struct Disabled {
  static constexpr std::string_view kName = "disabled";
  static constexpr int kConstants = 0;
  C10_HOST_DEVICE explicit Disabled(const T*) {}
  C10_HOST_DEVICE T backward(T, T, T) const { return -T(0); }
};

template <typename T>
using Surrogates =
    std::tuple<Atan<T>, FastSigmoid<T>, Sigmoid<T>, StraightThrough<T>, Triangular<T>, Heaviside<T>, SpikeRateEscape<T>,
               Sfs<T>, Logistic<T>, Triangle<T>, Tanh<T>, Circ<T>, Erfc<T>, Evaluated<T>, Disabled<T>>;

// A surrogate chosen at run time, for kernels where one uniform branch costs less than a kernel per surrogate.
template <typename T>
struct AnySurrogate {
  int index;
  T constants[kMaxConstants];

  C10_HOST_DEVICE T backward(T grad, T u, T evaluated) const {
    return choose(grad, u, evaluated, std::make_index_sequence<std::tuple_size_v<Surrogates<T>>>());
  }

 private:
  template <std::size_t... I>
  C10_HOST_DEVICE T choose(T grad, T u, T evaluated, std::index_sequence<I...>) const {
    T result = T(0);
    ((index == static_cast<int>(I)
          ? (result = std::tuple_element_t<I, Surrogates<T>>(constants).backward(grad, u, evaluated), 0)
          : 0),
     ...);
    return result;
  }
};

}  // namespace snnfast

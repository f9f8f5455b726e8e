// Batch-norm by its own samples, of every step of a loop by itself.
//
// Numbers are torch's to the bit: sums over a channel's values in their order, in float64. One such sum waits for
// itself at every value, so eight channels are summed up side by side. snnfast.batch_norm tries whether they are
// torch's.
#pragma GCC optimize("fp-contract=fast")

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "../op/tensors.h"
#include "fresh.h"
#include "simd.h"

namespace snnfast {
namespace {

constexpr int kLanes = 4;
constexpr int kGroup = 2 * kLanes;  // channels side by side
using Lanes [[gnu::vector_size(kLanes * sizeof(float))]] = float;
using Unaligned [[gnu::vector_size(kLanes * sizeof(float)), gnu::aligned(sizeof(float)), gnu::may_alias]] = float;
using Sums [[gnu::vector_size(kLanes * sizeof(double))]] = double;
using Order [[gnu::vector_size(kLanes * sizeof(int32_t))]] = int32_t;

// Rows of four values each become columns.
inline void turn(Lanes (&rows)[kLanes]) {
  const Lanes a = __builtin_shuffle(rows[0], rows[1], Order{0, 4, 1, 5});
  const Lanes b = __builtin_shuffle(rows[2], rows[3], Order{0, 4, 1, 5});
  const Lanes c = __builtin_shuffle(rows[0], rows[1], Order{2, 6, 3, 7});
  const Lanes d = __builtin_shuffle(rows[2], rows[3], Order{2, 6, 3, 7});
  rows[0] = __builtin_shuffle(a, b, Order{0, 1, 4, 5});
  rows[1] = __builtin_shuffle(a, b, Order{2, 3, 6, 7});
  rows[2] = __builtin_shuffle(c, d, Order{0, 1, 4, 5});
  rows[3] = __builtin_shuffle(c, d, Order{2, 3, 6, 7});
}

// Samples x [steps, batch, channels, size].
struct Samples {
  const float* x;
  int64_t steps, batch, channels, size;

  int64_t count() const { return batch * size; }
  int64_t groups() const { return (channels + kGroup - 1) / kGroup; }
  int64_t at(int64_t step, int64_t sample, int64_t channel) const {
    return ((step * batch + sample) * channels + channel) * size;
  }
};

// Sums over each channel of a group of of(value, its mean); channels that a group lacks are its first one again.
template <typename Of>
void sum_up(const Samples& s, int64_t step, int64_t first, const float* mean, double* sums, const Of& of) {
  Lanes means[2];
  Sums totals[2] = {};
  const float* from[kGroup];
  for (int k = 0; k < kGroup; ++k) means[k / kLanes][k % kLanes] = mean[k];
  for (int64_t sample = 0; sample < s.batch; ++sample) {
    for (int k = 0; k < kGroup; ++k) from[k] = s.x + s.at(step, sample, first + k < s.channels ? first + k : first);
    int64_t i = 0;
    for (; i + kLanes <= s.size; i += kLanes) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        Lanes rows[kLanes];
        for (int k = 0; k < kLanes; ++k) rows[k] = *reinterpret_cast<const Unaligned*>(from[half * kLanes + k] + i);
        turn(rows);
        for (int k = 0; k < kLanes; ++k) totals[half] += __builtin_convertvector(of(rows[k], means[half]), Sums);
      }
    }
    for (; i < s.size; ++i) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const float* const* row = from + half * kLanes;
        const Lanes values{row[0][i], row[1][i], row[2][i], row[3][i]};
        totals[half] += __builtin_convertvector(of(values, means[half]), Sums);
      }
    }
  }
  for (int k = 0; k < kGroup; ++k) sums[k] = totals[k / kLanes][k % kLanes];
}

// Mean, sum of squares about it and 1 / deviation of a group's channels, and its values normalised.
void normalise(const Samples& s, int64_t step, int64_t first, const float* weight, const float* bias, double eps,
               float* mean, float* squares, float* scale, float* y) {
  const int64_t some = std::min<int64_t>(kGroup, s.channels - first);
  double sums[kGroup];
  float means[kGroup] = {};
  sum_up(s, step, first, means, sums, [](Lanes values, Lanes) { return values; });
  for (int k = 0; k < kGroup; ++k) means[k] = static_cast<float>(sums[k] / static_cast<double>(s.count()));
  sum_up(s, step, first, means, sums, [](Lanes values, Lanes mean) {
    const Lanes off = values - mean;
    return off * off;
  });
  float slope[kGroup], shift[kGroup];
  for (int64_t k = 0; k < some; ++k) {
    mean[k] = means[k];
    squares[k] = static_cast<float>(sums[k]);
    const double variance = squares[k] / static_cast<float>(s.count());
    scale[k] = variance != 0 || eps != 0 ? static_cast<float>(1 / std::sqrt(variance + eps)) : 0.0f;
    slope[k] = scale[k] * (weight ? weight[first + k] : 1.0f);
    shift[k] = (bias ? bias[first + k] : 0.0f) - means[k] * slope[k];
  }
  for (int64_t sample = 0; sample < s.batch; ++sample) {
    for (int64_t k = 0; k < some; ++k) {
      const int64_t at = s.at(step, sample, first + k);
      for (int64_t i = 0; i < s.size; ++i) y[at + i] = s.x[at + i] * slope[k] + shift[k];
    }
  }
}

// x [T, B, C, ...], weight and bias [C] -> [normalised, means, 1 / deviations, sums of squares about the means], the
// last three [T, C]
std::vector<Tensor> batch_norm(Tensor x, std::optional<Tensor> weight, std::optional<Tensor> bias, double eps) {
  STD_TORCH_CHECK(x.dim() >= 3, "x must be [T, B, C, ...], got ", x.dim(), " dimensions");
  check_tensor("x", x, x, ScalarType::Float, x.numel());
  x = readable(x);
  Samples s{data<float>(x), x.size(0), x.size(1), x.size(2), 1};
  for (int64_t dim = 3; dim < x.dim(); ++dim) s.size *= x.size(dim);
  check_tensor("weight", weight, x, ScalarType::Float, s.channels);
  check_tensor("bias", bias, x, ScalarType::Float, s.channels);
  weight = readable(weight);
  bias = readable(bias);
  const std::vector<int64_t> of_steps{s.steps, s.channels};
  const Tensor y = fresh(x, x.sizes(), ScalarType::Float), squares = fresh(x, of_steps, ScalarType::Float);
  const Tensor mean = fresh(x, of_steps, ScalarType::Float), scale = fresh(x, of_steps, ScalarType::Float);
  const float *w = data<float>(weight), *b = data<float>(bias);
  torch::stable::parallel_for(0, s.steps * s.groups(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t step = task / s.groups(), first = task % s.groups() * kGroup, at = step * s.channels + first;
      vectorized([&] {
        normalise(s, step, first, w, b, eps, mutable_data<float>(mean) + at, mutable_data<float>(squares) + at,
                  mutable_data<float>(scale) + at, mutable_data<float>(y));
      });
    }
  });
  return {y, mean, scale, squares};
}

}  // namespace
}  // namespace snnfast

STABLE_TORCH_LIBRARY_IMPL(snnfast, CPU, m) { m.impl("batch_norm", TORCH_BOX(&snnfast::batch_norm)); }

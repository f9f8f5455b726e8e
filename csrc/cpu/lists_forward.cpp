// A linear layer behind spikes: forward, from lists of what is not zero.
#pragma GCC optimize("fp-contract=fast")

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "lists.h"

namespace snnfast {
namespace {

// out [inputs, a column block after the other] = weight [outputs, inputs]^T; whether all of it is finite.
bool pack_weight(const float* weight, int64_t outputs, int64_t inputs, float* out) {
  constexpr int64_t kInputs = 16;
  std::atomic<bool> finite = true;
  torch::stable::parallel_for(0, divided_up(inputs, kInputs), 8, [&](int64_t begin, int64_t end) {
    bool all = true;
    vectorized([&] {
      for (int64_t first = 0; first < outputs; first += kWidth) {
        const int64_t width = std::min(kWidth, outputs - first), stride = whole_lanes(width);
        for (int64_t part = begin; part < end; ++part) {
          const int64_t input = part * kInputs, count = std::min(kInputs, inputs - input);
          float* to = out + first * inputs + input * stride;
          for (int64_t i = 0; i < width; ++i) {
            const float* from = weight + (first + i) * inputs + input;
            all &= all_finite(from, count);
            for (int64_t k = 0; k < count; ++k) to[k * stride + i] = from[k];
          }
          for (int64_t k = 0; k < count; ++k) std::fill(to + k * stride + width, to + (k + 1) * stride, 0.0f);
        }
      }
    });
    if (!all) finite = false;
  });
  return finite;
}

// out [rows, width] of a matrix of `columns` = sums, whose rows are whole vectors, + bias; whether all of it is finite.
bool write_rows(const float* sums, int64_t rows, int64_t width, const float* bias, float* out, int64_t columns) {
  const int64_t stride = whole_lanes(width);
  bool finite = true;
  for (int64_t row = 0; row < rows; ++row) {
    float* to = out + row * columns;
    for (int64_t i = 0; i < width; ++i) to[i] = bias ? sums[row * stride + i] + bias[i] : sums[row * stride + i];
    finite &= all_finite(to, width);
  }
  return finite;
}

}  // namespace

bool multiply_by_lists(const float* spk, const float* weight, const float* bias, const LinearSizes& sizes,
                       int64_t block, float* packed, float* out) {
  constexpr int64_t kRows = 256;
  const int64_t inputs = sizes.inputs, outputs = sizes.outputs;
  if (!pack_weight(weight, outputs, inputs, packed)) return false;
  std::atomic<bool> finite = true;
  torch::stable::parallel_for(0, sizes.rows, 32, [&](int64_t begin, int64_t end) {
    std::vector<Lists> lists(divided_up(inputs, block));
    const Scratch sums(kRows * kWidth);
    bool all = true;
    vectorized_by_width([&]<int kBytes>(std::integral_constant<int, kBytes>) {
      for (int64_t row = begin; row < end && all; row += kRows) {
        const int64_t rows = std::min(kRows, end - row);
        for (int64_t k = 0; k < static_cast<int64_t>(lists.size()); ++k) {
          lists[k].find_rows(spk + row * inputs + k * block, inputs, rows, std::min(block, inputs - k * block));
        }
        for (int64_t first = 0; first < outputs; first += kWidth) {
          const int64_t width = std::min(kWidth, outputs - first);
          const float* dense = packed + first * inputs;
          for (const Lists& each : lists) {
            each.multiply<kBytes>(dense, whole_lanes(width), 0, rows, &each != lists.data(), sums.data());
            dense += block * whole_lanes(width);
          }
          const float* added = bias ? bias + first : nullptr;
          all &= write_rows(sums.data(), rows, width, added, out + row * outputs + first, outputs);
        }
      }
    });
    if (!all) finite = false;
  });
  return finite;
}

}  // namespace snnfast

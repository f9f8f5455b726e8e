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

// sums [rows, a row of whole vectors] = bias [width].
void begin_rows(const float* bias, int64_t rows, int64_t width, float* sums) {
  const int64_t stride = whole_lanes(width);
  for (int64_t row = 0; row < rows; ++row) std::copy(bias, bias + width, sums + row * stride);
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
                       const std::vector<int64_t>& ends, bool in_order, float* packed, float* out) {
  constexpr int64_t kRows = 256;
  const int64_t inputs = sizes.inputs, outputs = sizes.outputs, blocks = static_cast<int64_t>(ends.size());
  if (!pack_weight(weight, outputs, inputs, packed)) return false;
  std::atomic<bool> finite = true;
  torch::stable::parallel_for(0, sizes.rows, 32, [&](int64_t begin, int64_t end) {
    std::vector<Lists> lists(blocks);
    const Scratch sums(kRows * kWidth);
    bool all = true;
    vectorized_by_width([&]<int kBytes>(std::integral_constant<int, kBytes>) {
      for (int64_t row = begin; row < end && all; row += kRows) {
        const int64_t rows = std::min(kRows, end - row);
        for (int64_t k = 0, input = 0; k < blocks; input = ends[k++]) {
          lists[k].find_rows(spk + row * inputs + input, inputs, rows, ends[k] - input);
        }
        for (int64_t first = 0; first < outputs; first += kWidth) {
          const int64_t width = std::min(kWidth, outputs - first), stride = whole_lanes(width);
          const float* added = bias ? bias + first : nullptr;
          const bool begun = in_order && added;
          if (begun) begin_rows(added, rows, width, sums.data());
          for (int64_t k = 0, input = 0; k < blocks; input = ends[k++]) {
            const float* dense = packed + first * inputs + input * stride;
            const bool add = begun || k > 0;
            if (in_order) {
              lists[k].multiply<kBytes, true>(dense, stride, 0, rows, add, sums.data());
            } else {
              lists[k].multiply<kBytes>(dense, stride, 0, rows, add, sums.data());
            }
          }
          all &= write_rows(sums.data(), rows, width, begun ? nullptr : added, out + row * outputs + first, outputs);
        }
      }
    });
    if (!all) finite = false;
  });
  return finite;
}

}  // namespace snnfast

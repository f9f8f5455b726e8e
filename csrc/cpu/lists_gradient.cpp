// The gradient of the weights of a linear layer behind spikes, from lists of what is not zero.
#pragma GCC optimize("fp-contract=fast")

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "lists.h"

namespace snnfast {
namespace {

// out [rows, whole vectors] = a block of a matrix; whether all of it is finite.
bool copy_block(const float* from, int64_t columns, int64_t rows, int64_t width, float* out) {
  const int64_t stride = whole_lanes(width);
  bool finite = true;
  for (int64_t row = 0; row < rows; ++row, out += stride) {
    std::memcpy(out, from + row * columns, width * sizeof(float));
    std::fill(out + width, out + stride, 0.0f);
    finite &= all_finite(out, width);
  }
  return finite;
}

// out [width, count] of a matrix of `columns` = sums [count, whole vectors]^T; whether all of it is finite.
bool write_columns(const float* sums, int64_t count, int64_t width, float* out, int64_t columns) {
  constexpr int64_t kTogether = 16;
  const int64_t stride = whole_lanes(width);
  for (int64_t first = 0; first < count; first += kTogether) {
    const int64_t some = std::min(kTogether, count - first);
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t k = 0; k < some; ++k) out[i * columns + first + k] = sums[(first + k) * stride + i];
    }
  }
  return all_finite(sums, count * stride);
}

// out [outputs, inputs] = grad^T spk; whether all that went in and came out is finite.
bool multiply_many(const float* grad, const float* spk, const LinearSizes& sizes, int64_t block, float* out) {
  // Lists are made of so many spikes at once at most.
  constexpr int64_t kInputs = 1024, kEntries = 1 << 24;
  const int64_t inputs = sizes.inputs, outputs = sizes.outputs, blocks = divided_up(sizes.rows, block);
  const int64_t at_once = std::clamp<int64_t>(kEntries / (block * inputs), 1, blocks);
  std::vector<Lists> lists(at_once);
  // Every part of the inputs copies the gradient anew: as few as there are threads to be busy.
  const int64_t parts_of_outputs = divided_up(outputs, kWidth), threads = torch::stable::get_num_threads();
  const int64_t parts = std::max(divided_up(inputs, kInputs), std::min(divided_up(threads, parts_of_outputs), inputs));
  const int64_t part = divided_up(inputs, parts);
  // Where all lists are made at once, a task's sums are soon written.
  const bool once = at_once == blocks;
  const Scratch all_sums(once ? 0 : parts_of_outputs * parts * part * kWidth);
  std::atomic<bool> finite = true;
  for (int64_t first = 0; first < blocks && finite; first += at_once) {
    const int64_t last = std::min(first + at_once, blocks);
    const auto rows_of = [&](int64_t k) { return std::min(block, sizes.rows - k * block); };
    torch::stable::parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
      Lists by_row;
      vectorized([&] {
        for (int64_t k = begin; k < end; ++k) {
          by_row.find_rows(spk + k * block * inputs, inputs, rows_of(k), inputs);
          lists[k - first].turn(by_row, rows_of(k), inputs);
        }
      });
    });
    torch::stable::parallel_for(0, parts_of_outputs * parts, 1, [&](int64_t begin, int64_t end) {
      const Scratch dense(block * kWidth), sums_of_task(once ? part * kWidth : 0);
      bool all = true;
      vectorized_by_width([&]<int kBytes>(std::integral_constant<int, kBytes>) {
        for (int64_t task = begin; task < end && all; ++task) {
          const int64_t output = task / parts * kWidth, input = std::min(task % parts * part, inputs);
          const int64_t width = std::min(kWidth, outputs - output), count = std::min(part, inputs - input);
          float* sums = once ? sums_of_task.data() : all_sums.data() + task * part * kWidth;
          for (int64_t k = first; k < last; ++k) {
            all &= copy_block(grad + k * block * outputs + output, outputs, rows_of(k), width, dense.data());
            lists[k - first].multiply<kBytes>(dense.data(), whole_lanes(width), input, input + count, k > 0, sums);
          }
          if (last == blocks) all &= write_columns(sums, count, width, out + output * inputs + input, inputs);
        }
      });
      if (!all) finite = false;
    });
  }
  return finite;
}

// The same for at most kLanes outputs: so few that to add to all sums, which lie in caches, costs less than lists of
// columns. Rows are taken in parts, whose number does not depend on that of threads.
bool multiply_few(const float* grad, const float* spk, const LinearSizes& sizes, float* out) {
  constexpr int64_t kRows = 64, kMostParts = 32;
  const int64_t inputs = sizes.inputs, outputs = sizes.outputs, size = inputs * kLanes;
  const int64_t part = divided_up(divided_up(sizes.rows, kMostParts), kRows) * kRows;
  const int64_t parts = divided_up(sizes.rows, part);
  const Scratch totals(parts * size);
  std::atomic<bool> finite = true;
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    const Scratch dense(kRows * kLanes), sums(size);
    std::vector<int> index(inputs + kFoundAtOnce);
    std::vector<float> height(inputs + kFoundAtOnce);
    bool all = true;
    std::fill(totals.data() + begin * size, totals.data() + end * size, 0.0f);
    vectorized_by_width([&]<int kBytes>(std::integral_constant<int, kBytes>) {
      using Vector = typename VectorOf<float, kBytes>::type;
      constexpr int kVectors = kLanes * sizeof(float) / kBytes;
      for (int64_t first = begin * part; first < std::min(end * part, sizes.rows) && all; first += kRows) {
        const int64_t rows = std::min(kRows, sizes.rows - first);
        all &= copy_block(grad + first * outputs, outputs, rows, outputs, dense.data());
        std::fill_n(sums.data(), size, 0.0f);
        for (int64_t row = 0; row < rows; ++row) {
          const int found = find_nonzero(spk + (first + row) * inputs, inputs, index.data(), height.data());
          Vector added[kVectors];
          std::memcpy(added, dense.data() + row * kLanes, sizeof(added));
          for (int k = 0; k < found; ++k) {
            Vector* to = reinterpret_cast<Vector*>(sums.data() + index[k] * kLanes);
            for (int v = 0; v < kVectors; ++v) to[v] += height[k] * added[v];
          }
        }
        float* total = totals.data() + first / part * size;
        for (int64_t i = 0; i < size; ++i) total[i] += sums.data()[i];
      }
    });
    if (!all) finite = false;
  });
  for (int64_t k = 1; k < parts; ++k) {
    for (int64_t i = 0; i < size; ++i) totals.data()[i] += totals.data()[k * size + i];
  }
  return write_columns(totals.data(), inputs, outputs, out, inputs) && finite;
}

}  // namespace

bool multiply_transposed_by_lists(const float* grad, const float* spk, const LinearSizes& sizes, int64_t block,
                                  float* out) {
  if (sizes.outputs <= kLanes) return multiply_few(grad, spk, sizes, out);
  return multiply_many(grad, spk, sizes, block, out);
}

}  // namespace snnfast

// The operators of a linear layer behind spikes: forward, and the gradients of its weights and of the spikes.
//
// The first two are products of a matrix that is mostly zeros with a dense one: spikes [rows, inputs] with weights, and
// the same spikes, transposed, with the gradient of the outputs. Either is computed from lists of what is not zero. A
// block of 64 of the dense matrix's columns and of as many of its rows as hold some 25 spikes stays in the nearest
// caches, the sums of a spikes' row in registers. Where spikes are many, sizes small, or a number infinite or none, the
// product is torch's.
//
// As in any BLAS, sums have an order of their own, the same for any number of threads, and a multiply and an add may be
// one. Terms come in pairs and in parts, whose sums lose less than one long sum.
#pragma GCC optimize("fp-contract=fast")

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "../integers.h"
#include "../op/tensors.h"
#include "fresh.h"
#include "simd.h"

namespace snnfast {
namespace {

// Columns of a block of the dense matrix are a multiple of kLanes, at most kWidth.
constexpr int64_t kLanes = 16, kWidth = 4 * kLanes;

// Memory for floats that are written before they are read, whole vectors at a time.
class Scratch {
 public:
  explicit Scratch(int64_t size) : memory_(new float[size + kLanes]) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    first_ = memory_.get() + (64 - address % 64) % 64 / sizeof(float);
  }

  float* data() const { return first_; }

 private:
  std::unique_ptr<float[]> memory_;
  float* first_;
};

int64_t whole_lanes(int64_t width) { return divided_up(width, kLanes) * kLanes; }

bool all_finite(const float* values, int64_t count) {
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    found |= (bits & kExponent) == kExponent;
  }
  return !found;
}

// Of each list of a block of spikes: where they are in the block, and how high.
class Lists {
 public:
  // A list for each of these rows, of the columns in it.
  void find_rows(const float* spk, int64_t stride, int64_t rows, int64_t columns) {
    reserve(rows, rows * columns);
    for (int64_t row = 0; row < rows; ++row) {
      begin_[row + 1] =
          begin_[row] + find_nonzero(spk + row * stride, columns, &index_[begin_[row]], &height_[begin_[row]]);
    }
    see_heights();
  }

  // A list for each of these columns, of the rows in it, from a list for each row.
  void turn(const Lists& by_row, int64_t rows, int64_t columns) {
    const int64_t count = by_row.begin_[rows];
    reserve(columns, count);
    for (int64_t k = 0; k < count; ++k) ++begin_[by_row.index_[k] + 1];
    for (int64_t column = 0; column < columns; ++column) begin_[column + 1] += begin_[column];
    ends_.assign(begin_.begin(), begin_.end() - 1);
    are_ones_ = by_row.are_ones_;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t first = by_row.begin_[row], last = by_row.begin_[row + 1];
      if (are_ones_) {
        for (int64_t k = first; k < last; ++k) index_[ends_[by_row.index_[k]]++] = static_cast<int>(row);
      } else {
        for (int64_t k = first; k < last; ++k) {
          const int64_t to = ends_[by_row.index_[k]]++;
          index_[to] = static_cast<int>(row);
          height_[to] = by_row.height_[k];
        }
      }
    }
  }

  // sums [last - first, width] of the lists from first to last: (+)= height * dense's row [width], over the spikes.
  template <int kBytes>
  void multiply(const float* dense, int64_t width, int64_t first, int64_t last, bool add, float* sums) const {
    multiply<kBytes, kWidth>(dense, width, first, last, add, sums);
  }

 private:
  void reserve(int64_t lists, int64_t spikes) {
    begin_.assign(lists + 1, 0);
    if (spikes + kFoundAtOnce <= size_) return;
    size_ = spikes + kFoundAtOnce;
    index_.reset(new int[size_]);
    height_.reset(new float[size_]);
  }

  void see_heights() {
    bool others = false;
    for (int64_t k = 0; k < begin_.back(); ++k) others |= height_[k] != 1.0f;
    are_ones_ = !others;
  }

  template <int kBytes, int64_t kColumns>
  void multiply(const float* dense, int64_t width, int64_t first, int64_t last, bool add, float* sums) const {
    if constexpr (kColumns > kLanes) {
      if (width < kColumns) return multiply<kBytes, kColumns - kLanes>(dense, width, first, last, add, sums);
    }
    if (are_ones_) return multiply<kBytes, kColumns, true>(dense, first, last, add, sums);
    multiply<kBytes, kColumns, false>(dense, first, last, add, sums);
  }

  template <bool kOnes>
  float height_at(int64_t k) const {
    return kOnes ? 1.0f : height_[k];
  }

  template <int kBytes, int64_t kColumns, bool kOnes>
  void multiply(const float* dense, int64_t first, int64_t last, bool add, float* sums) const {
    using Vector = typename VectorOf<float, kBytes>::type;
    constexpr int kVectors = kColumns * sizeof(float) / kBytes;
    for (int64_t list = first; list < last; ++list, sums += kColumns) {
      Vector sum[kVectors] = {};
      int64_t k = begin_[list];
      const int64_t end = begin_[list + 1];
      if (k < end) {
        // One term where their number is odd, else nothing: a branch could not be foretold.
        const int64_t odd = (end - k) % 2;
        const float height = odd ? height_at<kOnes>(k) : 0.0f;
        const Vector* from = reinterpret_cast<const Vector*>(dense + index_[k] * kColumns);
        for (int v = 0; v < kVectors; ++v) sum[v] = height * from[v];
        k += odd;
      }
      for (; k < end; k += 2) {
        const Vector* one = reinterpret_cast<const Vector*>(dense + index_[k] * kColumns);
        const Vector* two = reinterpret_cast<const Vector*>(dense + index_[k + 1] * kColumns);
        for (int v = 0; v < kVectors; ++v) {
          sum[v] += height_at<kOnes>(k) * one[v] + height_at<kOnes>(k + 1) * two[v];
        }
      }
      Vector* to = reinterpret_cast<Vector*>(sums);
      for (int v = 0; v < kVectors; ++v) to[v] = add ? to[v] + sum[v] : sum[v];
    }
  }

  std::vector<int64_t> begin_, ends_;
  std::unique_ptr<int[]> index_;
  std::unique_ptr<float[]> height_;
  int64_t size_ = 0;
  bool are_ones_ = true;
};

struct Shape {
  int64_t rows = 1, columns = 0;

  Shape(const char* name, const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.dim() >= 1, name, " must have a dimension of features, got a tensor of 0 dimensions");
    columns = tensor.size(-1);
    for (int64_t dim = 0; dim + 1 < tensor.dim(); ++dim) rows *= tensor.size(dim);
  }
};

// What share of the spikes is not zero, from rows here and there.
double density(const float* spk, const Shape& shape) {
  constexpr int64_t kRows = 64;
  int64_t seen = 0, found = 0;
  vectorized([&] {
    for (int64_t k = 0; k < std::min(kRows, shape.rows); ++k) {
      // Not at equal distances: those may be a sample's steps.
      const uint64_t place = shape.rows <= kRows ? k : (k * 0x9e3779b97f4a7c15u >> 32) * shape.rows >> 32;
      const float* row = spk + place * shape.columns;
      for (int64_t column = 0; column < shape.columns; ++column) found += row[column] != 0.0f;
      seen += shape.columns;
    }
  });
  return seen ? static_cast<double>(found) / static_cast<double>(seen) : 1.0;
}

// So many rows of the dense matrix hold some 25 of the spikes of a list.
int64_t block_size(double density, int64_t rows) {
  constexpr int64_t kStep = 64, kLeast = 2 * kStep, kMost = 16 * kStep;
  const double wanted = 25.0 / std::max(density, 1e-3);
  return std::min(rows, std::clamp(divided_up(static_cast<int64_t>(wanted), kStep) * kStep, kLeast, kMost));
}

// Whether to multiply by lists, and over how long blocks; 0: not so. Measured, torch is as fast where more than 0.4 of
// the spikes are not zero, less if outputs are so few that to make a list, which costs as much as so many outputs,
// shows.
int64_t chosen_block(const float* spk, const Shape& shape, int64_t outputs, int64_t cost_of_lists, int64_t summed) {
  if (shape.rows == 0 || shape.columns == 0 || outputs == 0) return 0;
  const double share = density(spk, shape);
  const double few = 0.4 * static_cast<double>(outputs) / static_cast<double>(outputs + cost_of_lists);
  return share <= few ? block_size(share, summed) : 0;
}

constexpr int64_t kCostOfRows = 20, kCostOfColumns = 60;

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

// out [rows, outputs] = spk [rows, inputs] weight [outputs, inputs]^T + bias [outputs] or nothing; whether all that
// went in and came out is finite.
bool multiply_by_lists(const float* spk, const float* weight, const float* bias, const Shape& shape, int64_t outputs,
                       int64_t block, float* packed, float* out) {
  constexpr int64_t kRows = 256;
  const int64_t inputs = shape.columns;
  if (!pack_weight(weight, outputs, inputs, packed)) return false;
  std::atomic<bool> finite = true;
  torch::stable::parallel_for(0, shape.rows, 32, [&](int64_t begin, int64_t end) {
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

// out [outputs, inputs] = grad [rows, outputs]^T spk [rows, inputs]; whether all that went in and came out is finite.
bool multiply_transposed_by_lists(const float* grad, const float* spk, const Shape& shape, int64_t outputs,
                                  int64_t block, float* out) {
  // Lists are made of so many spikes at once at most.
  constexpr int64_t kInputs = 1024, kEntries = 1 << 24;
  const int64_t inputs = shape.columns, blocks = divided_up(shape.rows, block);
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
    const auto rows_of = [&](int64_t k) { return std::min(block, shape.rows - k * block); };
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
bool multiply_few_transposed(const float* grad, const float* spk, const Shape& shape, int64_t outputs, float* out) {
  constexpr int64_t kRows = 64, kMostParts = 32;
  const int64_t inputs = shape.columns, size = inputs * kLanes;
  const int64_t part = divided_up(divided_up(shape.rows, kMostParts), kRows) * kRows;
  const int64_t parts = divided_up(shape.rows, part);
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
      for (int64_t first = begin * part; first < std::min(end * part, shape.rows) && all; first += kRows) {
        const int64_t rows = std::min(kRows, shape.rows - first);
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

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(x), from(weight), from(bias)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

bool is_float(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Float; }

// spk [..., in] weight [out, in]^T + bias [out] -> [..., out]
Tensor spike_linear(Tensor spk, Tensor weight, std::optional<Tensor> bias) {
  const Shape shape("spk", spk);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == shape.columns, "weight must have shape [outputs, ",
                  shape.columns, "]");
  const int64_t outputs = weight.size(0);
  check_tensor("weight", weight, spk, spk.scalar_type(), weight.numel());
  check_tensor("bias", bias, spk, spk.scalar_type(), outputs);
  if (!is_float(spk)) return linear(spk, weight, bias);
  const Tensor spikes = readable(spk);
  const int64_t block = chosen_block(data<float>(spikes), shape, outputs, kCostOfRows, shape.columns);
  if (block == 0) return linear(spk, weight, bias);
  std::vector<int64_t> sizes(spk.sizes().begin(), spk.sizes().end());
  sizes.back() = outputs;
  const Tensor rows = readable(weight), out = fresh(spk, sizes, ScalarType::Float);
  const std::optional<Tensor> added = readable(bias);
  const int64_t packed_size = whole_lanes(outputs) * shape.columns;
  const Tensor packed = fresh(spk, std::array{packed_size}, ScalarType::Float);
  const bool finite = multiply_by_lists(data<float>(spikes), data<float>(rows), data<float>(added), shape, outputs,
                                        block, mutable_data<float>(packed), mutable_data<float>(out));
  return finite ? out : linear(spk, weight, bias);
}

// grad [..., out], spk [..., in] -> dL/dweight [out, in]
Tensor spike_linear_grad(Tensor grad, Tensor spk) {
  const Shape shape("spk", spk), outer("grad", grad);
  STD_TORCH_CHECK(outer.rows == shape.rows, "grad must have as many rows as spk, ", shape.rows, ", got ", outer.rows);
  check_tensor("grad", grad, spk, spk.scalar_type(), grad.numel());
  const auto by_torch = [&] {
    const Tensor grads = torch::stable::reshape(grad, {outer.rows, outer.columns});
    const Tensor rows = torch::stable::reshape(spk, {shape.rows, shape.columns});
    return torch::stable::matmul(torch::stable::transpose(grads, 0, 1), rows);
  };
  if (!is_float(spk)) return by_torch();
  const Tensor spikes = readable(spk);
  const int64_t block = chosen_block(data<float>(spikes), shape, outer.columns,
                                     outer.columns <= kLanes ? kCostOfRows : kCostOfColumns, shape.rows);
  if (block == 0) return by_torch();
  const Tensor grads = readable(grad), out = fresh(spk, std::array{outer.columns, shape.columns}, ScalarType::Float);
  const float *from = data<float>(grads), *rows = data<float>(spikes);
  const bool finite =
      outer.columns <= kLanes
          ? multiply_few_transposed(from, rows, shape, outer.columns, mutable_data<float>(out))
          : multiply_transposed_by_lists(from, rows, shape, outer.columns, block, mutable_data<float>(out));
  return finite ? out : by_torch();
}

// grad [..., out], weight [out, in] -> dL/dspk [..., in]: torch's product, in memory of our own.
Tensor spike_linear_grad_spk(Tensor grad, Tensor weight) {
  const Shape shape("grad", grad);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == shape.columns, "weight must have shape [", shape.columns,
                  ", inputs]");
  check_tensor("weight", weight, grad, grad.scalar_type(), weight.numel());
  std::vector<int64_t> sizes(grad.sizes().begin(), grad.sizes().end());
  sizes.back() = weight.size(1);
  const Tensor rows = torch::stable::reshape(grad, {shape.rows, shape.columns});
  const Tensor out = fresh(grad, std::array{shape.rows, weight.size(1)}, grad.scalar_type());
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(rows), from(weight), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::reshape(torch::stable::detail::to<Tensor>(stack[0]), sizes);
}

}  // namespace
}  // namespace snnfast

STABLE_TORCH_LIBRARY_IMPL(snnfast, CPU, m) {
  m.impl("spike_linear", TORCH_BOX(&snnfast::spike_linear));
  m.impl("spike_linear_grad", TORCH_BOX(&snnfast::spike_linear_grad));
  m.impl("spike_linear_grad_spk", TORCH_BOX(&snnfast::spike_linear_grad_spk));
}

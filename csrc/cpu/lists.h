// Lists of what is not zero in a matrix of spikes, and the products that are computed from them.
//
// A block of 64 of the dense matrix's columns and of as many of its rows as hold some 25 spikes stays in the nearest
// caches, the sums of a spikes' row in registers.
//
// As in any BLAS, sums have an order of their own, the same for any number of threads, and a multiply and an add may be
// one: what includes this says so to the compiler first. Terms come in pairs and in parts, whose sums lose less than
// one long sum.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "../integers.h"
#include "simd.h"

namespace snnfast {

// Of a linear layer: spikes [rows, inputs], weights [outputs, inputs], gradients of what it gives [rows, outputs].
struct LinearSizes {
  int64_t rows, inputs, outputs;
};

// Columns of a block of the dense matrix are a multiple of kLanes, at most kWidth.
inline constexpr int64_t kLanes = 16, kWidth = 4 * kLanes;

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

inline int64_t whole_lanes(int64_t width) { return divided_up(width, kLanes) * kLanes; }

inline bool all_finite(const float* values, int64_t count) {
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
  // In order: one term after another.
  template <int kBytes, bool kInOrder = false>
  void multiply(const float* dense, int64_t width, int64_t first, int64_t last, bool add, float* sums) const {
    multiply<kBytes, kInOrder, kWidth>(dense, width, first, last, add, sums);
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

  template <int kBytes, bool kInOrder, int64_t kColumns>
  void multiply(const float* dense, int64_t width, int64_t first, int64_t last, bool add, float* sums) const {
    if constexpr (kColumns > kLanes) {
      if (width < kColumns) return multiply<kBytes, kInOrder, kColumns - kLanes>(dense, width, first, last, add, sums);
    }
    if (are_ones_) return multiply<kBytes, kInOrder, kColumns, true>(dense, first, last, add, sums);
    multiply<kBytes, kInOrder, kColumns, false>(dense, first, last, add, sums);
  }

  template <bool kOnes>
  float height_at(int64_t k) const {
    return kOnes ? 1.0f : height_[k];
  }

  template <int kBytes, bool kInOrder, int64_t kColumns, bool kOnes>
  void multiply(const float* dense, int64_t first, int64_t last, bool add, float* sums) const {
    using Vector = typename VectorOf<float, kBytes>::type;
    constexpr int kVectors = kColumns * sizeof(float) / kBytes;
    for (int64_t list = first; list < last; ++list, sums += kColumns) {
      Vector sum[kVectors] = {};
      int64_t k = begin_[list];
      const int64_t end = begin_[list + 1];
      if constexpr (kInOrder) {
        for (; k < end; ++k) {
          const float height = height_at<kOnes>(k);
          const Vector* from = reinterpret_cast<const Vector*>(dense + index_[k] * kColumns);
          for (int v = 0; v < kVectors; ++v) sum[v] += height * from[v];
        }
      } else if (k < end) {
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

// out [rows, outputs] = spk weight^T + bias [outputs] or nothing, from lists over blocks that end before these inputs;
// packed: of whole_lanes(outputs) * inputs. In order: within a block one term is added after another, and to the bias
// one block's sum after another. Whether all that went in and came out is finite.
bool multiply_by_lists(const float* spk, const float* weight, const float* bias, const LinearSizes& sizes,
                       const std::vector<int64_t>& ends, bool in_order, float* packed, float* out);

// out [outputs, inputs] = grad^T spk, from lists over blocks of so many rows; whether all is finite.
bool multiply_transposed_by_lists(const float* grad, const float* spk, const LinearSizes& sizes, int64_t block,
                                  float* out);

}  // namespace snnfast

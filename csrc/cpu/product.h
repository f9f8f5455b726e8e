// Products of rows: with dense values, and with spikes, of which only those that there are are visited.
//
// A product with spikes multiplies nothing by zero: an infinite weight behind a silent neuron makes no NaN. T: float or
// double. Each runs on the calling thread, with the widest vectors there are.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "../integers.h"

namespace snnfast {

// A matrix whose rows are whole vectors, padded with zeros, at addresses that vectors are read from at once.
template <typename T>
class Matrix {
 public:
  static constexpr int64_t kLanes = 64 / sizeof(T);

  Matrix(int64_t rows, int64_t columns)
      : columns_(columns), stride_(divided_up(columns, kLanes) * kLanes), values_(rows * stride_ + kLanes) {
    const auto address = reinterpret_cast<std::uintptr_t>(values_.data());
    first_ = values_.data() + (64 - address % 64) % 64 / sizeof(T);
  }
  Matrix(const Matrix&) = delete;

  // A copy of [rows, columns].
  Matrix(const T* from, int64_t rows, int64_t columns) : Matrix(rows, columns) { copy(from, rows); }

  void copy(const T* from, int64_t rows) {
    for (int64_t k = 0; k < rows; ++k) std::memcpy(first_ + k * stride_, from + k * columns_, columns_ * sizeof(T));
  }

  void clear() { values_.assign(values_.size(), T(0)); }

  const T* row(int64_t k) const { return first_ + k * stride_; }
  T* row(int64_t k) { return first_ + k * stride_; }
  int64_t columns() const { return columns_; }
  int64_t stride() const { return stride_; }

 private:
  int64_t columns_, stride_;
  std::vector<T> values_;
  T* first_;
};

// out [rows, columns] = a [rows, inner] * matrix [inner, columns].
template <typename T>
void multiply(const T* a, const Matrix<T>& matrix, int64_t rows, int64_t inner, T* out);

// The same of spikes.
template <typename T>
void multiply_spikes(const T* spk, const Matrix<T>& matrix, int64_t rows, int64_t inner, T* out);

}  // namespace snnfast

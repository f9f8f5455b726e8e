// Products of rows, and the operators for layers behind spikes: forward, and the weights' gradient.
//
// Where a neuron's every operation is rounded as PyTorch rounds it, products are sums in an order of their own, as in
// any BLAS: a multiply and an add may be one.
#pragma GCC optimize("fp-contract=fast")

#include "product.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

#include "../dispatch.h"
#include "../op/tensors.h"
#include "fresh.h"
#include "simd.h"

namespace snnfast {
namespace {

// Vectors are named here, not left to the compiler, which takes these loops apart instead of keeping sums in registers.
template <typename T>
using Vector [[gnu::vector_size(64)]] = T;

// f<count>() for a count of 1 to kMost; nothing for 0.
template <int kMost, typename F>
void with_vectors(int64_t count, const F& f) {
  if (count == kMost) return f.template operator()<kMost>();
  if constexpr (kMost > 1) with_vectors<kMost - 1>(count, f);
}

// out [kRows, width] = the sum over k of factor(r, k) * row(k), of which a block of kVectors vectors holds all of
// width. Terms come in parts, whose sums lose less than one long sum.
template <int kRows, int kVectors, typename T, typename Factor, typename Row>
void multiply_block(int64_t terms, const Factor& factor, const Row& row, T* out, int64_t columns, int64_t width) {
  constexpr int64_t kTerms = 64;
  Vector<T> total[kRows][kVectors] = {};
  for (int64_t begin = 0; begin < terms; begin += kTerms) {
    Vector<T> sum[kRows][kVectors] = {};
    for (int64_t k = begin; k < std::min(begin + kTerms, terms); ++k) {
      const T* from = row(k);
      for (int v = 0; v < kVectors; ++v) {
        Vector<T> values;
        std::memcpy(&values, __builtin_assume_aligned(from + v * Matrix<T>::kLanes, 64), sizeof(values));
        for (int r = 0; r < kRows; ++r) sum[r][v] += factor(r, k) * values;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) total[r][v] += sum[r][v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    if (width == kVectors * Matrix<T>::kLanes) {
      std::memcpy(out + r * columns, total[r], sizeof(total[r]));
    } else {
      std::memcpy(out + r * columns, total[r], width * sizeof(T));
    }
  }
}

// out [kRows, columns] = the sum over k of factor(r, k) * row(k), a matrix's, in blocks whose sums fit the registers.
template <int kRows, typename T, typename Factor, typename Row>
void multiply_rows(int64_t terms, const Factor& factor, const Row& row, T* out, int64_t columns) {
  const auto block = [&]<int kVectors>(int64_t first) {
    const auto from = [&](int64_t k) { return row(k) + first; };
    const int64_t width = std::min<int64_t>(kVectors * Matrix<T>::kLanes, columns - first);
    multiply_block<kRows, kVectors>(terms, factor, from, out + first, columns, width);
  };
  constexpr int64_t kWidth = 4 * Matrix<T>::kLanes;
  int64_t first = 0;
  for (; first + kWidth <= columns; first += kWidth) block.template operator()<4>(first);
  with_vectors<4>(divided_up(columns - first, Matrix<T>::kLanes),
                  [&]<int kVectors>() { block.template operator()<kVectors>(first); });
}

template <typename T>
void multiply_dense(const T* a, const Matrix<T>& matrix, int64_t rows, int64_t inner, T* out) {
  const int64_t columns = matrix.columns();
  const auto row = [&](int64_t k) { return matrix.row(k); };
  const auto some = [&]<int kRows>(int64_t first) {
    const auto factor = [&](int r, int64_t k) { return a[(first + r) * inner + k]; };
    multiply_rows<kRows>(inner, factor, row, out + first * columns, columns);
  };
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) some.template operator()<4>(r);
  for (; r < rows; ++r) some.template operator()<1>(r);
}

// What of a row is not zero: where, and how much.
template <typename T>
class Events {
 public:
  explicit Events(int64_t most) : index_(most + kRoom), height_(most + kRoom) {}

  void find(const T* row, int64_t size) { count_ = found_in(row, size, index_.data(), height_.data()); }

  // out [columns] = the sum over the events of their height times their row of the matrix.
  void sum_rows(const Matrix<T>& matrix, T* out) const {
    const auto factor = [&](int, int64_t k) { return height_[k]; };
    const auto row = [&](int64_t k) { return matrix.row(index_[k]); };
    multiply_rows<1>(count_, factor, row, out, matrix.columns());
  }

  int count() const { return count_; }
  int index(int k) const { return index_[k]; }
  T height(int k) const { return height_[k]; }

 private:
  static constexpr int kRoom = 16;  // find_nonzero_avx512 writes so much at once

  static int found_in(const T* row, int64_t size, int* index, T* height) {
    if constexpr (std::is_same_v<T, float>) {
      if (has_avx512()) return find_nonzero_avx512(row, size, index, height);
    }
    int count = 0;
    for (int64_t j = 0; j < size; ++j) {
      index[count] = static_cast<int>(j);
      height[count] = row[j];
      count += row[j] != T(0);
    }
    return count;
  }

  std::vector<int> index_;
  std::vector<T> height_;
  int count_ = 0;
};

// sums.row(j) += height * values over the events (j, height), a block of kVectors vectors at a time.
template <int kVectors, typename T>
void add_to_rows(const Events<T>& events, const T* values, Matrix<T>& sums, int64_t first) {
  Vector<T> added[kVectors];
  std::memcpy(added, values + first, sizeof(added));
  for (int k = 0; k < events.count(); ++k) {
    T* to = sums.row(events.index(k)) + first;
    for (int v = 0; v < kVectors; ++v) {
      Vector<T> sum;
      std::memcpy(&sum, __builtin_assume_aligned(to + v * Matrix<T>::kLanes, 64), sizeof(sum));
      sum += events.height(k) * added[v];
      std::memcpy(__builtin_assume_aligned(to + v * Matrix<T>::kLanes, 64), &sum, sizeof(sum));
    }
  }
}

// out [columns, features] += spk [steps, columns]^T grads [steps, features], for some of the spikes' columns; their
// rows lie `stride` apart. Steps come in parts, whose sums lose less than one long sum.
template <typename T>
class ColumnSums {
 public:
  static constexpr int kColumns = 64;

  explicit ColumnSums(int64_t features) : sums_(kColumns, features), last_(1, features), events_(kColumns) {}

  void add(const T* spk, int64_t stride, int64_t columns, const T* grads, int64_t steps, T* out) {
    constexpr int64_t kSteps = 512;
    const int64_t features = sums_.columns();
    for (int64_t first = 0; first < steps; first += kSteps) {
      sums_.clear();
      for (int64_t step = first; step < std::min(first + kSteps, steps); ++step) {
        events_.find(spk + step * stride, columns);
        const T* values = grads + step * features;
        // Whole vectors reach beyond a row: into those after it, where they are.
        if ((steps - step) * features < last_.stride()) {
          last_.copy(values, 1);
          values = last_.row(0);
        }
        add_row(values);
      }
      for (int64_t column = 0; column < columns; ++column) {
        for (int64_t i = 0; i < features; ++i) out[column * features + i] += sums_.row(column)[i];
      }
    }
  }

 private:
  void add_row(const T* values) {
    constexpr int64_t kLanes = Matrix<T>::kLanes;
    const int64_t features = sums_.columns();
    int64_t first = 0;
    for (; first + 8 * kLanes <= features; first += 8 * kLanes) add_to_rows<8>(events_, values, sums_, first);
    with_vectors<8>(divided_up(features - first, kLanes),
                    [&]<int kVectors>() { add_to_rows<kVectors>(events_, values, sums_, first); });
  }

  Matrix<T> sums_, last_;
  Events<T> events_;
};

}  // namespace

template <typename T>
void multiply(const T* a, const Matrix<T>& matrix, int64_t rows, int64_t inner, T* out) {
  vectorized([&] { multiply_dense(a, matrix, rows, inner, out); });
}

template <typename T>
void multiply_spikes(const T* spk, const Matrix<T>& matrix, int64_t rows, int64_t inner, T* out) {
  Events<T> events(inner);
  vectorized([&] {
    for (int64_t row = 0; row < rows; ++row) {
      events.find(spk + row * inner, inner);
      events.sum_rows(matrix, out + row * matrix.columns());
    }
  });
}

template void multiply(const float*, const Matrix<float>&, int64_t, int64_t, float*);
template void multiply(const double*, const Matrix<double>&, int64_t, int64_t, double*);
template void multiply_spikes(const float*, const Matrix<float>&, int64_t, int64_t, float*);
template void multiply_spikes(const double*, const Matrix<double>&, int64_t, int64_t, double*);

namespace {

// Where more than this share of the entries are not zero, a dense product is faster.
constexpr double kFew = 0.3, kFewForGradient = 0.15;

struct Shape {
  int64_t rows, columns;

  Shape(const char* name, const Tensor& tensor) : rows(1), columns(0) {
    STD_TORCH_CHECK(tensor.dim() >= 1, name, " must have a dimension of features, got a tensor of 0 dimensions");
    columns = tensor.size(-1);
    for (int64_t dim = 0; dim + 1 < tensor.dim(); ++dim) rows *= tensor.size(dim);
  }
};

// Whether to visit the spikes alone. A sample of the rows tells.
template <typename T>
bool are_few(const T* spk, const Shape& shape, int64_t outputs, double few) {
  if (shape.rows == 0 || shape.columns == 0 || outputs == 0) return false;
  const int64_t stride = std::max<int64_t>(1, shape.rows / 64);
  int64_t seen = 0, found = 0;
  for (int64_t row = 0; row < shape.rows; row += stride) {
    for (int64_t column = 0; column < shape.columns; ++column) found += spk[row * shape.columns + column] != T(0);
    seen += shape.columns;
  }
  return static_cast<double>(found) <= few * static_cast<double>(seen);
}

// spk [..., in] weight [out, in]^T -> [..., out]
Tensor spike_linear(Tensor spk, Tensor weight) {
  const Shape shape("spk", spk);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == shape.columns, "weight must have shape [outputs, ",
                  shape.columns, "]");
  check_tensor("weight", weight, spk, spk.scalar_type(), weight.numel());
  const int64_t outputs = weight.size(0);
  std::vector<int64_t> sizes(spk.sizes().begin(), spk.sizes().end());
  sizes.back() = outputs;
  const Tensor weight_t = torch::stable::transpose(weight, 0, 1);
  std::optional<Tensor> result;
  dispatch_dtype<std::tuple<float, double>>(spk.scalar_type(), [&](auto value) {
    using T = decltype(value);
    spk = readable(spk);
    const T* spikes = data<T>(spk);
    if (!are_few(spikes, shape, outputs, kFew)) return;
    const Tensor rows = readable(weight_t);
    const Matrix<T> matrix(data<T>(rows), shape.columns, outputs);
    result = fresh(spk, sizes, spk.scalar_type());
    torch::stable::parallel_for(0, shape.rows, 64, [&](int64_t begin, int64_t end) {
      T* out = mutable_data<T>(*result) + begin * outputs;
      multiply_spikes(spikes + begin * shape.columns, matrix, end - begin, shape.columns, out);
    });
  });
  return result.has_value() ? *result : torch::stable::matmul(spk, weight_t);
}

// grad [..., out], spk [..., in] -> dL/dweight [out, in]
Tensor spike_linear_grad(Tensor grad, Tensor spk) {
  const Shape shape("spk", spk), outer("grad", grad);
  STD_TORCH_CHECK(outer.rows == shape.rows, "grad must have as many rows as spk, ", shape.rows, ", got ", outer.rows);
  check_tensor("grad", grad, spk, spk.scalar_type(), grad.numel());
  const Tensor grads = torch::stable::reshape(grad, {outer.rows, outer.columns});
  std::optional<Tensor> result;
  dispatch_dtype<std::tuple<float, double>>(spk.scalar_type(), [&](auto value) {
    using T = decltype(value);
    spk = readable(spk);
    grad = readable(grad);
    const T* spikes = data<T>(spk);
    if (!are_few(spikes, shape, outer.columns, kFewForGradient)) return;
    result = torch::stable::new_zeros(spk, {shape.columns, outer.columns}, spk.scalar_type());
    T* sums = mutable_data<T>(*result);
    torch::stable::parallel_for(0, shape.columns, 8, [&](int64_t begin, int64_t end) {
      ColumnSums<T> columns(outer.columns);
      vectorized([&] {
        for (int64_t first = begin; first < end; first += ColumnSums<T>::kColumns) {
          const int64_t some = std::min<int64_t>(ColumnSums<T>::kColumns, end - first);
          columns.add(spikes + first, shape.columns, some, data<T>(grad), shape.rows, sums + first * outer.columns);
        }
      });
    });
  });
  if (result.has_value()) return readable(torch::stable::transpose(*result, 0, 1));
  const Tensor rows = torch::stable::reshape(spk, {shape.rows, shape.columns});
  return torch::stable::matmul(torch::stable::transpose(grads, 0, 1), rows);
}

}  // namespace
}  // namespace snnfast

STABLE_TORCH_LIBRARY_IMPL(snnfast, CPU, m) {
  m.impl("spike_linear", TORCH_BOX(&snnfast::spike_linear));
  m.impl("spike_linear_grad", TORCH_BOX(&snnfast::spike_linear_grad));
}

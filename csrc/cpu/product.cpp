// Products of rows.
//
// Where a neuron's every operation is rounded as PyTorch rounds it, products are sums in an order of their own, as in
// any BLAS: a multiply and an add may be one.
#pragma GCC optimize("fp-contract=fast")

#include "product.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace snnfast {
namespace {

constexpr int kBlock = 64;  // bytes

// f<count>() for a count of 1 to kMost; nothing for 0.
template <int kMost, typename F>
void with_blocks(int64_t count, const F& f) {
  if (count == kMost) return f.template operator()<kMost>();
  if constexpr (kMost > 1) with_blocks<kMost - 1>(count, f);
}

// out [kRows, width] = the sum over k of factor(r, k) * row(k), of which so many blocks hold all of width. Terms come
// in parts, whose sums lose less than one long sum.
template <int kBytes, int kRows, int kBlocks, typename T, typename Factor, typename Row>
void multiply_block(int64_t terms, const Factor& factor, const Row& row, T* out, int64_t columns, int64_t width) {
  using Vector = typename VectorOf<T, kBytes>::type;
  constexpr int64_t kTerms = 64;
  constexpr int kVectors = kBlocks * kBlock / kBytes;
  Vector total[kRows][kVectors] = {};
  for (int64_t begin = 0; begin < terms; begin += kTerms) {
    Vector sum[kRows][kVectors] = {};
    for (int64_t k = begin; k < std::min(begin + kTerms, terms); ++k) {
      const Vector* from = reinterpret_cast<const Vector*>(row(k));
      for (int v = 0; v < kVectors; ++v) {
        for (int r = 0; r < kRows; ++r) sum[r][v] += factor(r, k) * from[v];
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) total[r][v] += sum[r][v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    if (width == kBlocks * Matrix<T>::kLanes) {
      std::memcpy(out + r * columns, total[r], sizeof(total[r]));
    } else {
      std::memcpy(out + r * columns, total[r], width * sizeof(T));
    }
  }
}

// out [kRows, columns] = the sum over k of factor(r, k) * row(k), a matrix's, in blocks whose sums fit the registers.
template <int kBytes, int kRows, typename T, typename Factor, typename Row>
void multiply_rows(int64_t terms, const Factor& factor, const Row& row, T* out, int64_t columns) {
  constexpr int kMost = kBytes == kBlock ? 4 : 4 / kRows;
  const auto block = [&]<int kBlocks>(int64_t first) {
    const auto from = [&](int64_t k) { return row(k) + first; };
    const int64_t width = std::min<int64_t>(kBlocks * Matrix<T>::kLanes, columns - first);
    multiply_block<kBytes, kRows, kBlocks>(terms, factor, from, out + first, columns, width);
  };
  constexpr int64_t kWidth = kMost * Matrix<T>::kLanes;
  int64_t first = 0;
  for (; first + kWidth <= columns; first += kWidth) block.template operator()<kMost>(first);
  with_blocks<kMost>(divided_up(columns - first, Matrix<T>::kLanes),
                     [&]<int kBlocks>() { block.template operator()<kBlocks>(first); });
}

template <int kBytes, typename T>
void multiply_dense(const T* a, const Matrix<T>& matrix, int64_t rows, int64_t inner, T* out) {
  const int64_t columns = matrix.columns();
  const auto row = [&](int64_t k) { return matrix.row(k); };
  const auto some = [&]<int kRows>(int64_t first) {
    const auto factor = [&](int r, int64_t k) { return a[(first + r) * inner + k]; };
    multiply_rows<kBytes, kRows>(inner, factor, row, out + first * columns, columns);
  };
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) some.template operator()<4>(r);
  for (; r < rows; ++r) some.template operator()<1>(r);
}

// What of a row is not zero: where, and how much.
template <typename T>
class Events {
 public:
  explicit Events(int64_t most) : index_(most + kFoundAtOnce), height_(most + kFoundAtOnce) {}

  void find(const T* row, int64_t size) { count_ = found_in(row, size, index_.data(), height_.data()); }

  // out [columns] = the sum over the events of their height times their row of the matrix.
  template <int kBytes>
  void sum_rows(const Matrix<T>& matrix, T* out) const {
    const auto factor = [&](int, int64_t k) { return height_[k]; };
    const auto row = [&](int64_t k) { return matrix.row(index_[k]); };
    multiply_rows<kBytes, 1>(count_, factor, row, out, matrix.columns());
  }

 private:
  static int found_in(const T* row, int64_t size, int* index, T* height) {
    if constexpr (std::is_same_v<T, float>) {
      return find_nonzero(row, size, index, height);
    } else {
      return find_nonzero_plain(row, size, index, height);
    }
  }

  std::vector<int> index_;
  std::vector<T> height_;
  int count_ = 0;
};

}  // namespace

template <typename T>
void multiply(const T* a, const Matrix<T>& matrix, int64_t rows, int64_t inner, T* out) {
  vectorized_by_width(
      [&]<int kBytes>(std::integral_constant<int, kBytes>) { multiply_dense<kBytes>(a, matrix, rows, inner, out); });
}

template <typename T>
void multiply_spikes(const T* spk, const Matrix<T>& matrix, int64_t rows, int64_t inner, T* out) {
  Events<T> events(inner);
  vectorized_by_width([&]<int kBytes>(std::integral_constant<int, kBytes>) {
    for (int64_t row = 0; row < rows; ++row) {
      events.find(spk + row * inner, inner);
      events.template sum_rows<kBytes>(matrix, out + row * matrix.columns());
    }
  });
}

template void multiply(const float*, const Matrix<float>&, int64_t, int64_t, float*);
template void multiply(const double*, const Matrix<double>&, int64_t, int64_t, double*);
template void multiply_spikes(const float*, const Matrix<float>&, int64_t, int64_t, float*);
template void multiply_spikes(const double*, const Matrix<double>&, int64_t, int64_t, double*);

}  // namespace snnfast

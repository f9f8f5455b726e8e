// What convolutions of images with many zeros share: sums in registers, images in any layout, and what in them is not
// zero. Every file that includes this has its own: compiled with its options.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "../op/tensors.h"
#include "fresh.h"
#include "product.h"
#include "simd.h"

namespace snnfast {
namespace {

constexpr int kLanes = 8;
constexpr int kMostVectors = 8;  // of sums that stay in registers

// Vectors are named, and loops over them unrolled, or the compiler would keep sums in memory.
using Lanes [[gnu::vector_size(kLanes * sizeof(float))]] = float;
using Unaligned [[gnu::vector_size(kLanes * sizeof(float)), gnu::aligned(sizeof(float)), gnu::may_alias]] = float;

template <int kVectors>
void load(Lanes (&lanes)[kVectors], const float* from) {
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) lanes[v] = reinterpret_cast<const Unaligned*>(from)[v];
}

template <int kVectors>
void store(const Lanes (&lanes)[kVectors], float* to) {
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) reinterpret_cast<Unaligned*>(to)[v] = lanes[v];
}

// f<count>(first) for all columns of a row, kMostVectors vectors at a time.
template <int kMost = kMostVectors, typename F>
void for_columns(int64_t columns, const F& f, int64_t first = 0) {
  for (; columns - first >= kMost * kLanes; first += kMost * kLanes) f.template operator()<kMost>(first);
  if constexpr (kMost > 1) {
    if (columns > first) for_rest<kMost - 1>(divided_up(columns - first, kLanes), f, first);
  } else if (columns > first) {
    f.template operator()<1>(first);
  }
}

template <int kMost, typename F>
void for_rest(int64_t vectors, const F& f, int64_t first) {
  if (vectors > kMost) return f.template operator()<kMost + 1>(first);
  if (vectors == kMost) return f.template operator()<kMost>(first);
  if constexpr (kMost > 1) for_rest<kMost - 1>(vectors, f, first);
}

// sums += height * row
template <int kVectors>
void add(Lanes (&sums)[kVectors], float height, const float* row) {
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) sums[v] += height * reinterpret_cast<const Unaligned*>(row)[v];
}

// to += height * row
template <int kVectors>
void add_row(float height, const float* row, float* to) {
  Lanes sums[kVectors];
  load(sums, to);
  add(sums, height, row);
  store(sums, to);
}

// Sizes of a convolution of images [images, inputs, height, width] with filters [outputs, inputs, rows, columns].
struct Shape {
  int64_t images, inputs, height, width, outputs, rows, columns;
  std::array<int64_t, 2> stride, padding, size;  // size: of what comes out

  Shape(Sizes x, Sizes weight, const std::vector<int64_t>& stride_, const std::vector<int64_t>& padding_) {
    STD_TORCH_CHECK(x.size() == 4 && weight.size() == 4 && x[1] == weight[1],
                    "x and weight must be [B, C, H, W] and [outputs, C, rows, columns]");
    STD_TORCH_CHECK(stride_.size() == 2 && padding_.size() == 2, "stride and padding must have 2 numbers");
    images = x[0], inputs = x[1], height = x[2], width = x[3];
    outputs = weight[0], rows = weight[2], columns = weight[3];
    for (int dim = 0; dim < 2; ++dim) {
      const int64_t room = x[2 + dim] + 2 * padding_[dim] - weight[2 + dim];
      STD_TORCH_CHECK(stride_[dim] > 0 && padding_[dim] >= 0, "stride must be 1 or more, and padding 0 or more");
      STD_TORCH_CHECK(room >= 0 && weight[2 + dim] > 0,
                      "the filter must not be larger than the padded image, nor empty");
      stride[dim] = stride_[dim];
      padding[dim] = padding_[dim];
      size[dim] = room / stride_[dim] + 1;
    }
  }

  int64_t places() const { return size[0] * size[1]; }
};

// Images [images, channels, height, width] in any layout.
struct Images {
  const float* first;
  std::array<int64_t, 4> strides;

  explicit Images(const Tensor& tensor) : first(data<float>(tensor)) {
    for (int dim = 0; dim < 4; ++dim) strides[dim] = tensor.stride(dim);
  }

  const float* at(int64_t image, int64_t channel, int64_t y, int64_t x = 0) const {
    return first + image * strides[0] + channel * strides[1] + y * strides[2] + x * strides[3];
  }
};

// One that the kernels can read: no negation beside the data, no address that a float cannot have.
inline Tensor plain(const Tensor& tensor) {
  const Tensor positive = without_negation(tensor);
  const auto address = reinterpret_cast<std::uintptr_t>(positive.const_data_ptr());
  return address % sizeof(float) != 0 ? readable(positive) : positive;
}

struct Event {
  int32_t place;
  float height;
};

// What is not zero, in the order in which it was looked at.
class Events {
 public:
  explicit Events(int64_t most) : events_(most + 1) {}

  void clear() { count_ = 0; }

  // Looks at `size` values that lie `stride` apart; their places count on from `place`.
  void look_at(const float* values, int64_t size, int64_t stride, int64_t place) {
    Event* next = events_.data() + count_;
    for (int64_t k = 0; k < size; ++k) {
      const float height = values[k * stride];
      *next = {static_cast<int32_t>(place + k), height};
      next += height != 0.0f;
    }
    count_ = static_cast<int32_t>(next - events_.data());
  }

  int32_t count() const { return count_; }
  const Event* begin(int32_t k = 0) const { return events_.data() + k; }
  const Event* end() const { return begin(count_); }

 private:
  std::vector<Event> events_;
  int32_t count_ = 0;
};

// Which taps of a filter reach a row (or column) of the input, and from which of the output.
class Taps {
 public:
  struct Tap {
    int32_t tap, out;
  };

  Taps(const Shape& shape, int dim, int64_t inputs, int64_t taps) : starts_{0} {
    for (int64_t at = 0; at < inputs; ++at) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t from = at + shape.padding[dim] - tap, out = from / shape.stride[dim];
        if (from < 0 || from % shape.stride[dim] != 0 || out >= shape.size[dim]) continue;
        taps_.push_back({static_cast<int32_t>(tap), static_cast<int32_t>(out)});
      }
      starts_.push_back(taps_.size());
    }
  }

  const Tap* begin(int64_t at) const { return taps_.data() + starts_[at]; }
  const Tap* end(int64_t at) const { return taps_.data() + starts_[at + 1]; }

 private:
  std::vector<Tap> taps_;
  std::vector<std::size_t> starts_;
};

// What of images [images, channels, height, width] is not zero: of each place in turn its channels.
class Places {
 public:
  Places(int64_t channels, const std::array<int64_t, 2>& size)
      : channels_(channels), size_(size), events_(size[0] * size[1] * channels), starts_(size[0] * size[1] + 1) {}

  void look_at(const Images& x, int64_t image) {
    events_.clear();
    int64_t place = 0;
    for (int64_t row = 0; row < size_[0]; ++row) {
      for (int64_t column = 0; column < size_[1]; ++column) {
        starts_[place++] = events_.count();
        events_.look_at(x.at(image, 0, row, column), channels_, x.strides[1], 0);
      }
    }
    starts_[place] = events_.count();
  }

  int32_t count() const { return events_.count(); }
  const Event* begin(int64_t row, int64_t column) const { return events_.begin(starts_[row * size_[1] + column]); }
  const Event* end(int64_t row, int64_t column) const { return events_.begin(starts_[row * size_[1] + column + 1]); }

 private:
  const int64_t channels_;
  const std::array<int64_t, 2> size_;
  Events events_;
  std::vector<int32_t> starts_;
};

constexpr int64_t kImages = 8;  // worth waking another thread for

}  // namespace
}  // namespace snnfast

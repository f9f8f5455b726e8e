// Pooling by the largest value of images: of each window is kept, for backward, which of its taps that is, as a byte.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "../integers.h"
#include "../op/tensors.h"
#include "fresh.h"
#include "simd.h"

namespace snnfast {
namespace {

// Windows over planes [height, width], and the planes that they make.
struct Windows {
  int64_t planes = 1;
  std::array<int64_t, 2> from, size, stride, padding, to;

  Windows(Sizes x, const std::vector<int64_t>& size_, const std::vector<int64_t>& stride_,
          const std::vector<int64_t>& padding_) {
    STD_TORCH_CHECK(x.size() == 4, "x must be [B, C, H, W], got ", x.size(), " dimensions");
    STD_TORCH_CHECK(size_.size() == 2 && stride_.size() == 2 && padding_.size() == 2,
                    "size, stride and padding must have 2 numbers");
    planes = x[0] * x[1];
    for (int dim = 0; dim < 2; ++dim) {
      from[dim] = x[2 + dim], size[dim] = size_[dim], stride[dim] = stride_[dim], padding[dim] = padding_[dim];
      STD_TORCH_CHECK(size[dim] > 0 && stride[dim] > 0 && padding[dim] >= 0 && 2 * padding[dim] <= size[dim],
                      "size and stride must be 1 or more, and padding from 0 to half the size");
      STD_TORCH_CHECK(from[dim] + 2 * padding[dim] >= size[dim], "size must not be larger than the padded image");
      to[dim] = (from[dim] + 2 * padding[dim] - size[dim]) / stride[dim] + 1;
    }
    STD_TORCH_CHECK(size[0] * size[1] <= 255, "size must have at most 255 taps, got ", size[0] * size[1]);
  }

  int64_t outputs() const { return to[0] * to[1]; }
  int64_t width() const { return from[1] + 2 * padding[1]; }  // of a padded plane

  // Two by two values each, side by side: the windows of nearly all networks.
  bool are_pairs() const {
    const std::array<int64_t, 2> two{2, 2}, none{0, 0};
    return size == two && stride == two && padding == none && to[1] >= 8;
  }
};

constexpr int kLanes = 8;
using Lanes [[gnu::vector_size(kLanes * sizeof(float))]] = float;
using Whole [[gnu::vector_size(kLanes * sizeof(int32_t))]] = int32_t;

using Unaligned [[gnu::vector_size(kLanes * sizeof(float)), gnu::aligned(sizeof(float)), gnu::may_alias]] = float;
using Bytes [[gnu::vector_size(kLanes), gnu::aligned(1), gnu::may_alias]] = uint8_t;
using Pairs = std::array<Lanes, 2>;

// The first values of eight pairs, and their second ones.
inline Pairs apart(const float* values) {
  const Lanes a = *reinterpret_cast<const Unaligned*>(values), b = *reinterpret_cast<const Unaligned*>(values + kLanes);
  return {__builtin_shuffle(a, b, Whole{0, 2, 4, 6, 8, 10, 12, 14}),
          __builtin_shuffle(a, b, Whole{1, 3, 5, 7, 9, 11, 13, 15})};
}

inline void put_together(const Pairs& pairs, float* to) {
  *reinterpret_cast<Unaligned*>(to) = __builtin_shuffle(pairs[0], pairs[1], Whole{0, 8, 1, 9, 2, 10, 3, 11});
  *reinterpret_cast<Unaligned*>(to + kLanes) = __builtin_shuffle(pairs[0], pairs[1], Whole{4, 12, 5, 13, 6, 14, 7, 15});
}

// As torch goes through a window, a later value is taken where it is larger, or no number.
inline void take_larger(const Lanes& values, int32_t tap, Lanes& largest, Whole& taken) {
  const Whole take = (values > largest) | (values != values);
  largest = take ? values : largest;
  taken = take ? Whole{} + tap : taken;
}

// f(first) for all windows of a row, eight at a time; the last ones of a row again where they are fewer.
template <typename F>
void for_windows(const Windows& w, const F& f) {
  for (int64_t first = 0; first < w.to[1]; first += kLanes) f(std::min<int64_t>(first, w.to[1] - kLanes));
}

void pool_pairs(const Windows& w, const float* plane, float* best, uint8_t* taps) {
  for (int64_t oy = 0; oy < w.to[0]; ++oy, plane += 2 * w.from[1], best += w.to[1], taps += w.to[1]) {
    for_windows(w, [&](int64_t first) {
      const Pairs above = apart(plane + 2 * first), below = apart(plane + w.from[1] + 2 * first);
      Lanes largest = Lanes{} - std::numeric_limits<float>::infinity();
      Whole taken{};
      take_larger(above[0], 0, largest, taken);
      take_larger(above[1], 1, largest, taken);
      take_larger(below[0], 2, largest, taken);
      take_larger(below[1], 3, largest, taken);
      *reinterpret_cast<Unaligned*>(best + first) = largest;
      *reinterpret_cast<Bytes*>(taps + first) = __builtin_convertvector(taken, Bytes);
    });
  }
}

void pool_pairs_gradient(const Windows& w, const float* grad, const uint8_t* taps, float* plane) {
  for (int64_t oy = 0; oy < w.to[0]; ++oy, plane += 2 * w.from[1], grad += w.to[1], taps += w.to[1]) {
    for_windows(w, [&](int64_t first) {
      // Zero is added, as torch does: it has no sign then.
      const Lanes values = *reinterpret_cast<const Unaligned*>(grad + first) + Lanes{};
      const Whole taken = __builtin_convertvector(*reinterpret_cast<const Bytes*>(taps + first), Whole);
      const Lanes none{};
      put_together({taken == 0 ? values : none, taken == 1 ? values : none}, plane + 2 * first);
      put_together({taken == 2 ? values : none, taken == 3 ? values : none}, plane + w.from[1] + 2 * first);
    });
    if (w.from[1] % 2 != 0) plane[w.from[1] - 1] = plane[2 * w.from[1] - 1] = 0.0f;
  }
  if (w.from[0] % 2 != 0) std::fill_n(plane, w.from[1], 0.0f);
}

// A plane's windows, eight at a time, wherever they lie: the rows of small planes are shorter than vectors.
class Pooling {
 public:
  explicit Pooling(const Windows& windows) : w_(windows), blocks_(divided_up(w_.outputs(), kLanes)) {
    starts_.resize(blocks_ * kLanes);
    inside_.resize(blocks_ * kLanes);
    for (int64_t out = 0; out < w_.outputs(); ++out) {
      const int64_t y = out / w_.to[1] * w_.stride[0], x = out % w_.to[1] * w_.stride[1];
      starts_[out] = y * w_.width() + x;
      inside_[out] = std::max<int64_t>(0, w_.padding[0] - y) * w_.size[1] + std::max<int64_t>(0, w_.padding[1] - x);
    }
  }

  // best [outputs], taps [outputs]; padded: room for a padded plane.
  void pool(const float* plane, std::vector<float>& padded, float* best, uint8_t* taps) const {
    if (w_.padding[0] > 0 || w_.padding[1] > 0) plane = pad(plane, padded);
    for (int64_t block = 0; block < blocks_; ++block) {
      Lanes largest;
      Whole taken;
      pool_block(plane, starts_.data() + block * kLanes, inside_.data() + block * kLanes, largest, taken);
      const int64_t some = std::min<int64_t>(kLanes, w_.outputs() - block * kLanes);
      for (int64_t k = 0; k < some; ++k) {
        best[block * kLanes + k] = largest[k];
        taps[block * kLanes + k] = static_cast<uint8_t>(taken[k]);
      }
    }
  }

 private:
  const float* pad(const float* plane, std::vector<float>& padded) const {
    std::fill(padded.begin(), padded.end(), -std::numeric_limits<float>::infinity());
    float* to = padded.data() + w_.padding[0] * w_.width() + w_.padding[1];
    for (int64_t y = 0; y < w_.from[0]; ++y, to += w_.width()) std::copy_n(plane + y * w_.from[1], w_.from[1], to);
    return padded.data();
  }

  void pool_block(const float* plane, const int64_t* starts, const int32_t* inside, Lanes& largest,
                  Whole& taken) const {
    largest = Lanes{} - std::numeric_limits<float>::infinity();
    std::copy_n(inside, kLanes, reinterpret_cast<int32_t*>(&taken));
    int32_t tap = 0;
    for (int64_t down = 0; down < w_.size[0]; ++down) {
      for (int64_t across = 0; across < w_.size[1]; ++across, ++tap) {
        const float* at = plane + down * w_.width() + across;
        const Lanes values{at[starts[0]], at[starts[1]], at[starts[2]], at[starts[3]],
                           at[starts[4]], at[starts[5]], at[starts[6]], at[starts[7]]};
        take_larger(values, tap, largest, taken);
      }
    }
  }

  const Windows& w_;
  const int64_t blocks_;
  std::vector<int64_t> starts_;  // of each window, in a padded plane
  std::vector<int32_t> inside_;  // the first of its taps that is no padding
};

// offsets: of each tap, from the first.
void pool_gradient(const Windows& w, const std::array<int64_t, 256>& offsets, const float* grad, const uint8_t* taps,
                   float* plane) {
  const int64_t area = w.from[0] * w.from[1];
  std::fill_n(plane, area, 0.0f);
  for (int64_t oy = 0; oy < w.to[0]; ++oy) {
    const int64_t row = (oy * w.stride[0] - w.padding[0]) * w.from[1] - w.padding[1];
    for (int64_t ox = 0; ox < w.to[1]; ++ox, ++grad, ++taps) {
      const int64_t place = row + ox * w.stride[1] + offsets[*taps];
      if (place >= 0 && place < area) plane[place] += *grad;
    }
  }
}

constexpr int64_t kValues = 16384;  // worth waking another thread for

int64_t grain(const Windows& w) { return std::max<int64_t>(1, kValues / std::max<int64_t>(1, w.from[0] * w.from[1])); }

// x [B, C, H, W] -> [the largest values, and which taps they are]
std::vector<Tensor> max_pool2d(Tensor x, std::vector<int64_t> size, std::vector<int64_t> stride,
                               std::vector<int64_t> padding) {
  const Windows w(x.sizes(), size, stride, padding);
  check_tensor("x", x, x, ScalarType::Float, x.numel());
  x = readable(x);
  const std::vector<int64_t> sizes{x.size(0), x.size(1), w.to[0], w.to[1]};
  std::vector<Tensor> results{fresh(x, sizes, ScalarType::Float), fresh(x, sizes, ScalarType::Byte)};
  const float* from = data<float>(x);
  float* best = mutable_data<float>(results[0]);
  uint8_t* taps = mutable_data<uint8_t>(results[1]);
  const Pooling pooling(w);
  torch::stable::parallel_for(0, w.planes, grain(w), [&](int64_t begin, int64_t end) {
    std::vector<float> padded((w.from[0] + 2 * w.padding[0]) * w.width());
    vectorized([&] {
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t out = plane * w.outputs();
        const float* const values = from + plane * w.from[0] * w.from[1];
        if (w.are_pairs()) {
          pool_pairs(w, values, best + out, taps + out);
        } else {
          pooling.pool(values, padded, best + out, taps + out);
        }
      }
    });
  });
  return results;
}

// grad and taps [B, C, ...], x: the sizes of what was pooled -> dL/dx
Tensor max_pool2d_grad(Tensor grad, Tensor taps, std::vector<int64_t> x, std::vector<int64_t> size,
                       std::vector<int64_t> stride, std::vector<int64_t> padding) {
  const Windows w(Sizes(x.data(), x.size()), size, stride, padding);
  const int64_t count = w.planes * w.outputs();
  check_tensor("grad", grad, grad, ScalarType::Float, count);
  check_tensor("taps", taps, grad, ScalarType::Byte, count);
  grad = readable(grad);
  taps = readable(taps);
  const Tensor grad_x = fresh(grad, Sizes(x.data(), x.size()), ScalarType::Float);
  const float* from = data<float>(grad);
  const uint8_t* tap = data<uint8_t>(taps);
  float* to = mutable_data<float>(grad_x);
  std::array<int64_t, 256> offsets{};
  for (int64_t k = 0; k < size[0] * size[1]; ++k) offsets[k] = k / size[1] * w.from[1] + k % size[1];
  torch::stable::parallel_for(0, w.planes, grain(w), [&](int64_t begin, int64_t end) {
    vectorized([&] {
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t out = plane * w.outputs();
        float* const values = to + plane * w.from[0] * w.from[1];
        if (w.are_pairs()) {
          pool_pairs_gradient(w, from + out, tap + out, values);
        } else {
          pool_gradient(w, offsets, from + out, tap + out, values);
        }
      }
    });
  });
  return grad_x;
}

}  // namespace
}  // namespace snnfast

STABLE_TORCH_LIBRARY_IMPL(snnfast, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&snnfast::max_pool2d));
  m.impl("max_pool2d_grad", TORCH_BOX(&snnfast::max_pool2d_grad));
}

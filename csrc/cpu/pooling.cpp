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
};

constexpr int kLanes = 8;
using Lanes [[gnu::vector_size(kLanes * sizeof(float))]] = float;
using Whole [[gnu::vector_size(kLanes * sizeof(int32_t))]] = int32_t;

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

  // As torch goes through a window, a later value is taken where it is larger, or no number.
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
        const Whole take = (values > largest) | (values != values);
        largest = take ? values : largest;
        taken = take ? Whole{} + tap : taken;
      }
    }
  }

  const Windows& w_;
  const int64_t blocks_;
  std::vector<int64_t> starts_;  // of each window, in a padded plane
  std::vector<int32_t> inside_;  // the first of its taps that is no padding
};

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
        pooling.pool(from + plane * w.from[0] * w.from[1], padded, best + out, taps + out);
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
  std::array<int64_t, 256> offsets{};  // of each tap, from the first
  for (int64_t k = 0; k < size[0] * size[1]; ++k) offsets[k] = k / size[1] * w.from[1] + k % size[1];
  torch::stable::parallel_for(0, w.planes, grain(w), [&](int64_t begin, int64_t end) {
    const int64_t area = w.from[0] * w.from[1];
    for (int64_t plane = begin; plane < end; ++plane) {
      float* out = to + plane * area;
      std::fill_n(out, area, 0.0f);
      int64_t at = plane * w.outputs();
      for (int64_t oy = 0; oy < w.to[0]; ++oy) {
        const int64_t row = (oy * w.stride[0] - w.padding[0]) * w.from[1] - w.padding[1];
        for (int64_t ox = 0; ox < w.to[1]; ++ox, ++at) {
          const int64_t place = row + ox * w.stride[1] + offsets[tap[at]];
          if (place >= 0 && place < area) out[place] += from[at];
        }
      }
    }
  });
  return grad_x;
}

}  // namespace
}  // namespace snnfast

STABLE_TORCH_LIBRARY_IMPL(snnfast, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&snnfast::max_pool2d));
  m.impl("max_pool2d_grad", TORCH_BOX(&snnfast::max_pool2d_grad));
}

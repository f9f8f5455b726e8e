// Convolutions, transposed ones too, of images of which many values are zero.
//
// Sums run over what is not zero alone, in registers that hold the output's channels, or a row of the input's gradient.
// An image's values are sorted and its results turned around in the first cache, so that any layout will do and no
// other memory is needed. Forward adds in the order of oneDNN's kernels for contiguous images: over blocks of as many
// input channels as a vector has lanes, then over the rows and columns of the filter, then over the channels of a
// block; with eight lanes from the bias on, with sixteen a block by itself, and the bias after the first. A transposed
// one adds in that of its kernels for strides: for each column of the filter a sum of its own, over the rows, then over
// the channels. So sums may be torch's to the bit; snnfast.images tries whether they are.
#pragma GCC optimize("fp-contract=fast")

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "images.h"

namespace snnfast {
namespace {

class Forward {
 public:
  Forward(const Shape& shape, const float* weight, const float* bias)
      : s_(shape),
        block_(has_avx512() ? 16 : 8),
        by_block_(has_avx512() && shape.rows * shape.columns > 1),
        blocks_(divided_up(shape.inputs, block_)),
        filters_(blocks_ * shape.rows * shape.columns * block_, shape.outputs),
        bias_(1, shape.outputs) {
    filters_.clear();
    bias_.clear();
    if (bias) bias_.copy(bias, 1);
    const int64_t area = s_.rows * s_.columns;
    for (int64_t out = 0; out < s_.outputs; ++out) {
      for (int64_t c = 0; c < s_.inputs; ++c) {
        float* to = filters_.row(c / block_ * area * block_ + c % block_) + out;
        for (int64_t tap = 0; tap < area; ++tap) to[tap * block_ * filters_.stride()] = *weight++;
      }
    }
  }

  void run(const Images& x, int64_t begin, int64_t end, float* y) const {
    Events events(blocks_ * s_.height * s_.width * block_);
    std::vector<int32_t> starts(blocks_ * s_.height * (s_.width + 1));
    Matrix<float> row(s_.size[1], s_.outputs);
    for (int64_t image = begin; image < end; ++image) {
      find(x, image, events, starts);
      for (int64_t oy = 0; oy < s_.size[0]; ++oy) {
        for (int64_t ox = 0; ox < s_.size[1]; ++ox) {
          for_columns(s_.outputs, [&]<int kVectors>(int64_t first) {
            sum_at<kVectors>(events, starts.data(), oy, ox, first, row.row(ox) + first);
          });
        }
        float* to = y + image * s_.outputs * s_.places() + oy * s_.size[1];
        for (int64_t out = 0; out < s_.outputs; ++out, to += s_.places()) {
          const float* from = row.row(0) + out;
          for (int64_t ox = 0; ox < s_.size[1]; ++ox) to[ox] = from[ox * row.stride()];
        }
      }
    }
  }

 private:
  // By block of channels, row and column: where each begins.
  void find(const Images& x, int64_t image, Events& events, std::vector<int32_t>& starts) const {
    events.clear();
    int32_t* start = starts.data();
    for (int64_t first = 0; first < s_.inputs; first += block_) {
      const int64_t some = std::min(block_, s_.inputs - first);
      for (int64_t y = 0; y < s_.height; ++y) {
        const float* row = x.at(image, first, y);
        for (int64_t column = 0; column < s_.width; ++column, row += x.strides[3]) {
          *start++ = events.count();
          events.look_at(row, some, x.strides[1], column * block_);
        }
        *start++ = events.count();
      }
    }
  }

  template <int kVectors>
  void sum_at(const Events& events, const int32_t* starts, int64_t oy, int64_t ox, int64_t first, float* to) const {
    Lanes sums[kVectors], total[kVectors];
    load(sums, bias_.row(0) + first);
    load(total, bias_.row(0) + first);
    const int64_t y = oy * s_.stride[0] - s_.padding[0], x = ox * s_.stride[1] - s_.padding[1];
    const int64_t left = std::max<int64_t>(x, 0), right = std::min(x + s_.columns, s_.width);
    const int64_t top = std::max<int64_t>(y, 0), bottom = std::min(y + s_.rows, s_.height);
    const int64_t stride = filters_.stride();
    for (int64_t block = 0; block < blocks_; ++block) {
      if (by_block_) std::fill_n(sums, kVectors, Lanes{});
      for (int64_t at = top; at < bottom; ++at) {
        const int32_t* start = starts + (block * s_.height + at) * (s_.width + 1);
        const float* filter = filters_.row(((block * s_.rows + at - y) * s_.columns - x) * block_) + first;
        const Event* const last = events.begin(start[right]);
        for (const Event* event = events.begin(start[left]); event < last; ++event) {
          add(sums, event->height, filter + event->place * stride);
        }
      }
      if (!by_block_) continue;
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) total[v] += sums[v];
    }
    store(by_block_ ? total : sums, to);
  }

  const Shape& s_;
  const int64_t block_;  // input channels that are added together
  const bool by_block_;  // whether each has a sum of its own
  const int64_t blocks_;
  Matrix<float> filters_;  // [blocks, rows, columns, block] by outputs
  Matrix<float> bias_;
};

// A transposed convolution of images [images, outputs, ...]: dL/dx, and a bias, in torch's order of sums.
class Transposed {
 public:
  Transposed(const Shape& shape, const float* weight, const float* bias)
      : s_(shape),
        taps_y_(shape, 0, shape.height, shape.rows),
        taps_x_(shape, 1, shape.width, shape.columns),
        filters_(shape.rows * shape.columns * shape.outputs, shape.inputs),
        bias_(1, shape.inputs) {
    filters_.clear();
    bias_.clear();
    if (bias) bias_.copy(bias, 1);
    const int64_t area = s_.rows * s_.columns;
    for (int64_t from = 0; from < s_.outputs; ++from) {
      for (int64_t c = 0; c < s_.inputs; ++c) {
        for (int64_t tap = 0; tap < area; ++tap) filters_.row(tap * s_.outputs + from)[c] = *weight++;
      }
    }
  }

  void run(const Images& x, int64_t begin, int64_t end, float* y) const {
    const int64_t area = s_.height * s_.width;
    Places places(s_.outputs, s_.size);
    Matrix<float> row(s_.width, s_.inputs);
    for (int64_t image = begin; image < end; ++image) {
      places.look_at(x, image);
      float* to = y + image * s_.inputs * area;
      if (places.count() == 0) {
        for (int64_t c = 0; c < s_.inputs; ++c) std::fill(to + c * area, to + (c + 1) * area, bias_.row(0)[c]);
        continue;
      }
      for (int64_t at = 0; at < s_.height; ++at, to += s_.width) {
        for (int64_t column = 0; column < s_.width; ++column) {
          for_columns(s_.inputs, [&]<int kVectors>(int64_t first) {
            sum_at<kVectors>(places, at, column, first, row.row(column) + first);
          });
        }
        for (int64_t c = 0; c < s_.inputs; ++c) {
          for (int64_t column = 0; column < s_.width; ++column) to[c * area + column] = row.row(column)[c];
        }
      }
    }
  }

 private:
  template <int kVectors>
  void sum_at(const Places& places, int64_t y, int64_t x, int64_t first, float* to) const {
    Lanes total[kVectors] = {};
    for (const Taps::Tap *across = taps_x_.begin(x), *right = taps_x_.end(x); across < right; ++across) {
      Lanes sums[kVectors] = {};
      for (const Taps::Tap *down = taps_y_.begin(y), *bottom = taps_y_.end(y); down < bottom; ++down) {
        const int64_t filter = (down->tap * s_.columns + across->tap) * s_.outputs;
        const Event* const last = places.end(down->out, across->out);
        for (const Event* event = places.begin(down->out, across->out); event < last; ++event) {
          add(sums, event->height, filters_.row(filter + event->place) + first);
        }
      }
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) total[v] += sums[v];
    }
    add(total, 1.0f, bias_.row(0) + first);
    store(total, to);
  }

  const Shape& s_;
  Taps taps_y_, taps_x_;
  Matrix<float> filters_;  // [rows, columns, outputs] by inputs
  Matrix<float> bias_;
};

// x [B, C, H, W], weight [outputs, C, rows, columns], bias [outputs] -> [B, outputs, ...]
Tensor conv2d(Tensor x, Tensor weight, std::optional<Tensor> bias, std::vector<int64_t> stride,
              std::vector<int64_t> padding) {
  const Shape shape(x.sizes(), weight.sizes(), stride, padding);
  check_tensor("x", x, x, ScalarType::Float, x.numel());
  check_tensor("weight", weight, x, ScalarType::Float, weight.numel());
  check_tensor("bias", bias, x, ScalarType::Float, shape.outputs);
  x = plain(x);
  weight = readable(weight);
  bias = readable(bias);
  const std::vector<int64_t> sizes{shape.images, shape.outputs, shape.size[0], shape.size[1]};
  const Tensor y = fresh(x, sizes, ScalarType::Float);
  const Forward forward(shape, data<float>(weight), data<float>(bias));
  const Images images(x);
  torch::stable::parallel_for(0, shape.images, kImages, [&](int64_t begin, int64_t end) {
    vectorized([&] { forward.run(images, begin, end, mutable_data<float>(y)); });
  });
  return y;
}

// x [B, outputs, ...], weight [outputs, C, rows, columns], bias [C], size [H, W] -> [B, C, H, W]
Tensor conv_transpose2d(Tensor x, Tensor weight, std::optional<Tensor> bias, std::vector<int64_t> size,
                        std::vector<int64_t> stride, std::vector<int64_t> padding) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && size.size() == 2,
                  "x and weight must be [B, inputs, H, W] and [inputs, outputs, rows, columns], and size two numbers");
  const std::vector<int64_t> sizes{x.size(0), weight.size(1), size[0], size[1]};
  const Shape shape(Sizes(sizes.data(), sizes.size()), weight.sizes(), stride, padding);
  check_tensor("x", x, x, ScalarType::Float, shape.images * shape.outputs * shape.places());
  STD_TORCH_CHECK(x.size(1) == shape.outputs && x.size(2) == shape.size[0],
                  "x must have the shape that a convolution of images of this size gives");
  check_tensor("weight", weight, x, ScalarType::Float, weight.numel());
  check_tensor("bias", bias, x, ScalarType::Float, shape.inputs);
  x = plain(x);
  weight = readable(weight);
  bias = readable(bias);
  const Tensor y = fresh(x, sizes, ScalarType::Float);
  const Transposed forward(shape, data<float>(weight), data<float>(bias));
  const Images images(x);
  torch::stable::parallel_for(0, shape.images, kImages, [&](int64_t begin, int64_t end) {
    vectorized([&] { forward.run(images, begin, end, mutable_data<float>(y)); });
  });
  return y;
}

}  // namespace
}  // namespace snnfast

STABLE_TORCH_LIBRARY_IMPL(snnfast, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&snnfast::conv2d));
  m.impl("conv_transpose2d", TORCH_BOX(&snnfast::conv_transpose2d));
}

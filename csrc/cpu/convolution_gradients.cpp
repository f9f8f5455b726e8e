// The gradients of a convolution, where many values of its images are zero, or many of what comes back.
//
// Sums run over what is not zero alone, as in convolution.cpp.
#pragma GCC optimize("fp-contract=fast")

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "images.h"

namespace snnfast {
namespace {

// dL/dweight of some images, as [inputs, rows, columns] by outputs. Images come in parts, whose sums lose less than one
// long sum.
class WeightGradient {
 public:
  explicit WeightGradient(const Shape& shape)
      : s_(shape), taps_y_(shape, 0, shape.height, shape.rows), taps_x_(shape, 1, shape.width, shape.columns) {}

  void run(const Images& grad, const Images& x, int64_t begin, int64_t end, Matrix<float>& total) const {
    constexpr int64_t kTerms = 128;
    const int64_t part = std::max<int64_t>(1, kTerms / s_.places());
    Matrix<float> sums(rows(), columns()), grads(s_.places(), s_.outputs);
    grads.clear();
    Events events(s_.width);
    for (int64_t first = begin; first < end; first += part) {
      sums.clear();
      for (int64_t image = first; image < std::min(first + part, end); ++image) {
        turn(grad, image, grads);
        for (int64_t c = 0; c < s_.inputs; ++c) add_channel(x, image, c, grads, events, sums);
      }
      for (int64_t k = 0; k < rows() * sums.stride(); ++k) total.row(0)[k] += sums.row(0)[k];
    }
  }

  int64_t rows() const { return s_.inputs * s_.rows * s_.columns; }
  int64_t columns() const { return s_.outputs; }

  // dL/dweight [outputs, inputs, rows, columns] += total
  void give(const Matrix<float>& total, float* to) const {
    for (int64_t filter = 0; filter < rows(); ++filter) {
      for (int64_t out = 0; out < s_.outputs; ++out) to[out * rows() + filter] += total.row(filter)[out];
    }
  }

 private:
  void turn(const Images& grad, int64_t image, Matrix<float>& grads) const {
    for (int64_t oy = 0; oy < s_.size[0]; ++oy) {
      for (int64_t out = 0; out < s_.outputs; ++out) {
        const float* from = grad.at(image, out, oy);
        for (int64_t ox = 0; ox < s_.size[1]; ++ox) grads.row(oy * s_.size[1] + ox)[out] = from[ox * grad.strides[3]];
      }
    }
  }

  void add_channel(const Images& x, int64_t image, int64_t c, const Matrix<float>& grads, Events& events,
                   Matrix<float>& sums) const {
    for (int64_t y = 0; y < s_.height; ++y) {
      events.clear();
      events.look_at(x.at(image, c, y), s_.width, x.strides[3], 0);
      for (const Event* event = events.begin(); event < events.end(); ++event) {
        for_columns(s_.outputs,
                    [&]<int kVectors>(int64_t first) { add_event<kVectors>(*event, y, c, grads, sums, first); });
      }
    }
  }

  template <int kVectors>
  void add_event(const Event& event, int64_t y, int64_t c, const Matrix<float>& grads, Matrix<float>& sums,
                 int64_t first) const {
    for (const Taps::Tap *down = taps_y_.begin(y), *bottom = taps_y_.end(y); down < bottom; ++down) {
      const float* from = grads.row(down->out * s_.size[1]) + first;
      float* to = sums.row((c * s_.rows + down->tap) * s_.columns) + first;
      const Taps::Tap *across = taps_x_.begin(event.place), *last = taps_x_.end(event.place);
      for (; across < last; ++across) {
        add_row<kVectors>(event.height, from + across->out * grads.stride(), to + across->tap * sums.stride());
      }
    }
  }

  const Shape& s_;
  Taps taps_y_, taps_x_;
};

// The same at the cost of what of the output's gradient is not zero, as [outputs, rows] by [columns, inputs]: of a
// transposed convolution, whose input stands there, the weight's gradient.
class WeightGradientByPlaces {
 public:
  explicit WeightGradientByPlaces(const Shape& shape)
      : s_(shape), height_(shape.height + 2 * shape.padding[0]), width_(shape.width + 2 * shape.padding[1]) {}

  int64_t rows() const { return s_.outputs * s_.rows; }
  int64_t columns() const { return s_.columns * s_.inputs; }

  void run(const Images& grad, const Images& x, int64_t begin, int64_t end, Matrix<float>& total) const {
    constexpr int64_t kTerms = 128;
    const int64_t part = std::max<int64_t>(1, kTerms / s_.places());
    Matrix<float> sums(rows(), columns());
    // Whole vectors reach beyond a row.
    std::vector<float> turned(height_ * width_ * s_.inputs + kLanes);
    Places places(s_.outputs, s_.size);
    for (int64_t first = begin; first < end; first += part) {
      bool any = false;
      for (int64_t image = first; image < std::min(first + part, end); ++image) {
        places.look_at(grad, image);
        if (places.count() == 0) continue;
        if (!any) sums.clear();
        any = true;
        turn(x, image, turned.data());
        add_image(places, turned.data(), sums);
      }
      if (!any) continue;
      for (int64_t k = 0; k < rows() * sums.stride(); ++k) total.row(0)[k] += sums.row(0)[k];
    }
  }

  // dL/dweight [outputs, inputs, rows, columns] += total
  void give(const Matrix<float>& total, float* to) const {
    for (int64_t out = 0; out < s_.outputs; ++out) {
      for (int64_t c = 0; c < s_.inputs; ++c) {
        for (int64_t row = 0; row < s_.rows; ++row) {
          const float* from = total.row(out * s_.rows + row) + c;
          for (int64_t column = 0; column < s_.columns; ++column) *to++ += from[column * s_.inputs];
        }
      }
    }
  }

 private:
  void turn(const Images& x, int64_t image, float* turned) const {
    for (int64_t c = 0; c < s_.inputs; ++c) {
      for (int64_t y = 0; y < s_.height; ++y) {
        const float* from = x.at(image, c, y);
        float* to = turned + ((y + s_.padding[0]) * width_ + s_.padding[1]) * s_.inputs + c;
        for (int64_t column = 0; column < s_.width; ++column) to[column * s_.inputs] = from[column * x.strides[3]];
      }
    }
  }

  void add_image(const Places& places, const float* turned, Matrix<float>& sums) const {
    for (int64_t oy = 0; oy < s_.size[0]; ++oy) {
      for (int64_t ox = 0; ox < s_.size[1]; ++ox) {
        for (const Event *event = places.begin(oy, ox), *end = places.end(oy, ox); event < end; ++event) {
          for (int64_t row = 0; row < s_.rows; ++row) {
            const float* from = turned + ((oy * s_.stride[0] + row) * width_ + ox * s_.stride[1]) * s_.inputs;
            float* to = sums.row(event->place * s_.rows + row);
            for_columns(columns(), [&]<int kVectors>(int64_t first) {
              add_row<kVectors>(event->height, from + first, to + first);
            });
          }
        }
      }
    }
  }

  const Shape& s_;
  const int64_t height_, width_;
};

// dL/dx: each place of the output adds its channels' filters, a row of [columns, inputs] at a time.
class InputGradient {
 public:
  InputGradient(const Shape& shape, const float* weight)
      : s_(shape), filters_(shape.rows * shape.outputs, shape.columns * shape.inputs) {
    filters_.clear();
    for (int64_t out = 0; out < s_.outputs; ++out) {
      for (int64_t c = 0; c < s_.inputs; ++c) {
        for (int64_t row = 0; row < s_.rows; ++row) {
          float* to = filters_.row(row * s_.outputs + out) + c;
          for (int64_t column = 0; column < s_.columns; ++column) to[column * s_.inputs] = *weight++;
        }
      }
    }
  }

  void run(const Images& grad, int64_t begin, int64_t end, float* grad_x) const {
    const int64_t height = s_.height + 2 * s_.padding[0], width = (s_.width + 2 * s_.padding[1]) * s_.inputs;
    // Whole vectors reach beyond a row, where they add zeros.
    std::vector<float> sums(height * width + kLanes);
    Places places(s_.outputs, s_.size);
    for (int64_t image = begin; image < end; ++image) {
      places.look_at(grad, image);
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t row = 0; row < s_.rows; ++row) {
        for (int64_t oy = 0; oy < s_.size[0]; ++oy) {
          for (int64_t ox = 0; ox < s_.size[1]; ++ox) {
            const Event *begin = places.begin(oy, ox), *end = places.end(oy, ox);
            float* to = sums.data() + (oy * s_.stride[0] + row) * width + ox * s_.stride[1] * s_.inputs;
            for_columns<13>(s_.columns * s_.inputs, [&]<int kVectors>(int64_t first) {
              add_place<kVectors>(begin, end, row * s_.outputs, first, to + first);
            });
          }
        }
      }
      const float* from = sums.data() + s_.padding[0] * width + s_.padding[1] * s_.inputs;
      float* to = grad_x + image * s_.inputs * s_.height * s_.width;
      for (int64_t c = 0; c < s_.inputs; ++c, ++from) {
        for (int64_t y = 0; y < s_.height; ++y) {
          for (int64_t x = 0; x < s_.width; ++x) *to++ = from[y * width + x * s_.inputs];
        }
      }
    }
  }

 private:
  template <int kVectors>
  void add_place(const Event* begin, const Event* end, int64_t filter, int64_t first, float* to) const {
    // A sum of its own loses less than one long sum.
    Lanes sums[kVectors] = {}, before[kVectors];
    for (const Event* event = begin; event < end; ++event) {
      add(sums, event->height, filters_.row(filter + event->place) + first);
    }
    load(before, to);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) before[v] += sums[v];
    store(before, to);
  }

  const Shape& s_;
  Matrix<float> filters_;  // [rows, outputs] by [columns, inputs]
};

// The sums of all images, as many parts on any number of threads: they are the same.
template <typename Run>
std::vector<std::optional<Matrix<float>>> sums_of_parts(int64_t images, int64_t rows, int64_t columns, const Run& run) {
  constexpr int64_t kParts = 16;
  const int64_t part = std::max(kImages, divided_up(images, kParts));
  const int64_t parts = divided_up(images, part);
  std::vector<std::optional<Matrix<float>>> totals(parts);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      totals[k].emplace(rows, columns);
      totals[k]->clear();
      vectorized([&] { run(k * part, std::min((k + 1) * part, images), *totals[k]); });
    }
  });
  return totals;
}

// grad [B, outputs, ...], x [B, C, H, W] -> dL/dweight [outputs, C, rows, columns]; by_grad: what of grad is not zero
// is visited, and of x otherwise
Tensor conv2d_grad_weight(Tensor grad, Tensor x, std::vector<int64_t> weight, std::vector<int64_t> stride,
                          std::vector<int64_t> padding, bool by_grad) {
  const Shape shape(x.sizes(), Sizes(weight.data(), weight.size()), stride, padding);
  check_tensor("x", x, x, ScalarType::Float, x.numel());
  check_tensor("grad", grad, x, ScalarType::Float, shape.images * shape.outputs * shape.places());
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(1) == shape.outputs && grad.size(2) == shape.size[0],
                  "grad must have the shape of what the convolution gives");
  x = plain(x);
  grad = plain(grad);
  const Tensor result = torch::stable::new_zeros(x, Sizes(weight.data(), weight.size()), ScalarType::Float);
  const Images grads(grad), images(x);
  const auto sum_up = [&](const auto& gradient) {
    const auto run = [&](int64_t begin, int64_t end, auto& total) { gradient.run(grads, images, begin, end, total); };
    const auto totals = sums_of_parts(shape.images, gradient.rows(), gradient.columns(), run);
    for (const auto& total : totals) gradient.give(*total, mutable_data<float>(result));
  };
  if (by_grad) {
    sum_up(WeightGradientByPlaces(shape));
  } else {
    sum_up(WeightGradient(shape));
  }
  return result;
}

// grad [B, outputs, ...], weight [outputs, C, rows, columns] -> dL/dx [B, C, H, W]
Tensor conv2d_grad_input(Tensor grad, Tensor weight, std::vector<int64_t> x, std::vector<int64_t> stride,
                         std::vector<int64_t> padding) {
  const Shape shape(Sizes(x.data(), x.size()), weight.sizes(), stride, padding);
  check_tensor("weight", weight, grad, ScalarType::Float, weight.numel());
  check_tensor("grad", grad, grad, ScalarType::Float, shape.images * shape.outputs * shape.places());
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(1) == shape.outputs && grad.size(2) == shape.size[0],
                  "grad must have the shape of what the convolution gives");
  grad = plain(grad);
  weight = readable(weight);
  const Tensor grad_x = fresh(grad, Sizes(x.data(), x.size()), ScalarType::Float);
  const InputGradient gradient(shape, data<float>(weight));
  const Images grads(grad);
  torch::stable::parallel_for(0, shape.images, kImages, [&](int64_t begin, int64_t end) {
    vectorized([&] { gradient.run(grads, begin, end, mutable_data<float>(grad_x)); });
  });
  return grad_x;
}

}  // namespace
}  // namespace snnfast

STABLE_TORCH_LIBRARY_IMPL(snnfast, CPU, m) {
  m.impl("conv2d_grad_weight", TORCH_BOX(&snnfast::conv2d_grad_weight));
  m.impl("conv2d_grad_input", TORCH_BOX(&snnfast::conv2d_grad_input));
}

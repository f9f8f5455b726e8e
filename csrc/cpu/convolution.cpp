// Convolutions, transposed ones too, of images of which many values are zero, and of gradients of which many are:
// forward, and both gradients.
//
// Sums run over what is not zero alone, in registers that hold the output's channels, or a row of the input's gradient.
// An image's values are sorted and its results turned around in the first cache, so that any layout will do and no
// other memory is needed. Forward adds in the order of oneDNN's kernels for contiguous images with eight lanes: from
// the bias on, over blocks of input channels, then over the rows and columns of the filter, then over the channels of a
// block. A transposed one adds in that of its kernels for strides: for each column of the filter a sum of its own, over
// the rows, then over the channels. So sums may be torch's to the bit; snnfast.images tries whether they are.
#pragma GCC optimize("fp-contract=fast")

#include <torch/csrc/stable/library.h>
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
Tensor plain(const Tensor& tensor) {
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

class Forward {
 public:
  Forward(const Shape& shape, const float* weight, const float* bias)
      : s_(shape),
        blocks_(divided_up(shape.inputs, kBlock)),
        filters_(blocks_ * shape.rows * shape.columns * kBlock, shape.outputs),
        bias_(1, shape.outputs) {
    filters_.clear();
    bias_.clear();
    if (bias) bias_.copy(bias, 1);
    const int64_t area = s_.rows * s_.columns;
    for (int64_t out = 0; out < s_.outputs; ++out) {
      for (int64_t c = 0; c < s_.inputs; ++c) {
        float* to = filters_.row(c / kBlock * area * kBlock + c % kBlock) + out;
        for (int64_t tap = 0; tap < area; ++tap) to[tap * kBlock * filters_.stride()] = *weight++;
      }
    }
  }

  void run(const Images& x, int64_t begin, int64_t end, float* y) const {
    Events events(blocks_ * s_.height * s_.width * kBlock);
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
  static constexpr int64_t kBlock = 8;  // input channels that are added together

  // By block of channels, row and column: where each begins.
  void find(const Images& x, int64_t image, Events& events, std::vector<int32_t>& starts) const {
    events.clear();
    int32_t* start = starts.data();
    for (int64_t first = 0; first < s_.inputs; first += kBlock) {
      const int64_t some = std::min(kBlock, s_.inputs - first);
      for (int64_t y = 0; y < s_.height; ++y) {
        const float* row = x.at(image, first, y);
        for (int64_t column = 0; column < s_.width; ++column, row += x.strides[3]) {
          *start++ = events.count();
          events.look_at(row, some, x.strides[1], column * kBlock);
        }
        *start++ = events.count();
      }
    }
  }

  template <int kVectors>
  void sum_at(const Events& events, const int32_t* starts, int64_t oy, int64_t ox, int64_t first, float* to) const {
    Lanes sums[kVectors];
    load(sums, bias_.row(0) + first);
    const int64_t y = oy * s_.stride[0] - s_.padding[0], x = ox * s_.stride[1] - s_.padding[1];
    const int64_t left = std::max<int64_t>(x, 0), right = std::min(x + s_.columns, s_.width);
    const int64_t top = std::max<int64_t>(y, 0), bottom = std::min(y + s_.rows, s_.height);
    const int64_t stride = filters_.stride();
    for (int64_t block = 0; block < blocks_; ++block) {
      for (int64_t at = top; at < bottom; ++at) {
        const int32_t* start = starts + (block * s_.height + at) * (s_.width + 1);
        const float* filter = filters_.row(((block * s_.rows + at - y) * s_.columns - x) * kBlock) + first;
        const Event* const last = events.begin(start[right]);
        for (const Event* event = events.begin(start[left]); event < last; ++event) {
          add(sums, event->height, filter + event->place * stride);
        }
      }
    }
    store(sums, to);
  }

  const Shape& s_;
  const int64_t blocks_;
  Matrix<float> filters_;  // [blocks, rows, columns, kBlock] by outputs
  Matrix<float> bias_;
};

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

constexpr int64_t kImages = 8;  // worth waking another thread for

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
  m.impl("conv2d_grad_weight", TORCH_BOX(&snnfast::conv2d_grad_weight));
  m.impl("conv2d_grad_input", TORCH_BOX(&snnfast::conv2d_grad_input));
  m.impl("conv_transpose2d", TORCH_BOX(&snnfast::conv_transpose2d));
}

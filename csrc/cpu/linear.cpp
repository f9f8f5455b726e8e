// The operators of a linear layer behind spikes: forward, and the gradients of its weights and of the spikes.
//
// The first two are products of a matrix that is mostly zeros with a dense one: spikes [rows, inputs] with weights, and
// the same spikes, transposed, with the gradient of the outputs. Either is computed from lists of what is not zero
// (lists.h), by the CPU's matrix unit (tiles.h), or, where spikes are many and there is no such unit, sizes small, or a
// number infinite or none, by torch.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "../op/tensors.h"
#include "fresh.h"
#include "lists.h"
#include "tiles.h"

namespace snnfast {
namespace {

struct Shape {
  int64_t rows = 1, columns = 0;

  Shape(const char* name, const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.dim() >= 1, name, " must have a dimension of features, got a tensor of 0 dimensions");
    columns = tensor.size(-1);
    for (int64_t dim = 0; dim + 1 < tensor.dim(); ++dim) rows *= tensor.size(dim);
  }
};

// What rows here and there say of the spikes.
struct Sample {
  double density = 1;           // what share of them is not zero
  std::optional<float> height;  // what to take out as a factor, if one number will do, for them to be bfloat16 numbers

  Sample(const float* spk, const LinearSizes& sizes) {
    constexpr int64_t kRows = 64;
    const int64_t seen = std::min(kRows, sizes.rows) * sizes.inputs;
    if (seen == 0) return;
    constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
    int64_t found = 0;
    uint32_t least = kNone, most = 0;  // of the bits of those that are none
    vectorized([&] {
      for (int64_t k = 0; k < std::min(kRows, sizes.rows); ++k) {
        // Not at equal distances: those may be a sample's steps.
        const uint64_t place = sizes.rows <= kRows ? k : (k * 0x9e3779b97f4a7c15u >> 32) * sizes.rows >> 32;
        const float* row = spk + place * sizes.inputs;
        uint32_t found_here = 0, least_here = kNone, most_here = 0;
        for (int64_t column = 0; column < sizes.inputs; ++column) {
          uint32_t bits;
          std::memcpy(&bits, row + column, sizeof(bits));
          found_here += row[column] != 0.0f ? 1 : 0;
          least_here = std::min(least_here, bits & 0xffff ? bits : kNone);
          most_here = std::max(most_here, bits & 0xffff ? bits : 0);
        }
        found += found_here;
        least = std::min(least, least_here);
        most = std::max(most, most_here);
      }
    });
    density = static_cast<double>(found) / static_cast<double>(seen);
    if (most == 0) height = 1.0f;
    if (most != 0 && least == most) std::memcpy(&height.emplace(), &most, sizeof(most));
  }
};

enum class Way { kTorch, kLists, kTiles };

constexpr int64_t kCostOfRows = 20, kCostOfColumns = 60;

// How to multiply. Measured, lists are as fast as torch where 0.4 of the spikes are not zero, less if outputs are so
// few that to make a list, which costs as much as so many outputs, shows; and as much faster as spikes are fewer.
Way chosen_way(const Sample& sample, const LinearSizes& sizes, int64_t cost_of_lists, double gain_by_tiles) {
  if (sizes.rows == 0 || sizes.inputs == 0 || sizes.outputs == 0) return Way::kTorch;
  const double few = 0.4 * static_cast<double>(sizes.outputs) / static_cast<double>(sizes.outputs + cost_of_lists);
  if (sample.height && gain_by_tiles > 1 && gain_by_tiles * sample.density > few) return Way::kTiles;
  return sample.density <= few ? Way::kLists : Way::kTorch;
}

// So many rows of the dense matrix hold some 25 of the spikes of a list.
int64_t block_size(double density, int64_t rows) {
  constexpr int64_t kStep = 64, kLeast = 2 * kStep, kMost = 16 * kStep;
  const double wanted = 25.0 / std::max(density, 1e-3);
  return std::min(rows, std::clamp(divided_up(static_cast<int64_t>(wanted), kStep) * kStep, kLeast, kMost));
}

// Whether by_tiles or by_lists, each where it is the fastest, gave the product.
template <typename ByTiles, typename ByLists>
bool multiplied(const Sample& sample, const LinearSizes& sizes, int64_t cost_of_lists, double gain_by_tiles,
                const ByTiles& by_tiles, const ByLists& by_lists) {
  Way way = chosen_way(sample, sizes, cost_of_lists, gain_by_tiles);
  if (way == Way::kTiles) {
    if (by_tiles(*sample.height)) return true;
    way = chosen_way(sample, sizes, cost_of_lists, 0);
  }
  return way == Way::kLists && by_lists();
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(x), from(weight), from(bias)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor scratch(const Tensor& like, int64_t size) { return fresh(like, std::array{size}, ScalarType::Float); }

bool is_float(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Float; }

LinearSizes sizes_of(const Tensor& spk, const Tensor& weight, const std::optional<Tensor>& bias) {
  const Shape shape("spk", spk);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == shape.columns, "weight must have shape [outputs, ",
                  shape.columns, "]");
  check_tensor("weight", weight, spk, spk.scalar_type(), weight.numel());
  check_tensor("bias", bias, spk, spk.scalar_type(), weight.size(0));
  return {shape.rows, shape.columns, weight.size(0)};
}

// Memory for what a product of spk [..., in] gives.
Tensor fresh_outputs(const Tensor& spk, int64_t outputs) {
  std::vector<int64_t> shape(spk.sizes().begin(), spk.sizes().end());
  shape.back() = outputs;
  return fresh(spk, shape, ScalarType::Float);
}

// The ends of blocks of so many, and of what is left.
std::vector<int64_t> ends_of_blocks(int64_t count, int64_t block) {
  std::vector<int64_t> ends;
  for (int64_t end = block; end < count; end += block) ends.push_back(end);
  ends.push_back(count);
  return ends;
}

// spk [..., in] weight [out, in]^T + bias [out] -> [..., out]
Tensor spike_linear(Tensor spk, Tensor weight, std::optional<Tensor> bias) {
  const LinearSizes sizes = sizes_of(spk, weight, bias);
  if (!is_float(spk)) return linear(spk, weight, bias);
  const Tensor spikes = readable(spk), weights = readable(weight);
  const std::optional<Tensor> added = readable(bias);
  const float *from = data<float>(spikes), *factors = data<float>(weights), *biases = data<float>(added);
  const Sample sample(from, sizes);
  std::optional<Tensor> out;
  const auto result = [&] {
    if (!out) out = fresh_outputs(spk, sizes.outputs);
    return mutable_data<float>(*out);
  };
  const auto by_tiles = [&](float height) {
    const Tensor packed = scratch(spk, tiles::packed_size(sizes.inputs, sizes.outputs));
    return tiles::multiply(from, factors, biases, height, sizes, mutable_data<float>(packed), result());
  };
  const auto by_lists = [&] {
    const Tensor packed = scratch(spk, whole_lanes(sizes.outputs) * sizes.inputs);
    const auto ends = ends_of_blocks(sizes.inputs, block_size(sample.density, sizes.inputs));
    return multiply_by_lists(from, factors, biases, sizes, ends, false, mutable_data<float>(packed), result());
  };
  const double gain = tiles::forward_gain(sizes);
  return multiplied(sample, sizes, kCostOfRows, gain, by_tiles, by_lists) ? *out : linear(spk, weight, bias);
}

// The same, its terms added in an order that is given: one after another up to each of these inputs, and the sums of
// these runs to the bias. Nothing where that would not be the fastest.
std::vector<Tensor> spike_linear_in_order(Tensor spk, Tensor weight, std::optional<Tensor> bias,
                                          std::vector<int64_t> ends) {
  const LinearSizes sizes = sizes_of(spk, weight, bias);
  bool rise = !ends.empty() && ends.front() > 0 && ends.back() == sizes.inputs;
  for (size_t k = 1; k < ends.size(); ++k) rise &= ends[k - 1] < ends[k];
  STD_TORCH_CHECK(rise, "ends must rise to the number of inputs, ", sizes.inputs);
  if (!is_float(spk)) return {};
  const Tensor spikes = readable(spk), weights = readable(weight);
  const std::optional<Tensor> added = readable(bias);
  const float* from = data<float>(spikes);
  if (chosen_way(Sample(from, sizes), sizes, kCostOfRows, 0) != Way::kLists) return {};
  const Tensor packed = scratch(spk, whole_lanes(sizes.outputs) * sizes.inputs);
  const Tensor out = fresh_outputs(spk, sizes.outputs);
  const bool finite = multiply_by_lists(from, data<float>(weights), data<float>(added), sizes, ends, true,
                                        mutable_data<float>(packed), mutable_data<float>(out));
  return finite ? std::vector<Tensor>{out} : std::vector<Tensor>{};
}

// grad [..., out], spk [..., in] -> dL/dweight [out, in]
Tensor spike_linear_grad(Tensor grad, Tensor spk) {
  const Shape shape("spk", spk), outer("grad", grad);
  STD_TORCH_CHECK(outer.rows == shape.rows, "grad must have as many rows as spk, ", shape.rows, ", got ", outer.rows);
  check_tensor("grad", grad, spk, spk.scalar_type(), grad.numel());
  const auto by_torch = [&] {
    const Tensor grads = torch::stable::reshape(grad, {outer.rows, outer.columns});
    const Tensor rows = torch::stable::reshape(spk, {shape.rows, shape.columns});
    return torch::stable::matmul(torch::stable::transpose(grads, 0, 1), rows);
  };
  if (!is_float(spk)) return by_torch();
  const LinearSizes sizes{shape.rows, shape.columns, outer.columns};
  const Tensor spikes = readable(spk), grads = readable(grad);
  const float *from = data<float>(spikes), *factors = data<float>(grads);
  const Sample sample(from, sizes);
  std::optional<Tensor> out;
  const auto result = [&] {
    if (!out) out = fresh(spk, std::array{sizes.outputs, sizes.inputs}, ScalarType::Float);
    return mutable_data<float>(*out);
  };
  const auto by_tiles = [&](float height) {
    const Tensor packed = scratch(spk, tiles::packed_size(sizes.rows, sizes.outputs));
    return tiles::multiply_transposed(factors, from, height, sizes, mutable_data<float>(packed), result());
  };
  const auto by_lists = [&] {
    const int64_t block = block_size(sample.density, sizes.rows);
    return multiply_transposed_by_lists(factors, from, sizes, block, result());
  };
  const int64_t cost = sizes.outputs <= kLanes ? kCostOfRows : kCostOfColumns;
  return multiplied(sample, sizes, cost, tiles::gradient_gain(sizes), by_tiles, by_lists) ? *out : by_torch();
}

// grad [..., out], weight [out, in] -> dL/dspk [..., in]: torch's product, in memory of our own.
Tensor spike_linear_grad_spk(Tensor grad, Tensor weight) {
  const Shape shape("grad", grad);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == shape.columns, "weight must have shape [", shape.columns,
                  ", inputs]");
  check_tensor("weight", weight, grad, grad.scalar_type(), weight.numel());
  std::vector<int64_t> sizes(grad.sizes().begin(), grad.sizes().end());
  sizes.back() = weight.size(1);
  const Tensor rows = torch::stable::reshape(grad, {shape.rows, shape.columns});
  const Tensor out = fresh(grad, std::array{shape.rows, weight.size(1)}, grad.scalar_type());
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(rows), from(weight), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::reshape(torch::stable::detail::to<Tensor>(stack[0]), sizes);
}

}  // namespace
}  // namespace snnfast

STABLE_TORCH_LIBRARY_IMPL(snnfast, CPU, m) {
  m.impl("spike_linear", TORCH_BOX(&snnfast::spike_linear));
  m.impl("spike_linear_in_order", TORCH_BOX(&snnfast::spike_linear_in_order));
  m.impl("spike_linear_grad", TORCH_BOX(&snnfast::spike_linear_grad));
  m.impl("spike_linear_grad_spk", TORCH_BOX(&snnfast::spike_linear_grad_spk));
}

#include "fresh.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "memory.h"

// Torch has it from 2.11 on, and the wheel loads with 2.10 too.
extern "C" [[gnu::weak, gnu::visibility("default")]] AOTITorchError torch_from_blob(
    void* data, int64_t dimensions, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* tensor, int32_t layout, const uint8_t* opaque,
    int64_t opaque_size, void (*deleter)(void* data, void* context), void* context);

namespace snnfast {
namespace {

std::size_t bytes_of(Sizes sizes, int32_t dtype) {
  int64_t bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  for (const int64_t size : sizes) {
    // Too many, or fewer than none: torch says so.
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes)) return 0;
  }
  return static_cast<std::size_t>(bytes);
}

std::vector<int64_t> contiguous_strides(Sizes sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t count = 1;
  for (std::size_t dim = sizes.size(); dim-- > 0; count *= sizes[dim]) strides[dim] = count;
  return strides;
}

void give(void* data, void*) { blocks::give(data); }

Tensor fresh_like(Tensor like, std::vector<int64_t> sizes) { return fresh(like, sizes, like.scalar_type()); }

}  // namespace

Tensor fresh(const Tensor& like, Sizes sizes, ScalarType dtype) {
  const auto number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  void* const data = torch_from_blob ? blocks::take(bytes_of(sizes, number)) : nullptr;
  if (data == nullptr) return new_empty(like, sizes, dtype);
  AtenTensorHandle tensor;
  const AOTITorchError error = torch_from_blob(
      data, static_cast<int64_t>(sizes.size()), sizes.data(), contiguous_strides(sizes).data(), 0, number,
      aoti_torch_device_type_cpu(), -1, &tensor, aoti_torch_layout_strided(), nullptr, 0, give, nullptr);
  if (error == AOTI_TORCH_SUCCESS) return Tensor(tensor);
  blocks::give(data);
  return new_empty(like, sizes, dtype);
}

}  // namespace snnfast

STABLE_TORCH_LIBRARY_IMPL(snnfast, CPU, m) { m.impl("fresh", TORCH_BOX(&snnfast::fresh_like)); }

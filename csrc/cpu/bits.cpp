#include "../op/bits.h"

#include <algorithm>

#include "backend.h"
#include "simd.h"

namespace snnfast {
namespace {

constexpr int kPiece = 512;  // spikes that are packed at a time

// The lowest bits of eight bytes, those of the first lowest.
uint8_t gathered(const uint8_t* flags) {
  uint64_t word = 0;
  for (int k = 0; k < kByte; ++k) word |= uint64_t{flags[k]} << kByte * k;
  return static_cast<uint8_t>(word * 0x0102040810204080 >> 56);
}

// A byte for each bit, not 0 where it is 1.
void scatter(uint8_t byte, uint8_t* flags) {
  const uint64_t word = uint64_t{byte} * 0x0101010101010101 & 0x8040201008040201;
  for (int k = 0; k < kByte; ++k) flags[k] = static_cast<uint8_t>(word >> kByte * k);
}

template <typename S>
void pack_piece(const Packing<S>& packing, int64_t first, int width) {
  alignas(64) uint8_t flags[kPiece];
  const int bytes = static_cast<int>(bytes_of(width));
  std::fill(flags + width, flags + bytes * kByte, 0);
  vectorized([&] {
    const Packing<S> own{packing.spikes, packing.spk + first, nullptr};
    uint8_t* const to = flags;
    const int count = width;
#pragma GCC ivdep
    for (int i = 0; i < count; ++i) to[i] = own.fired(i);
  });
  uint8_t* const bits = packing.bits + first / kByte;
  for (int k = 0; k < bytes; ++k) bits[k] = gathered(flags + k * kByte);
}

template <typename S>
void unpack_piece(const Unpacking<S>& unpacking, int64_t first, int width) {
  alignas(64) uint8_t flags[kPiece];
  const uint8_t* bits = unpacking.bits + first / kByte;
  for (int k = 0; k < bytes_of(width); ++k) scatter(bits[k], flags + k * kByte);
  if (unpacking.height.period > 1) {
    for (int i = 0; i < width; ++i) unpacking.spk[first + i] = flags[i] ? unpacking.height[first + i] : S(0);
    return;
  }
  vectorized([&] {
    S* const spk = unpacking.spk + first;
    const S height = *unpacking.height.data;
    const int count = width;
#pragma GCC ivdep
    for (int i = 0; i < count; ++i) spk[i] = flags[i] ? height : S(0);
  });
}

struct CpuBits : Cpu {
  template <typename S>
  static void pack(const Tensor&, const Packing<S>& packing) {
    for_pieces(packing.spikes, [&](int64_t first, int width) { pack_piece(packing, first, width); });
  }

  template <typename S>
  static void unpack(const Tensor&, const Unpacking<S>& unpacking) {
    for_pieces(unpacking.spikes, [&](int64_t first, int width) { unpack_piece(unpacking, first, width); });
  }

 private:
  template <typename Body>
  static void for_pieces(int64_t spikes, const Body& body) {
    torch::stable::parallel_for(0, divided_up(spikes, kPiece), kStepsPerTask / kPiece, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        body(k * kPiece, static_cast<int>(std::min<int64_t>(kPiece, spikes - k * kPiece)));
      }
    });
  }
};

}  // namespace
}  // namespace snnfast

SNNFAST_BITS(CPU, CpuBits)

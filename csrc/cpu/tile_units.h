// The instructions that multiply tiles of bfloat16, on a CPU's matrix unit and, for tests on any machine, in software.
//
// A unit has eight tiles of 16 rows of 64 bytes: sums [16, 16] in float32, a left factor [16, 32] in bfloat16, or a
// right one [32, 16] whose rows lie in pairs, [16][16][2]. In memory a tile is one piece.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define SNNFAST_AMX 1
#endif

namespace snnfast::tiles {

inline constexpr int kSide = 16, kTerms = 32;   // rows and columns of sums, terms of a product of tiles
inline constexpr int kFactor = kSide * kTerms;  // numbers of a factor
inline constexpr int kSums = kSide * kSide;     // and of sums
inline constexpr int kBytes = 64;               // of a tile's row
static_assert(kFactor * sizeof(uint16_t) == kSide * kBytes && kSums * sizeof(float) == kSide * kBytes);

inline uint32_t bits_of(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof(number));
  return number;
}

#ifdef SNNFAST_AMX

// As assembly, which needs no compiler that knows AMX and touches nothing on a CPU without it until it is run.
class AmxUnit {
 public:
  AmxUnit() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {kBytes, kBytes, kBytes, kBytes, kBytes, kBytes, kBytes, kBytes};
      uint8_t rows[16] = {kSide, kSide, kSide, kSide, kSide, kSide, kSide, kSide};
    } config;
    static_assert(sizeof(config) == 64);
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  AmxUnit(const AmxUnit&) = delete;
  ~AmxUnit() { asm volatile("tilerelease"); }

  template <int kTile>
  void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }

  template <int kTile>
  void load(const void* from) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(int64_t{kBytes}), "i"(kTile) : "memory");
  }

  template <int kTile>
  void store(float* to) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(int64_t{kBytes}), "i"(kTile) : "memory");
  }

  // sums += left * right
  template <int kTo, int kLeft, int kRight>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kTo), "i"(kLeft), "i"(kRight));
  }
};

#endif

// The same in software: Intel's definition of TDPBF16PS, which takes denormal numbers for zero and gives none.
class EmulatedUnit {
 public:
  template <int kTile>
  void zero() {
    std::memset(tiles_[kTile], 0, sizeof(tiles_[kTile]));
  }

  template <int kTile>
  void load(const void* from) {
    std::memcpy(tiles_[kTile], from, sizeof(tiles_[kTile]));
  }

  template <int kTile>
  void store(float* to) {
    std::memcpy(to, tiles_[kTile], sizeof(tiles_[kTile]));
  }

  template <int kTo, int kLeft, int kRight>
  void multiply() {
    for (int row = 0; row < kSide; ++row) {
      float first[kSide] = {}, second[kSide] = {};
      for (int pair = 0; pair < kSide; ++pair) {
        const float a = first_of(tiles_[kLeft][row][pair]), b = second_of(tiles_[kLeft][row][pair]);
        for (int k = 0; k < kSide; ++k) {
          // A product of two bfloat16 is exact in float32, so that it is no matter whether it and the sum are one.
          first[k] = flushed(first[k] + a * first_of(tiles_[kRight][pair][k]));
          second[k] = flushed(second[k] + b * second_of(tiles_[kRight][pair][k]));
        }
      }
      for (int k = 0; k < kSide; ++k) {
        const float sum = float_of(tiles_[kTo][row][k]);
        tiles_[kTo][row][k] = bits_of(flushed(sum + flushed(first[k] + second[k])));
      }
    }
  }

 private:
  static float flushed(float number) {
    const uint32_t bits = bits_of(number);
    return float_of(bits & 0x7f800000 ? bits : bits & 0x80000000);
  }

  static float first_of(uint32_t pair) { return flushed(float_of(pair << 16)); }
  static float second_of(uint32_t pair) { return flushed(float_of(pair & 0xffff0000)); }

  alignas(64) uint32_t tiles_[8][kSide][kSide];
};

}  // namespace snnfast::tiles

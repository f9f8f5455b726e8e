// Random words that depend on a key and a counter alone, so that any thread can draw any of them in any order:
// Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>
#include <utility>

namespace snnfast {

inline constexpr int kWords = 4;  // of one counter

C10_HOST_DEVICE inline uint64_t multiply_low(uint64_t word, uint32_t by) {
  return uint64_t{by} * static_cast<uint32_t>(word);
}

// The random words of the counter with these halves. Words are the low halves of 64 bits, where vector units multiply
// without shuffling; what the high halves hold is of no use. Word: uint64_t, or a vector of them.
template <typename Word>
C10_HOST_DEVICE inline void philox(uint64_t key, const Word& low, const Word& high, Word (&words)[kWords]) {
  Word c0 = low, c1 = low >> 32, c2 = high, c3 = high >> 32;
  const auto round = [&](uint32_t number) {
    const Word product0 = multiply_low(c0, 0xD2511F53), product1 = multiply_low(c2, 0xCD9E8D57);
    c0 = (product1 >> 32) ^ c1 ^ (static_cast<uint32_t>(key) + number * 0x9E3779B9);
    c1 = product1;
    c2 = (product0 >> 32) ^ c3 ^ (static_cast<uint32_t>(key >> 32) + number * 0xBB67AE85);
    c3 = product0;
  };
  // Unrolled, since a loop in a loop keeps compilers from vectorising the outer one.
  [&]<uint32_t... kNumber>(std::integer_sequence<uint32_t, kNumber...>) {
    (round(kNumber), ...);
  }(std::make_integer_sequence<uint32_t, 10>());
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

}  // namespace snnfast

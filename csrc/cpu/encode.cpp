#include "../op/encode.h"

#include <algorithm>

#include "backend.h"

namespace snnfast {
namespace {

constexpr int kWidth = 512;  // neurons of a piece of a row

using Draws = uint32_t[kWords][kWidth];

#ifdef SNNFAST_AVX512
[[gnu::target(SNNFAST_AVX512), gnu::flatten]] void draw_avx512(uint64_t seed, int64_t row, int64_t first, int width,
                                                               Draws& draws) {
  static_assert(kWidth % Words::kLanes == 0);
  for (int i = 0; i < width; i += Words::kLanes) {
    Words words[kWords];
    philox(seed, Words::from(static_cast<uint64_t>(first + i)), Words::all(static_cast<uint64_t>(row)), words);
    for (int word = 0; word < kWords; ++word) words[word].store(draws[word] + i);
  }
}
#endif

// The draws of a row's neurons `first` and on.
void draw(uint64_t seed, int64_t row, int64_t first, int width, Draws& draws) {
#ifdef SNNFAST_AVX512
  if (has_avx512()) return draw_avx512(seed, row, first, width, draws);
#endif
  vectorized([&] {
    const int count = width;
    for (int i = 0; i < count; ++i) {
      uint64_t words[kWords];
      philox(seed, static_cast<uint64_t>(first + i), static_cast<uint64_t>(row), words);
      for (int word = 0; word < kWords; ++word) draws[word][i] = static_cast<uint32_t>(words[word]);
    }
  });
}

template <typename Code>
void encode_piece(const Code& code, int64_t row, int64_t first, int width) {
  vectorized([&] {
    // Copies, which no store can change.
    const Code own = code;
    const int64_t from = first;
    const int count = width;
#pragma GCC ivdep
    for (int i = 0; i < count; ++i) own.encode(row, from + i);
  });
}

// As RateCode::encode, for many neurons at once.
template <typename X, typename S, typename T>
void encode_piece(const RateCode<X, S, T>& code, int64_t row, int64_t first, int width) {
  Draws draws;
  int32_t firing[kWidth];
  draw(static_cast<uint64_t>(*code.seed), row, first, width, draws);
  const int64_t begin = row * kWords, end = std::min(begin + kWords, code.steps);
  bool known = false;
  for (int64_t step = begin; step < end; ++step) {
    S* spk = code.spk + step * code.neurons + first;
    if (step < code.silent) {
      std::fill_n(spk, width, S(0));
      continue;
    }
    const bool changed = !known || code.x.stride != 0;
    vectorized([&] {
      const auto own = code;
      const int64_t from = first;
      const int count = width;
      const uint32_t* drawn = draws[step - begin];
      if (changed) {
#pragma GCC ivdep
        for (int i = 0; i < count; ++i) firing[i] = own.firing(step, from + i);
      }
      S* to = spk;
#pragma GCC ivdep
      for (int i = 0; i < count; ++i) to[i] = fires(drawn[i], firing[i]) ? S(1) : S(0);
    });
    known = true;
  }
}

struct CpuEncoders : Cpu {
  template <typename Code>
  static void encode(const Tensor&, const Code& code) {
    const int64_t pieces = divided_up(code.neurons, kWidth);
    const int64_t grain = std::max<int64_t>(1, kStepsPerTask / std::min<int64_t>(code.neurons, kWidth));
    torch::stable::parallel_for(0, code.rows() * pieces, grain, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t first = k % pieces * kWidth;
        const int width = static_cast<int>(std::min<int64_t>(kWidth, code.neurons - first));
        encode_piece(code, k / pieces, first, width);
      }
    });
  }
};

}  // namespace
}  // namespace snnfast

SNNFAST_ENCODERS(CPU, CpuEncoders)

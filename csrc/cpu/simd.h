// Runs a loop body compiled for the widest vectors this machine has, from one portable binary.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define SNNFAST_AVX512 "avx512f,avx512bw,avx512dq,avx512vl"
#endif

namespace snnfast {

// A vector of so many bytes, for loops that name theirs: a compiler takes them apart instead of keeping sums in
// registers, and keeps longer vectors than the machine has in memory.
template <typename T, int kBytes>
struct VectorOf {
  using type [[gnu::vector_size(kBytes)]] = T;
};

// Where a row is not zero, and its values there: both outputs need kFoundAtOnce places more than the row has entries.
inline constexpr int kFoundAtOnce = 16;

template <typename T>
int find_nonzero_plain(const T* row, int64_t size, int* index, T* value, int64_t first = 0, int count = 0) {
  for (int64_t j = first; j < size; ++j) {
    index[count] = static_cast<int>(j);
    value[count] = row[j];
    count += row[j] != T(0);
  }
  return count;
}

#ifdef SNNFAST_AVX512

inline bool has_avx2() {
  static const bool found = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return found;
}

inline bool has_avx512() {
  static const bool found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return found;
}

template <typename Body>
[[gnu::target(SNNFAST_AVX512 ",prefer-vector-width=512"), gnu::flatten]] void run_avx512(const Body& body) {
  body();
}

template <typename Body>
[[gnu::target("avx2,fma"), gnu::flatten]] void run_avx2(const Body& body) {
  body();
}

template <typename Body>
void vectorized(const Body& body) {
  if (has_avx512()) return run_avx512(body);
  if (has_avx2()) return run_avx2(body);
  body();
}

[[gnu::target(SNNFAST_AVX512)]] inline int find_nonzero_avx512(const float* row, int64_t size, int* index,
                                                               float* value) {
  int count = 0;
  __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t first = 0; first < size; first += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
    const __mmask16 inside = size - first >= 16 ? 0xffff : (1u << (size - first)) - 1;
    const __m512 values = _mm512_maskz_loadu_ps(inside, row + first);
    const __mmask16 found = _mm512_cmp_ps_mask(values, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32(found, at));
    _mm512_storeu_ps(value + count, _mm512_maskz_compress_ps(found, values));
    count += __builtin_popcount(found);
  }
  return count;
}

// body of those vectors' bytes, as a std::integral_constant.
template <typename Body>
void vectorized_by_width(const Body& body) {
  if (has_avx512()) return run_avx512([&] { body(std::integral_constant<int, 64>()); });
  if (has_avx2()) return run_avx2([&] { body(std::integral_constant<int, 32>()); });
  body(std::integral_constant<int, 16>());
}

// For every byte, the places of its bits, one in each byte of a word.
struct PlacesOfBits {
  uint64_t words[256] = {};

  constexpr PlacesOfBits() {
    for (int byte = 0; byte < 256; ++byte) {
      for (int bit = 0, found = 0; bit < 8; ++bit) {
        if (byte >> bit & 1) words[byte] |= static_cast<uint64_t>(bit) << 8 * found++;
      }
    }
  }
};

inline constexpr PlacesOfBits kPlacesOfBits;

[[gnu::target("avx2,fma")]] inline int find_nonzero_avx2(const float* row, int64_t size, int* index, float* value) {
  int count = 0;
  int64_t first = 0;
  for (; first + 8 <= size; first += 8) {
    const __m256 values = _mm256_loadu_ps(row + first);
    const int found = _mm256_movemask_ps(_mm256_cmp_ps(values, _mm256_setzero_ps(), _CMP_NEQ_UQ));
    const __m256i places = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(kPlacesOfBits.words[found]));
    const __m256i at = _mm256_add_epi32(places, _mm256_set1_epi32(static_cast<int>(first)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(index + count), at);
    _mm256_storeu_ps(value + count, _mm256_permutevar8x32_ps(values, places));
    count += __builtin_popcount(found);
  }
  return find_nonzero_plain(row, size, index, value, first, count);
}

inline int find_nonzero(const float* row, int64_t size, int* index, float* value) {
  if (has_avx512()) return find_nonzero_avx512(row, size, index, value);
  if (has_avx2()) return find_nonzero_avx2(row, size, index, value);
  return find_nonzero_plain(row, size, index, value);
}

// Eight 64-bit words, for code that is written for one.
struct Words {
  using Lanes [[gnu::vector_size(64)]] = uint64_t;
  static constexpr int kLanes = 8;
  Lanes lanes;

  [[gnu::target(SNNFAST_AVX512)]] static Words from(uint64_t first) { return {Lanes{0, 1, 2, 3, 4, 5, 6, 7} + first}; }

  [[gnu::target(SNNFAST_AVX512)]] static Words all(uint64_t word) { return {Lanes{} + word}; }

  // The low halves.
  [[gnu::target(SNNFAST_AVX512)]] void store(uint32_t* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtepi64_epi32(0xff, (__m512i)lanes));
  }
};

[[gnu::target(SNNFAST_AVX512)]] inline Words operator>>(const Words& words, int bits) { return {words.lanes >> bits}; }

[[gnu::target(SNNFAST_AVX512)]] inline Words operator^(const Words& a, const Words& b) { return {a.lanes ^ b.lanes}; }

[[gnu::target(SNNFAST_AVX512)]] inline Words operator^(const Words& a, uint64_t b) { return {a.lanes ^ b}; }

[[gnu::target(SNNFAST_AVX512)]] inline Words multiply_low(const Words& words, uint32_t by) {
  return {(Words::Lanes)_mm512_maskz_mul_epu32(0xff, (__m512i)words.lanes, _mm512_set1_epi64(by))};
}

#else

inline bool has_avx2() {
  static const bool found = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return found;
}

inline bool has_avx512() { return false; }

template <typename Body>
void vectorized(const Body& body) {
  body();
}

template <typename Body>
void vectorized_by_width(const Body& body) {
  body(std::integral_constant<int, 16>());
}

inline int find_nonzero(const float* row, int64_t size, int* index, float* value) {
  return find_nonzero_plain(row, size, index, value);
}

#endif

}  // namespace snnfast

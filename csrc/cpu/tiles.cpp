#include "tiles.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "tile_units.h"

#ifdef SNNFAST_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace snnfast::tiles {
namespace {

std::atomic<Unit> used = Unit::kNone;
thread_local Unit forced = Unit::kNone;

Unit current() { return forced == Unit::kNone ? used.load() : forced; }

bool ask_for_amx() {
#ifdef SNNFAST_AMX
  constexpr unsigned kLeaf = 7, kBfloat16 = 1u << 22, kTiles = 1u << 24;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(kLeaf, 0, &eax, &ebx, &ecx, &edx) || !(edx & kBfloat16) || !(edx & kTiles)) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// The whole product is [rows, columns], of so many terms each: spikes are the left factor. Forward, rows, terms and
// columns are samples, inputs and outputs; for the weights' gradient inputs, samples and outputs.
struct Product {
  int64_t rows, terms, columns;
  const float *spk, *numbers, *bias;
  float height;
  float *packed, *out;
  bool is_gradient;
};

constexpr float kScale = 0x1p40f, kLeastSpike = 0x1p-10f;
constexpr int kParts = 3;
// A block of sums is two tiles high; a task's rows of spikes, and a panel of numbers, stay in the second cache.
constexpr int64_t kRows = 2 * kSide, kBlocks = 8, kSteps = 32;
constexpr int64_t kTaskRows = kBlocks * kRows, kChunk = kSteps * kTerms;

// Of a panel's numbers, in parts.
int64_t panel_size(int64_t terms) { return std::min(kSteps, divided_up(terms, kTerms)) * kParts * kFactor; }

// to [kLines, kWidth] = a matrix's block [lines, width], and zeros.
template <int kLines, int kWidth>
void copy_padded(const float* from, int64_t stride, int64_t lines, int64_t width, float* to) {
  if (lines == kLines && width == kWidth) {
    for (int line = 0; line < kLines; ++line)
      std::memcpy(to + line * kWidth, from + line * stride, kWidth * sizeof(float));
    return;
  }
  std::memset(to, 0, kLines * kWidth * sizeof(float));
  for (int64_t line = 0; line < lines; ++line) {
    std::memcpy(to + line * kWidth, from + line * stride, width * sizeof(float));
  }
}

// Spikes as bfloat16 numbers in the low halves; refused: not 0 where one is none.
template <int kCount>
void narrow(const float* spk, float height, uint32_t* to, uint32_t* refused) {
  const uint32_t only = height != 1.0f;
  uint32_t found = 0;
  for (int i = 0; i < kCount; ++i) {
    const uint32_t bits = spk[i] == height ? bits_of(1.0f) : bits_of(spk[i]);
    const uint32_t small = std::fabs(spk[i]) < kLeastSpike ? 1 : 0;
    const uint32_t odd = (bits & 0xffff) | only | small;
    found |= (spk[i] != 0.0f) & (spk[i] != height) ? odd : 0;
    to[i] = bits >> 16;
  }
  *refused |= found;
}

// to [2][kSide][kTerms] = spikes [rows, terms] from this row and term on; whether they are as the unit takes them.
bool pack_spikes(const Product& product, int64_t row, int64_t term, uint16_t* to) {
  alignas(64) float block[kRows * kTerms];
  const int64_t rows = std::min(kRows, product.rows - row), terms = std::min<int64_t>(kTerms, product.terms - term);
  uint32_t refused = 0;
  if (!product.is_gradient) {
    copy_padded<kRows, kTerms>(product.spk + row * product.terms + term, product.terms, rows, terms, block);
    for (int64_t i = 0; i < kRows; ++i) {
      alignas(64) uint32_t line[kTerms];
      narrow<kTerms>(block + i * kTerms, product.height, line, &refused);
      for (int k = 0; k < kTerms; ++k) to[i * kTerms + k] = static_cast<uint16_t>(line[k]);
    }
    return !refused;
  }
  copy_padded<kTerms, kRows>(product.spk + term * product.rows + row, product.rows, terms, rows, block);
  alignas(64) uint32_t pairs[kTerms / 2][kRows];
  for (int64_t pair = 0; pair < kTerms / 2; ++pair) {
    alignas(64) uint32_t lines[2 * kRows];
    narrow<2 * kRows>(block + 2 * pair * kRows, product.height, lines, &refused);
    for (int i = 0; i < kRows; ++i) pairs[pair][i] = lines[i] | lines[kRows + i] << 16;
  }
  for (int64_t i = 0; i < kRows; ++i) {
    uint32_t turned[kTerms / 2];
    for (int64_t pair = 0; pair < kTerms / 2; ++pair) turned[pair] = pairs[pair][i];
    std::memcpy(to + i * kTerms, turned, sizeof(turned));
  }
  return !refused;
}

// to [kParts][kTerms / 2][kSide][2] = numbers [terms, columns] from this term and column on, scaled and cut in parts;
// whether all are finite.
bool pack_numbers(const Product& product, int64_t term, int64_t column, uint16_t* to) {
  constexpr uint32_t kExponent = 0x7f800000, kFirstPart = 0xffff0000;
  alignas(64) float block[kTerms * kSide];
  const int64_t terms = std::min<int64_t>(kTerms, product.terms - term);
  const int64_t columns = std::min<int64_t>(kSide, product.columns - column);
  if (product.is_gradient) {
    copy_padded<kTerms, kSide>(product.numbers + term * product.columns + column, product.columns, terms, columns,
                               block);
  } else {
    alignas(64) float lines[kSide * kTerms];
    copy_padded<kSide, kTerms>(product.numbers + column * product.terms + term, product.terms, columns, terms, lines);
    for (int k = 0; k < kTerms; ++k) {
      for (int i = 0; i < kSide; ++i) block[k * kSide + i] = lines[i * kTerms + k];
    }
  }
  uint32_t refused = 0;
  for (int pair = 0; pair < kTerms / 2; ++pair) {
    float *one = block + 2 * pair * kSide, *two = one + kSide;
    for (int i = 0; i < 2 * kSide; ++i) {
      one[i] *= kScale;
      refused |= (bits_of(one[i]) & kExponent) == kExponent;
    }
    for (int part = 0; part < kParts; ++part) {
      uint32_t words[kSide];
      for (int i = 0; i < kSide; ++i) {
        const uint32_t first = bits_of(one[i]) & kFirstPart, second = bits_of(two[i]) & kFirstPart;
        words[i] = first >> 16 | second;
        one[i] -= float_of(first);
        two[i] -= float_of(second);
      }
      std::memcpy(to + part * kFactor + pair * 2 * kSide, words, sizeof(words));
    }
  }
  return !refused;
}

// sums [2][kRows][kSide]: of the first parts, and of the others.
template <typename UnitType>
void multiply_block(UnitType& unit, const uint16_t* spikes, const uint16_t* parts, int64_t steps, float* sums) {
  unit.template zero<0>();
  unit.template zero<1>();
  unit.template zero<2>();
  unit.template zero<3>();
  for (int64_t step = 0; step < steps; ++step, spikes += 2 * kFactor, parts += kParts * kFactor) {
    unit.template load<4>(spikes);
    unit.template load<5>(spikes + kFactor);
    unit.template load<6>(parts + kFactor);
    unit.template multiply<2, 4, 6>();
    unit.template multiply<3, 5, 6>();
    unit.template load<7>(parts);
    unit.template multiply<0, 4, 7>();
    unit.template multiply<1, 5, 7>();
    unit.template load<6>(parts + 2 * kFactor);
    unit.template multiply<2, 4, 6>();
    unit.template multiply<3, 5, 6>();
  }
  unit.template store<0>(sums);
  unit.template store<1>(sums + kSums);
  unit.template store<2>(sums + 2 * kSums);
  unit.template store<3>(sums + 3 * kSums);
}

// Adds a block of sums to what its place in the result holds, if any, and at the last finishes it; whether all is
// finite.
bool write_block(const Product& product, float* sums, int64_t row, int64_t column, bool first, bool last) {
  const int64_t rows = std::min(kRows, product.rows - row);
  const int64_t columns = std::min<int64_t>(kSide, product.columns - column);
  const int64_t row_stride = product.is_gradient ? 1 : product.columns;
  const int64_t column_stride = product.is_gradient ? product.rows : 1;
  float* const out = product.out + row * row_stride + column * column_stride;
  for (int i = 0; i < kRows * kSide; ++i) sums[i] = (sums[i] + sums[kRows * kSide + i]) / kScale;
  for (int64_t i = 0; i < rows && !first; ++i) {
    for (int64_t k = 0; k < columns; ++k) sums[i * kSide + k] += out[i * row_stride + k * column_stride];
  }
  for (int i = 0; i < kRows * kSide && last; ++i) sums[i] *= product.height;
  if (last && product.bias) {
    float bias[kSide] = {};
    std::memcpy(bias, product.bias + column, columns * sizeof(float));
    for (int i = 0; i < kRows * kSide; ++i) sums[i] += bias[i % kSide];
  }
  for (int64_t k = 0; k < columns && product.is_gradient; ++k) {
    for (int64_t i = 0; i < rows; ++i) out[k * column_stride + i] = sums[i * kSide + k];
  }
  for (int64_t i = 0; i < rows && !product.is_gradient; ++i) {
    std::memcpy(out + i * row_stride, sums + i * kSide, columns * sizeof(float));
  }
  return all_finite(sums, rows * kSide);
}

template <typename UnitType>
bool multiply_by(const Product& product) {
  const int64_t panels = divided_up(product.columns, kSide), row_tasks = divided_up(product.rows, kTaskRows);
  // Every part of the columns packs the spikes anew: as few as there are threads to be busy.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t column_tasks = std::min(divided_up(threads, row_tasks), panels);
  const int64_t size = panel_size(product.terms);
  uint16_t* const parts = reinterpret_cast<uint16_t*>(product.packed);
  std::atomic<bool> finite = true;
  for (int64_t term = 0; term < product.terms && finite; term += kChunk) {
    const int64_t steps = divided_up(std::min(kChunk, product.terms - term), kTerms);
    torch::stable::parallel_for(0, panels, 4, [&](int64_t begin, int64_t end) {
      bool all = true;
      vectorized([&] {
        for (int64_t panel = begin; panel < end; ++panel) {
          uint16_t* to = parts + panel * size;
          for (int64_t step = 0; step < steps; ++step, to += kParts * kFactor) {
            all &= pack_numbers(product, term + step * kTerms, panel * kSide, to);
          }
        }
      });
      if (!all) finite = false;
    });
    if (!finite) return false;
    torch::stable::parallel_for(0, row_tasks * column_tasks, 1, [&](int64_t begin, int64_t end) {
      const Scratch scratch(kTaskRows * steps * kTerms / 2);
      uint16_t* const spikes = reinterpret_cast<uint16_t*>(scratch.data());
      alignas(64) float sums[4 * kSums];
      UnitType unit;
      for (int64_t task = begin; task < end && finite; ++task) {
        const int64_t first_row = task / column_tasks * kTaskRows, part = task % column_tasks;
        const int64_t blocks = divided_up(std::min(kTaskRows, product.rows - first_row), kRows);
        bool all = true;
        vectorized([&] {
          uint16_t* to = spikes;
          for (int64_t i = 0; i < blocks * steps; ++i, to += 2 * kFactor) {
            all &= pack_spikes(product, first_row + i / steps * kRows, term + i % steps * kTerms, to);
          }
        });
        for (int64_t panel = panels * part / column_tasks; panel < panels * (part + 1) / column_tasks && all; ++panel) {
          for (int64_t block = 0; block < blocks; ++block) {
            multiply_block(unit, spikes + block * steps * 2 * kFactor, parts + panel * size, steps, sums);
            const int64_t row = first_row + block * kRows;
            vectorized([&] {
              all &= write_block(product, sums, row, panel * kSide, term == 0, term + kChunk >= product.terms);
            });
          }
        }
        if (!all) finite = false;
      }
    });
  }
  return finite;
}

bool multiply(const Product& product) {
#ifdef SNNFAST_AMX
  if (current() == Unit::kAmx) return multiply_by<AmxUnit>(product);
#endif
  return current() == Unit::kEmulated && multiply_by<EmulatedUnit>(product);
}

// What was measured of large sizes, less what tiles hold of nothing, and what packing costs where products are few:
// measured, a number as much as 50 products of torch's, of which there are as many as rows, and a spike as 30.
double gain(double measured, int64_t rows, int64_t terms, int64_t columns) {
  if (forced != Unit::kNone) return std::numeric_limits<double>::infinity();
  if (current() == Unit::kNone) return 0;
  constexpr int64_t kCostOfNumber = 50, kCostOfSpike = 30;
  const auto share = [](int64_t size, int64_t whole) { return static_cast<double>(size) / static_cast<double>(whole); };
  const auto filled = [&](int64_t size, int64_t unit) { return share(size, divided_up(size, unit) * unit); };
  return measured * filled(rows, kRows) * filled(terms, kTerms) * filled(columns, kSide) *
         share(rows, rows + kCostOfNumber) * share(columns, columns + kCostOfSpike);
}

}  // namespace

bool has_amx() {
  static const bool found = ask_for_amx();
  return found;
}

void use(Unit unit) { used = unit; }

void force(Unit unit) { forced = unit; }

// The middle of what a prototype gained over sgemm with AVX-512 on the same cores: 2.0 to 2.4, and 1.1 to 1.6.
double forward_gain(const LinearSizes& sizes) { return gain(2.2, sizes.rows, sizes.inputs, sizes.outputs); }

double gradient_gain(const LinearSizes& sizes) { return gain(1.35, sizes.inputs, sizes.rows, sizes.outputs); }

int64_t packed_size(int64_t terms, int64_t outputs) { return divided_up(outputs, kSide) * panel_size(terms) / 2; }

bool multiply(const float* spk, const float* weight, const float* bias, float height, const LinearSizes& sizes,
              float* packed, float* out) {
  return multiply({sizes.rows, sizes.inputs, sizes.outputs, spk, weight, bias, height, packed, out, false});
}

bool multiply_transposed(const float* grad, const float* spk, float height, const LinearSizes& sizes, float* packed,
                         float* out) {
  return multiply({sizes.inputs, sizes.rows, sizes.outputs, spk, grad, nullptr, height, packed, out, true});
}

}  // namespace snnfast::tiles

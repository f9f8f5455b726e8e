// Rows of a tile of neurons, and what every time loop does with them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../op/scan.h"
#include "memory.h"

namespace snnfast {

inline constexpr int kTile = 1024;  // so that its rows fit the first cache
inline constexpr int kLine = 64;    // bytes

// A line longer than it is wide: rows a power of two apart would all fall into the same few places of that cache.
template <typename T>
using Row = T[kTile + kLine / sizeof(T)];

template <typename T>
void fill(Row<T>& row, T value) {
  std::fill_n(row, kTile, value);
}

template <typename T, int kCount>
void load_params(Row<T> (&rows)[kCount], const Periodic<T> (&params)[kCount], int64_t first, int width) {
  for (int k = 0; k < kCount; ++k) {
    if (params[k].period == 1) {
      std::fill_n(rows[k], width, *params[k].data);
      continue;
    }
    int64_t at = first % params[k].period;
    for (int i = 0; i < width; ++i) {
      rows[k][i] = params[k].data[at];
      if (++at == params[k].period) at = 0;
    }
  }
}

// The next step's row lies far from this one, where no hardware prefetcher looks: touch its pages, or all its lines,
// while this one is computed. Null rows are passed over.
template <int kBytes = kPage, typename T>
void prefetch_row(const T* sequence, int64_t offset, int width) {
  if (!sequence) return;
  for (int i = 0; i < width; i += kBytes / static_cast<int>(sizeof(T))) __builtin_prefetch(sequence + offset + i);
}

}  // namespace snnfast

// Spikes times float32 numbers on a CPU's matrix unit (AMX), with float32's accuracy at any density.
//
// A float32 number is the sum of three bfloat16 numbers, its 24 digits cut in three, and a spike is one bfloat16
// number. So three products of tiles, whose sums are float32, give what one of float32 would. The first part's sums are
// apart from the others': each of those would be rounded at the size of the first.
//
// The unit takes denormal numbers for zero and gives none. Numbers are therefore multiplied by 2^40 before they are
// cut, and sums by its inverse: then the last digit of any float32 number, in any of the parts, times that of a spike
// of 2^-10 or more, is at least 2^-126, and so is every sum that is not zero. What is refused: numbers that this makes
// infinite, of 2^88 and more, smaller spikes, and spikes that are neither bfloat16 numbers nor of one height.
#pragma once

#include "lists.h"

namespace snnfast::tiles {

enum class Unit { kNone, kAmx, kEmulated };

// Whether this CPU has AMX for bfloat16 and the system lets this process use it, which it is asked once.
bool has_amx();

// Has all threads compute by this unit where it is the fastest.
void use(Unit unit);

// Has the calling thread compute all products by this unit; by none: as for all threads.
void force(Unit unit);

// How much faster than torch's a product is expected to be; 0 where no unit is in use.
double forward_gain(const LinearSizes& sizes);
double gradient_gain(const LinearSizes& sizes);

// How many floats of memory a product of so many terms needs beside its result.
int64_t packed_size(int64_t terms, int64_t outputs);

// out [rows, outputs] = spk weight^T + bias [outputs] or nothing. height: what is taken out of spikes as a factor,
// where they are no bfloat16 numbers; else 1. packed: of packed_size(inputs, outputs). False where something is
// refused, infinite or no number.
bool multiply(const float* spk, const float* weight, const float* bias, float height, const LinearSizes& sizes,
              float* packed, float* out);

// out [outputs, inputs] = grad^T spk; likewise, packed: of packed_size(rows, outputs).
bool multiply_transposed(const float* grad, const float* spk, float height, const LinearSizes& sizes, float* packed,
                         float* out);

}  // namespace snnfast::tiles

// A thread's neurons, one or four neighbouring ones, and how their values move.
//
// NVRTC compiles this for generated neurons: nothing here is the host's.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../op/scan.h"

namespace snnfast {

inline constexpr int kThreads = 128;  // at one block a multiprocessor at least: registers hold kAhead steps, unspilled

// How a thread works: on how many neurons at once, and how many steps ahead it asks for inputs.
template <int lanes, int ahead>
struct Regime {
  static constexpr int kLanes = lanes, kAhead = ahead;
};

// What few neurons need: as many threads as there are neurons, each far ahead.
using NarrowForward = Regime<1, 16>;
template <typename T>
using NarrowBackward = Regime<1, sizeof(T) == sizeof(float) ? 8 : 4>;  // which reads more a step

// What many neurons need: states move 16 bytes at a time, currents and spikes 16 or, in half precision, 8.
using Wide = Regime<4, 4>;

template <typename T, int kLanes>
struct alignas(kLanes * sizeof(T)) Pack {
  T lanes[kLanes];
};

template <int kLanes, typename T>
__device__ Pack<T, kLanes> load(const T* from, int64_t at) {
  return *reinterpret_cast<const Pack<T, kLanes>*>(from + at);
}

template <int kLanes, typename T>
__device__ Pack<T, kLanes> load_or(T otherwise, const T* from, int64_t at) {
  if (from) return load<kLanes>(from, at);
  Pack<T, kLanes> pack;
#pragma unroll
  for (int w = 0; w < kLanes; ++w) pack.lanes[w] = otherwise;
  return pack;
}

template <int kLanes, typename T>
__device__ Pack<T, kLanes> load_or(T otherwise, const Rows<T>& from, int64_t t, int64_t i) {
  return load_or<kLanes>(otherwise, from.data, t * from.stride + i);
}

// of(w): the value of lane w. Null: nobody wants it.
template <int kLanes, typename T, typename Of>
__device__ void store(T* to, int64_t at, const Of& of) {
  if (!to) return;
  Pack<T, kLanes> pack;
#pragma unroll
  for (int w = 0; w < kLanes; ++w) pack.lanes[w] = static_cast<T>(of(w));
  *reinterpret_cast<Pack<T, kLanes>*>(to + at) = pack;
}

// body(first of its lanes' neurons) for all that a thread has to do.
template <int kLanes, typename Body>
__device__ void for_neurons(int64_t neurons, const Body& body) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x * kLanes;
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (int64_t i = thread * kLanes; i < neurons; i += stride) body(i);
}

// A block's dynamic shared memory.
template <typename T>
__device__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char snnfast_shared[];
  return reinterpret_cast<T*>(snnfast_shared);
}

}  // namespace snnfast

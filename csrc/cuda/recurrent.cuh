// All-to-all recurrence in one launch: a team of blocks holds the weights on the chip, each of them the columns of its
// own neurons, and walks its share of the samples through time.
//
// A warp takes 32 neighbouring neurons of a sample. On the way forward, all that neurons need of each other is who
// fired: 32 bits a warp and step, and a neuron adds up the weights of those that did. On the way back they need each
// other's gradients, which are read from dL/dx: a product, in which a weight serves four samples at a time.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>

#include "../integers.h"
#include "../neuron/model.h"
#include "../op/scan.h"
#include "launch.cuh"
#include "scan.cuh"

namespace snnfast {

inline constexpr int kMostWarps = 16;
inline constexpr int kQuad = 4;
inline constexpr unsigned kAllLanes = 0xffffffff;

// What a device has room for.
struct Chip {
  int64_t multiprocessors, shared, threads;  // bytes that a block may have; threads of a multiprocessor
  bool cooperative;                          // whether blocks may wait for each other

  explicit Chip(const torch::stable::Tensor& on)
      : multiprocessors(device_attribute(on, cudaDevAttrMultiProcessorCount)),
        shared(most_shared(on)),
        threads(device_attribute(on, cudaDevAttrMaxThreadsPerMultiProcessor)),
        cooperative(device_attribute(on, cudaDevAttrCooperativeLaunch) != 0) {}

  int64_t most_blocks() const { return cooperative ? multiprocessors : 1; }
};

// How the work is shared: `teams` of `blocks`, each team with up to `samples` of them, each block with `own` neurons.
struct Team {
  int64_t samples, teams, all_samples;
  int features, own, blocks, warps;
  int quads = 0;             // backward: fours of samples whose gradients lie in shared memory at once
  bool shares_bits = false;  // forward: in the block's own memory
  std::size_t shared = 0;

  C10_HOST_DEVICE int own_words() const { return own / kWarp; }
  C10_HOST_DEVICE int words() const { return blocks * own_words(); }
  C10_HOST_DEVICE int64_t matrix() const { return int64_t{features} * own; }

  // What blocks tell each other: who has arrived, and forward who fired, in this step and the one before.
  int64_t board_size() const { return teams + (shares_bits ? 0 : 2 * all_samples * words()); }
  Grid grid() const { return {teams * blocks, warps * kWarp, 1, shared, blocks > 1}; }
  // Arrivals are counted in 32 bits.
  bool counts(int64_t steps) const { return steps < (int64_t{1} << 31) / blocks; }

  // The fewest blocks that hold the weights, with `beside` more bytes each; none where all together cannot.
  static std::optional<Team> of(const Chip& chip, int64_t features, int64_t samples, int64_t beside) {
    for (int64_t blocks = 1; blocks <= chip.most_blocks() && (blocks - 1) * kWarp < features; ++blocks) {
      const int64_t own = divided_up(divided_up(features, blocks), kWarp) * kWarp;
      const int64_t bytes = features * own * int64_t{sizeof(float)} + beside;
      if (own > kMostWarps * kWarp || bytes > chip.shared) continue;
      Team team{};
      team.all_samples = samples;
      team.features = static_cast<int>(features);
      team.own = static_cast<int>(own);
      team.blocks = static_cast<int>(divided_up(features, own));
      team.shared = static_cast<std::size_t>(bytes);
      return team;
    }
    return std::nullopt;
  }

  // Deals the samples out, `granule` at a time at least, to as many teams as run at once.
  void deal(const Chip& chip, int64_t granule, int64_t warps_of_granule) {
    const int64_t side_by_side =
        std::min(chip.shared / static_cast<int64_t>(shared), chip.threads / (kWarp * kMostWarps));
    const int64_t room =
        blocks > 1 ? chip.multiprocessors / blocks : chip.multiprocessors * std::max<int64_t>(1, side_by_side);
    const int64_t granules = divided_up(all_samples, granule);
    const int64_t each = divided_up(granules, room);
    samples = each * granule;
    teams = divided_up(granules, each);
    warps = static_cast<int>(std::min<int64_t>(kMostWarps, each * warps_of_granule));
  }
};

inline std::optional<Team> forward_team(const Chip& chip, int64_t features, int64_t samples) {
  std::optional<Team> team = Team::of(chip, features, samples, 0);
  if (!team.has_value()) return team;
  team->deal(chip, 1, team->own_words());
  const int64_t bits = 2 * team->samples * team->words() * int64_t{sizeof(unsigned)};
  const int64_t bytes = static_cast<int64_t>(team->shared) + bits;
  team->shares_bits = team->blocks == 1 && bytes <= chip.shared;
  if (team->shares_bits) team->shared = static_cast<std::size_t>(bytes);
  return team;
}

inline std::optional<Team> backward_team(const Chip& chip, int64_t features, int64_t samples) {
  const int64_t quad = kQuad * features * int64_t{sizeof(float)};
  std::optional<Team> team = Team::of(chip, features, samples, quad);
  if (!team.has_value()) return team;
  team->deal(chip, kQuad, team->own_words());
  const int64_t matrix = team->matrix() * int64_t{sizeof(float)};
  const int64_t most = std::min<int64_t>(kMostWarps / team->own_words(), (chip.shared - matrix) / quad);
  team->quads = static_cast<int>(std::min(most, team->samples / kQuad));
  team->warps = team->quads * team->own_words();
  team->shared = static_cast<std::size_t>(matrix + team->quads * quad);
  return team;
}

// A block's part of its team's work.
struct Share {
  int64_t first_sample, samples;
  int team, first_feature;

  __device__ explicit Share(const Team& all)
      : team(blockIdx.x / all.blocks), first_feature((blockIdx.x % all.blocks) * all.own) {
    first_sample = team * all.samples;
    const int64_t left = all.all_samples - first_sample;
    samples = left < all.samples ? left : all.samples;
  }
};

// Waits for all blocks of the team, the `round`-th time, after which each sees what the others wrote.
__device__ inline void meet(const Team& team, unsigned* arrivals, unsigned round) {
  __syncthreads();
  if (team.blocks == 1) return;
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(arrivals, 1u);
    while (*static_cast<volatile unsigned*>(arrivals) < round * team.blocks) __nanosleep(20);
    __threadfence();
  }
  __syncthreads();
}

// The block's columns of weights [features, features], each row times `height(row)`.
template <typename T, typename Height>
__device__ void load_columns(T* matrix, const T* weights, const Team& team, const Share& share, const Height& height) {
  for (int64_t k = threadIdx.x; k < team.matrix(); k += blockDim.x) {
    const int row = static_cast<int>(k / team.own), feature = share.first_feature + static_cast<int>(k % team.own);
    matrix[k] = feature < team.features ? weights[int64_t{row} * team.features + feature] * height(row) : T(0);
  }
}

// The sum of a column of the matrix over those of `fired` [words] whose bits are set.
template <typename T>
__device__ T sum_fired(const volatile unsigned* fired, const Team& team, const T* column) {
  const int lane = threadIdx.x % kWarp;
  T sum = T(0);
  for (int first = 0; first < team.words(); first += kWarp) {
    const unsigned mine = first + lane < team.words() ? fired[first + lane] : 0;
    for (unsigned some = __ballot_sync(kAllLanes, mine != 0); some != 0; some &= some - 1) {
      const int k = __ffs(static_cast<int>(some)) - 1;
      const unsigned word = __shfl_sync(kAllLanes, mine, k);
      const T* rows = column + (first + k) * kWarp * team.own;
#pragma unroll
      for (int bit = 0; bit < kWarp; ++bit) {
        if (word >> bit & 1) sum += rows[bit * team.own];
      }
    }
  }
  return sum;
}

// Step t of neuron i. Returns the spike as it is stored.
template <typename Neuron, typename S, typename T = typename Neuron::Scalar>
__device__ T step_at(const Scan<Neuron, S>& scan, const NeuronOptions& options, int64_t t, int64_t i, T rec) {
  const Neuron neuron = load_neuron<Neuron>(scan.params, options, i);
  const int64_t at = t * scan.neurons + i;
  T state[Neuron::kStates], extra[Neuron::kExtras + 1];
#pragma unroll
  for (int k = 0; k < Neuron::kStates; ++k) {
    const T* before = t > 0 ? scan.last[k] : scan.initial[k];
    state[k] = before ? before[i] : T(0);
  }
  const S spk = static_cast<S>(step(neuron, static_cast<T>(scan.x.at(t)[i]), rec, state, extra));
  scan.spk[at] = spk;
#pragma unroll
  for (int k = 0; k < Neuron::kStates; ++k) {
    scan.last[k][i] = state[k];
    if (scan.states[k]) scan.states[k][at] = state[k];
  }
#pragma unroll
  for (int k = 0; k < Neuron::kExtras; ++k) {
    if (scan.extras[k]) scan.extras[k][at] = extra[k];
  }
  return static_cast<T>(spk);
}

// scan.rec [neurons]: the recurrent current of the first step, but for the bias; null: zeros. board: zeros.
template <typename Neuron, typename S, typename T = typename Neuron::Scalar>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    recurrent_kernel(const Scan<Neuron, S> scan, const NeuronOptions options, const T* weight_t, const T* bias,
                     const Team team, unsigned* board) {
  const Share share(team);
  T* matrix = shared_memory<T>();
  load_columns(matrix, weight_t, team, share, [&](int row) {
    return static_cast<T>(static_cast<S>(spike_height(load_neuron<Neuron>(scan.params, options, row))));
  });
  const int64_t samples = team.shares_bits ? team.samples : team.all_samples;
  volatile unsigned* bits = team.shares_bits ? reinterpret_cast<unsigned*>(matrix + team.matrix())
                                             : board + team.teams + share.first_sample * team.words();
  const int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp, own_words = team.own_words();
  __syncthreads();
  for (int64_t t = 0; t < scan.steps; ++t) {
    const volatile unsigned* fired = bits + ((t + 1) % 2) * samples * team.words();
    volatile unsigned* fire = bits + (t % 2) * samples * team.words();
    for (int64_t task = threadIdx.x / kWarp; task < share.samples * own_words; task += warps) {
      const int64_t sample = task / own_words, row = sample * team.words();
      const int column = static_cast<int>(task % own_words) * kWarp + lane, feature = share.first_feature + column;
      const int64_t i = (share.first_sample + sample) * team.features + feature;
      const bool inside = feature < team.features;
      if (inside && t + 1 < scan.steps) prefetch(scan.x.at(t + 1) + i);
      T rec = T(0), spk = T(0);
      if (t > 0) rec = sum_fired(fired + row, team, matrix + column);
      if (inside && t == 0 && scan.rec) rec = scan.rec[i];
      if (inside) spk = step_at(scan, options, t, i, bias ? rec + bias[feature] : rec);
      const unsigned word = __ballot_sync(kAllLanes, spk != T(0));
      if (lane == 0) fire[row + feature / kWarp] = word;
    }
    meet(team, board + share.team, static_cast<unsigned>(t + 1));
  }
}

// A value of each of four samples, read at once.
template <typename T>
struct alignas(kQuad * sizeof(T)) Quad {
  T values[kQuad];
};

// A value that another block wrote during this launch.
template <typename S>
__device__ S fresh(const S* address) {
  using Bits = std::conditional_t<sizeof(S) == 4, unsigned, unsigned short>;
  const Bits bits = __ldcg(reinterpret_cast<const Bits*>(address));
  S value;
  memcpy(&value, &bits, sizeof(S));
  return value;
}

// grads [quads, features] from a step's dL/dx, of the samples from `first` on.
template <typename T, typename S>
__device__ void load_quads(Quad<T>* grads, const S* grad_x, const Team& team, const Share& share, int64_t first) {
  const int64_t values = int64_t{team.quads} * kQuad * team.features;
  for (int64_t k = threadIdx.x; k < values; k += blockDim.x) {
    const int64_t sample = k / team.features, feature = k % team.features;
    const int64_t at = (share.first_sample + first + sample) * team.features + feature;
    const T grad = first + sample < share.samples ? static_cast<T>(fresh(grad_x + at)) : T(0);
    grads[sample / kQuad * team.features + feature].values[sample % kQuad] = grad;
  }
}

// What four samples' gradients bring to the spikes of a column's neuron.
template <typename T>
__device__ Quad<T> fed_back(const Quad<T>* grads, const T* column, const Team& team) {
  Quad<T> fed{};
#pragma unroll 8
  for (int row = 0; row < team.features; ++row) {
    const T weight = column[int64_t{row} * team.own];
    const Quad<T> grad = grads[row];
#pragma unroll
    for (int s = 0; s < kQuad; ++s) fed.values[s] = fma(weight, grad.values[s], fed.values[s]);
  }
  return fed;
}

// Step t of neuron i on the way back, with what came back to its spike from the step after.
template <bool kWithParams, typename Neuron, typename S, typename T = typename Neuron::Scalar>
__device__ void step_back_at(const ScanBackward<Neuron, S>& scan, const NeuronOptions& options,
                             const AnySurrogate<T>& surrogate, int64_t t, int64_t i, T fed) {
  const Neuron neuron = load_neuron<Neuron>(scan.params, options, i);
  const int64_t at = t * scan.neurons + i;
  const bool is_last = t + 1 == scan.steps;
  BackwardInputs<Neuron> lanes[1];
  load_inputs(lanes, scan, t, i);
  const BackwardInputs<Neuron>& inputs = lanes[0];
  T carry[Neuron::kCarries], state[Neuron::kStates], grad_params[Neuron::kParams];
#pragma unroll
  for (int k = 0; k < Neuron::kStates; ++k) {
    const T* after = is_last ? scan.grad_last[k] : scan.grad_initial[k];
    carry[k] = inputs.grad_states[k] + (after ? after[i] : kAbsent<T>);
    state[k] = scan.states[k] ? scan.states[k][at] : T(0);
  }
#pragma unroll
  for (int k = Neuron::kStates; k < Neuron::kCarries; ++k) carry[k] = kAbsent<T>;
  const T grad_x = step_backward(neuron, surrogate, inputs.grad_spk + fed, inputs.evaluated, state, inputs.extras,
                                 inputs.previous, carry, grad_params);
  scan.grad_x[at] = static_cast<S>(grad_x);
  add_terms<Neuron>(carry, std::make_index_sequence<Neuron::kCarries - Neuron::kStates>());
#pragma unroll
  for (int k = 0; k < Neuron::kStates; ++k) scan.grad_initial[k][i] = carry[k];
  if constexpr (kWithParams) {
#pragma unroll
    for (int k = 0; k < Neuron::kParams; ++k) {
      scan.grad_params[k][i] = is_last ? grad_params[k] : scan.grad_params[k][i] + grad_params[k];
    }
  }
}

// scan.grad_initial holds what steps hand each other. fed [neurons]: dL/dspk before the first step. arrivals: zeros.
template <bool kWithParams, typename Neuron, typename S, typename T = typename Neuron::Scalar>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    recurrent_backward_kernel(const ScanBackward<Neuron, S> scan, const NeuronOptions options,
                              const AnySurrogate<T> surrogate, const T* weight, T* fed, const Team team,
                              unsigned* arrivals) {
  const Share share(team);
  T* matrix = shared_memory<T>();
  auto* grads = reinterpret_cast<Quad<T>*>(matrix + team.matrix());
  load_columns(matrix, weight, team, share, [](int) { return T(1); });
  const int warp = threadIdx.x / kWarp, quad = warp / team.own_words();
  const int column = warp % team.own_words() * kWarp + threadIdx.x % kWarp, feature = share.first_feature + column;
  for (int64_t t = scan.steps - 1; t >= -1; --t) {
    const bool is_last = t + 1 == scan.steps;
    if (!is_last) meet(team, arrivals + share.team, static_cast<unsigned>(scan.steps - 1 - t));
    for (int64_t first = 0; first < share.samples; first += int64_t{team.quads} * kQuad) {
      Quad<T> back{kAbsent<T>, kAbsent<T>, kAbsent<T>, kAbsent<T>};
      if (!is_last) {
        __syncthreads();
        load_quads(grads, scan.grad_x + (t + 1) * scan.neurons, team, share, first);
        __syncthreads();
        back = fed_back(grads + int64_t{quad} * team.features, matrix + column, team);
      }
      for (int s = 0; s < kQuad; ++s) {
        const int64_t sample = first + quad * kQuad + s;
        if (feature >= team.features || sample >= share.samples) continue;
        const int64_t i = (share.first_sample + sample) * team.features + feature;
        if (t >= 0) step_back_at<kWithParams>(scan, options, surrogate, t, i, back.values[s]);
        if (t < 0) fed[i] = back.values[s];
      }
    }
  }
}

}  // namespace snnfast

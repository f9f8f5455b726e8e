// Runs a loop body compiled for the widest vectors this machine has, from one portable binary.
#pragma once

namespace snnfast {

#if defined(__x86_64__) && defined(__GNUC__)

template <typename Body>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"),
  gnu::flatten]] void run_avx512(const Body& body) {
  body();
}

template <typename Body>
[[gnu::target("avx2"), gnu::flatten]] void run_avx2(const Body& body) {
  body();
}

template <typename Body>
void vectorized(const Body& body) {
  static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const bool avx2 = __builtin_cpu_supports("avx2");
  if (avx512) return run_avx512(body);
  if (avx2) return run_avx2(body);
  body();
}

#else

template <typename Body>
void vectorized(const Body& body) {
  body();
}

#endif

}  // namespace snnfast

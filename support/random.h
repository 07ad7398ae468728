// SPDX-License-Identifier: Apache-2.0
// Random numbers that are the same on every machine and compiler: integers only, no libm, no
// std distributions. Not for cryptography.
#pragma once

#include <cstdint>

namespace ringattn::support {

/// The finaliser of SplitMix64 (Steele, Lea & Flood 2014): a bijection that looks random.
constexpr std::uint64_t mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

/// Number `counter` of stream `stream` of `seed`: any order, any thread.
constexpr std::uint64_t random_bits(std::uint64_t seed, std::uint64_t stream,
                                    std::uint64_t counter) {
  return mix(mix(mix(seed) ^ stream) ^ counter);
}

/// Nearly normal, mean 0, variance 1: the sum of eight 16-bit uniforms (|x| < 4.9), exact in
/// double but for the last division.
constexpr double random_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  std::int64_t sum = 0;
  for (std::uint64_t half = 0; half < 2; ++half) {
    const std::uint64_t bits = random_bits(seed, stream, 2 * counter + half);
    for (int i = 0; i < 4; ++i) sum += static_cast<std::int64_t>(bits >> (16 * i) & 0xFFFFU);
  }
  // Eight uniforms on [0, 65535] have mean 4 * 65535 and variance 8 * (65536^2 - 1) / 12.
  constexpr double kStandardDeviation = 53509.91992145008;
  return static_cast<double>(sum - 4 * 65535) / kStandardDeviation;
}

/// A sequence of draws.
class Random {
 public:
  explicit constexpr Random(std::uint64_t seed, std::uint64_t stream = 0)
      : seed_(seed), stream_(stream) {}

  /// Uniform on [low, high]; the bias of the modulus is below 2^-40 for ranges below 2^24.
  constexpr std::int64_t between(std::int64_t low, std::int64_t high) {
    const auto range = static_cast<std::uint64_t>(high - low) + 1;
    return low + static_cast<std::int64_t>(random_bits(seed_, stream_, counter_++) % range);
  }
  constexpr bool one_in(std::int64_t n) { return between(0, n - 1) == 0; }

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t counter_ = 0;
};

}  // namespace ringattn::support

// Seeded random numbers: xoshiro256** filled by splitmix64 (Blackman and Vigna, public domain algorithms).
// The same seed gives the same numbers on every machine; never used for anything secret.
#pragma once

#include <bit>
#include <cstdint>

namespace ferry {

class Random {
 public:
  explicit constexpr Random(std::uint64_t seed) {
    for (auto& s : state_) {
      seed += 0x9e3779b97f4a7c15;
      std::uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
      z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
      s = z ^ (z >> 31);
    }
  }

  constexpr std::uint64_t next() {
    const std::uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const std::uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  /// Uniform in [0, bound); bound must not be 0.
  constexpr std::uint64_t below(std::uint64_t bound) {
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
  }
  /// True in `per_mille` of 1000 calls, on average.
  constexpr bool chance(unsigned per_mille) { return below(1000) < per_mille; }

 private:
  std::uint64_t state_[4]{};
};

}  // namespace ferry

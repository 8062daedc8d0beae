// Hashes that are equal on every machine, for states and the names of events. Not for anything secret.
#pragma once

#include <cstdint>
#include <string_view>

namespace ferry::check {

[[nodiscard]] constexpr std::uint64_t mix(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

/// What was added, in its order.
class Hash {
 public:
  constexpr Hash& add(std::uint64_t value) {
    state_ = mix(state_ ^ value);
    return *this;
  }
  constexpr Hash& add(std::string_view text) {
    for (const char c : text) state_ = (state_ ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    return add(text.size());
  }
  [[nodiscard]] constexpr std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0xcbf29ce484222325;
};

}  // namespace ferry::check

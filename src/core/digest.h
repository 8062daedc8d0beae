// Hashing of state for explorers: equal states must give equal numbers, so what goes in is named by what people would
// name it by (client, block, granule), never by an index, a serial or an address.
#pragma once

#include <cstdint>

#include "base/bitmap.h"
#include "base/status.h"
#include "base/types.h"

namespace ferry::core {

/// Order matters: add(a), add(b) is not add(b), add(a).
class Digest {
 public:
  constexpr Digest& add(std::uint64_t value) {
    value_ = mix(value_ ^ (value + 0x9e37'79b9'7f4a'7c15));
    return *this;
  }
  constexpr Digest& add(PageSpan span) { return add(span.first).add(span.count_pages); }
  constexpr Digest& add(Status status) { return add(static_cast<std::uint64_t>(status.code)); }
  constexpr Digest& add(const PageMask& mask) {
    // By runs: most masks are empty, full, or have one.
    mask.for_each_run([this](unsigned first, unsigned count) { add((std::uint64_t{first} << 32) | count); });
    return add(~std::uint64_t{0});
  }
  [[nodiscard]] constexpr std::uint64_t value() const { return value_; }

 private:
  /// Of splitmix64: every bit of the input changes half of the output.
  static constexpr std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58'476d'1ce4'e5b9;
    x = (x ^ (x >> 27)) * 0x94d0'49bb'1331'11eb;
    return x ^ (x >> 31);
  }
  std::uint64_t value_ = 0x243f'6a88'85a3'08d3;
};

/// Of a set whose order means nothing: add the digest of each member.
class SetDigest {
 public:
  constexpr void add(std::uint64_t member) {
    sum_ += member;
    ++count_;
  }
  [[nodiscard]] constexpr std::uint64_t value() const { return Digest().add(sum_).add(count_).value(); }

 private:
  std::uint64_t sum_ = 0;
  std::uint64_t count_ = 0;
};

/// A moment, as far as the future can tell: nanoseconds from now, or 0 for all that are over.
[[nodiscard]] constexpr std::uint64_t time_left(std::uint64_t now_ns, std::uint64_t until_ns) {
  return until_ns > now_ns ? until_ns - now_ns : 0;
}
/// How long something has been going on; all that lasts for longer than `most` is alike.
[[nodiscard]] constexpr std::uint64_t time_since(std::uint64_t now_ns, std::uint64_t since_ns, std::uint64_t most) {
  const std::uint64_t gone = now_ns > since_ns ? now_ns - since_ns : 0;
  return gone < most ? gone : most;
}

}  // namespace ferry::core

// Waves that wait for a word in memory: a user fence. The wave gives way to others meanwhile, and can be stopped like
// any other.
#pragma once

#include <cstdint>

namespace ferry::device {

enum class WordWait : std::uint8_t {
  reached,
  timed_out,
  not_allowed,  ///< in a graphics job, whose fence may not depend on a user's
};

/// Waits until the word, a multiple of 8, is at least `value`. timeout_ns ~0: for ever. Call it in a wave.
[[nodiscard]] WordWait wait_word(const std::uint64_t* word, std::uint64_t value, std::uint64_t timeout_ns);

}  // namespace ferry::device

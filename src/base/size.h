// Sizes as people write them ("64M", "2MiB", "4096") and as they read them. Pure functions, any thread.
// Units are powers of 1024, in either case. Those that mean 1000 elsewhere (kB, MB) are refused: a budget that is 5 %
// off from what its owner meant is worse than a question.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ferry {

enum class SizeError : std::uint8_t {
  none,
  empty,
  not_a_number,  ///< does not start with a digit, or goes on with something that is no unit
  decimal_unit,  ///< kB, MB, GB, TB
  fraction,      ///< "1.5G"
  too_large,     ///< does not fit 64 bits
};

struct ParsedSize {
  std::uint64_t bytes = 0;
  SizeError error = SizeError::none;
  [[nodiscard]] bool ok() const { return error == SizeError::none; }
};

/// Accepts digits, then nothing or one of B, K, KiB, M, MiB, G, GiB, T, TiB, with spaces around either.
[[nodiscard]] ParsedSize parse_size(std::string_view text);

/// What is wrong and what to write instead, as the end of a sentence about the text given. Never allocates.
[[nodiscard]] const char* to_string(SizeError error);

/// "64 MiB", "1.5 GiB", "4095 B": at most one decimal, for people.
[[nodiscard]] std::string format_size(std::uint64_t bytes);

/// The same size as an argument that parse_size takes back exactly: "64M", "4095".
[[nodiscard]] std::string size_argument(std::uint64_t bytes);

}  // namespace ferry

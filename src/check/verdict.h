// What can be wrong with a scenario under a policy, and what was found.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ferry::check {

/// From harmless to worst: where several are found, the worst is the verdict.
enum class Verdict : std::uint8_t {
  clean,
  refused,      ///< the policy does not let the work be done, and says so
  broken_rule,  ///< a visible fence waits for what it must never wait for; nothing came of it here
  late,         ///< a deadline passed while nothing was under way but time
  lost_wakeup,  ///< somebody waits for what has happened already
  livelock,     ///< events can go on for ever, fairly, and nobody gets anywhere
  deadlock,     ///< somebody waits, and nothing can happen any more
  violation,    ///< something was done that may never be done: to a fence, a buffer in use, a unit, a promise
  wrong_bytes,  ///< a read gave something else than what was written last, or reached memory that had moved
  crash,        ///< a check inside the core failed
};
inline constexpr unsigned verdict_count = 10;
[[nodiscard]] const char* to_string(Verdict verdict);
[[nodiscard]] std::optional<Verdict> parse_verdict(std::string_view word);

struct Finding {
  Verdict verdict = Verdict::clean;
  std::string text;  ///< sentences
};

/// Thrown inside the explored world; ends that execution.
struct Violation {
  Finding finding;
};

}  // namespace ferry::check

// Counterexamples for people: a sequence of messages as text, and as a page that needs nothing from outside.
#pragma once

#include <string>

#include "check/explore.h"

namespace ferry::check {

/// What is drawn around the messages.
struct Picture {
  std::string title;  ///< scenario, policy, hardware
  Finding finding;
  std::size_t cycle_from = 0;  ///< livelock: number of events before the round that repeats; else 0
  std::string command;         ///< that leads here again
};

/// A column for each participant, an arrow for each message, words at the right. 7-bit but for nothing.
[[nodiscard]] std::string draw_text(const Run& run, const Picture& picture);
/// A whole HTML file with an SVG sequence diagram; every text in it is escaped.
[[nodiscard]] std::string draw_html(const Run& run, const Picture& picture);

}  // namespace ferry::check

#include "check/replay.h"

#include <charconv>
#include <cinttypes>
#include <cstdio>

namespace ferry::check {
namespace {
constexpr std::string_view first_line = "ferry check replay 1";

std::string_view next_line(std::string_view& text) {
  const auto end = text.find('\n');
  const std::string_view line = text.substr(0, end);
  text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  return line;
}

bool number(std::string_view word, std::uint64_t& out, int base) {
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), out, base);
  return error == std::errc() && end == word.data() + word.size();
}
}  // namespace

std::string write_replay(const Replay& replay) {
  std::string out(first_line);
  out += "\nscenario " + replay.name;
  out += std::string("\npolicy ") + core::to_string(replay.policy);
  out += "\nhardware " + replay.hardware.text();
  out += std::string("\nbug ") + core::to_string(replay.bug);
  out += std::string("\nverdict ") + to_string(replay.verdict);
  out += "\ncycle " + std::to_string(replay.cycle_from) + "\nevents " + std::to_string(replay.keys.size()) + "\n";
  for (std::size_t i = 0; i < replay.keys.size(); ++i) {
    char key[24];
    std::snprintf(key, sizeof key, "%016" PRIx64 " ", replay.keys[i]);
    out += key + (i < replay.names.size() ? replay.names[i] : std::string()) + '\n';
  }
  out += "text\n" + replay.text;
  return out;
}

std::optional<Replay> read_replay(std::string_view text, std::string& error) {
  Replay out;
  if (next_line(text) != first_line) {
    error = "the first line is not '" + std::string(first_line) + "'";
    return {};
  }
  while (!text.empty()) {
    const std::string_view line = next_line(text);
    const auto space = line.find(' ');
    const std::string_view key = line.substr(0, space);
    const std::string_view value = space == std::string_view::npos ? std::string_view() : line.substr(space + 1);
    const auto bad = [&] {
      error = "line '" + std::string(line.substr(0, 60)) + "' is not understood";
      return std::nullopt;
    };
    if (key == "scenario") {
      out.name = value;
    } else if (key == "policy") {
      const auto policy = parse_policy(value);
      if (!policy) return bad();
      out.policy = *policy;
    } else if (key == "hardware") {
      const auto hardware = parse_hardware(value);
      if (!hardware) return bad();
      out.hardware = *hardware;
    } else if (key == "bug") {
      const auto bug = parse_bug(value);
      if (!bug) return bad();
      out.bug = *bug;
    } else if (key == "verdict") {
      const auto verdict = parse_verdict(value);
      if (!verdict) return bad();
      out.verdict = *verdict;
    } else if (key == "cycle") {
      std::uint64_t n = 0;
      if (!number(value, n, 10)) return bad();
      out.cycle_from = n;
    } else if (key == "events") {
      std::uint64_t count = 0;
      if (!number(value, count, 10) || count > 1'000'000) return bad();
      for (std::uint64_t i = 0; i < count; ++i) {
        const std::string_view event = next_line(text);
        std::uint64_t hash = 0;
        if (event.size() < 16 || !number(event.substr(0, 16), hash, 16)) {
          error = "event " + std::to_string(i + 1) + " has no key of 16 hexadecimal digits";
          return {};
        }
        out.keys.push_back(hash);
        out.names.emplace_back(event.size() > 17 ? event.substr(17) : std::string_view());
      }
    } else if (key == "text") {
      out.text = text;
      return out;
    } else {
      return bad();
    }
  }
  error = "the scenario's text is missing";
  return {};
}

}  // namespace ferry::check

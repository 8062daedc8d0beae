// A line of a scenario as words, and what single words mean. Whatever is wrong is thrown as Bad, with what to say.
#pragma once

#include <charconv>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace ferry::check {

struct Bad : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Words {
 public:
  explicit Words(std::string_view line) {
    std::string word;
    for (const char c : line) {
      if (c == '#') break;
      if (c == ' ' || c == '\t' || c == '\r' || c == ',' || c == ':') {
        flush(word);
        if (c == ':') words_.emplace_back(":");
      } else {
        word += c;
      }
    }
    flush(word);
  }
  [[nodiscard]] bool empty() const { return at_ >= words_.size(); }
  [[nodiscard]] std::string peek() const { return empty() ? std::string() : words_[at_]; }
  std::string next(const char* what) {
    if (empty()) throw Bad(std::string(what) + " is missing");
    return words_[at_++];
  }
  bool take(std::string_view word) {
    if (peek() != word) return false;
    ++at_;
    return true;
  }
  void need(std::string_view word) {
    if (!take(word)) throw Bad("'" + std::string(word) + "' is missing" + (empty() ? "" : " before '" + peek() + "'"));
  }
  void end() const {
    if (!empty()) throw Bad("'" + words_[at_] + "' is not understood here");
  }

 private:
  void flush(std::string& word) {
    if (!word.empty()) words_.push_back(std::move(word));
    word.clear();
  }
  std::vector<std::string> words_;
  std::size_t at_ = 0;
};

inline std::uint64_t number(const std::string& word, std::uint64_t most, std::uint64_t least = 0) {
  std::uint64_t out = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), out);
  if (error != std::errc() || end != word.data() + word.size() || out < least || out > most) {
    throw Bad("'" + word + "' is no number from " + std::to_string(least) + " to " + std::to_string(most));
  }
  return out;
}

inline std::uint64_t duration_ns(const std::string& word) {
  const struct {
    const char* unit;
    std::uint64_t ns;
  } units[] = {{"ns", 1}, {"us", 1000}, {"ms", 1'000'000}, {"s", 1'000'000'000}};
  for (const auto& u : units) {
    const std::string_view unit = u.unit;
    if (word.size() > unit.size() && word.ends_with(unit) && word[word.size() - unit.size() - 1] >= '0' &&
        word[word.size() - unit.size() - 1] <= '9') {
      return number(word.substr(0, word.size() - unit.size()), 60'000'000'000 / u.ns) * u.ns;
    }
  }
  throw Bad("'" + word + "' is no time such as 5ms");
}

inline bool yes_no(const std::string& word) {
  if (word == "yes") return true;
  if (word == "no") return false;
  throw Bad("'" + word + "' is neither yes nor no");
}

}  // namespace ferry::check

#include "base/size.h"

#include <cstdio>

namespace ferry {
namespace {

constexpr char unit_letters[] = {'K', 'M', 'G', 'T'};

constexpr char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; }
constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
constexpr bool is_space(char c) { return c == ' ' || c == '\t'; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

/// Bits to shift by, or the error. `unit` is what follows the digits.
SizeError unit_shift(std::string_view unit, unsigned& shift) {
  shift = 0;
  if (unit.empty() || (unit.size() == 1 && upper(unit[0]) == 'B')) return SizeError::none;
  unsigned index = 0;
  while (index < sizeof unit_letters && unit_letters[index] != upper(unit[0])) ++index;
  if (index == sizeof unit_letters) return SizeError::not_a_number;
  shift = 10 * (index + 1);
  const std::string_view rest = unit.substr(1);
  if (rest.empty()) return SizeError::none;
  if (rest.size() == 1 && upper(rest[0]) == 'B') return SizeError::decimal_unit;
  if (rest.size() == 2 && upper(rest[0]) == 'I' && upper(rest[1]) == 'B') return SizeError::none;
  return SizeError::not_a_number;
}

}  // namespace

ParsedSize parse_size(std::string_view text) {
  text = trim(text);
  if (text.empty()) return {0, SizeError::empty};
  if (!is_digit(text[0])) return {0, SizeError::not_a_number};
  std::uint64_t value = 0;
  std::size_t at = 0;
  bool overflow = false;
  for (; at < text.size() && is_digit(text[at]); ++at) {
    const auto digit = static_cast<std::uint64_t>(text[at] - '0');
    overflow |= __builtin_mul_overflow(value, std::uint64_t{10}, &value);
    overflow |= __builtin_add_overflow(value, digit, &value);
  }
  if (at < text.size() && (text[at] == '.' || text[at] == ',')) return {0, SizeError::fraction};
  unsigned shift = 0;
  if (const SizeError error = unit_shift(trim(text.substr(at)), shift); error != SizeError::none) return {0, error};
  if (overflow || (shift != 0 && (value >> (64 - shift)) != 0)) return {0, SizeError::too_large};
  return {value << shift, SizeError::none};
}

const char* to_string(SizeError error) {
  switch (error) {
    case SizeError::none: return "is well";
    case SizeError::empty: return "is empty: write a number with a unit, such as 64M or 2GiB";
    case SizeError::not_a_number: return "is not a size: write a number with a unit, such as 64M, 2GiB or 4096";
    case SizeError::decimal_unit: return "has a unit of 1000: write K, M, G or T (powers of 1024), such as 64M";
    case SizeError::fraction: return "has a fraction: write whole numbers, such as 1536M for one and a half G";
    case SizeError::too_large: return "does not fit 64 bits: write a smaller size";
  }
  return "is not understood";
}

std::string format_size(std::uint64_t bytes) {
  static constexpr const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  unsigned unit = 0;
  while (unit < 6 && (bytes >> (10 * unit)) >= 1024) ++unit;
  char text[48];
  if (unit == 0) {
    std::snprintf(text, sizeof text, "%llu B", static_cast<unsigned long long>(bytes));
    return text;
  }
  const double value = static_cast<double>(bytes) / static_cast<double>(std::uint64_t{1} << (10 * unit));
  // What would round to 1024 of a unit reads as 1 of the next.
  if (value >= 1023.95 && unit < 6) {
    std::snprintf(text, sizeof text, "1 %s", units[unit + 1]);
    return text;
  }
  std::snprintf(text, sizeof text, "%.1f", value);
  std::string out = text;
  if (out.ends_with(".0")) out.resize(out.size() - 2);
  return out + " " + units[unit];
}

std::string size_argument(std::uint64_t bytes) {
  for (unsigned index = sizeof unit_letters; index > 0; --index) {
    const unsigned shift = 10 * index;
    if (bytes != 0 && (bytes & ((std::uint64_t{1} << shift) - 1)) == 0) {
      return std::to_string(bytes >> shift) + unit_letters[index - 1];
    }
  }
  return std::to_string(bytes);
}

}  // namespace ferry

// What ferry::print makes of format and arguments.
#include "client/output.h"

#include <gtest/gtest.h>

#include <ferry/ferry.hpp>
#include <string>

namespace ferry::client {
namespace {

template <typename... Args>
std::string format(std::string_view text, const Args&... args) {
  const ferry_print_arg list[sizeof...(Args) + 1] = {detail::print_arg(args)..., ferry_print_arg{}};
  char out[print_bytes_max];
  return {out, format_output(out, text, {list, sizeof...(Args)})};
}

TEST(Output, FormatsEveryKindOfArgument) {
  EXPECT_EQ(format("{} {} {} {} {}", 1, -2L, 3U, 'c', true), "1 -2 3 c true");
  EXPECT_EQ(format("{:.3f}|{:>6}|{:<4}|{:04x}", 1.5, 42, "ab", 255), "1.500|    42|ab  |00ff");
  EXPECT_EQ(format("{}", std::string("text")), "text");
  EXPECT_EQ(format("{}", reinterpret_cast<const int*>(0x1234)), "0x1234");
  EXPECT_EQ(format("{}", std::uint64_t{18446744073709551615U}), "18446744073709551615");
  enum class Colour : int { red = 7 };
  EXPECT_EQ(format("{}", Colour::red), "7");
}

TEST(Output, BracesAndTextPassThrough) {
  EXPECT_EQ(format("no fields"), "no fields");
  EXPECT_EQ(format("{{}} {}", 5), "{} 5");
  EXPECT_EQ(format("open { brace", 1), "open { brace");
  EXPECT_EQ(format("close } brace", 1), "close } brace");
}

TEST(Output, FieldsThatDoNotFitAreShownAsWritten) {
  EXPECT_EQ(format("{} {}", 1), "1 {}");
  EXPECT_EQ(format("{:.3f} {}", "text", 2), "{:.3f} 2");
  EXPECT_EQ(format("{name}", 1), "{name}");
}

TEST(Output, LongTextIsCutAtTheEndOfTheBuffer) {
  const std::string longer(2 * print_bytes_max, 'x');
  EXPECT_EQ(format("{}", longer), std::string(print_bytes_max, 'x'));
  EXPECT_EQ(format(longer), std::string(print_bytes_max, 'x'));
  EXPECT_EQ(format("{}{}", std::string(print_bytes_max - 1, 'y'), 12345), std::string(print_bytes_max - 1, 'y') + "1");
}

}  // namespace
}  // namespace ferry::client

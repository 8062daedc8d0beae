#include "base/size.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace ferry {
namespace {

constexpr std::uint64_t mi = 1 << 20;

TEST(Size, TakesWhatPeopleWrite) {
  const std::pair<const char*, std::uint64_t> cases[] = {
      {"0", 0},
      {"4096", 4096},
      {"4096B", 4096},
      {"64K", 64 << 10},
      {"64k", 64 << 10},
      {"64KiB", 64 << 10},
      {"64M", 64 * mi},
      {"2MiB", 2 * mi},
      {"2mib", 2 * mi},
      {" 3 G ", 3072 * mi},
      {"1GiB", 1024 * mi},
      {"1T", 1024 * 1024 * mi},
      {"007", 7},
      {"18446744073709551615", ~std::uint64_t{0}},
      {"16777215T", std::uint64_t{16777215} << 40},
  };
  for (const auto& [text, bytes] : cases) {
    const ParsedSize size = parse_size(text);
    EXPECT_TRUE(size.ok()) << text << ": " << to_string(size.error);
    EXPECT_EQ(size.bytes, bytes) << text;
  }
}

TEST(Size, SaysWhatIsWrong) {
  const std::pair<const char*, SizeError> cases[] = {
      {"", SizeError::empty},
      {"  ", SizeError::empty},
      {"M", SizeError::not_a_number},
      {"-1", SizeError::not_a_number},
      {"+1M", SizeError::not_a_number},
      {"64X", SizeError::not_a_number},
      {"64MM", SizeError::not_a_number},
      {"64MiBs", SizeError::not_a_number},
      {"64 M M", SizeError::not_a_number},
      {"0x40", SizeError::not_a_number},
      {"64MB", SizeError::decimal_unit},
      {"64kb", SizeError::decimal_unit},
      {"1.5G", SizeError::fraction},
      {"1,5G", SizeError::fraction},
      {"18446744073709551616", SizeError::too_large},
      {"16777216T", SizeError::too_large},
      {"99999999999999999999999999K", SizeError::too_large},
  };
  for (const auto& [text, error] : cases) {
    EXPECT_EQ(parse_size(text).error, error) << "'" << text << "'";
    EXPECT_EQ(parse_size(text).bytes, 0U) << "'" << text << "'";
  }
}

TEST(Size, EveryErrorHasAText) {
  for (int i = 0; i <= static_cast<int>(SizeError::too_large); ++i) {
    EXPECT_STRNE(to_string(static_cast<SizeError>(i)), "is not understood") << i;
  }
}

TEST(Size, ReadsForPeople) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(1023), "1023 B");
  EXPECT_EQ(format_size(1024), "1 KiB");
  EXPECT_EQ(format_size(64 * mi), "64 MiB");
  EXPECT_EQ(format_size(1536 * mi), "1.5 GiB");
  EXPECT_EQ(format_size(1024 * mi - 1), "1 GiB");
  EXPECT_EQ(format_size(~std::uint64_t{0}), "16 EiB");
}

TEST(Size, ArgumentsComeBackExactly) {
  Random random(5);
  for (int i = 0; i < 20000; ++i) {
    const std::uint64_t bytes = random.next() >> random.below(64) << random.below(40);
    const ParsedSize size = parse_size(size_argument(bytes));
    ASSERT_TRUE(size.ok()) << bytes;
    ASSERT_EQ(size.bytes, bytes);
  }
  EXPECT_EQ(size_argument(64 * mi), "64M");
  EXPECT_EQ(size_argument(0), "0");
}

}  // namespace
}  // namespace ferry

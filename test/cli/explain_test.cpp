#include "cli/explain.h"

#include <gtest/gtest.h>

#include "base/types.h"
#include "core/action.h"

namespace ferry::cli {
namespace {

using core::Cause;

wire::PageResidency page() {
  wire::PageResidency p{};
  p.allocated = 1;
  p.system_current = 1;
  p.vram_device = no_device;
  p.cpu_may_map = 1;
  p.last_move_age_ns = ~std::uint64_t{0};
  return p;
}

TEST(Explain, SaysWhereAPageLiesAndWhy) {
  EXPECT_EQ(describe(page(), 1), "  lies in system memory\n  mapped by CPU threads\n  never moved");
  wire::PageResidency p = page();
  p.vram_device = 2;
  p.system_current = 0;
  p.dirty = 1;
  p.cpu_may_map = 0;
  p.device_mapped = 0b101;
  p.device_writable = 0b100;
  p.cause = static_cast<std::uint8_t>(Cause::device_fault);
  p.last_move_age_ns = 1'500'000'000;
  EXPECT_EQ(
      describe(p, 1),
      "  lies in VRAM of device 2, the only current copy\n  mapped by device 0 (read only), device 2 (may write)\n"
      "  last moved 1.50 s ago because a device touched it");
  p.dirty = 0;
  p.system_current = 1;
  p.device_mapped = 0;
  p.moving = 1;
  p.cause = static_cast<std::uint8_t>(Cause::evict);
  const std::string text = describe(p, 3);
  EXPECT_NE(text.find("the copies are equal; moving right now"), std::string::npos) << text;
  EXPECT_NE(text.find("nobody; the next touch faults"), std::string::npos) << text;
  EXPECT_NE(text.find("(the first of them) because its VRAM was needed"), std::string::npos) << text;
}

TEST(Explain, CopiesOfOtherDevicesAreTold) {
  wire::PageResidency p = page();
  p.copies = 0b101000;
  const std::string text = describe(p, 1);
  EXPECT_NE(text.find("device 3 has a copy of its own; device 5 has a copy"), std::string::npos) << text;
}

TEST(Explain, EveryCauseHasASentenceAndNonsenseIsNoCrash) {
  std::string before;
  for (unsigned cause = 0; cause < 256; ++cause) {
    wire::PageResidency p = page();
    p.cause = static_cast<std::uint8_t>(cause);
    p.last_move_age_ns = 1;
    const std::string text = describe(p, 1);
    if (cause < core::cause_count) {
      EXPECT_NE(text, before) << cause;
      EXPECT_EQ(text.find("unknown"), std::string::npos) << cause;
    }
    before = text;
  }
  wire::PageResidency p = page();
  p.allocated = 0;
  EXPECT_EQ(describe(p, 1), "  not allocated");
  p = page();
  p.device_mapped = p.device_writable = 0xffff;
  p.vram_device = 77;
  EXPECT_NE(describe(p, 1).find("device 15"), std::string::npos);
}

TEST(Explain, PagesAreAlikeButForTheirAge) {
  wire::PageResidency a = page();
  wire::PageResidency b = page();
  a.last_move_age_ns = 5;
  b.last_move_age_ns = 9;
  EXPECT_TRUE(alike(a, b));
  b.dirty = 1;
  EXPECT_FALSE(alike(a, b));
}

TEST(Explain, FindsAValueInAnEnvironment) {
  using namespace std::string_literals;
  const std::string block = "PATH=/bin\0XFERRY_SOCKET=/no\0FERRY_SOCKET_=/no\0FERRY_SOCKET=/yes\0EMPTY=\0LAST"s;
  EXPECT_EQ(environment_value(block, "FERRY_SOCKET"), "/yes");
  EXPECT_EQ(environment_value(block, "EMPTY"), "");
  EXPECT_FALSE(environment_value(block, "LAST"));
  EXPECT_FALSE(environment_value(block, "FERRY"));
  EXPECT_FALSE(environment_value("", "FERRY_SOCKET"));
}

}  // namespace
}  // namespace ferry::cli

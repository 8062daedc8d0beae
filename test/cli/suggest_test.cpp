#include "cli/suggest.h"

#include <gtest/gtest.h>

namespace ferry::cli {
namespace {

TEST(Suggest, FindsWhatWasMeant) {
  const std::vector<std::string> known = {"run", "doctor", "explain", "sim", "bench", "--vram", "--granularity"};
  EXPECT_EQ(nearest("rnu", known), "run");
  EXPECT_EQ(nearest("docter", known), "doctor");
  EXPECT_EQ(nearest("--vran", known), "--vram");
  EXPECT_EQ(nearest("--granlarity", known), "--granularity");
}

TEST(Suggest, SaysNothingWhereNothingIsNear) {
  const std::vector<std::string> known = {"run", "doctor"};
  EXPECT_EQ(nearest("completely", known), "");
  EXPECT_EQ(nearest("", {}), "");
  EXPECT_EQ(nearest(std::string(100'000, 'x'), known), "");
}

}  // namespace
}  // namespace ferry::cli

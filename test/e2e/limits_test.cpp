// Little of everything: VRAM, descriptors, address space, mappings. Work is done with what there is, or refused in words.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "family.h"

namespace ferry::test {
namespace {

constexpr int error_told = 4;

std::function<void()> limited(int resource, rlim_t bytes) {
  return [=] {
    const rlimit limit{bytes, bytes};
    if (setrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) _exit(198);
  };
}

struct Ended {
  int status;
  std::string text;
};

Ended run(const std::vector<std::string>& arguments, Environment environment, std::function<void()> before_exec = {}) {
  environment.insert(environment.begin(), {"FERRY_SOCKET", ""});
  App app(arguments, environment, before_exec);
  app.close_input();
  const int status = app.wait_end();
  const Ended ended{status, app.said() + app.errors()};
  expect_no_processes();
  return ended;
}

/// Done, or refused with a reason: nothing else.
void expect_done_or_told(const Ended& ended) {
  EXPECT_TRUE(ended.status == 0 || ended.status == error_told) << "status " << ended.status << "\n" << ended.text;
  if (ended.status == error_told) {
    EXPECT_NE(ended.text.find("error "), std::string::npos) << ended.text;
  }
}

class OneChunk : public testing::TestWithParam<const char*> {};

TEST_P(OneChunk, OfVramAndTenTimesTheData) {
  const Ended ended = run({program("bin/test/e2e_migrator"), "20", "4"},
                          {{"FERRY_VRAM", "2M"}, {"FERRY_GRANULARITY", GetParam()}, {"FERRY_CUS", "3"}});
  EXPECT_EQ(ended.status, 0) << ended.text;
}
INSTANTIATE_TEST_SUITE_P(Granularity, OneChunk, testing::Values("2M", "64K", "4K"),
                         [](const auto& info) { return std::string("of_") + info.param; });

TEST(Limits, Descriptors) {
  for (const rlim_t limit : {6, 10, 16, 24, 32, 48}) {
    SCOPED_TRACE("RLIMIT_NOFILE " + std::to_string(limit));
    expect_done_or_told(run({program("bin/test/e2e_migrator"), "8", "2"},
                            {{"FERRY_VRAM", "4M"}, {"FERRY_DEVICES", "2"}}, limited(RLIMIT_NOFILE, limit)));
  }
  const Ended ended = run({program("bin/test/e2e_migrator"), "8", "2"}, {{"FERRY_VRAM", "4M"}, {"FERRY_DEVICES", "2"}},
                          limited(RLIMIT_NOFILE, 64));
  EXPECT_EQ(ended.status, 0) << ended.text;
}

#if !defined(__SANITIZE_ADDRESS__)
TEST(Limits, AddressSpace) {
  const Ended refused = run({program("bin/test/e2e_migrator"), "8", "2"}, {}, limited(RLIMIT_AS, rlim_t{4} << 30));
  EXPECT_EQ(refused.status, error_told) << refused.text;
  EXPECT_NE(refused.text.find("ulimit -v"), std::string::npos) << refused.text;
  // With a window that fits, it works.
  const Ended ended = run({program("bin/test/e2e_migrator"), "8", "2"},
                          {{"FERRY_VRAM", "4M"}, {"FERRY_WINDOW_BYTES", "40000000"}, {"FERRY_CUS", "2"}},
                          limited(RLIMIT_AS, rlim_t{16} << 30));
  EXPECT_EQ(ended.status, 0) << ended.text;
}
#endif

TEST(Limits, FileSize) {
  expect_done_or_told(run({program("bin/test/e2e_migrator"), "8", "2"}, {{"FERRY_VRAM", "4M"}},
                          limited(RLIMIT_FSIZE, rlim_t{1} << 20)));
}

/// An unlimited stack makes the kernel place mappings from the bottom up.
TEST(Limits, UnlimitedStack) {
  const Ended ended = run({program("bin/test/e2e_migrator"), "8", "2"}, {{"FERRY_VRAM", "4M"}}, [] {
    const rlimit none{RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_STACK, &none);
  });
  EXPECT_EQ(ended.status, 0) << ended.text;
}

/// More extents than the 65,530 mappings that a process may have by default.
TEST(Limits, Mappings) {
  const Ended ended = run({program("bin/test/e2e_scatter"), "70000"},
                          {{"FERRY_VRAM", "1G"}, {"FERRY_GRANULARITY", "4K"}, {"FERRY_CUS", "2"}});
  EXPECT_EQ(ended.status, 0) << ended.text;
}

}  // namespace
}  // namespace ferry::test

#include "cli/summary.h"

#include <gtest/gtest.h>

namespace ferry::cli {
namespace {

constexpr const char* json = R"({"machine":{"vram_bytes":67108864,"devices":1},"device_faults":12345,
 "device_faults_merged":45,"cpu_faults":7,"cpu_faults_merged":1,"bytes_to_vram":1073741824,"bytes_to_system":4096,
 "migrations_to_vram":512,"evictions":1,"refaults":3,"peak_vram_bytes":67108864,"vram_bytes_now":1048576,
 "time":{"kernels_ns":500000000,"manager_busy_ns":1000},"kernels":[{"launches":3},{"launches":4}]})";

TEST(Summary, SaysWhatHappened) {
  const std::string text = summary(read_counters(json), "graph", 1'000'000'000);
  for (const char* part :
       {"graph took 1.00 s, 7 kernels on 1 device of 64 MiB VRAM", "device 12,345 (45 merged), CPU 7 (1 merged)",
        "to VRAM 1 GiB in 512", "to system memory 4 KiB", "1 eviction (", "3 refaults", "peak VRAM 64 MiB of 64 MiB",
        "kernels 500 ms (50 %)", "manager worked 1 us"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in:\n" << text;
  }
  EXPECT_EQ(text.find("failed"), std::string::npos) << "what did not happen is not told";
  // Every line says who speaks, and the last one ends.
  EXPECT_TRUE(text.starts_with("ferry: "));
  EXPECT_EQ(text.back(), '\n');
  for (std::size_t at = text.find('\n'); at + 1 < text.size(); at = text.find('\n', at + 1)) {
    EXPECT_EQ(text.substr(at + 1, 7), "ferry: ");
  }
}

TEST(Summary, TellsOfABudgetWhereThereIsOne) {
  EXPECT_EQ(summary(read_counters(json), "graph", 1).find("store"), std::string::npos);
  const std::string text =
      summary(read_counters(R"({"system":{"budget_bytes":8388608,"peak_bytes":4194304,"over_budget_bytes":4096},
                        "store":{"bytes_in":2097152,"bytes_out":1048576,"errors":1}})"),
              "graph", 1);
  EXPECT_NE(
      text.find("peak 4 MiB of 8 MiB, 2 MiB to the store, 1 MiB back, 4 KiB given over the budget, 1 store error"),
      std::string::npos)
      << text;
}

TEST(Summary, BadJsonIsNotACrash) {
  for (const char* bad : {"", "{", "[]", "3", "null", "\xff"}) EXPECT_FALSE(read_counters(bad).valid) << bad;
  const Counters odd = read_counters(R"({"device_faults":"many","cpu_faults":-1,"machine":[],"time":3,"kernels":{}})");
  EXPECT_TRUE(odd.valid);
  EXPECT_EQ(odd.device_faults, 0U);
  EXPECT_EQ(odd.cpu_faults, 0U);
}

TEST(Progress, FitsTheTerminalAndShowsRates) {
  Counters before = read_counters(json);
  Counters now = before;
  now.device_faults += 1000;
  now.to_vram_bytes += 512 << 20;
  const std::string line = progress_line(now, before, 500'000'000, 3'000'000'000, 0);
  EXPECT_NE(line.find("2,000/s device"), std::string::npos) << line;
  EXPECT_NE(line.find("to VRAM 1 GiB/s"), std::string::npos) << line;
  EXPECT_NE(line.find("VRAM 1 MiB of 64 MiB"), std::string::npos) << line;
  EXPECT_EQ(progress_line(now, before, 500'000'000, 3'000'000'000, 40).size(), 39U);
  EXPECT_NE(progress_line(before, now, 0, 0, 0), "") << "no time passed, counters went back";
}

}  // namespace
}  // namespace ferry::cli

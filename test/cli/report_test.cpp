#include "manager/report.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <regex>

#include "manager/plot.h"

namespace ferry::manager {
namespace {

Report some_report() {
  Report report;
  report.title = "./graph --name <b>\"x\"&\x01";
  report.machine = "1 device; " + host_line();
  report.document.stats.device_faults = 1'234'567;
  report.document.time.wall_ns = 2'000'000'000;
  report.document.time.kernels_ns = 1'000'000'000;
  report.document.kernels.push_back({.name = "<script>alert(1)</script>",
                                     .launches = 2,
                                     .failed = 0,
                                     .waves = 8,
                                     .total_ns = 3'000'000,
                                     .longest_ns = 2'000'000,
                                     .device_faults = 4});
  for (std::uint64_t i = 0; i < 100; ++i) {
    Sample sample;
    sample.time_ns = 1000 + i * 20'000'000;
    sample.vram_pages = i * 100;
    sample.device_faults = i * i;
    sample.pages_to_vram = i * 512;
    report.samples.push_back(sample);
  }
  report.start_ns = 1000;
  return report;
}

TEST(Report, StandsAlone) {
  const std::string page = report_html(some_report());
  EXPECT_EQ(page.find("http://"), std::string::npos);
  EXPECT_EQ(page.find("https://"), std::string::npos);
  EXPECT_EQ(page.find("<script"), std::string::npos);
  EXPECT_EQ(page.find("<link"), std::string::npos);
  EXPECT_EQ(page.find("<img"), std::string::npos);
  EXPECT_EQ(page.find("url("), std::string::npos);
  EXPECT_EQ(page.find("@import"), std::string::npos);
  EXPECT_FALSE(std::regex_search(page, std::regex("\\s(src|href)\\s*=")));
}

TEST(Report, HasTitleMachineSummaryPlotsAndKernels) {
  const std::string page = report_html(some_report());
  EXPECT_NE(page.find("./graph --name &lt;b&gt;&quot;x&quot;&amp;?"), std::string::npos) << "escaped";
  EXPECT_NE(page.find("1,234,567"), std::string::npos);
  EXPECT_NE(page.find("&lt;script&gt;alert(1)"), std::string::npos);
  for (const char* heading : {"Residency over time", "Faults over time", "Bytes each way", "Where the time went"}) {
    EXPECT_NE(page.find(heading), std::string::npos) << heading;
  }
  EXPECT_NE(page.find("prefers-color-scheme: dark"), std::string::npos);
  EXPECT_NE(page.find("50.0 %"), std::string::npos) << "share of the kernels";
}

/// Every coordinate that the page draws, as numbers.
TEST(Report, DrawsWithinThePlot) {
  for (const bool empty : {false, true}) {
    Report report = some_report();
    if (empty) report.samples.clear();
    const std::string page = report_html(report);
    EXPECT_EQ(page.find("nan"), std::string::npos);
    EXPECT_EQ(page.find("inf\""), std::string::npos);
    const std::regex path("class=\"l [^\"]*\" d=\"([^\"]*)\"");
    const std::regex point("[ML](-?[0-9.]+) (-?[0-9.]+)");
    unsigned points = 0;
    for (std::sregex_iterator p(page.begin(), page.end(), path), end; p != end; ++p) {
      const std::string d = (*p)[1];
      for (std::sregex_iterator q(d.begin(), d.end(), point); q != end; ++q) {
        ++points;
        const double x = std::stod((*q)[1]);
        const double y = std::stod((*q)[2]);
        ASSERT_TRUE(x >= 0 && x <= 860) << x;
        ASSERT_TRUE(y >= 0 && y <= 220) << y;
      }
    }
    if (!empty) {
      EXPECT_GT(points, 700U);
    }
  }
}

TEST(Report, TagsAreClosed) {
  const std::string page = report_html(some_report());
  for (const char* tag :
       {"svg", "figure", "table", "tr", "td", "div", "p", "h1", "h2", "style", "body", "text", "span"}) {
    const auto count = [&](const std::string& pattern) {
      const std::regex expression(pattern);
      return std::distance(std::sregex_iterator(page.begin(), page.end(), expression), std::sregex_iterator());
    };
    EXPECT_EQ(count(std::string("<") + tag + "[ >]"), count(std::string("</") + tag + ">")) << tag;
  }
}

TEST(Report, AFullDiskIsTold) {
  EXPECT_EQ(write_report("/dev/full", some_report()), Status(Code::no_space, ENOSPC));
  EXPECT_EQ(write_report("/nonexistent/r.html", some_report()), Status(Code::io_error, ENOENT));
}

TEST(Format, ReadsForPeople) {
  EXPECT_EQ(format_duration(0), "0");
  EXPECT_EQ(format_duration(950), "950 ns");
  EXPECT_EQ(format_duration(1'500), "1.5 us");
  EXPECT_EQ(format_duration(12'340'000), "12.3 ms");
  EXPECT_EQ(format_duration(12'340'000'000), "12.34 s");
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1'000), "1,000");
  EXPECT_EQ(format_count(~std::uint64_t{0}), "18,446,744,073,709,551,615");
}

}  // namespace
}  // namespace ferry::manager

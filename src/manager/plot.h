// A line plot over time as inline SVG, with axes, grid and legend. Pure; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ferry::manager {

struct PlotLine {
  std::string label;
  unsigned color = 1;  ///< 1 to 4: a class of the page's style sheet, so that light and dark both have their own
  bool filled = false;
  bool dashed = false;
  std::vector<double> values;  ///< one for each time
};

enum class PlotUnit { count, bytes };

struct Plot {
  std::string title;
  PlotUnit unit = PlotUnit::count;
  std::vector<double> seconds;  ///< rising
  std::vector<PlotLine> lines;
};

/// A <figure> with heading, legend and drawing. Text in it is escaped.
[[nodiscard]] std::string draw(const Plot& plot);

/// Text as HTML shows it; control characters become '?'.
[[nodiscard]] std::string html(const std::string& text);

/// "12.3 s", "4.5 ms", "6 us", "0".
[[nodiscard]] std::string format_duration(std::uint64_t ns);
/// 1234567 as "1,234,567".
[[nodiscard]] std::string format_count(std::uint64_t value);

}  // namespace ferry::manager

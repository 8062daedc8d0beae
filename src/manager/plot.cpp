#include "manager/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/size.h"

namespace ferry::manager {
namespace {

constexpr double width = 860;
constexpr double height = 220;
constexpr double left = 78;
constexpr double right = 14;
constexpr double top = 10;
constexpr double bottom = 30;

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

/// The least of 1, 2, 5 times a power of ten (of two for bytes) with which the range has at most `ticks` steps.
double step_for(double range, unsigned ticks, PlotUnit unit) {
  if (!(range > 0)) return 1;
  const double raw = range / ticks;
  if (unit == PlotUnit::bytes) return std::max(1.0, std::exp2(std::ceil(std::log2(raw))));
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (power * factor >= raw) return power * factor;
  }
  return power * 10;
}

std::string axis_text(double value, PlotUnit unit) {
  if (unit == PlotUnit::bytes) return format_size(static_cast<std::uint64_t>(value));
  if (value >= 1e6) return number(value / 1e6) + " M";
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

std::string seconds_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g s", value);
  return text;
}

}  // namespace

std::string html(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    }
  }
  return out;
}

std::string format_duration(std::uint64_t ns) {
  char text[32];
  const auto value = static_cast<double>(ns);
  if (ns == 0) return "0";
  if (ns < 1'000) {
    std::snprintf(text, sizeof text, "%.0f ns", value);
  } else if (ns < 1'000'000) {
    std::snprintf(text, sizeof text, "%.3g us", value / 1e3);
  } else if (ns < 1'000'000'000) {
    std::snprintf(text, sizeof text, "%.3g ms", value / 1e6);
  } else {
    std::snprintf(text, sizeof text, ns < 100'000'000'000 ? "%.2f s" : "%.0f s", value / 1e9);
  }
  return text;
}

std::string format_count(std::uint64_t value) {
  std::string digits = std::to_string(value);
  for (std::size_t at = digits.size(); at > 3;) {
    at -= 3;
    digits.insert(at, 1, ',');
  }
  return digits;
}

std::string draw(const Plot& plot) {
  const double begin = plot.seconds.empty() ? 0 : plot.seconds.front();
  const double end = plot.seconds.empty() ? 1 : std::max(plot.seconds.back(), begin + 1e-6);
  double most = 0;
  for (const PlotLine& line : plot.lines) {
    for (const double value : line.values) most = std::max(most, value);
  }
  const double y_step = step_for(most, 5, plot.unit);
  const double y_end = most > 0 ? std::ceil(most / y_step) * y_step : y_step;
  const double x_step = step_for(end - begin, 8, PlotUnit::count);
  const auto x = [&](double s) { return left + (s - begin) / (end - begin) * (width - left - right); };
  const auto y = [&](double v) { return height - bottom - v / y_end * (height - top - bottom); };

  std::string out = "<figure>\n<figcaption><b>" + html(plot.title) + "</b>";
  for (const PlotLine& line : plot.lines) {
    out +=
        " <span class=\"key\"><svg viewBox=\"0 0 22 8\" width=\"22\" height=\"8\" aria-hidden=\"true\"><path class=\"l "
        "c" +
        std::to_string(line.color) + (line.dashed ? " dash" : "") + "\" d=\"M0 4H22\"/></svg> " + html(line.label) +
        "</span>";
  }
  out += "</figcaption>\n<svg viewBox=\"0 0 " + number(width) + " " + number(height) + "\" role=\"img\" aria-label=\"" +
         html(plot.title) + "\">\n";
  // Counted in whole steps: adding the step up would drift past the last line.
  for (unsigned i = 0; i * y_step <= y_end * 1.0001; ++i) {
    const std::string at = number(y(i * y_step));
    out += "<path class=\"grid\" d=\"M" + number(left) + " " + at + "H" + number(width - right) + "\"/><text x=\"" +
           number(left - 8) + "\" y=\"" + at + "\" dy=\"4\" text-anchor=\"end\">" + axis_text(i * y_step, plot.unit) +
           "</text>\n";
  }
  for (unsigned i = 0; begin + i * x_step <= end * 1.0001; ++i) {
    const std::string at = number(x(begin + i * x_step));
    out += "<path class=\"grid\" d=\"M" + at + " " + number(top) + "V" + number(height - bottom) + "\"/><text x=\"" +
           at + "\" y=\"" + number(height - bottom + 18) + "\" text-anchor=\"" + (i == 0 ? "start" : "middle") + "\">" +
           seconds_text(begin + i * x_step) + "</text>\n";
  }
  for (const PlotLine& line : plot.lines) {
    std::string path;
    const std::size_t count = std::min(line.values.size(), plot.seconds.size());
    for (std::size_t i = 0; i < count; ++i) {
      path.append(i == 0 ? "M" : "L").append(number(x(plot.seconds[i])));
      path.append(" ").append(number(y(line.values[i])));
    }
    if (path.empty()) continue;
    const std::string color = " c" + std::to_string(line.color);
    if (line.filled) {
      out += "<path class=\"f" + color + "\" d=\"" + path + "L" + number(x(plot.seconds[count - 1])) + " " +
             number(y(0)) + "L" + number(x(plot.seconds[0])) + " " + number(y(0)) + "Z\"/>\n";
    }
    out += "<path class=\"l" + color + (line.dashed ? " dash" : "") + "\" d=\"" + path + "\"><title>" +
           html(line.label) + "</title></path>\n";
  }
  return out + "</svg>\n</figure>\n";
}

}  // namespace ferry::manager

#include <algorithm>
#include <cstdio>

#include "check/draw.h"

namespace ferry::check {
namespace {
constexpr std::size_t lane = 11;

std::size_t column_of(const std::vector<std::string>& lanes, const std::string& who) {
  const auto it = std::find(lanes.begin(), lanes.end(), who);
  return it == lanes.end() ? lanes.size() : static_cast<std::size_t>(it - lanes.begin());
}

}  // namespace

std::string draw_text(const Run& run, const Picture& picture) {
  // Only who takes part has a column.
  std::vector<std::string> lanes;
  for (const std::string& p : run.participants) {
    const bool used = std::any_of(run.log.begin(), run.log.end(),
                                  [&p](const LogLine& l) { return l.step > 0 && (l.from == p || l.to == p); });
    if (used) lanes.push_back(p);
  }
  const auto blank = [&lanes] {
    std::string row(lanes.size() * lane, ' ');
    for (std::size_t i = 0; i < lanes.size(); ++i) row[i * lane] = '|';
    return row;
  };
  std::string out = picture.title + "\n\n      ";
  for (const std::string& name : lanes) {
    std::string cell = name.substr(0, lane - 1);
    cell.resize(lane, ' ');
    out += cell;
  }
  out += '\n';
  for (const LogLine& line : run.log) {
    if (line.step == 0) continue;
    if (line.kind == LogLine::Kind::event && picture.cycle_from != 0 && line.step == picture.cycle_from + 1) {
      out += "      --- from here on it repeats for ever ---\n";
    }
    const std::size_t from = column_of(lanes, line.from);
    const std::size_t to = column_of(lanes, line.to);
    std::string row = blank();
    char number[16] = "      ";
    switch (line.kind) {
      case LogLine::Kind::event:
        std::snprintf(number, sizeof number, "%4u  ", line.step);
        if (to < lanes.size()) row[to * lane] = '*';
        break;
      case LogLine::Kind::problem:
        if (to < lanes.size()) row[to * lane] = '!';
        break;
      default:
        if (from < lanes.size() && to < lanes.size() && from != to) {
          const std::size_t left = std::min(from, to) * lane;
          const std::size_t right = std::max(from, to) * lane;
          for (std::size_t c = left + 1; c < right; ++c) row[c] = line.kind == LogLine::Kind::effect ? '.' : '-';
          (to > from ? row[right] : row[left]) = to > from ? '>' : '<';
        } else if (to < lanes.size()) {
          row[to * lane] = 'o';
        }
    }
    out += number + row + ' ' + line.text + '\n';
  }
  out += '\n';
  out += to_string(picture.finding.verdict);
  out += ":\n" + picture.finding.text;
  if (out.back() != '\n') out += '\n';
  if (!picture.command.empty()) out += "again with: " + picture.command + '\n';
  return out;
}

}  // namespace ferry::check

#include <algorithm>

#include "check/draw.h"

namespace ferry::check {
namespace {
constexpr int lane_width = 150;
constexpr int left_margin = 60;
constexpr int row_height = 26;
constexpr int head_height = 50;

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t') out += c;
    }
  }
  return out;
}

std::string num(int value) { return std::to_string(value); }

std::string text_at(int x, int y, const std::string& cls, const std::string& text, const char* anchor = "middle") {
  return "<text x=\"" + num(x) + "\" y=\"" + num(y) + "\" class=\"" + cls + "\" text-anchor=\"" + anchor + "\">" +
         escaped(text) + "</text>\n";
}

/// A note as long as there is room for; all of it where the pointer rests on it.
std::string note_at(int x, int y, const std::string& text) {
  constexpr std::size_t most = 110;
  const std::string shown = text.size() > most ? text.substr(0, most - 4) + " ..." : text;
  return "<g><title>" + escaped(text) + "</title>" + text_at(x, y, "small", shown, "start") + "</g>\n";
}

std::string line_from(int x1, int y1, int x2, int y2, const std::string& cls, bool arrow) {
  return "<line x1=\"" + num(x1) + "\" y1=\"" + num(y1) + "\" x2=\"" + num(x2) + "\" y2=\"" + num(y2) + "\" class=\"" +
         cls + "\"" + (arrow ? " marker-end=\"url(#head)\"" : "") + "/>\n";
}

constexpr const char* style = R"(<style>
 :root { --ink: #1b2733; --soft: #6b7a89; --line: #c9d2da; --call: #2563a8; --answer: #3f7d4e; --bad: #b3261e; --paper: #fff }
 @media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #9aa8b5; --line: #3a4650; --call: #7db2ec;
   --answer: #86c795; --bad: #ff8a80; --paper: #14191e } }
 body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem; max-width: none }
 h1 { font-size: 1.25rem } pre { white-space: pre-wrap; border-left: 4px solid var(--bad); padding-left: 1rem }
 .wide { overflow-x: auto } svg text { font: 12px system-ui, sans-serif; fill: var(--ink) }
 svg .who { font-weight: 600 } svg .small { fill: var(--soft); font-size: 11px } svg .bad { fill: var(--bad); font-weight: 600 }
 svg .life { stroke: var(--line) } svg .call { stroke: var(--call); stroke-width: 1.4 }
 svg .answer { stroke: var(--answer); stroke-width: 1.4; stroke-dasharray: 4 3 } svg .dot { fill: var(--ink) }
 svg .cycle { stroke: var(--bad); stroke-dasharray: 6 4 } svg marker path { fill: var(--soft) }
</style>
)";

}  // namespace

std::string draw_html(const Run& run, const Picture& picture) {
  std::vector<std::string> lanes;
  for (const std::string& p : run.participants) {
    const bool used = std::any_of(run.log.begin(), run.log.end(),
                                  [&p](const LogLine& l) { return l.step > 0 && (l.from == p || l.to == p); });
    if (used) lanes.push_back(p);
  }
  const auto x_of = [&lanes](const std::string& who) {
    const auto it = std::find(lanes.begin(), lanes.end(), who);
    return it == lanes.end() ? -1 : left_margin + static_cast<int>(it - lanes.begin()) * lane_width + lane_width / 2;
  };
  std::string body;
  int y = head_height;
  for (const LogLine& line : run.log) {
    if (line.step == 0) continue;
    const int from = x_of(line.from);
    const int to = x_of(line.to);
    if (line.kind == LogLine::Kind::event && picture.cycle_from != 0 && line.step == picture.cycle_from + 1) {
      y += row_height;
      body += line_from(0, y - 8, left_margin + static_cast<int>(lanes.size()) * lane_width, y - 8, "cycle", false);
      body += text_at(left_margin, y - 12, "bad", "from here on it repeats for ever", "start");
    }
    y += row_height;
    switch (line.kind) {
      case LogLine::Kind::event:
        body += text_at(left_margin - 12, y, "small", num(static_cast<int>(line.step)), "end");
        if (to >= 0) {
          body += "<circle cx=\"" + num(to) + "\" cy=\"" + num(y - 4) + "\" r=\"4\" class=\"dot\"/>\n";
          body += text_at(to + 9, y, "who", line.text, "start");
        } else {
          body += text_at(left_margin, y, "who", line.text, "start");
        }
        break;
      case LogLine::Kind::problem: body += text_at(left_margin, y, "bad", line.text, "start"); break;
      case LogLine::Kind::note: body += note_at((to >= 0 ? to : left_margin) + 9, y, line.text); break;
      default:
        if (from >= 0 && to >= 0 && from != to) {
          body += line_from(from, y, to, y, line.kind == LogLine::Kind::effect ? "answer" : "call", true);
          body += text_at((from + to) / 2, y - 4, "", line.text);
        } else if (to >= 0) {
          body += text_at(to + 9, y, "", line.text, "start");
        }
    }
  }
  const int height = y + 40;
  const int width = left_margin + static_cast<int>(lanes.size()) * lane_width + 480;
  std::string svg = "<svg width=\"" + num(width) + "\" height=\"" + num(height) + "\" viewBox=\"0 0 " + num(width) +
                    " " + num(height) + "\" role=\"img\" aria-label=\"sequence of events\">\n" +
                    "<defs><marker id=\"head\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"7\" "
                    "markerHeight=\"7\" orient=\"auto\"><path d=\"M0 0 L8 4 L0 8 z\"/></marker></defs>\n";
  for (const std::string& who : lanes) {
    svg += text_at(x_of(who), 20, "who", who);
    svg += line_from(x_of(who), 30, x_of(who), height - 10, "life", false);
  }
  svg += body + "</svg>\n";

  std::string out = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>" +
                    escaped(picture.title) + "</title>\n" + style + "</head><body>\n<h1>" + escaped(picture.title) +
                    "</h1>\n<p><b>" + to_string(picture.finding.verdict) + "</b></p>\n<pre>" +
                    escaped(picture.finding.text) + "</pre>\n";
  if (!picture.command.empty()) out += "<p>again with: <code>" + escaped(picture.command) + "</code></p>\n";
  out += "<div class=\"wide\">\n" + svg + "</div>\n<ol>\n";
  for (const std::string& name : run.names) out += "<li>" + escaped(name) + "</li>\n";
  out += "</ol>\n</body></html>\n";
  return out;
}

}  // namespace ferry::check

#include "check/report.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <set>

namespace ferry::check {
namespace {
unsigned long long u(std::uint64_t v) { return v; }

__attribute__((format(printf, 2, 3))) void add(std::string& out, const char* format, ...) {
  char text[512];
  std::va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  out += text;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += ' ';
    } else {
      out += c;
    }
  }
  return out + "\"";
}

struct Total {
  std::uint64_t states = 0;
  std::uint64_t transitions = 0;
  std::uint64_t concluded = 0;
  std::uint64_t executions = 0;
  std::uint64_t schedules = 0;
  std::size_t random = 0;
  std::size_t cut_short = 0;
  std::size_t unexpected = 0;
  double seconds = 0;  ///< of all threads together
};

Total total_of(const std::vector<Result>& results) {
  Total t;
  for (const Result& r : results) {
    t.states += r.exploration.states;
    t.transitions += r.exploration.transitions;
    t.concluded += r.exploration.concluded;
    t.executions += r.exploration.executions;
    t.schedules += r.exploration.schedules;
    t.random += r.random ? 1 : 0;
    t.cut_short += !r.random && !r.exploration.exhaustive ? 1 : 0;
    t.unexpected += r.as_expected ? 0 : 1;
    t.seconds += r.seconds;
  }
  return t;
}

}  // namespace

std::string report_table(const std::vector<Case>& cases, const std::vector<Result>& results) {
  std::vector<core::Policy> policies;
  std::size_t name_width = 8;
  for (const Case& c : cases) {
    if (std::count(policies.begin(), policies.end(), c.policy) == 0) policies.push_back(c.policy);
    name_width = std::max(name_width, c.scenario->name.size());
  }
  std::size_t machine_width = 8;
  for (const Case& c : cases) machine_width = std::max(machine_width, c.hardware.text().size());
  std::string out;
  add(out, "%-*s %-*s", static_cast<int>(name_width), "scenario", static_cast<int>(machine_width), "hardware");
  for (const core::Policy p : policies) add(out, " %-17s", core::to_string(p));
  out += "\n";
  for (std::size_t i = 0; i < cases.size();) {
    add(out, "%-*s %-*s", static_cast<int>(name_width), cases[i].scenario->name.c_str(),
        static_cast<int>(machine_width), cases[i].hardware.text().c_str());
    const auto& scenario = cases[i].scenario;
    const Hardware hardware = cases[i].hardware;
    for (; i < cases.size() && cases[i].scenario == scenario && cases[i].hardware == hardware; ++i) {
      const Exploration& e = results[i].exploration;
      char cell[40];
      const std::uint64_t size = results[i].random ? e.schedules : e.states;
      std::snprintf(cell, sizeof cell, "%s%s %llu%s", results[i].as_expected ? "" : "!", to_string(e.finding.verdict),
                    u(size),
                    results[i].random ? "r"
                    : e.exhaustive    ? ""
                                      : "+");
      add(out, " %-17s", cell);
    }
    out += "\n";
  }
  const Total t = total_of(results);
  add(out, "\n%zu cases: %zu searched through, %zu cut short (+), %zu by %llu random schedules (r)\n", cases.size(),
      cases.size() - t.random - t.cut_short, t.cut_short, t.random, u(t.schedules));
  add(out, "%llu states, %llu transitions (%llu concluded), %llu executions, %.1f s of processor, %.0f states/s\n",
      u(t.states), u(t.transitions), u(t.concluded), u(t.executions), t.seconds,
      t.seconds > 0 ? static_cast<double>(t.states) / t.seconds : 0.0);
  if (t.unexpected == 0) {
    out += "all as expected\n";
    return out;
  }
  add(out, "%zu not as expected (!):\n", t.unexpected);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    if (results[i].as_expected) continue;
    out += "  " + cases[i].title() + ": " + to_string(results[i].exploration.finding.verdict) + "; expected " +
           words(results[i].expected) + "\n";
  }
  return out;
}

std::string report_json(const std::vector<Case>& cases, const std::vector<Result>& results) {
  std::string out = "{\"cases\": [";
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Case& c = cases[i];
    const Result& r = results[i];
    const Exploration& e = r.exploration;
    out += i == 0 ? "\n" : ",\n";
    out += " {\"scenario\": " + quoted(c.scenario->name) + ", \"policy\": " + quoted(core::to_string(c.policy)) +
           ", \"hardware\": " + quoted(c.hardware.text()) + ", \"verdict\": " + quoted(to_string(e.finding.verdict)) +
           ", \"as_expected\": " + (r.as_expected ? "true" : "false") + ", \"expected\": [";
    for (std::size_t v = 0; v < r.expected.size(); ++v) out += (v == 0 ? "" : ", ") + quoted(to_string(r.expected[v]));
    add(out, "], \"exhaustive\": %s, \"states\": %llu, \"transitions\": %llu, \"concluded\": %llu",
        e.exhaustive ? "true" : "false", u(e.states), u(e.transitions), u(e.concluded));
    add(out, ", \"executions\": %llu, \"schedules\": %llu, \"seed\": %llu, \"seconds\": %.6f, \"events\": %zu",
        u(e.executions), u(e.schedules), u(e.seed), r.seconds, e.schedule.size());
    out += ", \"why\": " + quoted(e.finding.text) + ", \"remarks\": [";
    for (std::size_t k = 0; k < e.remarks.size(); ++k) out += (k == 0 ? "" : ", ") + quoted(e.remarks[k]);
    out += "]}";
  }
  const Total t = total_of(results);
  add(out, "\n], \"total\": {\"cases\": %zu, \"unexpected\": %zu, \"cut_short\": %zu, \"states\": %llu", cases.size(),
      t.unexpected, t.cut_short, u(t.states));
  add(out, ", \"transitions\": %llu, \"concluded\": %llu, \"executions\": %llu, \"seconds\": %.3f}}\n",
      u(t.transitions), u(t.concluded), u(t.executions), t.seconds);
  return out;
}

}  // namespace ferry::check

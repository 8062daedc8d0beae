// What each policy costs, under one mixed load: frames with a deadline beside kernels that need more memory than there is.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "demos.h"
#include "machine.h"

namespace ferry::demo {
namespace {

constexpr int patience_ms = 120'000;
constexpr unsigned fps = 60;
constexpr double system_mib = 64;

struct Figures {
  std::string policy;
  bool hang = false;
  std::vector<double> frame_ms;
  unsigned long dropped = 0;
  unsigned long failed = 0;
  unsigned long wrong = 0;
  unsigned long refused = 0;  ///< launches of the kernel that ended with an error
  double pages_per_second = 0;
  double usable_percent = 0;  ///< of system memory, for buffers that one job uses
  unsigned long preemptions = 0;
  unsigned long mode_switches = 0;
  unsigned long circles = 0;
  std::string error;

  [[nodiscard]] double percentile(double p) const {
    if (frame_ms.empty()) return 0;
    std::vector<double> sorted = frame_ms;
    std::sort(sorted.begin(), sorted.end());
    return sorted[std::min(sorted.size() - 1, static_cast<std::size_t>(p * static_cast<double>(sorted.size())))];
  }
  /// Of all frames that were due; those that were dropped or failed were not on time.
  [[nodiscard]] double on_time_percent() const {
    const double due = static_cast<double>(frame_ms.size() + dropped + failed);
    const auto good = std::count_if(frame_ms.begin(), frame_ms.end(), [](double ms) { return ms <= 1000.0 / fps; });
    return due == 0 ? 0 : 100.0 * static_cast<double>(good) / due;
  }
};

std::vector<std::string> machine(const std::string& policy, double mib) {
  return {"--policy",      policy, "--hardware", policy == "preempt" ? "preempt" : "no-preempt",
          "--cus",         "4",    "--vram",     "8M",
          "--granularity", "64K",  "--system",   fmt::format("{}M", mib),
          "--store",       "256M"};
}

void take_line(Figures& f, const std::string& line) {
  std::istringstream words(line);
  std::string word;
  unsigned long value = 0;
  words >> word >> value;
  if (word == "frame") f.frame_ms.push_back(static_cast<double>(value) / 1e6);
  if (word == "dropped") f.dropped += value;
  if (word == "failed") f.failed += 1;
  if (word == "wrong") f.wrong += value;
  if (word == "refused") f.refused += 1;
  if (word == "error" || word == "refused" || word == "failed") f.error = line;
}

Figures measure(const std::string& policy, double seconds) {
  Figures f;
  f.policy = policy;
  unsigned long pages = 0;
  {
    Manager manager(machine(policy, system_mib), -1);
    {
      const std::string time = fmt::format("{}", seconds);
      Role compute(manager, {"compute", "--bytes", "96M", "--seconds", time});
      Role frames(manager, {"frames", "--buffer", "4M", "--seconds", time, "--fps", std::to_string(fps)});
      f.hang = !watch({&compute, &frames}, patience_ms, [&](std::size_t, const std::string& line) {
        take_line(f, line);
        if (line.starts_with("pages ")) pages += std::stoul(line.substr(6));
      });
    }
    const std::string stats = manager.finish();
    if (stats.empty()) {
      f.hang = true;
    } else {
      const auto progress = nlohmann::json::parse(stats)["progress"];
      f.preemptions = progress["preemptions"].get<unsigned long>();
      f.mode_switches = progress["mode_switches"].get<unsigned long>();
      f.circles = progress["circles"].get<unsigned long>();
    }
  }
  f.pages_per_second = static_cast<double>(pages) / seconds;
  // How much of memory one job's buffers may be, on a machine of its own that does nothing else.
  Manager manager(machine(policy, system_mib), -1);
  Role usable(manager, {"usable", "--bytes", fmt::format("{}M", system_mib)});
  if (!watch({&usable}, patience_ms, [&](std::size_t, const std::string& line) {
        if (line.starts_with("usable ")) f.usable_percent = std::stod(line.substr(7)) / (system_mib * 1048576) * 100;
      })) {
    f.hang = true;
  }
  return f;
}

/// One bar a policy for each of the columns, drawn by hand: no outside file, light and dark.
std::string page(const std::vector<Figures>& all, double seconds) {
  struct Column {
    const char* title;
    const char* unit;
    double (*value)(const Figures&);
  };
  const Column columns[] = {
      {"frames on time", "%", [](const Figures& f) { return f.on_time_percent(); }},
      {"frame time, p50", "ms", [](const Figures& f) { return f.percentile(0.5); }},
      {"frame time, p99", "ms", [](const Figures& f) { return f.percentile(0.99); }},
      {"kernel throughput", "pages/s", [](const Figures& f) { return f.pages_per_second; }},
      {"memory usable by one job", "%", [](const Figures& f) { return f.usable_percent; }},
  };
  std::string out =
      "<!doctype html><meta charset=utf-8><title>Ferry: policies</title><style>:root{color-scheme:light dark}"
      "body{font:15px system-ui;margin:2em;max-width:70em}text{fill:currentColor;font:13px system-ui}"
      "rect{fill:#3a7bd5}.bad{fill:#c43}</style><h1>Eight policies, one load</h1>";
  out += fmt::format(
      "<p>{} frames a second with a deadline of one period, beside a kernel over 150 % of system memory; {} s under "
      "each "
      "policy. Made by <code>ferry demo policies</code>. Red: a deadlock showed (and was ended).</p>",
      fps, seconds);
  for (const Column& column : columns) {
    double most = 1e-9;
    for (const Figures& f : all) most = std::max(most, column.value(f));
    out += fmt::format("<h2>{} ({})</h2><svg width=760 height={}>", column.title, column.unit, all.size() * 26 + 4);
    int y = 4;
    for (const Figures& f : all) {
      const double value = column.value(f);
      out += fmt::format(
          "<text x=0 y={0}>{1}</text><rect x=150 y={2} width={3:.1f} height=18 class={4} /><text x={5:.1f} "
          "y={0}>{6:.4g}</text>",
          y + 14, f.policy, y, value / most * 500, f.circles != 0 ? "bad" : "ok", 156 + value / most * 500, value);
      y += 26;
    }
    out += "</svg>";
  }
  return out + "\n";
}

}  // namespace

int policies(const PoliciesOptions& options) {
  const auto names = chosen_policies(options.policy);
  if (names.empty()) {
    std::fprintf(stderr, "ferry demo: no policy '%s'\n", options.policy.c_str());
    return 2;
  }
  std::vector<Figures> all;
  int code = 0;
  if (!options.json) {
    fmt::print("{:<18} {:>8} {:>8} {:>8} {:>10} {:>8} {:>11} {:>8} {:>9}\n", "policy", "on time", "p50 ms", "p99 ms",
               "pages/s", "usable", "preemptions", "switches", "deadlocks");
  }
  for (const std::string& name : names) {
    const Figures f = measure(name, options.seconds);
    if (!options.json) {
      fmt::print("{:<18} {:>7.1f}% {:>8.2f} {:>8.2f} {:>10.0f} {:>7.0f}% {:>11} {:>8} {:>9}\n", name,
                 f.on_time_percent(), f.percentile(0.5), f.percentile(0.99), f.pages_per_second, f.usable_percent,
                 f.preemptions, f.mode_switches, f.circles);
      std::fflush(stdout);
    }
    const bool bad = f.hang || f.wrong != 0 || (name != "none" && (f.circles != 0 || f.refused != 0 || f.failed != 0));
    if (bad) {
      std::fprintf(stderr, "ferry demo: policy %s: %s\n", name.c_str(),
                   f.hang         ? "a hang"
                   : f.wrong != 0 ? "wrong bytes"
                                  : f.error.c_str());
      code = 1;
    }
    all.push_back(f);
  }
  if (options.json) {
    nlohmann::ordered_json json = nlohmann::ordered_json::array();
    for (const Figures& f : all) {
      json.push_back({{"policy", f.policy},
                      {"frames_on_time_percent", f.on_time_percent()},
                      {"frame_p50_ms", f.percentile(0.5)},
                      {"frame_p99_ms", f.percentile(0.99)},
                      {"frames", f.frame_ms.size()},
                      {"dropped", f.dropped},
                      {"failed", f.failed},
                      {"kernel_pages_per_second", f.pages_per_second},
                      {"kernel_launches_refused", f.refused},
                      {"memory_usable_percent", f.usable_percent},
                      {"preemptions", f.preemptions},
                      {"mode_switches", f.mode_switches},
                      {"deadlocks", f.circles},
                      {"wrong", f.wrong}});
    }
    fmt::print("{}\n", json.dump(1));
  }
  if (!options.html.empty()) {
    std::ofstream file(options.html);
    file << page(all, options.seconds);
    if (!file.flush()) {
      std::fprintf(stderr, "ferry demo: cannot write %s\n", options.html.c_str());
      return 1;
    }
  }
  return code;
}

}  // namespace ferry::demo

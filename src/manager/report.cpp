#include "manager/report.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/size.h"
#include "manager/plot.h"
#include "manager/text_file.h"

namespace ferry::manager {
namespace {

constexpr const char* style = R"(<style>
:root { color-scheme: light dark; --bg:#fcfcfb; --fg:#1d2025; --dim:#62666e; --grid:#e2e3e6; --card:#fff;
  --c1:#1f6fb2; --c2:#c2571a; --c3:#3d8b40; --c4:#7d56a8; }
@media (prefers-color-scheme: dark) { :root { --bg:#16181c; --fg:#e6e7ea; --dim:#9a9fa8; --grid:#33373e; --card:#1d2025;
  --c1:#6cb2ee; --c2:#f0985c; --c3:#7cc47f; --c4:#bd9be6; } }
body { background:var(--bg); color:var(--fg); font:15px/1.5 system-ui,sans-serif; max-width:900px; margin:2rem auto;
  padding:0 1rem; }
h1 { font-size:1.5rem; margin:0 0 .2rem; overflow-wrap:anywhere; } h2 { font-size:1.1rem; margin:2rem 0 .5rem; }
p.machine { color:var(--dim); margin:0 0 1.5rem; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)); gap:.7rem; }
.tile { background:var(--card); border:1px solid var(--grid); border-radius:6px; padding:.6rem .8rem; }
.tile b { display:block; font-size:1.25rem; font-variant-numeric:tabular-nums; } .tile span { color:var(--dim); }
.tile small { display:block; color:var(--dim); }
figure { background:var(--card); border:1px solid var(--grid); border-radius:6px; margin:0 0 1rem; padding:.7rem .8rem .3rem; }
figure svg { max-width:100%; height:auto; } .key { color:var(--dim); white-space:nowrap; margin-left:.8rem; }
svg text { fill:var(--dim); font-size:11.5px; } .grid { stroke:var(--grid); fill:none; }
.l { fill:none; stroke-width:1.8; stroke-linejoin:round; } .f { stroke:none; opacity:.16; } .dash { stroke-dasharray:5 4; }
.l.c1 { stroke:var(--c1); } .l.c2 { stroke:var(--c2); } .l.c3 { stroke:var(--c3); } .l.c4 { stroke:var(--c4); }
.f.c1 { fill:var(--c1); } .f.c2 { fill:var(--c2); } .f.c3 { fill:var(--c3); } .f.c4 { fill:var(--c4); }
.wide { overflow-x:auto; } table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th,td { text-align:right; padding:.25rem .6rem; border-bottom:1px solid var(--grid); white-space:nowrap; }
th { color:var(--dim); font-weight:600; } th:first-child,td:first-child { text-align:left; white-space:normal;
  overflow-wrap:anywhere; }
</style>
)";

std::string tile(const std::string& label, const std::string& value, const std::string& more) {
  return "<div class=\"tile\"><span>" + label + "</span><b>" + value + "</b><small>" + more + "</small></div>\n";
}

std::string pages(std::uint64_t count) { return format_size(count * page_bytes); }

std::string percent(std::uint64_t part, std::uint64_t whole) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %%",
                whole == 0 ? 0.0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole));
  return text;
}

std::string tiles(const StatsDocument& d) {
  const core::Stats& s = d.stats;
  return "<div class=\"tiles\">\n" +
         tile("Device faults", format_count(s.device_faults), format_count(s.device_faults_merged) + " merged") +
         tile("CPU faults", format_count(s.cpu_faults), format_count(s.cpu_faults_merged) + " merged") +
         tile("To VRAM", pages(s.pages_to_vram), format_count(s.migrations_to_vram) + " migrations") +
         tile(
             "To system memory", pages(s.pages_to_system),
             format_count(s.migrations_to_system) + " migrations; " + pages(s.pages_dropped_clean) + " dropped clean") +
         tile("Evictions", format_count(s.evictions),
              pages(s.evicted_pages) + "; " + format_count(s.refaults) + " came back") +
         tile("Peak VRAM", pages(s.vram_peak_pages),
              "of " + format_size(d.machine.vram_bytes) + (d.machine.devices > 1 ? " on one device" : "")) +
         (d.machine.system_bytes == 0
              ? std::string()
              : tile("Peak system memory", pages(s.system_peak_pages),
                     "of " + format_size(d.machine.system_bytes) +
                         (s.over_budget_pages == 0 ? "" : "; " + pages(s.over_budget_pages) + " given over it")) +
                    tile("To the store", pages(s.pages_to_store),
                         pages(s.pages_from_store) + " back" +
                             (s.store_errors == 0 ? "" : "; " + format_count(s.store_errors) + " errors"))) +
         tile("Mapped in place", format_count(s.in_place_maps), format_count(s.contention_pins) + " contention pins") +
         tile("Kernels ran", format_duration(d.time.kernels_ns), "of " + format_duration(d.time.wall_ns)) + "</div>\n";
}

std::string time_table(const TimeSplit& t) {
  const auto row = [&](const char* what, std::uint64_t ns) {
    return std::string("<tr><td>") + what + "</td><td>" + format_duration(ns) + "</td><td>" + percent(ns, t.wall_ns) +
           "</td></tr>\n";
  };
  return "<div class=\"wide\"><table><tr><th>Time</th><th></th><th>of the run</th></tr>\n" +
         row("A kernel ran on some device", t.kernels_ns) + row("A migration was under way", t.moving_ns) +
         row("Copy threads: to VRAM (sum)", t.copy_to_vram_ns) +
         row("Copy threads: to system memory (sum)", t.copy_to_system_ns) + row("Manager worked", t.manager_busy_ns) +
         row("Manager looked for work", t.manager_poll_ns) + row("Manager slept", t.manager_sleep_ns) +
         "</table></div>\n";
}

std::string kernel_table(std::vector<KernelRow> rows) {
  if (rows.empty()) return "<p>No kernel ran.</p>\n";
  std::stable_sort(rows.begin(), rows.end(), [](auto& a, auto& b) { return a.total_ns > b.total_ns; });
  std::string out =
      "<div class=\"wide\"><table><tr><th>Kernel</th><th>launches</th><th>failed</th><th>waves</th><th>total</th>"
      "<th>mean</th><th>longest</th><th>device faults</th></tr>\n";
  for (const KernelRow& row : rows) {
    out += "<tr><td>" + html(row.name) + "</td><td>" + format_count(row.launches) + "</td><td>" +
           format_count(row.failed) + "</td><td>" + format_count(row.waves) + "</td><td>" +
           format_duration(row.total_ns) + "</td><td>" +
           format_duration(row.launches == 0 ? 0 : row.total_ns / row.launches) + "</td><td>" +
           format_duration(row.longest_ns) + "</td><td>" + format_count(row.device_faults) + "</td></tr>\n";
  }
  return out + "</table></div>\n";
}

template <typename Get>
std::vector<double> column(const std::vector<Sample>& samples, double scale, Get&& get) {
  std::vector<double> out;
  out.reserve(samples.size());
  for (const Sample& sample : samples) out.push_back(static_cast<double>(get(sample)) * scale);
  return out;
}

std::string plots(const Report& report) {
  std::vector<double> seconds;
  for (const Sample& s : report.samples) {
    seconds.push_back(s.time_ns > report.start_ns ? static_cast<double>(s.time_ns - report.start_ns) / 1e9 : 0.0);
  }
  const auto of = [&](double scale, auto get) { return column(report.samples, scale, get); };
  const auto bytes = static_cast<double>(page_bytes);
  const double budget = static_cast<double>(report.document.machine.vram_bytes) * report.document.machine.devices;
  Plot residency{"Residency over time", PlotUnit::bytes, seconds, {}};
  residency.lines.push_back({"VRAM in use", 1, true, false, of(bytes, [](const Sample& s) { return s.vram_pages; })});
  residency.lines.push_back({"VRAM budget", 2, false, true, std::vector<double>(seconds.size(), budget)});
  residency.lines.push_back(
      {"managed memory", 4, false, false, of(bytes, [](const Sample& s) { return s.allocated_pages; })});
  Plot faults{"Faults over time (since the start)", PlotUnit::count, seconds, {}};
  faults.lines.push_back({"device", 1, false, false, of(1, [](const Sample& s) { return s.device_faults; })});
  faults.lines.push_back({"CPU", 2, false, false, of(1, [](const Sample& s) { return s.cpu_faults; })});
  faults.lines.push_back({"evictions", 3, false, true, of(1, [](const Sample& s) { return s.evictions; })});
  Plot moved{"Bytes each way (since the start)", PlotUnit::bytes, seconds, {}};
  moved.lines.push_back({"to VRAM", 1, false, false, of(bytes, [](const Sample& s) { return s.pages_to_vram; })});
  moved.lines.push_back(
      {"to system memory", 2, false, false, of(bytes, [](const Sample& s) { return s.pages_to_system; })});
  if (report.document.machine.system_bytes == 0) return draw(residency) + draw(faults) + draw(moved);
  Plot system{"System memory over time", PlotUnit::bytes, seconds, {}};
  system.lines.push_back({"in use", 1, true, false, of(bytes, [](const Sample& s) { return s.system_pages; })});
  system.lines.push_back(
      {"budget", 2, false, true,
       std::vector<double>(seconds.size(), static_cast<double>(report.document.machine.system_bytes))});
  system.lines.push_back({"in the store", 4, false, false, of(bytes, [](const Sample& s) { return s.stored_pages; })});
  moved.lines.push_back({"to the store", 3, false, false, of(bytes, [](const Sample& s) { return s.pages_to_store; })});
  moved.lines.push_back(
      {"from the store", 4, false, false, of(bytes, [](const Sample& s) { return s.pages_from_store; })});
  return draw(residency) + draw(system) + draw(faults) + draw(moved);
}

}  // namespace

std::string host_line() {
  utsname name{};
  std::string out = "Linux";
  if (uname(&name) == 0) out = std::string(name.sysname) + " " + name.release + " " + name.machine;
  const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
  const auto memory = static_cast<std::uint64_t>(std::max(0L, sysconf(_SC_PHYS_PAGES))) *
                      static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  return out + ", " + std::to_string(cpus) + (cpus == 1 ? " CPU, " : " CPUs, ") + format_size(memory) + " memory";
}

std::string report_html(const Report& report) {
  const std::string title = html(report.title);
  return "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
         "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>Ferry: " +
         title + "</title>\n" + style + "</head>\n<body>\n<h1>" + title + "</h1>\n<p class=\"machine\">" +
         html(report.machine) + "</p>\n" + tiles(report.document) + "<h2>Over time</h2>\n" + plots(report) +
         "<h2>Where the time went</h2>\n" + time_table(report.document.time) + "<h2>Kernels</h2>\n" +
         kernel_table(report.document.kernels) + "</body>\n</html>\n";
}

Status write_report(const std::string& path, const Report& report) {
  TextFile file(path);
  if (!file.failed()) file.write(report_html(report));
  return file.finish();
}

}  // namespace ferry::manager

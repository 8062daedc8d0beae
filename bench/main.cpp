// ferry-bench: which benches run, and how their rows are printed. Exit code 0: every row measured and its target met;
// 1: some target missed or some row not measured; 2: wrong usage.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "harness.h"
#include "row_process.h"
#include "rows/rows.h"

namespace {

using namespace ferry::bench;

std::vector<Bench> all_benches() {
  std::vector<Bench> benches;
#ifdef FERRY_BENCH_CORE
  benches.push_back(core_decisions());
  benches.push_back(attributes());
  benches.push_back(migration_policies());
#endif
#ifdef FERRY_BENCH_CHECK
  benches.push_back(progress_explorer());
#endif
#ifdef FERRY_BENCH_STORE
  for (const auto make : {store_zstd, store_lz4, store_file}) benches.push_back(make());
#endif
#ifdef FERRY_BENCH_DEVICE
  for (const auto make : {fault_device_one, fault_device_all, fault_cpu, migrate, move, peer, kernels, traffic_bfs,
                          traffic_page_rank, traffic_stencil, progress, progress_reclaim}) {
    benches.push_back(make());
  }
#endif
  return benches;
}

/// "progress" means progress and progress-reclaim.
std::vector<const Bench*> find_group(const std::vector<Bench>& benches, const std::string& name) {
  std::vector<const Bench*> found;
  for (const Bench& bench : benches) {
    if (bench.name == name || bench.name.starts_with(name + "-")) found.push_back(&bench);
  }
  return found;
}

const Bench* find(const std::vector<Bench>& benches, const std::string& name) {
  const auto found =
      std::find_if(benches.begin(), benches.end(), [&](const Bench& bench) { return bench.name == name; });
  return found == benches.end() ? nullptr : &*found;
}

std::string list_of(const std::vector<Bench>& benches) {
  std::string text;
  for (const Bench& bench : benches) text += fmt::format("  {:<18} {}\n", bench.name, bench.about);
  return text;
}

/// Inside the process of one bench: rows on standard output, in the form that run_in_own_process reads.
int run_here(const Bench& bench, const Settings& settings) {
  try {
    fmt::print("{}\n", to_wire(bench.run(settings)));
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "ferry-bench: {}: {}\n", bench.name, error.what());
    return 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<Bench> benches = all_benches();
  Settings settings;
  std::vector<std::string> names;
  std::string here;
  bool json = false;
  int limit_s = 300;

  CLI::App app{"Measures Ferry against floors measured in the same run.", "ferry-bench"};
  app.add_option("NAME", names, "benches to run, or the first word of several, such as fault (default: all)");
  app.add_flag("--json", json, "print one JSON array of {name, ferry, floor, ratio, target, meets, unit}");
  app.add_option("--repeat", settings.repeat, "samples of each side; a figure is their median")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--limit", limit_s, "seconds after which a bench is given up")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  app.add_flag("--verbose", settings.verbose, "print every sample on standard error");
  app.add_option("--here", here, "run one bench in this process")->group("");
  app.footer("Benches:\n" + list_of(benches) +
             "\nExample: ferry-bench --json --repeat 9 > result.json\n"
             "Exit code: 0 all targets met, 1 a target missed or a row not measured, 2 wrong usage.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (!here.empty()) {
    const Bench* bench = find(benches, here);
    return bench == nullptr ? 2 : run_here(*bench, settings);
  }
  std::vector<const Bench*> chosen;
  for (const std::string& name : names) {
    const std::vector<const Bench*> group = find_group(benches, name);
    if (group.empty()) {
      fmt::print(stderr, "ferry-bench: there is no bench '{}'. There are:\n{}", name, list_of(benches));
      return 2;
    }
    chosen.insert(chosen.end(), group.begin(), group.end());
  }
  if (chosen.empty()) {
    for (const Bench& bench : benches) chosen.push_back(&bench);
  }
  std::vector<Row> rows;
  for (const Bench* bench : chosen) {
    fmt::print(stderr, "ferry-bench: {} ...\n", bench->name);
    std::vector<std::string> arguments = {"--here", bench->name, "--repeat", std::to_string(settings.repeat)};
    if (settings.verbose) arguments.emplace_back("--verbose");
    const std::vector<Row> measured = run_in_own_process(*bench, arguments, limit_s);
    rows.insert(rows.end(), measured.begin(), measured.end());
  }
  if (json) {
    fmt::print("{}\n", to_json(rows));
  } else {
    fmt::print("{}", to_table(rows));
  }
  return std::all_of(rows.begin(), rows.end(), [](const Row& row) { return row.meets(); }) ? 0 : 1;
}

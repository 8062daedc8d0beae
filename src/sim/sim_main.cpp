#include "sim/sim_main.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <thread>
#include <vector>

namespace ferry::sim {
namespace {
using core::PlantedBug;

// One run in so many is run a second time and must give the same trace.
constexpr std::uint64_t rerun_every = 20;

unsigned long long u(std::uint64_t v) { return v; }

struct Finding {
  SimOptions options;
  SimResult result;
  bool found = false;
};

struct Batch {
  Finding first;  ///< of the lowest seed that failed
  SimStats stats;
  std::uint64_t runs = 0;
  std::uint64_t reruns = 0;
  std::uint64_t steps = 0;
};

SimResult run_checked(const SimOptions& options, bool twice) {
  SimResult result = run(options);
  if (!twice || !result.ok) return result;
  const SimResult again = run(options);
  if (again.trace_hash != result.trace_hash || again.ok != result.ok) {
    result.ok = false;
    result.what = "the same seed gave two runs";
    char hashes[64];
    std::snprintf(hashes, sizeof hashes, "%016llx and %016llx", u(result.trace_hash), u(again.trace_hash));
    result.failure = result.what + ": traces " + hashes + "\nagain with: " + command_of(options) + "\n";
  }
  return result;
}

/// Runs seeds base.seed .. +runs-1; stops handing out seeds at the first failure. What it reports does not depend on
/// the number of threads.
Batch run_batch(const SimOptions& base, std::uint64_t runs, unsigned jobs) {
  Batch batch;
  std::mutex mutex;
  std::atomic<std::uint64_t> next{0};
  std::atomic<std::uint64_t> end{runs};
  const auto work = [&] {
    for (;;) {
      const std::uint64_t i = next.fetch_add(1);
      if (i >= end.load()) return;
      SimOptions o = base;
      o.seed = base.seed + i;
      const bool twice = i % rerun_every == 0 && o.bug == PlantedBug::none;
      SimResult r = run_checked(o, twice);
      const std::lock_guard lock(mutex);
      ++batch.runs;
      batch.reruns += twice ? 1 : 0;
      batch.steps += r.steps;
      batch.stats.add(r.stats);
      if (r.ok) continue;
      if (i < end.load()) end.store(i);
      if (!batch.first.found || o.seed < batch.first.options.seed) batch.first = Finding{o, std::move(r), true};
    }
  };
  std::vector<std::thread> threads;
  for (unsigned t = 1; t < jobs; ++t) threads.emplace_back(work);
  work();
  for (auto& t : threads) t.join();
  return batch;
}

void print_line(std::string_view text) { std::printf("%.*s\n", static_cast<int>(text.size()), text.data()); }

void print_failure(const Finding& finding, bool whole_trace) {
  if (whole_trace) {
    SimOptions traced = finding.options;
    traced.trace = print_line;
    (void)run(traced);
  }
  std::fputs(finding.result.failure.c_str(), stdout);
  if (finding.result.broken == Invariant::none) return;
  const SimOptions small = shrink(finding.options, finding.result);
  if (small.steps < finding.options.steps) std::printf("shorter:    %s\n", command_of(small).c_str());
}

bool parse_bug(const std::string& name, PlantedBug& bug) {
  for (unsigned i = 0; i < core::planted_bug_count; ++i) {
    bug = static_cast<PlantedBug>(i);
    if ((i == 0 || core::is_simulated(bug)) && name == core::to_string(bug)) return true;
  }
  return false;
}

int all_bugs(const SimMainOptions& options, unsigned jobs) {
  const std::uint64_t limit = options.runs > 1 ? options.runs : planted_bug_seeds;
  std::printf("%-22s %-7s %-7s %s\n", "planted bug", "seeds", "limit", "found by");
  unsigned missed = 0;
  for (unsigned i = 1; i < core::planted_bug_count; ++i) {
    if (!core::is_simulated(static_cast<PlantedBug>(i))) continue;
    SimOptions o;
    o.budget = options.budget;
    o.seed = options.seed;
    o.steps = options.steps;
    o.bug = static_cast<PlantedBug>(i);
    const Batch batch = run_batch(o, limit, jobs);
    if (!batch.first.found) {
      ++missed;
      std::printf("%-22s %-7s %-7llu NOT FOUND\n", core::to_string(o.bug), "-", u(limit));
      continue;
    }
    const SimResult& r = batch.first.result;
    std::printf("%-22s %-7llu %-7llu I-%02u %s (%s)\n", core::to_string(o.bug),
                u(batch.first.options.seed - options.seed + 1), u(limit), static_cast<unsigned>(r.broken),
                to_string(r.broken), command_of(batch.first.options).c_str());
    std::fflush(stdout);
  }
  return missed == 0 ? 0 : 1;
}
}  // namespace

int sim_main(const SimMainOptions& options) {
  const unsigned cpus = std::max(1U, std::thread::hardware_concurrency());
  const auto wanted = options.jobs == 0 ? cpus : options.jobs;
  if (options.runs == 0 || options.steps == 0) {
    std::fputs("ferry sim: --runs and --steps must be at least 1\n", stderr);
    return 2;
  }
  if (options.bug == "all") return all_bugs(options, wanted);

  SimOptions base;
  base.seed = options.seed;
  base.steps = options.steps;
  base.budget = options.budget;
  if (!options.bug.empty() && !parse_bug(options.bug, base.bug)) {
    std::fprintf(stderr, "ferry sim: no planted bug is called '%s'; try one of:", options.bug.c_str());
    for (unsigned i = 1; i < core::planted_bug_count; ++i) {
      const auto bug = static_cast<PlantedBug>(i);
      if (core::is_simulated(bug)) std::fprintf(stderr, " %s", core::to_string(bug));
    }
    std::fputs(" all\n", stderr);
    return 2;
  }
  if (options.trace && options.runs == 1) {
    base.trace = print_line;
    const SimResult r = run(base);
    std::printf("trace hash %016llx, %llu steps\n", u(r.trace_hash), u(r.steps));
    if (!r.ok) std::fputs(r.failure.c_str(), stdout);
    return r.ok ? 0 : 1;
  }

  const Batch batch =
      run_batch(base, options.runs, static_cast<unsigned>(std::min<std::uint64_t>(wanted, options.runs)));
  if (batch.first.found) {
    print_failure(batch.first, options.trace);
    return 1;
  }
  const SimStats& s = batch.stats;
  std::printf("ferry sim: %llu runs (seeds %llu to %llu, %llu steps each): clean; %llu run twice with equal traces\n",
              u(batch.runs), u(options.seed), u(options.seed + options.runs - 1), u(options.steps), u(batch.reruns));
  std::printf(
      "  %llu events, %llu accesses checked, %llu device faults, %llu CPU faults, %llu pages copied, %llu evictions\n",
      u(batch.steps), u(s.accesses), u(s.device_faults), u(s.cpu_faults), u(s.copied_pages), u(s.evictions));
  std::printf(
      "  %llu runs with a budget of system memory: %llu pages stored, %llu loaded, %llu given over it\n"
      "  %llu pages copied for one more reader, %llu left with one copy\n"
      "  %llu spans moved to other addresses, %llu pages of them without a copy\n"
      "  %llu actions (%llu failed), %llu requests, %llu processes killed, %llu stopped, %llu waves got an error\n"
      "  an access was tried again %llu times at most\n",
      u(s.budgets), u(s.stored_pages), u(s.loaded_pages), u(s.over_budget_pages), u(s.duplicated_pages),
      u(s.collapsed_pages), u(s.moves), u(s.carried_pages), u(s.actions), u(s.failed_actions), u(s.requests),
      u(s.kills), u(s.stops), u(s.waves_failed), u(s.most_retries));
  return 0;
}

}  // namespace ferry::sim

#include "check/cases.h"

#include <algorithm>
#include <atomic>
#include <ctime>
#include <mutex>
#include <thread>

namespace ferry::check {

std::string Case::title() const {
  std::string out = scenario->name + ", policy " + core::to_string(policy);
  if (hardware != Hardware{}) out += ", " + hardware.text();
  if (bug != core::PlantedBug::none) out += std::string(", planted bug ") + core::to_string(bug);
  return out;
}

std::string Case::file_name() const {
  std::string out = scenario->name + "-" + core::to_string(policy);
  if (hardware != Hardware{}) out += "-" + hardware.text();
  if (bug != core::PlantedBug::none) out += std::string("-") + core::to_string(bug);
  std::replace(out.begin(), out.end(), '/', '_');
  return out;
}

std::string words(const std::vector<Verdict>& verdicts) {
  std::string out;
  for (const Verdict v : verdicts) out += (out.empty() ? "" : " or ") + std::string(to_string(v));
  return out;
}

/// Of the calling thread: a machine that is busy with other things does not make the search look slower than it is.
double processor_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

Result examine(const Case& one, const Effort& effort) {
  Result out;
  const double begin = processor_seconds();
  out.random = effort.schedules != 0 || (one.scenario->large && !effort.exhaustive);
  if (out.random) {
    RandomOptions options;
    options.schedules = effort.schedules != 0 ? effort.schedules : options.schedules;
    options.seed = effort.seed;
    options.preemptions = effort.preemptions;
    out.exploration = explore_randomly(one.setup(), options);
  } else {
    Limits limits;
    limits.states = effort.states;
    out.exploration = explore(one.setup(), limits);
  }
  out.expected = one.scenario->expected(one.policy, one.hardware);
  if (out.expected.empty()) out.expected = {Verdict::clean};
  out.as_expected = std::count(out.expected.begin(), out.expected.end(), out.exploration.finding.verdict) != 0;
  out.seconds = processor_seconds() - begin;
  return out;
}

std::vector<Result> examine_all(const std::vector<Case>& cases, const Effort& effort, unsigned jobs,
                                const std::function<bool(std::size_t, const Result&)>& done) {
  std::vector<Result> results(cases.size());
  std::atomic<std::size_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  const auto work = [&] {
    while (!stop.load()) {
      const std::size_t i = next.fetch_add(1);
      if (i >= cases.size()) return;
      Result result = examine(cases[i], effort);
      const std::lock_guard lock(mutex);
      results[i] = std::move(result);
      if (done && !done(i, results[i])) stop.store(true);
    }
  };
  std::vector<std::thread> threads;
  const auto count = std::min<std::size_t>(std::max(jobs, 1U), cases.size());
  for (std::size_t t = 1; t < count; ++t) threads.emplace_back(work);
  work();
  for (auto& thread : threads) thread.join();
  return results;
}

}  // namespace ferry::check

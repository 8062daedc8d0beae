// One execution at a time: from given events, from random ones, and with as few as possible.
#include <algorithm>
#include <map>

#include "base/random.h"
#include "check/explore.h"
#include "check/hash.h"

namespace ferry::check {
namespace {

/// The event that has waited longest among those that are enabled: a fair order without chance.
const Event& oldest(const std::vector<Event>& events, std::map<std::uint64_t, std::uint64_t>& last, std::uint64_t now) {
  const Event* best = &events.front();
  for (const Event& event : events) {
    last.try_emplace(event.key, now);
    // Timers fire early only when they are chosen.
    if (event.kind != Event::Kind::tick && event.kind != Event::Kind::fail &&
        (last[event.key] < last[best->key] || best->kind == Event::Kind::tick || best->kind == Event::Kind::fail)) {
      best = &event;
    }
  }
  return *best;
}

/// Times that an event may be passed over in a random schedule.
constexpr unsigned patience = 40;

/// A thread or wave is one actor over its steps; each answer of the machine is one of its own.
std::uint64_t actor_of(const Event& event) { return event.kind == Event::Kind::step ? event.index + 1 : event.key; }

Finding no_progress(const World& world, unsigned bound) {
  return {Verdict::livelock,
          "nobody got a step further for " + std::to_string(bound) + " events\n" + world.who_waits()};
}

}  // namespace

Run run_schedule(const Setup& setup, const std::vector<std::uint64_t>& keys, const RunOptions& options) {
  const CrashCatcher catcher;
  Run out;
  World world(setup, options.log ? &out.log : nullptr);
  out.participants = world.participants();
  std::vector<Event> events;
  const auto perform = [&](const Event& event) {
    out.performed.push_back(event.key);
    out.names.push_back(world.name(event));
    world.perform(event);
  };
  for (const std::uint64_t key : keys) {
    world.enabled(events);
    const auto it = std::find_if(events.begin(), events.end(), [key](const Event& e) { return e.key == key; });
    if (it == events.end()) {
      out.followed = false;
      continue;
    }
    perform(*it);
  }
  std::map<std::uint64_t, std::uint64_t> last;
  std::uint32_t seen = world.progress();
  unsigned idle = 0;
  for (world.enabled(events); !events.empty() && options.go_on && out.performed.size() < options.length;
       world.enabled(events)) {
    const Event event = oldest(events, last, out.performed.size());
    last.erase(event.key);
    perform(event);
    idle = world.progress() == seen ? idle + 1 : 0;
    seen = world.progress();
    if (idle > options.progress_bound) {
      out.finding = no_progress(world, idle);
      return out;
    }
  }
  if (events.empty()) out.finding = world.conclude();
  return out;
}

std::vector<std::uint64_t> minimise(const Setup& setup, std::vector<std::uint64_t> schedule, Verdict verdict) {
  RunOptions options;
  const auto still = [&](const std::vector<std::uint64_t>& keys, std::vector<std::uint64_t>& performed) {
    Run run = run_schedule(setup, keys, options);
    performed = std::move(run.performed);
    return run.finding.verdict == verdict;
  };
  for (std::size_t part = std::max<std::size_t>(schedule.size() / 2, 1); !schedule.empty();) {
    bool shorter = false;
    for (std::size_t at = 0; at < schedule.size();) {
      std::vector<std::uint64_t> less = schedule;
      less.erase(less.begin() + static_cast<std::ptrdiff_t>(at),
                 less.begin() + static_cast<std::ptrdiff_t>(std::min(at + part, less.size())));
      std::vector<std::uint64_t> performed;
      // What the run did is what counts: what it was asked for may have been passed over, and the end was its own.
      if (still(less, performed) && performed.size() < schedule.size()) {
        schedule = std::move(performed);
        shorter = true;
      } else {
        at += part;
      }
    }
    if (shorter) continue;
    if (part == 1) break;
    part = std::max<std::size_t>(part / 2, 1);
  }
  return schedule;
}

/// Probabilistic concurrency testing: whoever acts has a random preference, the enabled event of the highest goes first,
/// and at a few random moments the one that would go next falls to the end. Bugs that need few such moments are found
/// with a probability that does not shrink with the length of the schedule (Burckhardt and others, ASPLOS 2010).
Exploration explore_randomly(const Setup& setup, const RandomOptions& options) {
  const CrashCatcher catcher;
  Exploration out;
  for (std::uint64_t n = 0; n < options.schedules; ++n) {
    const std::uint64_t seed = options.seed + n;
    Random random(seed);
    World world(setup);
    ++out.executions;
    ++out.schedules;
    std::map<std::uint64_t, std::uint64_t> preference;  // by actor
    std::vector<std::uint64_t> changes;
    for (unsigned i = 0; i < options.preemptions; ++i) changes.push_back(random.below(200));
    std::vector<std::uint64_t> performed;
    std::vector<Event> events;
    std::uint64_t lowest = 1'000'000;
    std::uint32_t seen = 0;
    unsigned idle = 0;
    Finding finding;
    std::map<std::uint64_t, unsigned> passed;  // by key, how often it could have happened since it did
    for (world.enabled(events); !events.empty(); world.enabled(events)) {
      std::vector<std::uint64_t*> ranks;
      std::size_t overdue = events.size();
      for (std::size_t e = 0; e < events.size(); ++e) {
        ranks.push_back(
            &preference.try_emplace(actor_of(events[e]), lowest + 1 + random.below(1'000'000)).first->second);
        // Nobody has to fail, and no timer to fire early.
        const bool has_to = events[e].kind != Event::Kind::fail && events[e].kind != Event::Kind::tick;
        if (has_to && ++passed[events[e].key] > patience) overdue = e;
      }
      const auto best = [&ranks] {
        return static_cast<std::size_t>(
            std::max_element(ranks.begin(), ranks.end(), [](auto* a, auto* b) { return *a < *b; }) - ranks.begin());
      };
      if (std::count(changes.begin(), changes.end(), performed.size()) != 0) *ranks[best()] = --lowest;
      // Preferences alone are not fair. Strong fairness: what could have happened often enough happens.
      const Event event = events[overdue < events.size() ? overdue : best()];
      passed.erase(event.key);
      performed.push_back(event.key);
      world.perform(event);
      ++out.events;
      idle = world.progress() == seen ? idle + 1 : 0;
      seen = world.progress();
      if (idle > options.progress_bound || performed.size() > options.length) {
        finding = no_progress(world, idle);
        break;
      }
    }
    if (events.empty()) finding = world.conclude();
    for (const std::string& remark : world.remarks()) {
      if (out.remarks.size() < 16 && std::count(out.remarks.begin(), out.remarks.end(), remark) == 0) {
        out.remarks.push_back(remark);
      }
    }
    if (finding.verdict > out.finding.verdict) {
      out.finding = std::move(finding);
      out.schedule = std::move(performed);
      out.seed = seed;
      if (out.finding.verdict > Verdict::broken_rule) break;
    }
  }
  out.transitions = out.events;
  if (out.finding.verdict != Verdict::clean && out.finding.verdict != Verdict::refused) {
    out.schedule = minimise(setup, std::move(out.schedule), out.finding.verdict);
    RunOptions last;
    const Run run = run_schedule(setup, out.schedule, last);
    out.finding = run.finding;
    out.schedule = run.performed;
  }
  return out;
}

}  // namespace ferry::check

#include "sim/sim.h"

#include <algorithm>

#include "base/check.h"
#include "sim/violation.h"
#include "sim/world.h"

namespace ferry::sim {
namespace {
/// A failed FERRY_CHECK of the core ends the run as a violation instead of the process.
void throw_check(const char* message) {
  std::string text = message;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  throw Violation{Invariant::core_check, std::move(text)};
}

class CheckCatcher {
 public:
  CheckCatcher() { set_check_catcher(throw_check); }
  ~CheckCatcher() { set_check_catcher(nullptr); }
  CheckCatcher(const CheckCatcher&) = delete;
  CheckCatcher& operator=(const CheckCatcher&) = delete;
};
}  // namespace

const char* to_string(Invariant invariant) {
  switch (invariant) {
    case Invariant::none: return "none";
    case Invariant::current_copy: return "every page has a current copy";
    case Invariant::reads_last_write: return "a read gives the last write";
    case Invariant::exclusive_writer: return "a writer excludes other copies";
    case Invariant::maps_current: return "a mapping leads to a current copy";
    case Invariant::quiet_source: return "a copy's source is quiet and its target unreachable";
    case Invariant::fault_ends_once: return "a device fault ends once";
    case Invariant::dma_balance: return "DMA mappings balance";
    case Invariant::budget: return "VRAM stays within its budget";
    case Invariant::writable_is_dirty: return "writable VRAM counts as dirty";
    case Invariant::reply_once: return "a request is answered once";
    case Invariant::cpu_fault_ends: return "a CPU fault ends";
    case Invariant::progress: return "whoever waits is served";
    case Invariant::slot_single_use: return "a VRAM page holds one page";
    case Invariant::free_is_final: return "a free is final";
    case Invariant::view_is_true: return "what the core says is so";
    case Invariant::answers_right: return "answers are as documented";
    case Invariant::all_given_back: return "all is given back";
    case Invariant::order_free: return "order of actions does not matter";
    case Invariant::core_check: return "the core's own checks hold";
    case Invariant::counts_are_true: return "statistics count what happened";
    case Invariant::charged_first: return "system memory is charged before it is used";
    case Invariant::nothing_forbidden: return "a device maps only what attributes let it";
    case Invariant::attributes_are_true: return "attributes are what was said";
    case Invariant::copies_not_written: return "nobody writes a page that has copies";
    case Invariant::copies_are_equal: return "copies are equal";
    case Invariant::protected_pages: return "protection binds devices";
    case Invariant::discarded_pages: return "what was discarded reads as zeros";
    case Invariant::over_is_told: return "what exceeds the budget is told";
    case Invariant::old_fault_again: return "a fault older than an unmap is tried again";
    case Invariant::moved_pages: return "what was moved is at its new address";
    case Invariant::refused_till_let: return "nothing is refused that may be had";
    case Invariant::fork_is_quiet: return "no device reaches what forks";
    case Invariant::fork_sees_own: return "a child sees the moment of its fork";
    case Invariant::pinned_stays: return "a pinned page stays";
  }
  return "unknown";
}

void SimStats::add(const SimStats& o) {
  accesses += o.accesses;
  device_faults += o.device_faults;
  cpu_faults += o.cpu_faults;
  copied_pages += o.copied_pages;
  evictions += o.evictions;
  actions += o.actions;
  failed_actions += o.failed_actions;
  kills += o.kills;
  stops += o.stops;
  waves_failed += o.waves_failed;
  requests += o.requests;
  changes += o.changes;
  moves += o.moves;
  carried_pages += o.carried_pages;
  forks += o.forks;
  child_pages += o.child_pages;
  old_faults += o.old_faults;
  budgets += o.budgets;
  stored_pages += o.stored_pages;
  loaded_pages += o.loaded_pages;
  over_budget_pages += o.over_budget_pages;
  duplicated_pages += o.duplicated_pages;
  collapsed_pages += o.collapsed_pages;
  most_retries = std::max(most_retries, o.most_retries);
}

std::string command_of(const SimOptions& options) {
  std::string text = "ferry sim --seed " + std::to_string(options.seed) + " --steps " + std::to_string(options.steps);
  if (options.budget != SimOptions::Budget::by_seed) {
    text += options.budget == SimOptions::Budget::on ? " --budget on" : " --budget off";
  }
  if (options.bug != core::PlantedBug::none) text += std::string(" --bug ") + core::to_string(options.bug);
  return text;
}

SimResult run(const SimOptions& options) {
  const CheckCatcher catcher;
  try {
    World world(options);
    SimResult result = world.run();
    if (!result.ok && world.subject().known) {
      // The same run once more, to tell what became of the page.
      SimOptions quiet = options;
      quiet.trace = nullptr;
      World again(quiet);
      again.watch(world.subject());
      const SimResult same = again.run();
      FERRY_CHECK(same.trace_hash == result.trace_hash);
      result.failure.insert(result.failure.rfind("again with: "),
                            "last events of page " + std::to_string(world.subject().page) + " of client " +
                                std::to_string(world.subject().client) + ":\n" + again.watched());
    }
    return result;
  } catch (const Violation& violation) {  // before the first step
    SimResult result;
    result.ok = false;
    result.broken = violation.invariant;
    result.what = violation.text;
    result.failure = violation.text + "\nagain with: " + command_of(options) + "\n";
    return result;
  }
}

SimOptions shrink(const SimOptions& options, const SimResult& failed) {
  SimOptions best = options;
  best.trace = nullptr;
  const auto still_fails = [&](std::uint64_t steps) {
    SimOptions o = best;
    o.steps = steps;
    const SimResult r = run(o);
    return !r.ok && r.broken == failed.broken;
  };
  // The run up to the failing step does not depend on how many would have followed.
  if (failed.steps < best.steps) best.steps = failed.steps;
  // Then fewer: the quiet phases often meet the same bug earlier.
  for (std::uint64_t cut = best.steps / 2; cut > 0 && cut >= best.steps / 64; cut /= 2) {
    while (best.steps > cut && still_fails(best.steps - cut)) best.steps -= cut;
  }
  best.trace = options.trace;
  return best;
}

}  // namespace ferry::sim

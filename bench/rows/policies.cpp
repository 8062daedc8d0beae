// Policies beside none: faults and bytes moved by the core for patterns of access of one device, every action answered at
// once. The same figures on every machine.
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/random.h"
#include "core/core.h"
#include "rows/rows.h"

namespace ferry::bench {

namespace {

constexpr ClientId client = 1;
constexpr DeviceId device = 0;

/// Pages that a device touches: those that it does not map fault.
class Machine {
 public:
  Machine(const core::Config& config, std::uint64_t pages) : core_(config), maps_(pages) {
    core_.client_open(client);
    core_.device_attach(client, device);
    if (!core_.alloc(++now_, client, {0, pages}, core::Placement::automatic).ok()) {
      throw std::runtime_error("the core refused the allocation");
    }
  }
  void touch(Page page, Access access) {
    const int need = access == Access::write ? 2 : 1;
    for (int tries = 0; maps_[page] < need; ++tries) {
      if (tries == 20) throw std::runtime_error(fmt::format("page {} is never mapped", page));
      ++faults_;
      now_ += 10'000;
      core_.device_fault(now_, client, device, page, access, core::FaultToken{faults_});
      settle();
    }
  }
  [[nodiscard]] double faults() const { return static_cast<double>(faults_); }
  [[nodiscard]] double moved_mib() const {
    return static_cast<double>(core_.stats().pages_to_vram + core_.stats().pages_to_system) / 256;
  }

 private:
  void settle() {
    while (core_.has_actions()) {
      core_.take_actions(actions_);
      for (const core::Action& action : actions_) {
        for (Page page = action.pages.first; page < action.pages.end(); ++page) {
          if (action.verb == core::Verb::revoke_device) maps_[page] = 0;
          if (action.verb == core::Verb::map_device) maps_[page] = action.prot == Prot::read_write ? 2 : 1;
        }
      }
      for (const core::Action& action : actions_) {
        if (action.id != 0) core_.action_done(now_, action.id, Status{});
      }
    }
  }
  core::Core core_;
  std::vector<int> maps_;
  std::vector<core::Action> actions_;
  std::uint64_t now_ = 1;
  std::uint64_t faults_ = 0;
};

/// What a pattern needs: everything is in units of granules, so that policies see the same at any size.
struct Pattern {
  const char* name;
  std::uint64_t blocks;
  std::uint64_t vram_blocks;
  unsigned granule;  ///< pages
  std::function<void(Machine&, std::uint64_t pages, unsigned granule)> run;
};

const std::vector<Pattern>& patterns() {
  static const std::vector<Pattern> all = {
      {"sequential", 64, 80, 16,
       [](Machine& m, std::uint64_t pages, unsigned) {
         for (Page page = 0; page < pages; ++page) m.touch(page, Access::write);
       }},
      {"stride", 64, 80, 16,
       [](Machine& m, std::uint64_t pages, unsigned granule) {
         // A matrix of four columns, walked downwards column by column.
         for (unsigned column = 0; column < 4; ++column) {
           for (Page page = pages - (4 - column) * granule;; page -= 4 * granule) {
             m.touch(page, Access::write);
             if (page < 4 * granule) break;
           }
         }
       }},
      {"random", 64, 80, 16,
       [](Machine& m, std::uint64_t pages, unsigned) {
         Random random(1);
         for (unsigned i = 0; i < 40'000; ++i) m.touch(random.below(pages), Access::write);
       }},
      {"sparse", 64, 8, 16,
       [](Machine& m, std::uint64_t pages, unsigned granule) {
         for (unsigned round = 0; round < 4; ++round) {
           for (Page page = 0; page < pages; page += granule) m.touch(page + page / granule % granule, Access::write);
         }
       }},
      {"lookup", 32, 2, block_pages,
       [](Machine& m, std::uint64_t pages, unsigned) {
         Random random(1);
         for (unsigned i = 0; i < 10'000; ++i) m.touch(random.below(pages), Access::write);
       }},
      {"loop", 64, 32, 16,
       [](Machine& m, std::uint64_t pages, unsigned) {
         for (unsigned round = 0; round < 10; ++round) {
           for (Page page = 0; page < pages; page += 4) m.touch(page, Access::write);
         }
       }},
  };
  return all;
}

struct Choice {
  const char* name;
  core::PrefetchKind prefetch;
  core::VictimKind victims;
  core::LeaveKind leave;
};

using core::LeaveKind;
using core::PrefetchKind;
using core::VictimKind;

constexpr Choice none = {"none", PrefetchKind::none, VictimKind::fifo, LeaveKind::never};

/// Which policies are compared for a pattern, by what, and what they may cost beside none at most.
struct Compared {
  const char* pattern;
  Choice choice;
  bool faults;  ///< else bytes
  double target;
};

const std::vector<Compared>& compared() {
  constexpr auto prefetch = [](const char* name, PrefetchKind kind) {
    return Choice{name, kind, VictimKind::fifo, LeaveKind::never};
  };
  constexpr auto leave = [](const char* name, LeaveKind kind) {
    return Choice{name, PrefetchKind::none, VictimKind::fifo, kind};
  };
  constexpr auto victims = [](const char* name, VictimKind kind) {
    return Choice{name, PrefetchKind::none, kind, LeaveKind::never};
  };
  constexpr Choice usual = {"default", PrefetchKind::both, VictimKind::probe, LeaveKind::thrash};
  static const std::vector<Compared> all = {
      {"sequential", prefetch("sequential", PrefetchKind::sequential), true, 0.5},
      {"sequential", prefetch("stride", PrefetchKind::stride), true, 0.5},
      {"sequential", prefetch("density", PrefetchKind::density), true, 0.75},
      {"sequential", usual, true, 0.5},
      {"stride", prefetch("sequential", PrefetchKind::sequential), true, 1.0},
      {"stride", prefetch("stride", PrefetchKind::stride), true, 0.5},
      {"stride", prefetch("density", PrefetchKind::density), true, 0.75},
      {"stride", usual, true, 0.5},
      {"random", prefetch("stride", PrefetchKind::stride), true, 1.0},
      {"random", prefetch("density", PrefetchKind::density), true, 0.75},
      {"random", usual, true, 0.75},
      {"sparse", leave("thrash", LeaveKind::thrash), true, 1.0},
      {"sparse", leave("thrash", LeaveKind::thrash), false, 1.0},
      {"sparse", leave("cost", LeaveKind::cost), true, 1.0},
      {"sparse", leave("cost", LeaveKind::cost), false, 0.5},
      {"lookup", leave("thrash", LeaveKind::thrash), true, 1.0},
      {"lookup", leave("thrash", LeaveKind::thrash), false, 0.1},
      {"lookup", leave("cost", LeaveKind::cost), true, 1.0},
      {"lookup", leave("cost", LeaveKind::cost), false, 0.1},
      {"loop", victims("lru", VictimKind::lru), false, 1.05},
      {"loop", victims("random", VictimKind::random), false, 1.0},
      {"loop", victims("probe", VictimKind::probe), false, 0.75},
      {"loop", usual, false, 0.75},
  };
  return all;
}

struct Cost {
  double faults;
  double mib;
};

Cost cost_of(const Pattern& pattern, const Choice& choice) {
  core::Config config;
  config.vram_pages = pattern.vram_blocks * block_pages;
  config.granularity_pages = pattern.granule;
  config.prefetch = choice.prefetch;
  config.victims = choice.victims;
  config.leave = choice.leave;
  Machine machine(config, pattern.blocks * block_pages);
  pattern.run(machine, pattern.blocks * block_pages, pattern.granule);
  return {machine.faults(), machine.moved_mib()};
}

Row owed(const Compared& c) {
  return {.name = fmt::format("policy_{}_{}_{}", c.pattern, c.choice.name, c.faults ? "faults" : "moved"),
          .target = c.target,
          .bound = Bound::at_most,
          .unit = c.faults ? "faults" : "MiB"};
}

std::vector<Row> measure(const Settings&) {
  std::vector<Row> rows;
  for (const Pattern& pattern : patterns()) {
    const Cost base = cost_of(pattern, none);
    for (const Compared& c : compared()) {
      if (std::string(c.pattern) != pattern.name) continue;
      const Cost cost = cost_of(pattern, c.choice);
      Row row = make_row(owed(c), c.faults ? cost.faults : cost.mib, c.faults ? base.faults : base.mib);
      row.note = fmt::format("{:.0f} faults, {:.0f} MiB moved; without a policy {:.0f}, {:.0f}", cost.faults, cost.mib,
                             base.faults, base.mib);
      rows.push_back(row);
    }
  }
  return rows;
}

}  // namespace

Bench migration_policies() {
  Bench bench{.name = "policy", .about = "faults and bytes of patterns of access under each policy, beside none"};
  for (const Compared& c : compared()) bench.expected.push_back(owed(c));
  bench.run = measure;
  return bench;
}

}  // namespace ferry::bench

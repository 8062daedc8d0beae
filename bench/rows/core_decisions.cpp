// The core alone: faults go in, every action it asks for is answered at once, nothing is performed. What is left is the
// time to decide.
#include <cstdint>
#include <stdexcept>
#include <vector>

#include <fmt/format.h>

#include "core/core.h"
#include "rows/rows.h"

namespace ferry::bench {

namespace {

constexpr ClientId client = 1;
constexpr DeviceId device = 0;
constexpr double required_per_s = 2e6;
constexpr std::uint64_t vram_blocks = 256;
constexpr std::uint64_t span_blocks = 2 * vram_blocks;

/// A machine that performs nothing: it knows which granules the device and the CPU map, so that it only reports faults
/// that a real one could report, and says "done" to everything.
class NullMachine {
 public:
  NullMachine(core::Core& core, unsigned granularity_pages)
      : core_(core),
        granularity_(granularity_pages),
        device_maps_(span_blocks * block_pages / granularity_pages),
        cpu_revoked_(device_maps_.size()) {}

  [[nodiscard]] std::uint64_t granules() const { return device_maps_.size(); }
  [[nodiscard]] bool device_maps(std::uint64_t granule) const { return device_maps_[granule] != 0; }
  [[nodiscard]] bool cpu_faults(std::uint64_t granule) const { return cpu_revoked_[granule] != 0; }

  /// Answers until the core asks for nothing more.
  void settle(std::uint64_t now_ns) {
    while (core_.has_actions()) {
      core_.take_actions(actions_);
      for (const core::Action& action : actions_) note(action);
      for (const core::Action& action : actions_) {
        if (action.id != 0) core_.action_done(now_ns, action.id, Status{});
      }
    }
  }
  [[nodiscard]] std::uint64_t answered_waves() const { return answered_waves_; }

 private:
  void note(const core::Action& action) {
    if (action.verb == core::Verb::wake_wave || action.has_token) ++answered_waves_;
    const auto mark = [&](std::vector<std::uint8_t>& bits, std::uint8_t value) {
      const std::uint64_t end = (action.pages.end() + granularity_ - 1) / granularity_;
      for (std::uint64_t granule = action.pages.first / granularity_; granule < end; ++granule) bits[granule] = value;
    };
    switch (action.verb) {
      case core::Verb::map_device: return mark(device_maps_, 1);
      case core::Verb::revoke_device: return mark(device_maps_, 0);
      case core::Verb::map_cpu: return mark(cpu_revoked_, 0);
      case core::Verb::revoke_cpu: return mark(cpu_revoked_, 1);
      default: return;
    }
  }

  core::Core& core_;
  std::uint64_t granularity_;
  std::vector<std::uint8_t> device_maps_;
  std::vector<std::uint8_t> cpu_revoked_;
  std::vector<core::Action> actions_;
  std::uint64_t answered_waves_ = 0;
};

/// Xorshift: a draw must cost next to nothing beside a decision.
class Draw {
 public:
  std::uint64_t operator()() {
    state_ ^= state_ << 13U;
    state_ ^= state_ >> 7U;
    state_ ^= state_ << 17U;
    return state_;
  }

 private:
  std::uint64_t state_ = 0x9e3779b97f4a7c15U;
};

/// Decisions: faults that had to be served (merged ones cost the core little and are left out), and migrations begun.
std::uint64_t decisions(const core::Stats& stats) {
  return stats.device_faults - stats.device_faults_merged + stats.cpu_faults - stats.cpu_faults_merged +
         stats.migrations_to_vram + stats.migrations_to_system;
}

/// Million a second.
struct Rates {
  double decisions;
  double faults;  ///< of them
};

/// Three faults of four come from the device, one from a CPU, on granules drawn at random
/// out of twice the VRAM; 32 are outstanding at a time.
Rates sample(unsigned granularity_pages, std::uint64_t faults) {
  core::Config config;
  config.vram_pages = vram_blocks * block_pages;
  config.granularity_pages = granularity_pages;
  core::Core core(config);
  core.client_open(client);
  core.device_attach(client, device);
  if (!core.alloc(0, client, {.first = 0, .count_pages = span_blocks * block_pages}, core::Placement::automatic).ok()) {
    throw std::runtime_error("the core refused the allocation");
  }
  NullMachine machine(core, granularity_pages);
  Draw random;
  // Virtual time: a second a batch. In less, granules that both sides touch look contended, stay in place, and a granule
  // that both map never faults again.
  std::uint64_t now_ns_virtual = 1;
  std::uint64_t token = 0;
  const auto run = [&](std::uint64_t count) {
    std::uint64_t idle_batches = 0;
    for (std::uint64_t raised = 0; raised < count;) {
      now_ns_virtual += 1'000'000'000;
      const std::uint64_t raised_before = raised;
      for (int turn = 0; turn < 32; ++turn) {
        const std::uint64_t drawn = random();
        const std::uint64_t granule = (drawn >> 32U) * machine.granules() >> 32U;
        const Page page = granule * granularity_pages + (drawn & (granularity_pages - 1));
        const Access access = (drawn & (1U << 16U)) == 0 ? Access::read : Access::write;
        if (turn % 4 == 3) {
          if (!machine.cpu_faults(granule)) continue;
          core.cpu_fault(now_ns_virtual, client, page, access);
        } else {
          if (machine.device_maps(granule)) continue;
          core.device_fault(now_ns_virtual, client, device, page, access, core::FaultToken{++token});
        }
        ++raised;
      }
      machine.settle(now_ns_virtual);
      idle_batches = raised == raised_before ? idle_batches + 1 : 0;
      if (idle_batches > 10'000) throw std::runtime_error("nothing faults any more: every granule is mapped by all");
    }
  };
  run(faults / 4);  // fills the VRAM
  const std::uint64_t decided_before = decisions(core.stats());
  const std::uint64_t begin_ns = now_ns();
  run(faults);
  const std::uint64_t end_ns = now_ns();
  if (!core.quiescent()) throw std::runtime_error("the core still waits although every action was answered");
  core.verify();
  if (machine.answered_waves() != token) {
    throw std::runtime_error(fmt::format("{} waves faulted and {} were answered", token, machine.answered_waves()));
  }
  const double elapsed_ns = static_cast<double>(end_ns - begin_ns);
  return {.decisions = static_cast<double>(decisions(core.stats()) - decided_before) * 1e3 / elapsed_ns,
          .faults = static_cast<double>(faults) * 1e3 / elapsed_ns};
}

Row owed(const std::string& name) { return {.name = name, .target = 1.0, .bound = Bound::at_least, .unit = "M/s"}; }

Row measure(const std::string& name, const Settings& settings, unsigned granularity_pages) {
  std::vector<double> samples;
  std::vector<double> faults;
  for (int round = 0; round < settings.repeat; ++round) {
    const Rates rates = sample(granularity_pages, 200'000);
    samples.push_back(rates.decisions);
    faults.push_back(rates.faults);
    if (settings.verbose) fmt::print(stderr, "{}: {:.3f} M/s\n", name, samples.back());
  }
  Row row = make_row(owed(name), median(samples), required_per_s / 1e6);
  row.note = fmt::format("of these {:.2f} M/s are faults, the rest migrations", median(faults));
  return row;
}

}  // namespace

Bench core_decisions() {
  return {.name = "core",
          .about = "the core alone: faults and migrations decided a second, one thread",
          .run =
              [](const Settings& settings) {
                return std::vector<Row>{measure("core_decisions_2m", settings, block_pages),
                                        measure("core_decisions_4k", settings, 1)};
              },
          .expected = {owed("core_decisions_2m"), owed("core_decisions_4k")}};
}

}  // namespace ferry::bench

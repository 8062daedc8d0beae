// What is always true of jobs, engines and units (docs/INVARIANTS.md, I-30 to I-39), and their state as one number.
#include <algorithm>
#include <bit>

#include "core/digest.h"
#include "core/impl.h"

namespace ferry::core {
namespace {

constexpr std::uint64_t bit_of(unsigned cu) { return std::uint64_t{1} << cu; }
unsigned count_of(std::uint64_t mask) { return static_cast<unsigned>(std::popcount(mask)); }

bool contains(const auto& list, FenceId id) { return std::find(list.begin(), list.end(), id) != list.end(); }

}  // namespace

void Work::verify() const {
  verify_jobs();
  for (DeviceId d = 0; d < devices.size(); ++d) {
    verify_units(d);
  }
  verify_fences();
  verify_timelines();
  verify_buffers();
}

void Work::verify_jobs() const {
  std::size_t in_line = 0;
  for (const auto& [id, job] : jobs) {
    const WorkDevice& dev = devices[job.spec.device];
    const bool graphics = job.spec.engine == Engine::graphics;
    const bool seen =
        job.stage == Job::Stage::depends || job.stage == Job::Stage::queued || job.stage == Job::Stage::running;
    const auto fence = fences.find(id);
    FERRY_CHECK(fence != fences.end());           // I-31
    FERRY_CHECK_EQ(fence->second.visible, seen);  // I-31
    FERRY_CHECK(!fence->second.signalled);        // I-31
    FERRY_CHECK(job.stage != Job::Stage::done);
    const bool lined =
        job.stage == Job::Stage::line || job.stage == Job::Stage::gate || job.stage == Job::Stage::memory;
    FERRY_CHECK_EQ(contains(line, id), lined);  // I-32
    in_line += lined ? 1 : 0;
    FERRY_CHECK_EQ(gathering == id, job.stage == Job::Stage::memory);  // I-32
    const auto& queue = dev.queued[static_cast<unsigned>(job.spec.engine)];
    FERRY_CHECK_EQ(contains(queue, id), job.stage == Job::Stage::queued);           // I-32
    FERRY_CHECK_EQ(contains(dev.at_gate, id), job.gate == Job::Gate::waiting);      // I-33
    FERRY_CHECK(!seen || job.gate == Job::Gate::passed);                            // I-33
    FERRY_CHECK(job.stage != Job::Stage::memory || job.gate == Job::Gate::passed);  // I-33
    FERRY_CHECK_EQ(job.stage == Job::Stage::depends, !job.ordered_by.empty());      // I-34
    for (const Job::Dependency& dependency : job.ordered_by) {
      const auto other = fences.find(dependency.fence);
      FERRY_CHECK(other != fences.end() && other->second.visible && !other->second.signalled);  // I-34
    }
    FERRY_CHECK_EQ(job.cu_mask != 0, graphics && job.stage == Job::Stage::running);  // I-30
    if (job.cu_mask != 0) {
      FERRY_CHECK(count_of(job.cu_mask) >= job.spec.cus_min && count_of(job.cu_mask) <= job.spec.cus_max);
    }
    FERRY_CHECK(job.unit_waits == 0 || job.stage == Job::Stage::gate || job.stage == Job::Stage::queued ||
                core.planted(PlantedBug::claim_before_gate));  // I-38
  }
  FERRY_CHECK_EQ(in_line, line.size());
}

void Work::verify_units(DeviceId d) const {
  const WorkDevice& dev = devices[d];
  std::vector<unsigned> running(engine_count);
  unsigned passed = 0;
  unsigned kept = 0;
  std::uint64_t of_jobs = 0;
  for (const auto& [id, job] : jobs) {
    if (job.spec.device != d) {
      continue;
    }
    running[static_cast<unsigned>(job.spec.engine)] += job.stage == Job::Stage::running ? 1 : 0;
    if (job.spec.engine == Engine::graphics && job.gate == Job::Gate::passed) {
      ++passed;
      kept = std::max(kept, kept_for(job));
    }
    FERRY_CHECK_EQ(of_jobs & job.cu_mask, 0U);  // I-30
    of_jobs |= job.cu_mask;
  }
  FERRY_CHECK_EQ(passed, dev.fences_in_flight);  // I-33
  for (unsigned e = 0; e < engine_count; ++e) {
    FERRY_CHECK_EQ(running[e], dev.running[e]);  // I-35
  }
  FERRY_CHECK_LE(running[static_cast<unsigned>(Engine::copy)], dev.model.copy_slots);    // I-35
  FERRY_CHECK_LE(running[static_cast<unsigned>(Engine::video)], dev.model.video_slots);  // I-35

  std::uint64_t of_compute = 0;
  bool leaving = false;
  for (unsigned cu = 0; cu < dev.units.size(); ++cu) {
    const Unit& unit = dev.units[cu];
    FERRY_CHECK_EQ((of_jobs & bit_of(cu)) != 0, unit.holder == Unit::Holder::job);  // I-30
    if (unit.holder == Unit::Holder::job) {
      FERRY_CHECK((jobs.at(unit.job).cu_mask & bit_of(cu)) != 0);  // I-30
    }
    if (unit.holder == Unit::Holder::compute) {
      of_compute |= bit_of(cu);
      FERRY_CHECK(dev.compute.contains(unit.client));  // I-30
    }
    leaving = leaving || unit.leaving;
    FERRY_CHECK(!unit.leaving || (unit.holder == Unit::Holder::compute && dev.revokes.contains(unit.client)));  // I-36
    for (const std::uint64_t token : unit.faults) {
      const auto fault = dev.faults.find({unit.client, token});
      FERRY_CHECK(fault != dev.faults.end() && (fault->second.cu_mask & bit_of(cu)) != 0);  // I-37
    }
  }
  for (const auto& [key, fault] : dev.faults) {
    for (unsigned cu = 0; cu < dev.units.size(); ++cu) {
      FERRY_CHECK((fault.cu_mask & bit_of(cu)) == 0 || dev.units[cu].faults.contains(key.second));  // I-37
    }
  }
  // I-39: what the policy promised before a fence became visible.
  const unsigned all = dev.model.cu_count;
  switch (dev.model.policy) {
    case Policy::reserve:
      FERRY_CHECK(dev.model.reserved_cus == 0 || of_compute >> (all - dev.model.reserved_cus) == 0);
      break;
    case Policy::reserve_in_flight: FERRY_CHECK(passed == 0 || count_of(of_compute) + kept <= all); break;
    case Policy::exclusive: FERRY_CHECK(passed == 0 || of_compute == 0); break;
    default: break;
  }
}

std::uint64_t Work::digest() const {
  const std::uint64_t now_ns = core.now_ns;
  Digest d;
  for (const auto& [id, job] : jobs) {
    d.add(id).add(job.client).add(static_cast<std::uint64_t>(job.stage)).add(static_cast<std::uint64_t>(job.gate));
    d.add(job.points_left).add(job.gathered ? 1 : 0).add(job.failure).add(job.cu_mask);
    d.add((job.overran ? 1U : 0U) | (job.reset_sent ? 2U : 0U) | (job.cancelled_ns != 0 ? 4U : 0U));
    for (const Job::Dependency& dependency : job.ordered_by) {
      d.add(dependency.fence).add(dependency.told ? 1 : 0);
    }
    if (job.stage == Job::Stage::running) {
      d.add(time_left(now_ns, job.dispatched_ns + job.spec.timeout_ns));
      d.add(job.cancelled_ns == 0 ? 0 : time_since(now_ns, job.cancelled_ns, 1'000'000'000));
    } else if (job.stage == Job::Stage::queued) {
      d.add(time_since(now_ns, job.queued_ns, 16 * core.config.ageing_ns));
    }
  }
  for (const FenceId id : line) {
    d.add(id);
  }
  for (const WorkDevice& dev : devices) {
    for (const Unit& unit : dev.units) {
      d.add(static_cast<std::uint64_t>(unit.holder)).add(unit.client).add(unit.job).add(unit.leaving ? 1 : 0);
      d.add(unit.holder == Unit::Holder::compute ? time_left(now_ns, unit.since_ns + dev.model.min_run_ns) : 0);
    }
    for (const auto& [key, fault] : dev.faults) {
      d.add(key.first).add(key.second).add(fault.cu_mask);
    }
    for (const auto& [client, compute] : dev.compute) {
      d.add(client)
          .add(compute.demand)
          .add(compute.process)
          .add(compute.stopped ? 1 : 0)
          .add(compute.tries)
          .add(compute.awaited != 0 ? 1 : 0);
      d.add(compute.waiting_ns == 0 ? ~std::uint64_t{0} : time_left(now_ns, compute.waiting_ns + dev.model.slice_ns));
      d.add(time_left(now_ns, compute.restore_ns))
          .add(compute.backoff_ns)
          .add(compute.held.size())
          .add(compute.missing);
    }
    d.add(dev.turn).add(dev.turn_ns == 0 ? ~std::uint64_t{0} : time_left(now_ns, dev.turn_ns + dev.model.slice_ns));
    for (const auto& queue : dev.queued) {
      for (const FenceId id : queue) {
        d.add(id);
      }
      d.add(queue.size());
    }
    for (const FenceId id : dev.at_gate) {
      d.add(id);
    }
    d.add(dev.kept_cus).add(dev.fenced_mode ? 1 : 0);
    d.add(time_left(now_ns, dev.mode_ns == 0 ? 0 : dev.mode_ns + std::max(dev.model.slice_ns, dev.model.min_run_ns)));
  }
  d.add(circle_ns == 0 ? ~std::uint64_t{0} : time_left(now_ns, circle_ns + core.config.deadlock_ns));
  return d.add(digest_fences()).add(digest_timelines()).add(digest_buffers()).value();
}

}  // namespace ferry::core

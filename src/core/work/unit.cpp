// Compute units: who holds them, and which of them the next graphics job gets. Shares of compute are in slice.cpp, what
// a policy keeps free in gate.cpp.
#include <algorithm>
#include <bit>

#include "core/impl.h"

namespace ferry::core {
namespace {

constexpr std::uint64_t bit_of(unsigned cu) { return std::uint64_t{1} << cu; }

/// The highest `count` bits of a mask: compute is given units from below, jobs from above.
std::uint64_t highest(std::uint64_t mask, unsigned count) {
  std::uint64_t out = 0;
  for (; count > 0 && mask != 0; --count) {
    const auto cu = static_cast<unsigned>(63 - std::countl_zero(mask));
    out |= bit_of(cu);
    mask &= ~bit_of(cu);
  }
  return out;
}

unsigned count_of(std::uint64_t mask) { return static_cast<unsigned>(std::popcount(mask)); }

}  // namespace

// --- looking ---------------------------------------------------------------------------------------------------------

std::uint64_t Work::all_units(DeviceId device) const {
  return ~std::uint64_t{0} >> (64 - devices[device].model.cu_count);
}

std::uint64_t Work::units_of(DeviceId device, Unit::Holder holder) const {
  std::uint64_t mask = 0;
  const auto& units = devices[device].units;
  for (unsigned cu = 0; cu < units.size(); ++cu) {
    mask |= units[cu].holder == holder ? bit_of(cu) : 0;
  }
  return mask;
}

std::uint64_t Work::compute_units(ClientId client, DeviceId device) const {
  std::uint64_t mask = 0;
  if (device < devices.size()) {
    const auto& units = devices[device].units;
    for (unsigned cu = 0; cu < units.size(); ++cu) {
      mask |= units[cu].holder == Unit::Holder::compute && units[cu].client == client ? bit_of(cu) : 0;
    }
  }
  return mask;
}

std::uint64_t Work::compute_allowed(DeviceId device) const {
  const DeviceModel& m = devices[device].model;
  if (m.policy != Policy::reserve || core.planted(PlantedBug::grant_reserved_cu)) {
    return all_units(device);
  }
  return all_units(device) & ~highest(all_units(device), m.reserved_cus);
}

std::uint64_t Work::stuck_units(DeviceId device) const {
  std::uint64_t mask = 0;
  if (!leaves_while_faulting(device)) {
    const auto& units = devices[device].units;
    for (unsigned cu = 0; cu < units.size(); ++cu) {
      mask |= units[cu].faults.empty() ? 0 : bit_of(cu);
    }
  }
  return mask;
}

std::uint64_t Work::decisive_units(DeviceId device, std::uint64_t held, unsigned needed) const {
  unsigned left = count_of(held) - needed + 1;
  std::uint64_t out = highest(held & stuck_units(device), left);
  left -= count_of(out);
  return out | highest(held & ~out, left);
}

bool Work::compute_turn(DeviceId device) const {
  const WorkDevice& dev = devices[device];
  switch (dev.model.policy) {
    case Policy::reserve:  // these keep apart what each may use
    case Policy::reserve_in_flight:
    case Policy::exclusive: return false;
    default: return !dev.compute.empty() && compute_waited(device);
  }
}

std::uint64_t Work::urgent_ns(DeviceId device) const {
  const WorkDevice& dev = devices[device];
  std::uint64_t earliest_ns = ~std::uint64_t{0};
  const auto look = [&](FenceId id) {
    const std::uint64_t deadline_ns = fences.at(id).deadline_ns;
    if (deadline_ns != 0) {
      earliest_ns = std::min(earliest_ns, deadline_ns - std::min(deadline_ns, dev.model.min_run_ns));
    }
  };
  const auto& queue = dev.queued[static_cast<unsigned>(Engine::graphics)];
  std::for_each(queue.begin(), queue.end(), look);
  std::for_each(dev.at_gate.begin(), dev.at_gate.end(), look);
  return earliest_ns;
}

std::uint64_t Work::now() const { return core.now_ns; }

// --- changing hands --------------------------------------------------------------------------------------------------

void Work::unit_take(DeviceId device, unsigned cu, Unit::Holder holder, ClientId client, FenceId job) {
  Unit& unit = devices[device].units[cu];
  FERRY_CHECK(unit.holder == Unit::Holder::nobody && unit.faults.empty());  // I-30
  unit.holder = holder;
  unit.client = client;
  unit.job = job;
  unit.since_ns = core.now_ns;
  if (holder == Unit::Holder::job) {
    (void)core.graph.wait(unit.node, jobs.at(job).node, "is held by");  // one that runs waits for nobody
  }
}

void Work::unit_free(DeviceId device, unsigned cu) {
  WorkDevice& dev = devices[device];
  Unit& unit = dev.units[cu];
  for (const std::uint64_t token : unit.faults) {
    dev.faults.at({unit.client, token}).cu_mask &= ~bit_of(cu);
  }
  core.graph.done_all(unit.node);
  const graph::NodeId node = unit.node;
  unit = {};
  unit.node = node;
}

void Work::units_left(const WorkRef& ref, Status status) {
  const auto device = static_cast<DeviceId>(ref.sub >> 32);
  const auto client = static_cast<ClientId>(ref.id);
  WorkDevice& dev = devices[device];
  const auto revokes = dev.revokes.find(client);
  FERRY_CHECK(revokes != dev.revokes.end());
  if (--revokes->second == 0) {
    dev.revokes.erase(revokes);
  }
  const auto compute = dev.compute.find(client);
  // Of a process that is gone: its units came back when that was told.
  if (compute != dev.compute.end() && compute->second.process == static_cast<std::uint32_t>(ref.sub)) {
    for (unsigned cu = 0; cu < dev.units.size(); ++cu) {
      if ((ref.cu_mask & bit_of(cu)) != 0) {
        FERRY_CHECK(dev.units[cu].leaving && dev.units[cu].client == client);
        unit_free(device, cu);
      }
    }
    if (status.ok() && compute->second.demand != 0) {
      const auto count = count_of(ref.cu_mask);
      core.stats.preemptions += count;
      if (Client* owner = core.find_client(client); owner != nullptr) {
        owner->stats.preemptions += count;
      }
    }
  }
  if (const auto left = dev.compute.find(client);
      left != dev.compute.end() && !left->second.held.empty() && compute_units(client, device) == 0) {
    let_revocations_go(device, client);
  }
  unit_pump(device);
  if (Client* owner = core.find_client(client); owner != nullptr) {
    core.finish_client_if_idle(*owner);
  }
}

// --- graphics --------------------------------------------------------------------------------------------------------

void Work::unit_pump(DeviceId device) {
  WorkDevice& dev = devices[device];
  dev.again = true;
  if (dev.pumping) {
    return;
  }
  dev.pumping = true;
  while (dev.again) {
    dev.again = false;
    dev.due_ns = ~std::uint64_t{0};
    gate_pump(device);
    const bool compute_first = compute_turn(device);
    if (compute_first) {
      share_units(device);
    }
    graphics_pump(device);
    share_units(device);
  }
  dev.pumping = false;
  core.reclaim.resume();
}

/// Jobs in their order; one that needs more units than are free holds those behind it back, or it would never run.
void Work::graphics_pump(DeviceId device) {
  WorkDevice& dev = devices[device];
  const auto& queue = dev.queued[static_cast<unsigned>(Engine::graphics)];
  while (!queue.empty()) {
    Job& job = jobs.at(engine_first(device, Engine::graphics));
    const bool compute_waits = compute_waiting_since(device) != ~std::uint64_t{0};
    std::uint64_t free = units_of(device, Unit::Holder::nobody);
    if (compute_waits && dev.model.policy == Policy::reserve) {
      free &= ~compute_allowed(device);
    }
    if (count_of(free) >= job.spec.cus_min) {
      const unsigned spare = count_of(compute_waits ? free & ~compute_allowed(device) : free);
      const unsigned wanted = std::max(job.spec.cus_min, std::min(job.spec.cus_max, spare));
      const std::uint64_t mask = highest(free, wanted);
      wait_for_units(job, 0, 0);
      wait_behind(job, 0);
      for (unsigned cu = 0; cu < dev.units.size(); ++cu) {
        if ((mask & bit_of(cu)) != 0) {
          unit_take(device, cu, Unit::Holder::job, job.client, job.spec.fence);
        }
      }
      dispatch(job, mask);
      continue;
    }
    const std::uint64_t of_jobs = units_of(device, Unit::Holder::job);
    const bool kept_free = dev.model.policy == Policy::reserve || dev.model.policy == Policy::reserve_in_flight ||
                           dev.model.policy == Policy::exclusive;
    const std::uint64_t held = all_units(device) & ~free;
    if (kept_free && of_jobs != 0) {
      // Its units are free of compute: it can only wait for jobs that run.
      wait_for_units(job, 0, 0);
      wait_behind(job, dev.units[static_cast<unsigned>(std::countr_zero(of_jobs))].job);
    } else {
      wait_behind(job, 0);
      wait_for_units(job, decisive_units(device, held, job.spec.cus_min - count_of(free)), 1);
    }
    for (const FenceId other : queue) {
      if (other != job.spec.fence) {
        Job& next = jobs.at(other);
        wait_for_units(next, 0, 0);
        wait_behind(next, job.spec.fence);
      }
    }
    return;
  }
}

}  // namespace ferry::core

// Faults and compute units in the wait graph: a unit is held by its waves' faults, a job waits for units; circles that
// stand, and how they end. A unit that can be taken from faulting waves waits for none of their faults.
#include <bit>

#include "core/impl.h"

namespace ferry::core {
namespace {

constexpr std::uint64_t bit_of(unsigned cu) { return std::uint64_t{1} << cu; }

}  // namespace

bool Work::leaves_while_faulting(DeviceId device) const {
  const DeviceModel& m = model(device);
  return m.preempts_while_faulting && m.policy == Policy::preempt;
}

void Work::fault_begins(ClientId client, DeviceId device, unsigned cu, std::uint64_t token) {
  WorkDevice& dev = devices[device];
  if (dev.compute.empty() || !dev.compute.contains(client)) {
    return;
  }
  const auto [it, is_new] = dev.faults.try_emplace({client, token});
  if (!is_new) {
    return;
  }
  UnitFault& fault = it->second;
  fault.cu_mask = compute_units(client, device);
  if (cu < dev.model.cu_count) {
    fault.cu_mask &= bit_of(cu);
  }
  const bool holds = !leaves_while_faulting(device) &&
                     !(dev.model.policy == Policy::track && core.planted(PlantedBug::track_forgets_unit));
  if (core.config.wait_graph) {
    fault.node = core.graph.add(core.classes.fault, token);
    if (cu < dev.model.cu_count) {
      core.graph.describe(fault.node, "of client % on compute unit %", client, cu);
    } else {
      core.graph.describe(fault.node, "of client %", client);
    }
  }
  for (std::uint64_t left = fault.cu_mask; left != 0; left &= left - 1) {
    Unit& unit = dev.units[static_cast<unsigned>(std::countr_zero(left))];
    unit.faults.insert(token);
    if (holds) {
      // The fault waits for nothing yet, so this closes no circle.
      (void)core.graph.wait(unit.node, fault.node, "is held by");
    }
  }
  if (fault.cu_mask != 0 && holds) {
    units_changed(device);
  }
}

void Work::fault_ends(ClientId client, DeviceId device, std::uint64_t token) {
  WorkDevice& dev = devices[device];
  if (dev.faults.empty()) {
    return;
  }
  const auto it = dev.faults.find({client, token});
  if (it == dev.faults.end()) {
    return;
  }
  for (std::uint64_t left = it->second.cu_mask; left != 0; left &= left - 1) {
    dev.units[static_cast<unsigned>(std::countr_zero(left))].faults.erase(token);
  }
  core.graph.remove(it->second.node);
  dev.faults.erase(it);
  // Who waits for the unit goes on when the machine says that it was left.
}

/// A unit cannot be left any more: others may be the ones to ask, and a policy's answer another.
void Work::units_changed(DeviceId device) {
  const WorkDevice& dev = devices[device];
  if (dev.queued[static_cast<unsigned>(Engine::graphics)].empty() && dev.at_gate.empty()) {
    return;
  }
  unit_pump(device);
  if (asks_fences) {
    core.reclaim.pump();
  }
}

graph::NodeId Work::fault_node(ClientId client, DeviceId device, std::uint64_t token) const {
  const auto& faults = devices[device].faults;
  if (faults.empty()) {
    return graph::no_node;
  }
  const auto it = faults.find({client, token});
  return it == faults.end() ? graph::no_node : it->second.node;
}

/// All of them if `count` says so, else one of them is enough.
void Work::wait_for_units(Job& job, std::uint64_t cu_mask, unsigned count) {
  if (job.unit_waits == cu_mask && job.units_short == count) {
    return;
  }
  const auto& units = devices[job.spec.device].units;
  if (job.units_node != graph::no_node) {
    core.graph.remove(job.units_node);
    job.units_node = graph::no_node;
  } else {
    for (std::uint64_t left = job.unit_waits; left != 0; left &= left - 1) {
      core.graph.done(job.node, units[static_cast<unsigned>(std::countr_zero(left))].node);
    }
  }
  job.unit_waits = cu_mask;
  job.units_short = count;
  if (cu_mask == 0 || !core.config.wait_graph) {
    return;
  }
  std::vector<graph::NodeId> nodes;
  for (std::uint64_t left = cu_mask; left != 0; left &= left - 1) {
    nodes.push_back(units[static_cast<unsigned>(std::countr_zero(left))].node);
  }
  if (count == nodes.size()) {
    for (const graph::NodeId node : nodes) {
      add_wait(job.node, node);
    }
    return;
  }
  job.units_node = core.graph.add(core.classes.compute, job.spec.fence, graph::Needs::any);
  (void)core.graph.wait_any(job.units_node, nodes, "can be");
  add_wait(job.node, job.units_node);
}

void Work::add_wait(graph::NodeId from, graph::NodeId to, const char* how) {
  if (asks_fences && core.reclaim.waits() && !core.graph.would_close(from, to).empty()) {
    core.reclaim.suspend();
  }
  circle_found(core.graph.wait(from, to, how));
}

void Work::circle_found(const graph::Circle& circle) {
  if (!circle.empty() && circle_ns == 0) {
    circle_ns = std::max<std::uint64_t>(core.now_ns, 1);
    ++core.stats.circles;
  }
}

graph::Circle Work::find_circle() const {
  for (const WorkDevice& dev : devices) {
    for (const auto& [key, fault] : dev.faults) {
      graph::Circle circle = core.graph.stuck(fault.node);
      if (!circle.empty()) {
        return circle;
      }
    }
  }
  return {};
}

/// One of those in the circle has to give way, and jobs must not: whoever owns the compute queue gets the error.
void Work::end_circles() {
  if (circle_ns == 0) {
    bool jobs_wait = false;
    for (const WorkDevice& dev : devices) {
      jobs_wait = jobs_wait || (!dev.faults.empty() && !dev.queued[static_cast<unsigned>(Engine::graphics)].empty());
    }
    if (!jobs_wait) {
      return;
    }
  }
  const graph::Circle circle = find_circle();
  if (circle.empty()) {
    circle_ns = 0;
    return;
  }
  circle_found(circle);
  if (!core.config.end_deadlocks || core.now_ns < circle_ns + core.config.deadlock_ns) {
    return;
  }
  struct Found {
    ClientId client;
    DeviceId device;
    std::uint64_t token;
  };
  std::vector<Found> found;
  for (DeviceId d = 0; d < devices.size(); ++d) {
    for (const auto& [key, fault] : devices[d].faults) {
      if (fault.cu_mask != 0 && !core.graph.stuck(fault.node).empty()) {
        found.push_back({key.first, d, key.second});
      }
    }
  }
  for (const Found& fault : found) {
    fail_fault(fault.client, fault.device, fault.token, Code::would_deadlock);
  }
  circle_ns = 0;
}

/// The wave is woken with an error. What was done for it goes on for nobody.
void Work::fail_fault(ClientId id, DeviceId device, std::uint64_t token, Status status) {
  Client* client = core.find_client(id);
  FERRY_CHECK(client != nullptr);
  for (Op& op : core.ops) {
    if (!op.in_use || op.block->client != client) {
      continue;
    }
    for (auto it = op.waiters.begin(); it != op.waiters.end(); ++it) {
      if (it->device == device && it->token.value == token) {
        const Waiter waiter = *it;
        op.waiters.erase(it);
        core.wake(*client, waiter, status);
        fault_ends(id, device, token);
        return;
      }
    }
  }
  for (auto& [buffer_id, buffer] : buffers) {
    for (BufferMapping& mapping : buffer.mappings) {
      if (mapping.client != id) {
        continue;
      }
      for (auto it = mapping.waves.begin(); it != mapping.waves.end(); ++it) {
        if (it->device == device && it->token.value == token) {
          const Waiter waiter{it->token, it->page, device, it->access, it->cu};
          mapping.waves.erase(it);
          core.wake(*client, waiter, status);
          fault_ends(id, device, token);
          return;
        }
      }
    }
  }
}

}  // namespace ferry::core

// Gates: what a policy asks before a graphics job's fence may become visible. From then until the fence has signalled
// the policy's promise to it is kept (I-33, I-34).
#include <algorithm>
#include <bit>

#include "core/impl.h"

namespace ferry::core {
namespace {

unsigned count_of(std::uint64_t mask) { return static_cast<unsigned>(std::popcount(mask)); }

}  // namespace

unsigned Work::kept_for(const Job& job) const {
  return std::min(std::max(model(job.spec.device).reserved_cus, job.spec.cus_min), model(job.spec.device).cu_count);
}

bool Work::gate(Job& job) {
  if (job.spec.engine != Engine::graphics) {
    job.gate = Job::Gate::passed;
    return true;
  }
  WorkDevice& dev = devices[job.spec.device];
  const Policy policy = dev.model.policy;
  if ((policy != Policy::reserve_in_flight && policy != Policy::exclusive) ||
      core.planted(PlantedBug::publish_before_gate)) {
    job.gate = Job::Gate::passed;
    ++dev.fences_in_flight;
    if (policy == Policy::reserve_in_flight) {
      dev.kept_cus = std::max(dev.kept_cus, kept_for(job));
    }
    return true;
  }
  job.gate = Job::Gate::waiting;
  dev.at_gate.push_back(job.spec.fence);
  unit_pump(job.spec.device);
  return job.gate == Job::Gate::passed;
}

void Work::gate_leave(Job& job) {
  if (job.spec.engine != Engine::graphics || job.gate == Job::Gate::before) {
    return;
  }
  WorkDevice& dev = devices[job.spec.device];
  if (job.gate == Job::Gate::passed) {
    --dev.fences_in_flight;
  } else {
    std::erase(dev.at_gate, job.spec.fence);
  }
  job.gate = Job::Gate::before;
  if (dev.fences_in_flight == 0) {
    dev.kept_cus = 0;
  }
  unit_pump(job.spec.device);
}

void Work::let_in(FenceId id) {
  Job& job = jobs.at(id);
  WorkDevice& dev = devices[job.spec.device];
  wait_for_units(job, 0, 0);
  std::erase(dev.at_gate, id);
  job.gate = Job::Gate::passed;
  ++dev.fences_in_flight;
  if (dev.model.policy == Policy::reserve_in_flight) {
    dev.kept_cus = std::max(dev.kept_cus, kept_for(job));
  }
  job_gate_open(id);
}

void Work::gate_pump(DeviceId device) {
  switch (devices[device].model.policy) {
    case Policy::reserve_in_flight: gate_reserve(device); return;
    case Policy::exclusive: gate_exclusive(device); return;
    default: return;
  }
}

/// Compute that has waited a slice without any unit goes before the jobs at the gate: it has to once all units are kept.
bool Work::compute_waited(DeviceId device) const {
  const std::uint64_t since_ns = compute_waiting_since(device);
  return since_ns <= core.now_ns && core.now_ns - since_ns >= model(device).slice_ns && !urgent(device) &&
         units_of(device, Unit::Holder::compute) == 0;
}

unsigned Work::kept_units(DeviceId device) const {
  const WorkDevice& dev = devices[device];
  unsigned kept = dev.kept_cus;
  if (!compute_waited(device)) {
    for (const FenceId id : dev.at_gate) {
      kept = std::max(kept, kept_for(jobs.at(id)));
    }
  }
  return kept;
}

void Work::gate_reserve(DeviceId device) {
  WorkDevice& dev = devices[device];
  if (compute_waited(device)) {
    return;
  }
  while (!dev.at_gate.empty()) {
    Job& job = jobs.at(dev.at_gate.front());
    const std::uint64_t compute = units_of(device, Unit::Holder::compute);
    const unsigned outside = dev.model.cu_count - count_of(compute);
    if (outside < kept_for(job)) {
      for (const FenceId id : dev.at_gate) {
        Job& waiting = jobs.at(id);
        if (outside < kept_for(waiting)) {
          wait_for_units(waiting, decisive_units(device, compute, kept_for(waiting) - outside), 1);
        }
      }
      return;
    }
    let_in(dev.at_gate.front());
  }
}

void Work::switch_mode(DeviceId device, bool fenced) {
  WorkDevice& dev = devices[device];
  dev.fenced_mode = fenced;
  dev.mode_ns = std::max<std::uint64_t>(core.now_ns, 1);
  ++core.stats.mode_switches;
  dev.again = true;
}

/// Two modes. Compute is out from the first fence on; once it has waited a slice no more jobs are admitted, and when
/// those in flight are done it is let in. It stays at least its minimum run.
void Work::gate_exclusive(DeviceId device) {
  WorkDevice& dev = devices[device];
  const std::uint64_t since_ns = compute_waiting_since(device);
  const bool compute_waits = since_ns != ~std::uint64_t{0};
  if (dev.fenced_mode) {
    const std::uint64_t until_ns = std::max(dev.mode_ns, since_ns) + dev.model.slice_ns;
    const bool waited = compute_waits && core.now_ns >= until_ns;
    if (compute_waits && !waited) {
      dev.due_ns = std::min(dev.due_ns, until_ns);
    }
    if (compute_waits && ((dev.fences_in_flight == 0 && (waited || dev.at_gate.empty())) ||
                          (waited && core.planted(PlantedBug::switch_while_visible)))) {
      switch_mode(device, false);
      return;
    }
    while (!waited && !dev.at_gate.empty()) {
      let_in(dev.at_gate.front());
    }
    return;
  }
  if (dev.at_gate.empty()) {
    return;
  }
  const std::uint64_t compute = units_of(device, Unit::Holder::compute);
  const std::uint64_t until_ns = dev.mode_ns == 0 ? 0 : dev.mode_ns + dev.model.min_run_ns;
  if (compute == 0 && (!compute_waits || urgent(device) || core.now_ns >= until_ns)) {
    switch_mode(device, true);
    while (!dev.at_gate.empty()) {
      let_in(dev.at_gate.front());
    }
    return;
  }
  if (core.now_ns < until_ns) {
    dev.due_ns = std::min({dev.due_ns, until_ns, urgent_ns(device)});
  }
  for (const FenceId id : dev.at_gate) {
    wait_for_units(jobs.at(id), compute, count_of(compute));
  }
}

}  // namespace ferry::core

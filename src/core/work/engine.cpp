// Engines: whose turn it is, how long it may take. Copy and video engines take jobs by slots, graphics by compute units
// (unit.cpp finds them; here is only the order).
#include <algorithm>

#include "core/impl.h"

namespace ferry::core {
namespace {

/// How long a graphics job may go on after it was asked to end, before its device process is ended.
constexpr std::uint64_t cancel_patience_ns = 1'000'000'000;

}  // namespace

/// Higher priority first, and one more for each ageing_ns of waiting, so that nobody starves. A deadline is worth more
/// than every priority, but not more than any age.
bool Work::goes_before(const Job& a, const Job& b) const {
  const auto rank = [this](const Job& job) {
    const std::uint64_t age = (core.now_ns - job.queued_ns) / std::max<std::uint64_t>(core.config.ageing_ns, 1);
    const std::uint64_t deadline_ns = fences.at(job.spec.fence).deadline_ns;
    return std::pair(job.spec.priority + age + (deadline_ns != 0 ? job_priorities : 0),
                     ~std::uint64_t{0} - (deadline_ns == 0 ? ~std::uint64_t{0} : deadline_ns));
  };
  const auto rank_a = rank(a);
  const auto rank_b = rank(b);
  return rank_a != rank_b ? rank_a > rank_b : a.arrival < b.arrival;
}

FenceId Work::engine_first(DeviceId device, Engine engine) const {
  const auto& queue = devices[device].queued[static_cast<unsigned>(engine)];
  const auto first = std::min_element(queue.begin(), queue.end(),
                                      [this](FenceId a, FenceId b) { return goes_before(jobs.at(a), jobs.at(b)); });
  return first == queue.end() ? 0 : *first;
}

void Work::engine_enqueue(Job& job) {
  job.stage = Job::Stage::queued;
  job.queued_ns = core.now_ns;
  job.arrival = ++arrivals;
  devices[job.spec.device].queued[static_cast<unsigned>(job.spec.engine)].push_back(job.spec.fence);
  engine_pump(job.spec.device);
}

void Work::engine_remove(Job& job) {
  std::erase(devices[job.spec.device].queued[static_cast<unsigned>(job.spec.engine)], job.spec.fence);
  wait_behind(job, 0);
  wait_for_units(job, 0, 0);
}

void Work::engine_pump(DeviceId device) {
  WorkDevice& dev = devices[device];
  for (const Engine engine : {Engine::copy, Engine::video}) {
    const auto e = static_cast<unsigned>(engine);
    const unsigned slots = engine == Engine::copy ? dev.model.copy_slots : dev.model.video_slots;
    while (dev.running[e] < slots && !dev.queued[e].empty()) {
      dispatch(jobs.at(engine_first(device, engine)), 0);
    }
    // Slots come free by themselves (the machine's answer), so whoever waits here waits for nobody that could wait.
    if (!dev.queued[e].empty()) {
      core.graph.note(core.classes.job, core.classes.engine);
    }
  }
  unit_pump(device);
}

void Work::dispatch(Job& job, std::uint64_t cu_mask) {
  engine_remove(job);
  job.stage = Job::Stage::running;
  job.dispatched_ns = std::max<std::uint64_t>(core.now_ns, 1);
  job.cu_mask = cu_mask;
  ++devices[job.spec.device].running[static_cast<unsigned>(job.spec.engine)];
  WorkRef ref;
  ref.what = WorkRef::What::run_job;
  ref.id = job.spec.fence;
  Action& action = core.ask_work(Verb::run_job, job.client, ref);
  action.device = job.spec.device;
  action.engine = job.spec.engine;
  action.fence = job.spec.fence;
  action.cu_mask = cu_mask;
  if (core.planted(PlantedBug::signal_before_done)) {
    fence_signal(job.spec.fence, {});
  }
}

void Work::cancel_running(Job& job) {
  if (job.cancelled_ns != 0) {
    return;
  }
  job.cancelled_ns = std::max<std::uint64_t>(core.now_ns, 1);
  Action& action = core.emit_for(Verb::cancel_job, job.client);
  action.device = job.spec.device;
  action.engine = job.spec.engine;
  action.fence = job.spec.fence;
}

void Work::engine_timeouts() {
  for (auto& [id, job] : jobs) {
    if (job.stage != Job::Stage::running) {
      continue;
    }
    if (!job.overran && core.now_ns >= job.dispatched_ns + job.spec.timeout_ns) {
      job.overran = true;
      cancel_running(job);
    }
    // Copies are the machine's own and end by themselves; a kernel of the client may not.
    if (job.spec.engine == Engine::graphics && job.cancelled_ns != 0 && !job.reset_sent &&
        core.now_ns >= job.cancelled_ns + cancel_patience_ns) {
      job.reset_sent = true;
      core.emit_for(Verb::reset_device, job.client).device = job.spec.device;
    }
  }
}

std::uint64_t Work::engine_due_ns() const {
  std::uint64_t due_ns = ~std::uint64_t{0};
  for (const auto& [id, job] : jobs) {
    if (job.stage != Job::Stage::running) {
      continue;
    }
    if (!job.overran) {
      due_ns = std::min(due_ns, job.dispatched_ns + job.spec.timeout_ns);
    }
    if (job.spec.engine == Engine::graphics && job.cancelled_ns != 0 && !job.reset_sent) {
      due_ns = std::min(due_ns, job.cancelled_ns + cancel_patience_ns);
    }
  }
  return due_ns;
}

}  // namespace ferry::core

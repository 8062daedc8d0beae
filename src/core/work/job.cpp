// Jobs, from submission to signal. One job at a time gathers memory; the jobs of one client become visible in the order
// of their submission, those of different clients may pass each other while the policy holds some of them back.
// Nothing here runs inside itself: the line is advanced by a loop, fences are told from a queue (fence.cpp).
#include <algorithm>

#include "core/impl.h"

namespace ferry::core {

// --- submission ------------------------------------------------------------------------------------------------------

Status Work::job_check(ClientId client, JobSpec& spec) const {
  if (spec.fence == 0 || spec.engine == Engine::compute || static_cast<unsigned>(spec.engine) >= engine_count ||
      spec.device >= devices.size() || spec.priority >= job_priorities || spec.timeout_ns == 0 ||
      spec.timeout_ns > job_timeout_max_ns) {
    return Code::bad_range;
  }
  if (spec.buffers.size() > job_buffers_max || spec.waits.size() > job_waits_max ||
      spec.wait_points.size() > job_waits_max || spec.signal_points.size() > job_waits_max) {
    return Code::bad_range;
  }
  if (spec.engine == Engine::graphics) {
    const DeviceModel& m = model(spec.device);
    if (spec.cus_min == 0 || spec.cus_min > spec.cus_max || spec.cus_max > m.cu_count ||
        (m.policy == Policy::reserve && spec.cus_min > m.reserved_cus)) {
      return Code::bad_range;
    }
  }
  if (fences.contains(spec.fence) || jobs.contains(spec.fence)) {
    return Code::in_use;
  }
  std::vector<JobBuffer> merged;
  std::uint64_t pages = 0;
  for (const JobBuffer& wanted : spec.buffers) {
    if (!holds(client, wanted.buffer)) {
      return Code::not_held;
    }
    const auto same =
        std::find_if(merged.begin(), merged.end(), [&](const JobBuffer& b) { return b.buffer == wanted.buffer; });
    if (same == merged.end()) {
      merged.push_back(wanted);
      const BufferSpec& buffer = buffers.at(wanted.buffer).spec;
      pages += buffer.home == no_device ? buffer.count_pages : 0;
    } else if (wanted.access == Access::write) {
      same->access = Access::write;
    }
  }
  // As Reclaim: the reserve for repairs never takes more than half.
  const std::uint64_t budget = core.config.system_pages;
  if (budget != 0 && pages + std::min(repair_reserve_pages(), budget / 2) > budget) {
    return Code::bad_range;
  }
  for (const FenceId wait : spec.waits) {
    const auto it = fences.find(wait);
    if (it == fences.end() || !it->second.visible) {
      return Code::not_held;
    }
  }
  spec.buffers = std::move(merged);
  return {};
}

Status Work::job_submit(ClientId client, const JobSpec& spec, Cookie cookie) {
  const Client* owner = core.find_client(client);
  if (owner == nullptr || owner->dying) {
    return Code::client_gone;
  }
  Job made;
  made.spec = spec;
  made.client = client;
  made.cookie = cookie;
  if (const Status status = job_check(client, made.spec); !status.ok()) {
    return status;
  }
  if (const Status status = timeline_check(made); !status.ok()) {
    return status;
  }
  fence_make(spec.fence, client);
  Job& job = jobs.emplace(spec.fence, std::move(made)).first->second;
  if (core.config.wait_graph) {
    job.node = core.graph.add(core.classes.unseen, spec.fence);
  }
  timeline_promise(job);
  if (job.points_left == 0) {
    job_points_ready(spec.fence);
  }
  return {};
}

void Work::job_points_ready(FenceId id) {
  Job& job = jobs.at(id);
  if (!job.failure.ok()) {
    job_drop(id, job.failure);
    return;
  }
  job.stage = Job::Stage::line;
  line.push_back(id);
  advance_line();
}

// --- the line --------------------------------------------------------------------------------------------------------

void Work::advance_line() {
  advance_again = true;
  if (advancing) {
    return;
  }
  advancing = true;
  while (advance_again) {
    advance_again = false;
    while (advance_first()) {}
  }
  advancing = false;
}

/// Lets the first job on that can go on. Each client's jobs keep their order: implicit fences are those of the jobs that
/// became visible before.
bool Work::advance_first() {
  if (gathering != 0) {
    const Job& job = jobs.at(gathering);
    if (job.gathered && job.gate == Job::Gate::passed) {
      job_publish(gathering);
      return true;
    }
  }
  std::map<ClientId, FenceId> last;  // of each client, the job before in the line
  for (const FenceId id : line) {
    Job& job = jobs.at(id);
    const auto [before, first] = last.try_emplace(job.client, id);
    if (!first) {
      wait_behind(job, before->second);
      before->second = id;
      continue;
    }
    if (job.stage != Job::Stage::line) {
      continue;  // at the gate, or gathers
    }
    const bool claims_first = core.planted(PlantedBug::claim_before_gate);
    if (job.gate == Job::Gate::before && !claims_first && !gate(job)) {
      job.stage = Job::Stage::gate;
      wait_behind(job, 0);
      continue;
    }
    if (gathering != 0) {
      wait_behind(job, gathering);
      continue;
    }
    wait_behind(job, 0);
    gathering = id;
    job.stage = Job::Stage::memory;
    const bool gathered = claim_buffers(job);  // may have dropped the job
    if (gathered && jobs.contains(id)) {
      job_memory_ready(id);
    }
    return true;
  }
  return false;
}

void Work::job_memory_ready(FenceId id) {
  Job& job = jobs.at(id);
  FERRY_CHECK(gathering == id && job.stage == Job::Stage::memory);
  job.gathered = true;
  if (job.gate == Job::Gate::before && !gate(job)) {
    return;  // only where claim_before_gate is planted
  }
  advance_line();
}

void Work::job_memory_failed(FenceId id, Status status) {
  FERRY_CHECK_EQ(gathering, id);
  job_drop(id, status);
}

void Work::job_gate_open(FenceId id) {
  Job& job = jobs.at(id);
  FERRY_CHECK(job.gate == Job::Gate::passed);
  if (job.stage == Job::Stage::gate) {
    job.stage = Job::Stage::line;
  }
  advance_line();
}

void Work::wait_behind(Job& job, FenceId other) {
  if (job.behind == other) {
    return;
  }
  core.graph.done(job.node, job.behind_node);
  job.behind = other;
  job.behind_node = graph::no_node;
  if (other != 0) {
    job.behind_node = jobs.at(other).node;
    add_wait(job.node, job.behind_node, "is behind");
  }
}

// --- visible ---------------------------------------------------------------------------------------------------------

void Work::job_publish(FenceId id) {
  Job& job = jobs.at(id);
  std::vector<FenceId> told = job.spec.waits;
  const Status points = timeline_fences(job, told);
  if (job.failure.ok()) {
    job.failure = points;
  }
  std::sort(told.begin(), told.end());
  told.erase(std::unique(told.begin(), told.end()), told.end());
  std::vector<FenceId> implicit = implicit_fences(job);
  std::sort(implicit.begin(), implicit.end());
  implicit.erase(std::unique(implicit.begin(), implicit.end()), implicit.end());

  gathering = 0;
  std::erase(line, id);
  job.stage = Job::Stage::depends;
  fence_publish(id);
  core.graph.remove(job.node);
  job.behind = 0;
  job.behind_node = graph::no_node;
  if (core.config.wait_graph) {
    job.node = core.graph.add(core.classes.job, id);
  }
  install_fence(job);
  unclaim_buffers(job);
  if (const Client* owner = core.find_client(job.client); owner != nullptr && !owner->dying) {
    core.reply_to(job.cookie, job.client, {});
  }
  for (const FenceId fence : told) {
    if (const auto it = fences.find(fence); it != fences.end() && it->second.signalled && job.failure.ok()) {
      job.failure = it->second.status;
    }
    if (fence_wait(fence, {FenceWaiter::Who::job, id})) {
      job.ordered_by.push_back({fence, true});
    }
  }
  for (const FenceId fence : implicit) {
    if (!std::binary_search(told.begin(), told.end(), fence) && fence_wait(fence, {FenceWaiter::Who::job, id})) {
      job.ordered_by.push_back({fence, false});
    }
  }
  for (const Job::Dependency& dependency : job.ordered_by) {
    circle_found(core.graph.wait(job.node, fences.at(dependency.fence).node));
  }
  circle_found(core.graph.wait(fences.at(id).node, job.node));
  timeline_publish(job);
  if (job.ordered_by.empty()) {
    job_ready(job);
  } else if (fences.at(id).deadline_ns != 0) {
    job_deadline(id);
  }
}

void Work::job_fence_done(FenceId id, FenceId fence, Status status) {
  Job& job = jobs.at(id);
  const auto it = std::find_if(job.ordered_by.begin(), job.ordered_by.end(),
                               [fence](const Job::Dependency& d) { return d.fence == fence; });
  FERRY_CHECK(it != job.ordered_by.end());
  if (it->told && job.failure.ok()) {
    job.failure = status;
  }
  job.ordered_by.erase(it);
  if (job.ordered_by.empty()) {
    job_ready(job);
  }
}

/// A job that has failed signals only now: its fence stands for all users of its buffers before it.
void Work::job_ready(Job& job) {
  if (!job.failure.ok()) {
    job_finish(job.spec.fence, job.failure);
    return;
  }
  engine_enqueue(job);
}

void Work::job_deadline(FenceId id) {
  const auto it = jobs.find(id);
  if (it == jobs.end()) {
    return;
  }
  const std::uint64_t deadline_ns = fences.at(id).deadline_ns;
  const std::vector<Job::Dependency> before = it->second.ordered_by;
  const DeviceId device = it->second.spec.device;
  for (const Job::Dependency& dependency : before) {
    (void)fence_deadline(dependency.fence, deadline_ns);
  }
  engine_pump(device);
}

// --- the end ---------------------------------------------------------------------------------------------------------

void Work::job_done(FenceId id, Status status) {
  Job& job = jobs.at(id);
  FERRY_CHECK(job.stage == Job::Stage::running);
  --devices[job.spec.device].running[static_cast<unsigned>(job.spec.engine)];
  bool leaked = status.ok() || !core.planted(PlantedBug::leak_cu);
  for (unsigned cu = 0; cu < devices[job.spec.device].units.size(); ++cu) {
    if ((job.cu_mask >> cu & 1) != 0) {
      if (!leaked) {
        leaked = true;
        continue;
      }
      unit_free(job.spec.device, cu);
    }
  }
  job.cu_mask = 0;
  // What was cancelled may have come to its end all the same; what overran its time has failed whatever it says.
  job_finish(id, job.overran ? Status(Code::timed_out) : status);
}

void Work::job_finish(FenceId id, Status status) {
  const auto it = jobs.find(id);
  Job job = std::move(it->second);
  jobs.erase(it);
  core.graph.remove(job.units_node);
  core.graph.remove(job.node);
  ++(status.ok() ? core.stats.jobs_done : core.stats.jobs_failed);
  Client* owner = core.find_client(job.client);
  if (owner != nullptr) {
    ++(status.ok() ? owner->stats.jobs_done : owner->stats.jobs_failed);
  }
  if (!core.planted(PlantedBug::signal_before_done) || job.dispatched_ns == 0) {
    fence_signal(id, status);
  }
  job.stage = Job::Stage::done;
  gate_leave(job);
  engine_pump(job.spec.device);
  core.reclaim.pump();
  if (owner = core.find_client(job.client); owner != nullptr) {
    core.finish_client_if_idle(*owner);
  }
}

void Work::job_drop(FenceId id, Status status) {
  Job& job = jobs.at(id);
  FERRY_CHECK(job.stage == Job::Stage::held || job.stage == Job::Stage::line || job.stage == Job::Stage::gate ||
              job.stage == Job::Stage::memory);
  const bool claimed = gathering == id;
  if (claimed) {
    gathering = 0;
    unclaim_buffers(job);
  }
  std::erase(line, id);
  timeline_break(job, status);
  fence_drop(id);
  Job dropped = std::move(job);
  jobs.erase(id);
  core.graph.remove(dropped.units_node);
  core.graph.remove(dropped.node);
  gate_leave(dropped);
  ++core.stats.jobs_failed;
  Client* owner = core.find_client(dropped.client);
  if (owner != nullptr) {
    ++owner->stats.jobs_failed;
    if (!owner->dying) {
      core.reply_to(dropped.cookie, dropped.client, status);
    }
  }
  advance_line();
  if (owner = core.find_client(dropped.client); owner != nullptr) {
    core.finish_client_if_idle(*owner);
  }
}

void Work::job_cancel(ClientId client, FenceId id) {
  const auto it = jobs.find(id);
  if (it == jobs.end() || it->second.client != client) {
    return;
  }
  Job& job = it->second;
  switch (job.stage) {
    case Job::Stage::held:
    case Job::Stage::line:
    case Job::Stage::gate:
    case Job::Stage::memory: job_drop(id, Code::cancelled); return;
    case Job::Stage::depends:
      if (job.failure.ok()) {
        job.failure = Code::cancelled;
      }
      return;
    case Job::Stage::queued:
      engine_remove(job);
      job_finish(id, Code::cancelled);
      return;
    case Job::Stage::running: cancel_running(job); return;
    case Job::Stage::done: return;
  }
}

/// What nobody can see yet is dropped; what is visible runs on, or fails where it cannot run any more.
void Work::jobs_client_gone(ClientId client) {
  std::vector<FenceId> own;
  for (const auto& [id, job] : jobs) {
    if (job.client == client) {
      own.push_back(id);
    }
  }
  for (const FenceId id : own) {
    const auto it = jobs.find(id);
    if (it == jobs.end()) {
      continue;
    }
    Job& job = it->second;
    if (job.stage == Job::Stage::running) {
      continue;
    }
    if (job.stage == Job::Stage::depends) {
      job.failure = Code::client_gone;
    } else if (job.stage == Job::Stage::queued) {
      engine_remove(job);
      job_finish(id, Code::client_gone);
    } else {
      job_drop(id, Code::client_gone);
    }
  }
}

}  // namespace ferry::core

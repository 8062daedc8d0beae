// Jobs: from the message to the core, and what becomes of them until their fences are visible.
#include <algorithm>
#include <cstring>

#include "manager/manager.h"

namespace ferry::manager {
namespace {

bool decode(const wire::JobSubmit& job, std::size_t devices, core::JobSpec& spec) {
  if (job.engine == 0 || job.engine >= core::engine_count || job.device >= devices ||
      job.buffer_count > wire::work_list_max || job.wait_count > wire::work_list_max ||
      job.wait_point_count > wire::work_list_max || job.signal_point_count >= wire::work_list_max ||
      job.packet.capture_bytes > wire::capture_bytes_max || job.priority >= core::job_priorities ||
      job.timeout_ns == 0 || job.timeout_ns > core::job_timeout_max_ns || job.cus_min > wire::max_cus ||
      job.cus_max > wire::max_cus) {
    return false;
  }
  spec.engine = static_cast<core::Engine>(job.engine);
  spec.device = static_cast<DeviceId>(job.device);
  spec.priority = job.priority;
  spec.cus_min = job.cus_min;
  spec.cus_max = job.cus_max;
  spec.timeout_ns = job.timeout_ns;
  for (std::uint32_t i = 0; i < job.buffer_count; ++i) {
    if (job.buffers[i].write > 1) return false;
    spec.buffers.push_back({job.buffers[i].buffer, job.buffers[i].write != 0 ? Access::write : Access::read});
  }
  for (std::uint32_t i = 0; i < job.wait_point_count; ++i) {
    spec.wait_points.push_back({job.wait_points[i].timeline, job.wait_points[i].point});
  }
  for (std::uint32_t i = 0; i < job.signal_point_count; ++i) {
    spec.signal_points.push_back({job.signal_points[i].timeline, job.signal_points[i].point});
  }
  return true;
}

}  // namespace

/// Fences that are waited for: visible ones as they are; those of jobs that are not visible yet by their gates' points,
/// opened for the submission. False: one is not held. `failed`: one has failed before anybody could wait for it.
bool Manager::resolve_waits(Client& client, const wire::JobSubmit& job, core::JobSpec& spec,
                            std::vector<core::TimelineId>& opened, Status& failed) {
  for (std::uint32_t i = 0; i < job.wait_count; ++i) {
    if (!client.work.fences.contains(job.waits[i])) return false;
    const FenceEntry& entry = work_.fences.at(job.waits[i]);
    if (entry.visible) {
      // One that has signalled, too: the core knows how, as long as somebody holds it.
      if (!entry.signalled || core_->fence_info(job.waits[i]).known) {
        spec.waits.push_back(job.waits[i]);
      } else if (failed.ok()) {
        failed = entry.status;
      }
      continue;
    }
    if (entry.signalled) {
      if (failed.ok()) failed = entry.status;
      continue;
    }
    if (entry.gate == 0) return false;  // of a move
    if (entry.owner != client.id) {
      if (!core_->timeline_open(now_ns_, client.id, entry.gate).ok()) return false;
      opened.push_back(entry.gate);
    }
    spec.wait_points.push_back({entry.gate, 1});
  }
  return true;
}

void Manager::job_submit(Client& client) {
  wire::JobSubmit& job = *submission_;
  if (!incoming_->body(job)) {
    misunderstood(client);
    return;
  }
  core::JobSpec spec;
  if (!decode(job, client.devices.size(), spec)) {
    refuse_work(client, Code::bad_range);
    return;
  }
  for (const core::JobBuffer& use : spec.buffers) {
    if (!client.work.buffers.contains(use.buffer)) {
      refuse_work(client, Code::not_held, "buffer " + std::to_string(use.buffer) + " is not this application's");
      return;
    }
  }
  if (spec.engine == core::Engine::graphics && client.devices[spec.device].state != DeviceState::attached) {
    refuse_work(client, Code::device_lost);
    return;
  }
  if (!executor_->may_run(spec, job.packet)) {
    refuse_work(client, Code::bad_range, "what the job is to do does not fit its buffers");
    return;
  }
  if (client.work.jobs >= config_.jobs_max) {
    refuse_work(client, Code::no_memory,
                "this application has " + std::to_string(client.work.jobs) + " jobs under way, the most it may");
    return;
  }
  std::vector<core::TimelineId> opened;
  Status failed;
  const bool resolved = resolve_waits(client, job, spec, opened, failed);
  const core::FenceId id = spec.fence = work_.next_id++;
  if (!resolved) {
    refuse_work(client, Code::not_held,
                "one of the fences to wait for is not this application's, or is of a move that has not ended");
  } else if (!failed.ok()) {
    job_failed_already(client, id, failed);
  } else {
    job_to_core(client, spec, job.packet);
  }
  for (const core::TimelineId gate : opened) {
    FERRY_CHECK(core_->timeline_close(now_ns_, client.id, gate).ok());
  }
}

/// What it waits for has failed, so it does, too, without the core.
void Manager::job_failed_already(Client& client, core::FenceId id, Status failed) {
  FenceEntry& entry = work_.fences[id];
  entry.owner = client.id;
  entry.signalled = true;
  entry.status = failed;
  if (!give_fence(client, id)) {
    work_.fences.erase(id);
    refuse_work(client, Code::no_memory, too_many_fences());
    return;
  }
  answer_fence(client, id);
}

void Manager::job_to_core(Client& client, core::JobSpec& spec, const wire::LaunchPacket& packet) {
  const core::FenceId id = spec.fence;
  const core::TimelineId gate = work_.next_id++;
  if (const Status made = core_->timeline_create(now_ns_, client.id, gate); !made.ok()) {
    refuse_work(client, made);
    return;
  }
  spec.signal_points.push_back({gate, 1});
  FenceEntry& entry = work_.fences[id];
  entry.owner = client.id;
  entry.is_job = true;
  entry.gate = gate;
  if (!give_fence(client, id)) {
    work_.fences.erase(id);
    FERRY_CHECK(core_->timeline_close(now_ns_, client.id, gate).ok());
    refuse_work(client, Code::no_memory, too_many_fences());
    return;
  }
  for (const core::JobBuffer& use : spec.buffers) {
    // A userptr cannot be held once more: its memory must be there anyway.
    if (core_->buffer_open(now_ns_, client.id, use.buffer).ok()) entry.buffers.push_back(use.buffer);
  }
  ++client.work.jobs;
  executor_->add_payload(id, packet);
  const core::Cookie cookie = make_cookie(Request::Kind::job, client.id, id);
  const Status status = core_->job_submit(now_ns_, client.id, spec, cookie);
  if (status.ok()) {
    answer_fence(client, id);
    return;
  }
  forget_cookie(cookie);
  executor_->drop_payload(id);
  --client.work.jobs;
  client.work.fence_slots.give(client.work.fences.at(id).slot);
  client.work.fences.erase(id);
  close_gate(client, work_.fences.at(id));
  work_.fences.erase(id);
  refuse_work(client, status, status.code == Code::would_deadlock ? core_->last_loop() : "");
}

/// The core's reply: the fence is visible, or never will be.
void Manager::job_visible(core::FenceId id, Status status) {
  if (!status.ok()) {
    on_fence(id, status);
    return;
  }
  const auto it = work_.fences.find(id);
  if (it == work_.fences.end()) return;
  FenceEntry& entry = it->second;
  entry.visible = true;
  if (Client* owner = find_client(entry.owner)) close_gate(*owner, entry);
  if (!entry.signalled) show_fence_to_all(id, entry);
}

/// Jobs that wait for its point have been told, and its fence keeps the buffers.
void Manager::close_gate(Client& client, FenceEntry& entry) {
  if (entry.gate == 0) return;
  // The application may be going, and all that it holds with it.
  [[maybe_unused]] const Status closed = core_->timeline_close(now_ns_, client.id, entry.gate);
  entry.gate = 0;
  for (const core::BufferId buffer : entry.buffers) {
    [[maybe_unused]] const Status let_go = core_->buffer_close(now_ns_, client.id, buffer);
  }
  entry.buffers.clear();
}

void Manager::job_cancel(Client& client, core::FenceId id) {
  const auto it = work_.fences.find(id);
  if (!client.work.fences.contains(id) || !it->second.is_job || it->second.owner != client.id) {
    refuse_work(client, Code::not_held);
    return;
  }
  if (!it->second.signalled) core_->job_cancel(now_ns_, client.id, id);
  refuse_work(client, {});
}

}  // namespace ferry::manager

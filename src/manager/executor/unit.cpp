// Compute units: which of them a device process may use, and graphics jobs on them.
#include <algorithm>
#include <bit>
#include <cstring>

#include "manager/executor/executor.h"

namespace ferry::manager {
namespace {

/// How a job ended, from the result that its device wrote: of codes that no kernel's end has, none is believed.
Status status_of(const wire::LaunchResult& result) {
  const auto code = static_cast<Code>(result.code);
  switch (code) {
    case Code::ok:
    case Code::bad_range:
    case Code::cancelled:
    case Code::kernel_fault:
    case Code::kernel_threw: return code;
    default: return Code::kernel_fault;
  }
}

}  // namespace

// --- compute ---------------------------------------------------------------------------------------------------------

void Executor::grant_units(Client& client, const core::Action& action) {
  DevicePeer& peer = client.devices[action.device];
  if (peer.state != DeviceState::attached) return;
  peer.lent_units |= action.cu_mask;
  const std::uint32_t index = make_command(client, action.device, CommandKind::grant_units, {}, 0);
  commands_.at(index).record.units = action.cu_mask;
  send(index);
}

void Executor::revoke_units(Client& client, const core::Action& action) {
  const DevicePeer& peer = client.devices[action.device];
  if (peer.state != DeviceState::attached && peer.state != DeviceState::ending) {
    done(action.id, Code::device_lost);
    return;
  }
  leaving_.push_back({&client, action.device, action.id, action.cu_mask, now_ns_});
  // One that is ending may still run: answered when its process has gone.
  if (peer.state == DeviceState::ending) return;
  const std::uint32_t index = make_command(client, action.device, CommandKind::take_units, {}, 0);
  commands_.at(index).record.units = action.cu_mask;
  send(index);
}

void Executor::on_units_left(Client& client, DeviceId device, const wire::UpRecord& record) {
  DevicePeer& peer = client.devices[device];
  std::uint64_t units = record.value;
  for (Leaving& l : leaving_) {
    if (l.client != &client || l.device != device) continue;
    const std::uint64_t left = l.units & units;
    l.units &= ~left;
    units &= ~left;
    peer.lent_units &= ~left;
  }
  // Left without having been asked.
  if (units != 0) ++peer.garbage;
  for (std::size_t i = 0; i < leaving_.size();) {
    if (leaving_[i].units != 0) {
      ++i;
      continue;
    }
    const core::ActionId action = leaving_[i].action;
    leaving_[i] = leaving_.back();
    leaving_.pop_back();
    done(action, {});
  }
}

/// A device that could leave and does not keeps others' fences from signalling. It cannot while waves that hold the
/// unit wait for faults, unless the hardware can take it from them.
void Executor::check_units(bool slept) {
  for (Leaving& l : leaving_) {
    DevicePeer& peer = l.client->devices[l.device];
    bool excused = slept || peer.state != DeviceState::attached || peer.process.stopped();
    if (!excused && peer.control()->units.leave_while_faulting == 0) {
      for (const ComputeUnit& cu : peer.cus) {
        excused |= std::any_of(cu.slots.begin(), cu.slots.end(), [&](const WaveSlot& slot) {
          return slot.parked && slot.unit < wire::max_cus && (l.units >> slot.unit & 1) != 0;
        });
      }
    }
    if (excused) {
      l.since_ns = now_ns_;
    } else if (now_ns_ - l.since_ns >= config_.answer_timeout_ns) {
      household_.drop_device(*l.client, l.device, "it does not leave compute units that others wait for");
    }
  }
}

// --- graphics --------------------------------------------------------------------------------------------------------

void Executor::run_graphics(Client& client, const core::Action& action, const JobPayload& payload) {
  runs_graphics_ = true;
  DevicePeer& peer = client.devices[action.device];
  if (peer.state != DeviceState::attached) {
    done(action.id, Code::device_lost);
    return;
  }
  FERRY_CHECK(action.cu_mask != 0);
  // No two jobs share a unit, so no two share a slot.
  const auto slot = static_cast<unsigned>(std::countr_zero(action.cu_mask));
  peer.control()->jobs[slot].packet = payload.packet;
  graphics_.push_back({&client, action.device, action.id, action.fence, slot});
  const std::uint32_t index = make_command(client, action.device, CommandKind::run_graphics, {}, 0);
  wire::DownRecord& record = commands_.at(index).record;
  record.slot = static_cast<std::uint16_t>(slot);
  record.units = action.cu_mask;
  send(index);
}

void Executor::on_job_done(Client& client, DeviceId device, const wire::UpRecord& record) {
  const auto it = std::find_if(graphics_.begin(), graphics_.end(), [&](const GraphicsRun& run) {
    return run.client == &client && run.device == device && run.slot == record.slot;
  });
  if (it == graphics_.end()) {
    ++client.devices[device].garbage;
    return;
  }
  const core::ActionId action = it->action;
  graphics_.erase(it);
  wire::LaunchResult result;
  std::memcpy(&result, &client.devices[device].control()->jobs[record.slot].result, sizeof result);
  done(action, status_of(result));
}

void Executor::cancel_graphics(Client& client, const core::Action& action) {
  const auto it = std::find_if(graphics_.begin(), graphics_.end(),
                               [&](const GraphicsRun& run) { return run.fence == action.fence; });
  if (it == graphics_.end() || client.devices[it->device].state != DeviceState::attached) return;
  const std::uint32_t index = make_command(client, it->device, CommandKind::cancel_graphics, {}, 0);
  commands_.at(index).record.slot = static_cast<std::uint16_t>(it->slot);
  send(index);
}

void Executor::reset_device(Client& client, const core::Action& action) {
  household_.drop_device(client, action.device, "a job of its does not end though it was cancelled");
}

// --- endings ---------------------------------------------------------------------------------------------------------

/// The process is gone, and with it all that ran on its units.
void Executor::units_ended(Client& client, DeviceId device) {
  client.devices[device].lent_units = 0;
  std::vector<core::ActionId> answered;
  std::erase_if(leaving_, [&](const Leaving& l) {
    if (l.client != &client || l.device != device) return false;
    answered.push_back(l.action);
    return true;
  });
  std::erase_if(graphics_, [&](const GraphicsRun& run) {
    if (run.client != &client || run.device != device) return false;
    answered.push_back(run.action);
    return true;
  });
  for (const core::ActionId action : answered) done(action, Code::device_lost);
}

}  // namespace ferry::manager

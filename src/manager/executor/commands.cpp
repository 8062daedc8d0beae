// Commands to agents: merging, posting within the ring's bounds, answers, endings.
#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "manager/executor/executor.h"

namespace ferry::manager {
namespace {

wire::DownKind wire_kind(CommandKind kind) {
  switch (kind) {
    case CommandKind::zap_cpu:
    case CommandKind::zap_fork:
    case CommandKind::zap_refused:
    case CommandKind::zap_device: return wire::DownKind::zap;
    case CommandKind::map_home: return wire::DownKind::map_home;
    case CommandKind::revoke_file:
    case CommandKind::drop_device: return wire::DownKind::revoke;
    case CommandKind::map_file: return wire::DownKind::map_file;
    case CommandKind::revoke_device:
    case CommandKind::rearm: return wire::DownKind::rearm;
    case CommandKind::admit: return wire::DownKind::admit;
    case CommandKind::map_extent: return wire::DownKind::map;
    case CommandKind::resume_map: return wire::DownKind::resume_map;
    case CommandKind::map_buffer_cpu: return wire::DownKind::map_buffer;
    case CommandKind::revoke_buffer_cpu: return wire::DownKind::zap;
    case CommandKind::map_buffer_device: return wire::DownKind::map;
    case CommandKind::revoke_buffer_device: return wire::DownKind::rearm;
    case CommandKind::drop_buffer_device: return wire::DownKind::revoke;
    case CommandKind::forget_buffer: return wire::DownKind::forget_buffer;
    case CommandKind::grant_units: return wire::DownKind::grant_units;
    case CommandKind::take_units: return wire::DownKind::take_units;
    case CommandKind::run_graphics: return wire::DownKind::run_job;
    case CommandKind::cancel_graphics: return wire::DownKind::cancel_job;
  }
  return wire::DownKind::quit;
}

Status status_of(std::int32_t error) {
  if (error == 0) return {};
  if (error == ENOMEM) return Status(Code::no_mappings, error);
  return Status(Code::no_memory, error);
}

/// Deadlines are checked every second or so; a gap this long means that the manager did not run.
constexpr std::uint64_t checks_missed_ns = 5'000'000'000;

/// One call of the peer covers this much at most: it must stay responsive.
constexpr std::uint64_t merged_pages_max = 64 * block_pages;

}  // namespace

Agent& Executor::agent_of(Client& client, DeviceId device) {
  return device == no_device ? client.agent : client.devices[device].agent;
}

std::uint32_t Executor::make_command(Client& client, DeviceId device, CommandKind kind, PageSpan pages,
                                     core::ActionId action) {
  const std::uint32_t index = commands_.make();
  Command& c = commands_.at(index);
  c.kind = kind;
  c.device = device;
  c.client = &client;
  c.pages = pages;
  c.since_ns = now_ns_;
  if (action != 0) c.actions.push_back(action);
  ++client.expected;
  client.wake(now_ns_);
  return index;
}

/// Lets a command of this turn cover the action too, if the action goes on where the command ends.
bool Executor::grow_open(Client& client, DeviceId device, CommandKind kind, const core::Action& action) {
  if (client.is_adopted(action.pages.first)) return false;  // its pages are what revoke_runs says
  Agent& agent = agent_of(client, device);
  if (agent.open == 0) return false;
  Command& c = commands_.at(agent.open - 1);
  if (c.kind != kind || c.pages.end() != action.pages.first ||
      c.pages.count_pages + action.pages.count_pages > merged_pages_max) {
    return false;
  }
  c.pages.count_pages += action.pages.count_pages;
  c.actions.push_back(action.id);
  return true;
}

/// Keeps the command back until the end of the turn, so that it can grow.
void Executor::leave_open(Client& client, DeviceId device, std::uint32_t index) {
  close_open(client, device);
  agent_of(client, device).open = index + 1;
  open_.push_back({&client, device});
}

void Executor::close_open(Client& client, DeviceId device) {
  Agent& agent = agent_of(client, device);
  if (agent.open == 0) return;
  const std::uint32_t index = agent.open - 1;
  agent.open = 0;
  send(index);
}

void Executor::flush() {
  // Sending may end a client, whose entries are then closed already.
  for (std::size_t i = 0; i < open_.size(); ++i) close_open(*open_[i].client, open_[i].device);
  open_.clear();
}

void Executor::note_agent(Client& client, DeviceId device) {
  Agent& agent = agent_of(client, device);
  if (agent.posted) return;
  agent.posted = true;
  posted_.push_back({&client, device, no_cu});
}

void Executor::send(std::uint32_t index) {
  Command& c = commands_.at(index);
  Client& client = *c.client;
  Agent& agent = agent_of(client, c.device);
  if (agent.unanswered >= wire::ring_entries - 1) {
    agent.backlog.push_back(index);
    return;
  }
  wire::DownRecord& r = c.record;
  r.kind = static_cast<std::uint32_t>(wire_kind(c.kind));
  r.address = client.address_of(c.pages.first);
  r.length_bytes = c.pages.count_pages * page_bytes;
  r.action = commands_.wire_id(index);
  if (c.kind == CommandKind::map_buffer_device && r.file == static_cast<std::uint8_t>(wire::File::buffer) &&
      !send_buffer_file(client, c.device, c)) {
    // Its end answers the command.
    household_.drop_device(client, c.device, "it does not take the files of buffers");
    return;
  }
  if (c.owner != no_device && !send_peer_file(client, c)) {
    household_.drop_device(client, c.device, "it does not take the files of linked devices");
    return;
  }
  if (!agent.port.post(r)) {
    // Not answered but gone from the ring, or a head that cannot be: not an honest agent.
    agent.backlog.push_back(index);
    if (c.device == no_device) {
      household_.drop_client(client, "its agent's ring is broken");
    } else {
      household_.drop_device(client, c.device, "its agent's ring is broken");
    }
    return;
  }
  c.sent = true;
  ++agent.unanswered;
  note_agent(client, c.device);
}

void Executor::on_done(Client& client, DeviceId device, unsigned cu, const wire::UpRecord& record) {
  std::uint32_t index = 0;
  const bool known = commands_.find(record.action, index);
  const bool from_wave = cu != no_cu;
  // A number that was not sent can only be guessed. Its command is still listed here under that number, which would go
  // to somebody else's command if this one ended.
  if (!known || !commands_.at(index).sent || commands_.at(index).client != &client ||
      commands_.at(index).device != device || (commands_.at(index).kind == CommandKind::resume_map) != from_wave ||
      (from_wave && commands_.at(index).cu != cu)) {
    if (device == no_device) {
      ++client.garbage;
    } else {
      ++client.devices[device].garbage;
    }
    return;
  }
  if (!from_wave) {
    Agent& agent = agent_of(client, device);
    if (agent.unanswered > 0) --agent.unanswered;
    if (!agent.backlog.empty()) {
      const std::uint32_t next = agent.backlog.front();
      agent.backlog.pop_front();
      send(next);
    }
  }
  if (commands_.at(index).kind == CommandKind::map_file) {
    file_mapped(index, record);
    return;
  }
  finish(index, status_of(record.error));
}

void Executor::finish(std::uint32_t index, Status status) {
  Command& c = commands_.at(index);
  Client& client = *c.client;
  FERRY_CHECK(client.expected > 0);
  --client.expected;
  const CommandKind kind = c.kind;
  const DeviceId device = c.device;
  const PageSpan pages = c.pages;
  const bool gone = status.code == Code::client_gone || status.code == Code::device_lost;
  if (kind == CommandKind::admit) {
    admit_done(client, index, status);
    return;
  }

  if (!gone) {
    switch (kind) {
      case CommandKind::zap_cpu:
      case CommandKind::zap_fork:
      case CommandKind::zap_refused:
        // Nothing else can be done, and memory that is not mapped (freed meanwhile) is out of reach.
        status = {};
        break;
      case CommandKind::map_home: {
        BlockState& b = client.block(block_of(pages.first));
        if (status.ok()) {
          // Mapping over dropped the registration.
          if (b.armed.any()) --client.armed_blocks;
          b.armed = {};
          b.revoked = {};
          b.guard.reset();
          client.userfault.wake(client.address_of(pages.first), block_bytes);
        } else {
          status = give_cpu(client, pages);
        }
        break;
      }
      case CommandKind::revoke_device:
        if (status.ok()) {
          armed_again(client, device, pages);
          out_of_reach(client, device, pages);
          break;
        }
        // Out of mappings, or short of memory: taking away alone needs less.
        ++client.expected;
        c.kind = CommandKind::drop_device;
        c.sent = false;
        send(index);
        return;
      case CommandKind::revoke_file:
        if (status.ok()) break;
        // Its end takes the file away, and answers this.
        ++client.expected;
        household_.drop_device(client, device, "it could not let go of a file");
        return;
      case CommandKind::zap_device:
      case CommandKind::drop_device:
        if (!status.ok()) {
          // The core cannot go on with pages that the device may still reach. Its end takes them away, and answers this.
          ++client.expected;
          household_.drop_device(client, device, "it could not let go of pages");
          return;
        }
        if (kind == CommandKind::drop_device) disarmed(client, device, pages);
        out_of_reach(client, device, pages);
        break;
      case CommandKind::map_buffer_cpu:
        if (status.ok()) buffer_mapped(client, pages);
        break;
      case CommandKind::revoke_buffer_cpu:
        // As zap_cpu.
        status = {};
        break;
      case CommandKind::revoke_buffer_device:
        if (status.ok()) break;
        ++client.expected;
        c.kind = CommandKind::drop_buffer_device;
        c.sent = false;
        send(index);
        return;
      case CommandKind::drop_buffer_device:
        if (!status.ok()) {
          ++client.expected;
          household_.drop_device(client, device, "it could not let go of a buffer");
          return;
        }
        break;
      case CommandKind::grant_units:
      case CommandKind::take_units:
      case CommandKind::run_graphics:
      case CommandKind::cancel_graphics:
      case CommandKind::map_extent:
        if (status.ok() && c.owner != no_device) {
          client.devices[device].peer_files_taken |= static_cast<std::uint16_t>(1U << c.owner);
        }
        break;
      case CommandKind::map_buffer_device:
      case CommandKind::forget_buffer:
      case CommandKind::resume_map:
      case CommandKind::map_file:
      case CommandKind::admit: break;
      case CommandKind::rearm:
        if (status.ok()) armed_again(client, device, pages);
        break;
    }
  }

  if (c.rest.any() && !gone) {
    next_run(client, index);
    return;
  }
  if (kind == CommandKind::resume_map) {
    WaveSlot& slot = client.devices[device].cus[c.cu].slots[c.slot];
    // Well: the wave runs already. Not well: it has parked again, and the core knows its token.
    if (status.ok()) slot.parked = false;
  }
  if (kind == CommandKind::rearm && status.ok()) {
    const PageSpan wanted = c.wanted;
    const core::ActionId action = c.actions.front();
    const bool has_token = c.has_token;
    const core::FaultToken token = c.token;
    commands_.release(index);
    give_device(client, device, wanted, action, has_token, token);
    return;
  }
  const bool resume_wave = c.has_token && kind == CommandKind::map_extent && status.ok();
  const core::FaultToken token = c.token;
  const std::uint64_t epoch = c.epoch;
  for (const core::ActionId action : c.actions) done(action, status);
  commands_.release(index);
  if (kind == CommandKind::revoke_file || (kind == CommandKind::map_file && gone)) file_gone(client, epoch);
  if (kind == CommandKind::zap_fork) fork_zapped(client);
  if (kind == CommandKind::zap_refused) {
    FERRY_CHECK(client.letting > 0);
    --client.letting;
  }
  if (resume_wave) resume(client, device, token, {});
}

void Executor::armed_again(Client& client, DeviceId device, PageSpan pages) {
  for (BlockIndex index = block_of(pages.first); index <= block_of(pages.end() - 1); ++index) {
    DeviceBlock& d = client.device_block(client.block(index), device);
    d.replaced.remove(BlockTable::mask_in(index, pages));
    if (d.replaced.none()) {
      client.devices[device].pieces -= d.pieces;
      d.pieces = 0;
    }
  }
}

/// Nothing is mapped there any more, nor armed.
void Executor::disarmed(Client& client, DeviceId device, PageSpan pages) {
  for (BlockIndex index = block_of(pages.first); index <= block_of(pages.end() - 1); ++index) {
    client.device_block(client.block(index), device).replaced |= BlockTable::mask_in(index, pages);
  }
}

/// A revocation is done.
void Executor::out_of_reach(Client& client, DeviceId device, PageSpan pages) {
  for (BlockIndex index = block_of(pages.first); index <= block_of(pages.end() - 1); ++index) {
    DeviceBlock& d = client.device_block(client.block(index), device);
    const PageMask mask = BlockTable::mask_in(index, pages);
    close_dma(client.devices[device], d, mask);
    d.exec.remove(mask);
  }
}

void Executor::device_ended(Client& client, DeviceId device) {
  DevicePeer& peer = client.devices[device];
  peer.agent.open = 0;
  peer.agent.backlog.clear();
  peer.agent.unanswered = 0;
  device_left_gate(client, device);
  for (ComputeUnit& cu : peer.cus) {
    for (WaveSlot& slot : cu.slots) slot.parked = false;
  }
  for (std::uint32_t i = 0; i < commands_.size(); ++i) {
    Command& c = commands_.at(i);
    if (c.live && c.client == &client && c.device == device) finish(i, Code::device_lost);
  }
  units_ended(client, device);
  std::erase_if(client.held, [&](const HeldWave& h) { return h.device == device; });
  client.blocks.for_each([&](BlockIndex, BlockState& b) {
    if (b.devices.empty()) return;
    close_dma(peer, b.devices[device], PageMask::all());
    b.devices[device] = {};
  });
  FERRY_CHECK(peer.dma_pages == 0);
  forget_files(client, device);
  peer.pieces = 0;
  peer.peer_files = 0;
  peer.peer_files_taken = 0;
  peer.buffer_files.clear();
  std::erase_if(open_, [&](const OpenCommand& o) { return o.client == &client && o.device == device; });
  std::erase_if(posted_, [&](const Posted& p) { return p.client == &client && p.device == device; });
}

void Executor::client_ended(Client& client) {
  client.agent.open = 0;
  client.agent.backlog.clear();
  for (std::uint32_t i = 0; i < commands_.size(); ++i) {
    Command& c = commands_.at(i);
    if (c.live && c.client == &client && c.device == no_device) finish(i, Code::client_gone);
  }
  std::erase_if(open_, [&](const OpenCommand& o) { return o.client == &client && o.device == no_device; });
  std::erase_if(posted_, [&](const Posted& p) { return p.client == &client && p.device == no_device; });
}

void Executor::check_deadlines() {
  const std::uint64_t since_last_ns = now_ns_ - last_deadline_check_ns_;
  last_deadline_check_ns_ = now_ns_;
  // Stopped with everybody else (a terminal's Ctrl-Z, a suspended machine): what nobody could do in that time, nobody
  // owes.
  const bool slept = since_last_ns > checks_missed_ns;
  check_units(slept);
  if (commands_.live() == 0) return;
  for (std::uint32_t i = 0; i < commands_.size(); ++i) {
    Command& c = commands_.at(i);
    if (!c.live || c.device == no_device) continue;
    if (slept) c.since_ns = now_ns_;
    if (now_ns_ - c.since_ns < config_.answer_timeout_ns) continue;
    // A buffer's device holds up the buffer's other users, whoever else is stopped.
    const bool shared = c.kind == CommandKind::map_buffer_device || c.kind == CommandKind::revoke_buffer_device ||
                        c.kind == CommandKind::drop_buffer_device;
    if (!shared && c.client->process.stopped()) {
      c.since_ns = now_ns_;
      continue;
    }
    household_.drop_device(*c.client, c.device, "it owes an answer for too long");
  }
}

}  // namespace ferry::manager

// Commands to agents and compute units that have not been answered. Their numbers go over the wire and come back from
// peers that may lie: a number is believed only if it is alive, was sent, and belongs to the port that it came from.
// Main thread only; no allocation in steady state.
#pragma once

#include <cstdint>
#include <vector>

#include "base/bitmap.h"
#include "base/types.h"
#include "core/action.h"
#include "wire/port.h"

namespace ferry::manager {

struct Client;

enum class CommandKind : std::uint8_t {
  zap_cpu,               ///< application agent
  zap_fork,              ///< application agent
  zap_refused,           ///< application agent: counts in Client::letting
  map_home,              ///< application agent
  zap_device,            ///< device agent: armed pages
  revoke_device,         ///< device agent: extents; the window is armed again there
  drop_device,           ///< device agent: the same without arming: nothing is mapped
  map_extent,            ///< device agent
  rearm,                 ///< device agent: before CONTINUE where the window is not armed
  resume_map,            ///< compute unit
  map_buffer_cpu,        ///< application agent
  revoke_buffer_cpu,     ///< application agent
  map_buffer_device,     ///< device agent
  revoke_buffer_device,  ///< device agent: the window is armed again there
  drop_buffer_device,    ///< device agent: the same when arming failed: nothing is mapped
  forget_buffer,         ///< device agent
  admit,                 ///< device agent: before anything else outside the window
  map_file,              ///< device agent: of the application
  revoke_file,           ///< device agent
  grant_units,           ///< device agent
  take_units,            ///< device agent
  run_graphics,          ///< device agent
  cancel_graphics,       ///< device agent
};

struct Command {
  std::uint32_t generation = 1;
  bool live = false;
  bool sent = false;  ///< the peer has it: before that no answer to it can be true
  CommandKind kind = CommandKind::zap_cpu;
  DeviceId device = no_device;  ///< no_device: the application's agent
  bool has_token = false;
  std::uint16_t cu = 0;    ///< resume_map
  std::uint16_t slot = 0;  ///< resume_map
  Client* client = nullptr;
  PageSpan pages;
  PageSpan wanted;               ///< rearm: the pages to give afterwards
  PageMask rest;                 ///< of the same block, still to be done by the same kind of command
  std::uint64_t file_first = 0;  ///< map_extent in runs: page of the file that the block's first page has
  core::Action deferred;         ///< admit: the map_device that waits for it, if `actions` is not empty
  std::uint64_t since_ns = 0;
  std::uint64_t epoch = 0;              ///< map_file, revoke_file: of the span
  core::BufferId object = 0;            ///< map_buffer_device: the buffer
  DeviceId owner = no_device;           ///< map_extent, resume_map: whose VRAM, if not the device's own
  core::FaultToken token;               ///< the wave to resume when it is done
  std::vector<core::ActionId> actions;  ///< answered when it is done
  wire::DownRecord record{};
};

class CommandPool {
 public:
  /// References are good until the next make().
  std::uint32_t make() {
    if (free_.empty()) {
      commands_.emplace_back();
      free_.push_back(static_cast<std::uint32_t>(commands_.size() - 1));
    }
    const std::uint32_t index = free_.back();
    free_.pop_back();
    Command& c = commands_[index];
    c.live = true;
    c.sent = false;
    c.has_token = false;
    c.object = 0;
    c.owner = no_device;
    c.rest = {};
    c.actions.clear();
    c.record = {};
    ++live_;
    return index;
  }
  void release(std::uint32_t index) {
    Command& c = commands_[index];
    c.live = false;
    ++c.generation;
    free_.push_back(index);
    --live_;
  }
  [[nodiscard]] Command& at(std::uint32_t index) { return commands_[index]; }
  /// What goes over the wire; never 0.
  [[nodiscard]] std::uint64_t wire_id(std::uint32_t index) const {
    return (std::uint64_t{commands_[index].generation} << 32) | (index + 1U);
  }
  /// False if no live command has the number.
  [[nodiscard]] bool find(std::uint64_t wire_id, std::uint32_t& index) const {
    const std::uint64_t low = wire_id & 0xffff'ffff;
    if (low == 0 || low > commands_.size()) return false;
    index = static_cast<std::uint32_t>(low - 1);
    return commands_[index].live && commands_[index].generation == static_cast<std::uint32_t>(wire_id >> 32);
  }
  [[nodiscard]] std::uint32_t live() const { return live_; }
  [[nodiscard]] std::uint32_t size() const { return static_cast<std::uint32_t>(commands_.size()); }

 private:
  std::vector<Command> commands_;
  std::vector<std::uint32_t> free_;
  std::uint32_t live_ = 0;
};

}  // namespace ferry::manager

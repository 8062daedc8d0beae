// Buffers: their memory, and who reaches it. A buffer has one sealed file of its own with room for both places:
// system memory from 0 on, VRAM from half_bytes on. Moving copies from one half to the other; whoever reaches the buffer
// has mapped one half of the file, and is taken off it before a byte moves.
#include <utility>

#include "linux/socket.h"
#include "manager/executor/executor.h"

namespace ferry::manager {
namespace {

constexpr unsigned steer_modes = linux::track_missing | linux::track_minor;
/// The kernel says "again" while the process changes its mappings; it ends soon.
constexpr unsigned protect_tries = 1000;

std::uint64_t half_of(std::uint64_t count_pages) { return (count_pages + block_pages - 1) / block_pages * block_bytes; }

}  // namespace

// --- their life ------------------------------------------------------------------------------------------------------

Status Executor::make_buffer(core::BufferId id, const core::BufferSpec& spec, ClientId client) {
  BufferMemory b;
  b.count_pages = spec.count_pages;
  b.half_bytes = half_of(spec.count_pages);
  b.userptr = spec.userptr;
  b.user_pages = spec.user_pages;
  b.maker = client;
  if (!spec.userptr) {
    auto file = linux::make_memory_file("ferry-buffer", 2 * b.half_bytes);
    if (!file) return file.status();
    b.file = std::move(file).value();
  }
  buffers_.emplace(id, std::move(b));
  return {};
}

void Executor::drop_buffer(core::BufferId id) {
  const auto found = buffers_.find(id);
  if (found == buffers_.end()) return;
  store_.drop(found->second.stored);
  buffers_.erase(found);
}

std::uint64_t Executor::buffer_pages(core::BufferId id) const {
  const auto it = buffers_.find(id);
  return it == buffers_.end() ? 0 : it->second.count_pages;
}

int Executor::buffer_file(core::BufferId id) const {
  const auto it = buffers_.find(id);
  return it == buffers_.end() || it->second.userptr ? -1 : it->second.file.get();
}

/// The manager's own view of one half (of a userptr: of its pages), or null if it cannot be mapped. Jobs and moves use it.
std::byte* Executor::buffer_half(BufferMemory& buffer, core::Place place) {
  if (buffer.userptr) place = core::Place::system;
  if (!buffer.map) {
    const Client* maker = buffer.userptr ? household_.find_client(buffer.maker) : nullptr;
    if (buffer.userptr && maker == nullptr) return nullptr;
    auto mapped = buffer.userptr ? linux::Mapping::map(maker->system_file.get(), buffer.user_pages.first * page_bytes,
                                                       buffer.count_pages * page_bytes)
                                 : linux::Mapping::map(buffer.file.get(), 0, 2 * buffer.half_bytes);
    if (!mapped) return nullptr;
    buffer.map = std::move(mapped).value();
  }
  return buffer.map.data() + (place == core::Place::vram ? buffer.half_bytes : 0);
}

// --- addresses -------------------------------------------------------------------------------------------------------

/// The application has mapped the file there and nobody knows the address yet. From now on touches come here.
Status Executor::add_place(Client& client, core::BufferId id, PageSpan span) {
  const linux::Fault fault =
      client.userfault.register_span(client.address_of(span.first), span.count_pages * page_bytes, steer_modes);
  if (fault != linux::Fault::ok) return fault == linux::Fault::no_memory ? Code::no_mappings : Code::bad_range;
  client.work.places[span.first] = {id, span.count_pages, true};
  ++client.armed_blocks;
  return {};
}

void Executor::remove_place(Client& client, Page first) {
  const auto it = client.work.places.find(first);
  if (it == client.work.places.end()) return;
  if (it->second.armed) {
    --client.armed_blocks;
    const std::uint64_t bytes = it->second.count_pages * page_bytes;
    client.userfault.unregister_span(client.address_of(first), bytes);
    client.userfault.wake(client.address_of(first), bytes);
  }
  client.work.places.erase(it);
}

void Executor::forget_places(Client& client, PageSpan span) {
  auto it = client.work.places.upper_bound(span.first);
  if (it != client.work.places.begin()) --it;
  while (it != client.work.places.end() && it->first < span.end()) {
    const Page first = it->first;
    const bool overlaps = PageSpan{first, it->second.count_pages}.overlaps(span);
    ++it;
    if (overlaps) remove_place(client, first);
  }
}

/// A touch of an address of a buffer.
void Executor::on_buffer_touch(Client& client, Page page, Page first, BufferPlace& place, Access access) {
  if (place.armed) {
    core_.cpu_fault(now_ns_, client.id, page, access);
    return;
  }
  // Mapped since: the thread that touched it tries again.
  client.userfault.wake(client.address_of(first), place.count_pages * page_bytes);
}

// --- verbs -----------------------------------------------------------------------------------------------------------

void Executor::map_buffer(Client* client, const core::Action& action) {
  const bool on_cpu = action.device == no_device;
  const auto found = buffers_.find(action.buffer);
  FERRY_CHECK(found != buffers_.end());
  const BufferMemory& buffer = found->second;
  if (buffer.userptr) {
    // The core has brought its pages to their place in the system file, and the device reaches them there as it reaches
    // all memory in place; the engines reach that file by the manager's mapping. There is nothing else to look up.
    if (Client* maker = household_.find_client(buffer.maker)) give_children(*maker, buffer.user_pages);
    done(action.id, {});
    return;
  }
  if (client == nullptr || (on_cpu && client->closing)) {
    done(action.id, on_cpu ? Code::client_gone : Code::device_lost);
    return;
  }
  const auto handle = client->work.buffers.find(action.buffer);
  if (handle == client->work.buffers.end()) {
    // Closed by the application while the core was about to map it.
    done(action.id, Code::no_memory);
    return;
  }
  if (!on_cpu && client->devices[action.device].state != DeviceState::attached) {
    done(action.id, Code::device_lost);
    return;
  }
  const CommandKind kind = on_cpu ? CommandKind::map_buffer_cpu : CommandKind::map_buffer_device;
  const std::uint32_t index = make_command(*client, action.device, kind, action.pages, action.id);
  Command& c = commands_.at(index);
  c.record.rights = on_cpu || action.access == Access::write || action.prot == Prot::read_write ? wire::map_write : 0;
  c.record.file = static_cast<std::uint8_t>(wire::File::buffer);
  c.record.file_offset = action.place == core::Place::vram ? buffer.half_bytes : 0;
  c.record.buffer = handle->second.slot;
  c.object = action.buffer;
  send(index);
}

void Executor::revoke_buffer(Client* client, const core::Action& action) {
  const bool on_cpu = action.device == no_device;
  if (client == nullptr || (on_cpu && client->closing)) {
    done(action.id, on_cpu ? Code::client_gone : Code::device_lost);
    return;
  }
  if (on_cpu) {
    Page first = 0;
    BufferPlace* place = client->work.place_of(action.pages.first, first);
    if (place == nullptr) {
      done(action.id, {});
      return;
    }
    if (stop_writes(*client, first, *place)) {
      if (const auto found = buffers_.find(action.buffer); found != buffers_.end()) found->second.readers_left = true;
      done(action.id, {});
      return;
    }
    send(make_command(*client, no_device, CommandKind::revoke_buffer_cpu, action.pages, action.id));
    return;
  }
  const DevicePeer& peer = client->devices[action.device];
  if (peer.state != DeviceState::attached && peer.state != DeviceState::ending) {
    done(action.id, Code::device_lost);
    return;
  }
  const std::uint32_t index =
      make_command(*client, action.device, CommandKind::revoke_buffer_device, action.pages, action.id);
  // One that is ending answers by its end.
  if (peer.state == DeviceState::attached) send(index);
}

/// Takes the buffer from the application's threads from here, without its agent: one that is stopped must not hold up
/// whoever waits for the buffer. They may read on what they have mapped, which is what the buffer holds until it moves.
/// False: it cannot be done here.
bool Executor::stop_writes(Client& client, Page first, BufferPlace& place) {
  const std::uint64_t address = client.address_of(first);
  const std::uint64_t bytes = place.count_pages * page_bytes;
  if (!place.armed) {
    place.guarded =
        client.userfault.register_span(address, bytes, steer_modes | linux::track_writes) == linux::Fault::ok;
    // What the application has unmapped by itself nobody reaches; what it has mapped there instead is not the buffer.
    if (place.guarded || client.userfault.register_span(address, bytes, steer_modes) == linux::Fault::ok) {
      place.armed = true;
      ++client.armed_blocks;
    }
  }
  if (!place.guarded) return false;
  linux::Fault fault = linux::Fault::again;
  for (unsigned tries = 0; fault == linux::Fault::again && tries < protect_tries; ++tries) {
    fault = client.userfault.protect(address, bytes);
  }
  return fault == linux::Fault::ok || fault == linux::Fault::process_gone;
}

/// The agent has mapped the buffer: its registration went with what was there before.
void Executor::buffer_mapped(Client& client, PageSpan pages) {
  Page first = 0;
  BufferPlace* place = client.work.place_of(pages.first, first);
  if (place == nullptr) return;
  if (place->armed) {
    place->armed = false;
    place->guarded = false;
    --client.armed_blocks;
  }
  client.userfault.wake(client.address_of(first), place->count_pages * page_bytes);
}

void Executor::move_buffer(const core::Action& action) {
  const auto found = buffers_.find(action.buffer);
  FERRY_CHECK(found != buffers_.end());
  BufferMemory& buffer = found->second;
  if (action.place == action.to) {
    // From one device's VRAM to another's: one half stands for both, as both are this machine's memory.
    buffer.vram_device = action.to_device;
    done(action.id, {});
    return;
  }
  if (action.place == core::Place::store || action.to == core::Place::store) {
    move_stored(buffer, action);
    return;
  }
  std::byte* const source = buffer_half(buffer, action.place);
  std::byte* const target = buffer_half(buffer, action.to);
  if (source == nullptr || target == nullptr) {
    done(action.id, Code::no_memory);
    return;
  }
  if (action.to == core::Place::vram) buffer.vram_device = action.to_device;
  linux::CopyJob job;
  job.source = source;
  job.target = target;
  job.bytes = buffer.count_pages * page_bytes;
  job.source_fd = buffer.file.get();
  job.source_offset = action.place == core::Place::vram ? buffer.half_bytes : 0;
  job.prepare_target = linux::Prepare::populate;
  job.tag = make_buffer_copy(action);
  engine_.submit(job);
}

/// Its bytes are at both places. Before anybody may write to the new one, whoever still reads the old one meets nothing
/// there, and comes here.
void Executor::buffer_moved(const Copy& copy, Status status) {
  const auto found = buffers_.find(copy.buffer);
  FERRY_CHECK(found != buffers_.end());
  BufferMemory& buffer = found->second;
  if (!status.ok() || !buffer.readers_left) {
    done(copy.action, status);
    return;
  }
  buffer.readers_left = false;
  linux::CopyJob job;
  job.punch_fd = buffer.file.get();
  job.source_offset = copy.source == core::Place::vram ? buffer.half_bytes : 0;
  job.bytes = buffer.count_pages * page_bytes;
  const std::uint32_t index = take_copy();
  copies_[index].action = copy.action;
  copies_[index].verb = core::Verb::release_buffer;
  job.tag = index;
  engine_.submit(job);
}

/// Between system memory and what is beneath it. (The core moves a buffer to VRAM in two steps.)
void Executor::move_stored(BufferMemory& buffer, const core::Action& action) {
  FERRY_CHECK(action.place == core::Place::system || action.to == core::Place::system);
  std::byte* const memory = buffer_half(buffer, core::Place::system);
  if (memory == nullptr) {
    done(action.id, action.to == core::Place::store ? Code::no_space : Code::no_memory);
    return;
  }
  buffer.storing = action.id;
  if (action.to == core::Place::store) {
    store_.store(buffer_store_, action.buffer, memory, static_cast<std::uint32_t>(buffer.count_pages),
                 buffer.file.get(), 0);
  } else {
    store_.load(buffer_store_, action.buffer, memory, buffer.stored);
  }
}

void Executor::BufferStore::stored(std::uint64_t tag, Status status, std::span<const linux::StoreHandle> handles) {
  BufferMemory& buffer = executor_.buffers_.at(tag);
  if (status.ok()) {
    executor_.store_.drop(buffer.stored);
    buffer.stored.assign(handles.begin(), handles.end());
  }
  executor_.done(std::exchange(buffer.storing, 0), status);
}

void Executor::BufferStore::loaded(std::uint64_t tag, Status status) {
  executor_.done(std::exchange(executor_.buffers_.at(tag).storing, 0), status);
}

void Executor::release_buffer(const core::Action& action) {
  const auto found = buffers_.find(action.buffer);
  FERRY_CHECK(found != buffers_.end());
  BufferMemory& buffer = found->second;
  const bool passed_on = action.place == core::Place::vram && action.device != no_device &&
                         buffer.vram_device != no_device && buffer.vram_device != action.device;
  if (action.place == core::Place::store) {
    store_.drop(buffer.stored);
    buffer.stored.clear();
    done(action.id, {});
    return;
  }
  if (buffer.userptr || passed_on) {
    done(action.id, {});
    return;
  }
  linux::CopyJob job;
  job.punch_fd = buffer.file.get();
  job.source_offset = action.place == core::Place::vram ? buffer.half_bytes : 0;
  job.bytes = buffer.count_pages * page_bytes;
  job.tag = make_buffer_copy(action);
  engine_.submit(job);
}

std::uint64_t Executor::make_buffer_copy(const core::Action& action) {
  const std::uint32_t index = take_copy();
  copies_[index].action = action.id;
  copies_[index].verb = action.verb;
  copies_[index].buffer = action.buffer;
  copies_[index].source = action.place;
  return index;
}

// --- devices' files --------------------------------------------------------------------------------------------------

/// Before the first command that names the buffer's number. False: the device does not take it.
bool Executor::send_buffer_file(Client& client, DeviceId device, const Command& command) {
  DevicePeer& peer = client.devices[device];
  const std::uint32_t slot = command.record.buffer;
  if (peer.buffer_files.empty()) peer.buffer_files.assign(wire::buffer_slots, 0);
  if (peer.buffer_files[slot] == command.object) return true;
  const auto found = buffers_.find(command.object);
  if (found == buffers_.end()) return false;
  const wire::BufferFile body{slot, 0};
  const int fds[] = {found->second.file.get()};
  if (!linux::send_message(peer.socket.get(), wire::MessageType::buffer_file, 0, body, fds, 0).ok()) return false;
  peer.buffer_files[slot] = command.object;
  return true;
}

/// Before the first command that names the VRAM of a linked device. False: the device does not take it.
bool Executor::send_peer_file(Client& client, const Command& command) {
  DevicePeer& peer = client.devices[command.device];
  if ((peer.peer_files >> command.owner & 1) != 0) return true;
  const wire::PeerFile body{command.owner, 0};
  const int fds[] = {client.devices[command.owner].vram_file.get()};
  if (!linux::send_message(peer.socket.get(), wire::MessageType::peer_file, 0, body, fds, 0).ok()) return false;
  peer.peer_files |= static_cast<std::uint16_t>(1U << command.owner);
  return true;
}

/// The number is free: no process of the application keeps the file because of it.
void Executor::forget_buffer_file(Client& client, std::uint32_t slot) {
  for (DeviceId d = 0; d < client.devices.size(); ++d) {
    DevicePeer& peer = client.devices[d];
    if (peer.state != DeviceState::attached || peer.buffer_files.empty() || peer.buffer_files[slot] == 0) continue;
    peer.buffer_files[slot] = 0;
    const std::uint32_t index = make_command(client, d, CommandKind::forget_buffer, {}, 0);
    commands_.at(index).record.buffer = slot;
    send(index);
  }
}

}  // namespace ferry::manager

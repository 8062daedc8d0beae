// Who reaches a buffer, and at which address. A buffer is mapped when it is touched, whole, for reading and writing; it
// is revoked before its bytes move, when the address ends, and when a map failed, since then nobody knows. For each
// processor at most one question is open. Bits in cpu_mapped and device_mapped are set when a mapping is asked for and
// cleared when its revocation is answered: they say "may be reachable".
#include <algorithm>

#include "core/impl.h"

namespace ferry::core {
namespace {

std::uint16_t bit_of(DeviceId device) { return static_cast<std::uint16_t>(1U << device); }

void set_bit(std::uint16_t& mask, DeviceId device, bool value) {
  mask = static_cast<std::uint16_t>(value ? mask | bit_of(device) : mask & ~bit_of(device));
}

bool mapped(const BufferMapping& m, DeviceId target) {
  return target == no_device ? m.cpu_mapped : (m.device_mapped & bit_of(target)) != 0;
}
bool busy_with(const BufferMapping& m, DeviceId target) {
  return target == no_device ? m.cpu_busy : (m.device_busy & bit_of(target)) != 0;
}
bool doubtful(const BufferMapping& m, DeviceId target) {
  return target == no_device ? m.cpu_doubt : (m.device_doubt & bit_of(target)) != 0;
}
void set_mapped(BufferMapping& m, DeviceId target, bool value) {
  target == no_device ? void(m.cpu_mapped = value) : set_bit(m.device_mapped, target, value);
}
void set_busy(BufferMapping& m, DeviceId target, bool value) {
  target == no_device ? void(m.cpu_busy = value) : set_bit(m.device_busy, target, value);
}
void set_doubt(BufferMapping& m, DeviceId target, bool value) {
  target == no_device ? void(m.cpu_doubt = value) : set_bit(m.device_doubt, target, value);
}

/// Calls fn for the CPU (no_device) and each device.
template <typename Fn>
void for_targets(const BufferMapping& m, Fn&& fn) {
  if (m.cpu_mapped || m.cpu_busy) {
    fn(no_device);
  }
  for (DeviceId d = 0; d < max_devices; ++d) {
    if (((m.device_mapped | m.device_busy) & bit_of(d)) != 0) {
      fn(d);
    }
  }
}

bool untouched(const BufferMapping& m) {
  return !m.cpu_mapped && !m.cpu_busy && m.device_mapped == 0 && m.device_busy == 0;
}

}  // namespace

// --- addresses -------------------------------------------------------------------------------------------------------

bool Work::is_buffer_page(ClientId client, Page page) const {
  if (mapped_at.empty()) {
    return false;
  }
  auto it = mapped_at.upper_bound({client, page});
  if (it == mapped_at.begin()) {
    return false;
  }
  --it;
  return it->first.first == client && page - it->first.second < buffers.find(it->second)->second.spec.count_pages;
}

bool Work::overlaps_buffer(ClientId client, PageSpan span) const {
  if (mapped_at.empty()) {
    return false;
  }
  const auto it = mapped_at.lower_bound({client, span.first});
  return (it != mapped_at.end() && it->first.first == client && it->first.second < span.end()) ||
         is_buffer_page(client, span.first);
}

BufferMapping* Work::find_mapping(ClientId client, Page page) {
  if (!is_buffer_page(client, page)) {
    return nullptr;
  }
  const auto it = std::prev(mapped_at.upper_bound({client, page}));
  auto& mappings = buffers.find(it->second)->second.mappings;
  return &*std::find_if(mappings.begin(), mappings.end(),
                        [&](const BufferMapping& m) { return m.client == client && m.at == it->first.second; });
}

Status Work::buffer_map(ClientId id, BufferId buffer_id, Page at) {
  const Client* client = core.find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  if (!holds(id, buffer_id)) {
    return Code::not_held;
  }
  Buffer& buffer = buffers.find(buffer_id)->second;
  constexpr Page page_limit = Page{1} << 52;
  if (buffer.spec.userptr || at >= page_limit || buffer.spec.count_pages > page_limit - at) {
    return Code::bad_range;  // a userptr buffer's pages have their addresses
  }
  const PageSpan span{at, buffer.spec.count_pages};
  const auto next = client->ranges.lower_bound(at);
  if ((next != client->ranges.end() && next->first < span.end()) ||
      (next != client->ranges.begin() && std::prev(next)->first + std::prev(next)->second.count_pages > at) ||
      overlaps_buffer(id, span)) {
    return Code::overlap;
  }
  BufferMapping& mapping = buffer.mappings.emplace_back();
  mapping.client = id;
  mapping.at = at;
  mapped_at[{id, at}] = buffer_id;
  range_added(id);
  return {};
}

Status Work::buffer_unmap(ClientId client, Page at, Cookie cookie) {
  const auto it = mapped_at.find({client, at});
  BufferMapping* mapping = it == mapped_at.end() ? nullptr : find_mapping(client, at);
  if (mapping == nullptr || mapping->unmapping) {
    return Code::not_allocated;
  }
  mapping->wants_reply = true;
  mapping->unmap_cookie = cookie;
  mapping_end(buffers.find(it->second)->second, *mapping);
  look();
  return {};
}

void Work::mapping_end(Buffer& buffer, BufferMapping& mapping) {
  mapping.unmapping = true;
  for (DeviceId d = 0; d < core.devices.size(); ++d) {
    fail_waves(mapping, d, Code::not_allocated);
  }
  wake_buffer_cpu(buffer, mapping);
  look_at(buffer);
}

/// A visible job of the client, or one that gathers its buffers, may reach it by the client's addresses.
bool Work::used_here(const Buffer& buffer, ClientId client) const {
  const auto of_client = [&](FenceId id) {
    const auto it = jobs.find(id);
    return it != jobs.end() && it->second.client == client;
  };
  const auto& users = buffer.reservation.users;
  return of_client(buffer.claimed_by) || std::any_of(users.begin(), users.end(), of_client);
}

/// Addresses that end: revoked as soon as no job uses them, then forgotten. True: a client may be done with that.
bool Work::drop_mappings(Buffer& buffer) {
  std::vector<ClientId> over;
  for (std::size_t i = 0; i < buffer.mappings.size();) {
    BufferMapping& m = buffer.mappings[i];
    const Client* client = core.find_client(m.client);
    const bool dying = client->dying;
    if (!m.unmapping || (!dying && used_here(buffer, m.client))) {
      ++i;
      continue;
    }
    if (!dying) {
      for_targets(m, [&](DeviceId target) {
        if (!busy_with(m, target)) {
          ask_revoke(buffer, m, target);
        }
      });
    }
    if (!untouched(m)) {
      ++i;
      continue;
    }
    if (m.wants_reply && !dying) {
      core.reply_to(m.unmap_cookie, m.client, {});
    }
    mapped_at.erase({m.client, m.at});
    over.push_back(m.client);
    buffer.mappings.erase(buffer.mappings.begin() + static_cast<std::ptrdiff_t>(i));
  }
  for (const ClientId id : over) {
    if (Client* client = core.find_client(id); client != nullptr && client->dying) {
      core.finish_client_if_idle(*client);
    }
  }
  return !over.empty();
}

// --- faults ----------------------------------------------------------------------------------------------------------

void Work::device_fault(ClientId client, DeviceId device, Page page, Access access, FaultToken token, unsigned cu) {
  BufferMapping* mapping = find_mapping(client, page);
  FERRY_CHECK(mapping != nullptr);
  Buffer& buffer = buffers.find(mapped_at.find({client, mapping->at})->second)->second;
  mapping->waves.push_back({token, device, page, access, cu});
  if (mapping->unmapping) {
    fail_waves(*mapping, device, Code::not_allocated);
    return;
  }
  if (buffer.memory_request != 0) {
    if (const graph::NodeId node = fault_node(client, device, token.value); node != graph::no_node) {
      add_wait(node, core.reclaim.node(buffer.memory_request), "needs");
    }
    core.reclaim.joined(buffer.memory_request, {AllocContext::For::fault, device, client, cu, 0});
  }
  look_at(buffer);
  look();
}

void Work::cpu_fault(ClientId client, Page page, Access) {
  BufferMapping* mapping = find_mapping(client, page);
  FERRY_CHECK(mapping != nullptr);
  Buffer& buffer = buffers.find(mapped_at.find({client, mapping->at})->second)->second;
  mapping->cpu_waiting = true;
  if (mapping->unmapping) {
    wake_buffer_cpu(buffer, *mapping);
    return;
  }
  if (buffer.memory_request != 0) {
    core.reclaim.joined(buffer.memory_request, {AllocContext::For::fault, no_device, client, AllocContext::no_cu, 0});
  }
  look_at(buffer);
  look();
}

void Work::wake_buffer_cpu(Buffer& buffer, BufferMapping& mapping) {
  if (mapping.cpu_waiting) {
    mapping.cpu_waiting = false;
    core.emit_for(Verb::wake_cpu, mapping.client).pages = {mapping.at, buffer.spec.count_pages};
  }
}

/// Ends the wait of the device's waves, well or not.
void Work::fail_waves(BufferMapping& mapping, DeviceId device, Status status) {
  Client* client = core.find_client(mapping.client);
  for (std::size_t i = 0; i < mapping.waves.size();) {
    const BufferMapping::Wave wave = mapping.waves[i];
    if (wave.device != device) {
      ++i;
      continue;
    }
    mapping.waves.erase(mapping.waves.begin() + static_cast<std::ptrdiff_t>(i));
    core.wake(*client, Waiter{wave.token, wave.page, wave.device, wave.access, wave.cu}, status);
  }
}

/// Looks at everyone who waits at this address. May ask the machine, or begin to bring the buffer into memory.
void Work::serve_mapping(Buffer& buffer, BufferMapping& m) {
  using Where = Buffer::Where;
  using Step = Buffer::Step;
  for_targets(m, [&](DeviceId target) {
    if (doubtful(m, target) && !busy_with(m, target)) {
      ask_revoke(buffer, m, target);
    }
  });
  if (m.unmapping || core.find_client(m.client)->dying || (!m.cpu_waiting && m.waves.empty())) {
    return;
  }
  if (buffer.where == Where::nowhere || buffer.where == Where::store) {
    if (buffer.step != Step::rest) {
      return;
    }
    if (!buffer.failure.ok()) {
      for (DeviceId d = 0; d < core.devices.size(); ++d) {
        fail_waves(m, d, buffer.failure);
      }
      wake_buffer_cpu(buffer, m);
      return;
    }
    AllocContext context{AllocContext::For::fault, no_device, m.client, AllocContext::no_cu, 0};
    if (!m.waves.empty()) {
      context.device = m.waves.front().device;
      context.cu = m.waves.front().cu;
    }
    bring(buffer, Where::system, no_device, context);
    return;
  }
  if (buffer.step != Step::rest && buffer.step != Step::need_memory) {
    return;
  }
  const auto serve = [&](DeviceId target) {
    // Waking waves may let a job claim the buffer, and begin to bring it elsewhere.
    if (busy_with(m, target) || (buffer.step != Step::rest && buffer.step != Step::need_memory)) {
      return;
    }
    if (!mapped(m, target)) {
      ask_map(buffer, m, target);
    } else if (target == no_device) {
      wake_buffer_cpu(buffer, m);
    } else {
      fail_waves(m, target, {});
    }
  };
  if (buffer.lru != 0) {
    core.reclaim.touch(buffer.lru);
  }
  if (m.cpu_waiting) {
    serve(no_device);
  }
  for (DeviceId d = 0; d < core.devices.size(); ++d) {
    if (std::any_of(m.waves.begin(), m.waves.end(), [d](const auto& wave) { return wave.device == d; })) {
      serve(d);
    }
  }
}

// --- the machine -----------------------------------------------------------------------------------------------------

void Work::ask_map(Buffer& buffer, BufferMapping& mapping, DeviceId target) {
  const Client* client = core.find_client(mapping.client);
  WorkRef ref{WorkRef::What::buffer_map, buffer.id, std::uint64_t{mapping.client} << 8 | target};
  ref.at = mapping.at;
  ref.process = target == no_device ? 0 : client->devices[target].process;
  set_mapped(mapping, target, true);
  set_busy(mapping, target, true);
  ++buffer.outstanding;
  Action& action = core.ask_work(Verb::map_buffer, mapping.client, ref);
  action.buffer = buffer.id;
  action.device = target;
  action.pages = {mapping.at, buffer.spec.count_pages};
  action.access = Access::write;
  if (buffer.where == Buffer::Where::vram) {
    action.place = Place::vram;
    action.to_device = buffer.device;
  }
}

void Work::ask_revoke(Buffer& buffer, BufferMapping& mapping, DeviceId target) {
  WorkRef ref{WorkRef::What::buffer_revoke, buffer.id, std::uint64_t{mapping.client} << 8 | target};
  ref.at = mapping.at;
  set_busy(mapping, target, true);
  ++buffer.outstanding;
  Action& action = core.ask_work(Verb::revoke_buffer, mapping.client, ref);
  action.buffer = buffer.id;
  action.device = target;
  action.pages = {mapping.at, buffer.spec.count_pages};
  if (const Client* client = core.find_client(mapping.client);
      target != no_device && client != nullptr && !core.retry_faults(*client, target)) {
    hold_revocation(mapping.client, target);
  }
}

/// Retry faults off: what the client's compute may touch is mapped before it runs. How many addresses are not, yet.
std::uint64_t Work::map_all_buffers(ClientId client, DeviceId device) {
  std::vector<Page> pages;
  for (auto it = mapped_at.lower_bound({client, 0}); it != mapped_at.end() && it->first.first == client; ++it) {
    pages.push_back(it->first.second);
  }
  std::uint64_t missing = 0;
  for (const Page at : pages) {
    BufferMapping* m = find_mapping(client, at);
    if (m == nullptr || m->unmapping || (mapped(*m, device) && !busy_with(*m, device) && !doubtful(*m, device))) {
      continue;
    }
    ++missing;
    Buffer& buffer = buffers.find(mapped_at.find({client, m->at})->second)->second;
    if (buffer.step != Buffer::Step::rest || busy_with(*m, device) || doubtful(*m, device)) {
      continue;  // on its way
    }
    if (buffer.where == Buffer::Where::nowhere || buffer.where == Buffer::Where::store) {
      bring(buffer, Buffer::Where::system, no_device, {AllocContext::For::request, device, client});
    } else {
      ask_map(buffer, *m, device);
    }
    look();
  }
  return missing;
}

bool Work::claim_mapping(Buffer& buffer, BufferMapping& mapping, DeviceId device) {
  if (busy_with(mapping, device) || doubtful(mapping, device)) {
    return false;
  }
  if (!mapped(mapping, device)) {
    ask_map(buffer, mapping, device);
    return false;
  }
  return true;
}

/// Before the bytes move. True: nobody reaches them.
bool Work::revoke_all(Buffer& buffer) {
  bool clear = true;
  for (BufferMapping& m : buffer.mappings) {
    for_targets(m, [&](DeviceId target) {
      if (!busy_with(m, target)) {
        ask_revoke(buffer, m, target);
      }
    });
    clear = clear && untouched(m);
  }
  return clear;
}

void Work::mapping_answered(Buffer& buffer, const WorkRef& ref, Status status) {
  const auto client_id = static_cast<ClientId>(ref.sub >> 8);
  const auto target = static_cast<DeviceId>(ref.sub & 0xff);
  BufferMapping* found = find_mapping(client_id, ref.at);
  FERRY_CHECK(found != nullptr && busy_with(*found, target));
  BufferMapping& m = *found;
  const Client& client = *core.find_client(client_id);
  set_busy(m, target, false);
  if (ref.what == WorkRef::What::buffer_revoke) {
    set_mapped(m, target, false);
    set_doubt(m, target, false);
    return;
  }
  const bool same = target == no_device ? !client.dying : client.devices[target].process == ref.process;
  if (!status.ok() && same) {
    if (status.code == Code::device_lost || status.code == Code::client_gone) {
      // The process has ended, whether or not the caller has said so: who waited in it waits no more.
      set_mapped(m, target, false);
      std::erase_if(m.waves, [target](const auto& wave) { return wave.device == target; });
      m.cpu_waiting = m.cpu_waiting && target != no_device;
    } else {
      set_doubt(m, target, mapped(m, target));
      if (target == no_device) {
        wake_buffer_cpu(buffer, m);
      } else {
        fail_waves(m, target, status);
      }
    }
  }
  if (const auto job = jobs.find(buffer.claimed_by);
      !status.ok() && job != jobs.end() && job->second.client == client_id && job->second.spec.device == target) {
    buffer.failure = status;
  }
}

void Work::buffers_device_gone(ClientId client, DeviceId device) {
  for (auto it = mapped_at.lower_bound({client, 0}); it != mapped_at.end() && it->first.first == client; ++it) {
    Buffer& buffer = buffers.find(it->second)->second;
    for (BufferMapping& m : buffer.mappings) {
      if (m.client == client) {
        set_mapped(m, device, false);
        set_doubt(m, device, false);
        std::erase_if(m.waves, [device](const auto& wave) { return wave.device == device; });
        look_at(buffer);
      }
    }
  }
  for (auto it = userptrs.lower_bound({client, 0}); it != userptrs.end() && it->first == client; ++it) {
    buffers.find(it->second)->second.looked_up &= ~(1U << device);
  }
  look();
}

}  // namespace ferry::core

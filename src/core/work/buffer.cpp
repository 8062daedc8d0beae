// Buffers: who holds them, whose fences are in them, and when they go. Where their memory is: place.cpp. Who reaches
// them: reach.cpp.
#include <algorithm>
#include <optional>

#include "core/digest.h"
#include "core/impl.h"

namespace ferry::core {
namespace {
constexpr std::uint64_t page_limit = std::uint64_t{1} << 52;
/// 64 GiB. Each claim walks over all of them, and holds up the line of jobs meanwhile.
constexpr std::uint64_t userptr_pages_max = std::uint64_t{1} << 24;
}  // namespace

bool Work::pinned() const {
  return std::any_of(devices.begin(), devices.end(),
                     [](const WorkDevice& device) { return device.model.policy == Policy::pinned; });
}

// --- holds -----------------------------------------------------------------------------------------------------------

Status Work::buffer_create(ClientId client, BufferId id, const BufferSpec& spec) {
  const Client* owner = core.find_client(client);
  if (owner == nullptr || owner->dying) {
    return Code::client_gone;
  }
  if (id == 0 || buffers.contains(id)) {
    return Code::in_use;
  }
  const std::uint64_t budget = core.config.system_pages;
  if (spec.count_pages == 0 || spec.count_pages >= page_limit || (budget != 0 && spec.count_pages > budget) ||
      (spec.home != no_device && spec.home >= devices.size())) {
    return Code::bad_range;
  }
  if (spec.userptr) {
    if (spec.count_pages > userptr_pages_max || spec.user_pages.count_pages != spec.count_pages ||
        spec.user_pages.first >= page_limit) {
      return Code::bad_range;
    }
    if (!Core::Impl::all_allocated(*owner, spec.user_pages)) {
      return Code::not_allocated;
    }
  } else if (budget != 0 && pinned()) {
    std::uint64_t all = spec.count_pages;
    for (const auto& [other, buffer] : buffers) {
      all += buffer.spec.userptr ? 0 : buffer.spec.count_pages;
    }
    if (all > budget / 2) {
      return Code::no_memory;
    }
  }
  Buffer& buffer = buffers[id];
  buffer.id = id;
  buffer.spec = spec;
  buffer.maker = client;
  buffer.holds[client] = 1;
  if (spec.userptr) {
    buffer.where = Buffer::Where::system;
    buffer.stale = true;
    userptrs.insert({client, id});
  }
  return {};
}

Status Work::buffer_open(ClientId client, BufferId id) {
  const Client* owner = core.find_client(client);
  if (owner == nullptr || owner->dying) {
    return Code::client_gone;
  }
  const auto it = buffers.find(id);
  if (it == buffers.end() || it->second.closing) {
    return Code::not_held;
  }
  if (it->second.spec.userptr) {
    return Code::bad_range;
  }
  ++it->second.holds[client];
  return {};
}

bool Work::holds(ClientId client, BufferId id) const {
  const auto it = buffers.find(id);
  return it != buffers.end() && it->second.holds.contains(client);
}

Status Work::buffer_close(ClientId client, BufferId id) {
  if (!holds(client, id)) {
    return Code::not_held;
  }
  {
    const Still still(*this);
    Buffer& buffer = buffers.find(id)->second;
    if (--buffer.holds[client] == 0) {
      buffer_hold_ends(buffer, client);
    }
  }
  look();
  return {};
}

/// The client's last hold: its mappings go; with the last of all holds the buffer.
void Work::buffer_hold_ends(Buffer& buffer, ClientId client) {
  buffer.holds.erase(client);
  for (BufferMapping& mapping : buffer.mappings) {
    if (mapping.client == client && !mapping.unmapping) {
      mapping_end(buffer, mapping);
    }
  }
  if (buffer.holds.empty()) {
    buffer.closing = true;
    if (buffer.memory_request != 0 && buffer.claimed_by == 0) {
      const std::uint64_t request = buffer.memory_request;
      buffer.memory_request = 0;
      buffer.step = Buffer::Step::rest;
      core.reclaim.withdraw(request);
    }
  }
  look_at(buffer);
}

void Work::buffers_client_gone(ClientId client) {
  std::optional<Still> still(std::in_place, *this);
  for (auto& [id, buffer] : buffers) {
    for (BufferMapping& mapping : buffer.mappings) {
      if (mapping.client == client) {
        // Its threads are gone. Its devices are, or will be reported so: their mappings end then (reach.cpp).
        mapping.cpu_mapped = false;
        mapping.cpu_doubt = false;
        mapping.cpu_waiting = false;
        mapping.waves.clear();
        mapping.unmapping = true;
        mapping.wants_reply = false;
        look_at(buffer);
      }
    }
    if (buffer.spec.userptr && buffer.maker == client) {
      buffer.walking = false;  // client/client.cpp drops its requests
      look_at(buffer);
    }
    if (buffer.holds.contains(client)) {
      buffer_hold_ends(buffer, client);
    }
  }
  still.reset();
  look();
}

bool Work::buffers_client_idle(ClientId client) const {
  const auto mapped = mapped_at.lower_bound({client, 0});
  if (mapped != mapped_at.end() && mapped->first.first == client) {
    return false;
  }
  const auto userptr = userptrs.lower_bound({client, 0});
  return userptr == userptrs.end() || userptr->first != client;
}

/// Nothing of it is left but its state.
void Work::buffer_forget(Buffer& buffer) {
  FERRY_CHECK(buffer.outstanding == 0 && buffer.mappings.empty() && buffer.reservation.users.empty());
  FERRY_CHECK(buffer.charged_pages == 0 && buffer.vram_chunks == 0 && buffer.stored_pages == 0);
  const ClientId maker = buffer.maker;
  const bool userptr = buffer.spec.userptr;
  userptrs.erase({maker, buffer.id});
  userptrs_in_use.erase(buffer.id);
  buffers.erase(buffer.id);
  if (Client* client = core.find_client(maker); userptr && client != nullptr) {
    core.finish_client_if_idle(*client);
  }
}

BufferInfo Work::buffer_info(BufferId id) const {
  BufferInfo info;
  const auto it = buffers.find(id);
  if (it == buffers.end()) {
    return info;
  }
  const Buffer& buffer = it->second;
  info.known = true;
  info.where = buffer.where;
  info.device = buffer.where == Buffer::Where::vram ? buffer.device : no_device;
  info.busy = busy(buffer);
  info.moving = buffer.step != Buffer::Step::rest;
  info.stale = buffer.stale;
  info.holders = static_cast<unsigned>(buffer.holds.size());
  return info;
}

// --- reservations ----------------------------------------------------------------------------------------------------

namespace {

void prune(const std::map<FenceId, Fence>& fences, Reservation& reservation) {
  const auto over = [&fences](FenceId id) {
    const auto it = fences.find(id);
    return it == fences.end() || it->second.signalled;
  };
  std::erase_if(reservation.users, over);
  std::erase_if(reservation.shared, over);
  if (reservation.exclusive != 0 && over(reservation.exclusive)) {
    reservation.exclusive = 0;
  }
}

}  // namespace

bool Work::busy(const Buffer& buffer) const {
  return std::any_of(buffer.reservation.users.begin(), buffer.reservation.users.end(), [this](FenceId id) {
    const auto it = fences.find(id);
    return it != fences.end() && !it->second.signalled;
  });
}

std::vector<FenceId> Work::implicit_fences(const Job& job) const {
  std::vector<FenceId> found;
  for (const JobBuffer& used : job.spec.buffers) {
    const auto it = buffers.find(used.buffer);
    if (it == buffers.end() || !it->second.spec.implicit_sync) {
      continue;
    }
    const Reservation& reservation = it->second.reservation;
    const auto add = [&](FenceId id) {
      const auto fence = fences.find(id);
      if (fence != fences.end() && !fence->second.signalled &&
          std::find(found.begin(), found.end(), id) == found.end()) {
        found.push_back(id);
      }
    };
    add(reservation.exclusive);
    if (used.access == Access::write && !core.planted(PlantedBug::skip_shared_fence)) {
      for (const FenceId shared : reservation.shared) {
        add(shared);
      }
    }
  }
  return found;
}

void Work::install_fence(const Job& job) {
  const FenceId id = job.spec.fence;
  for (const JobBuffer& used : job.spec.buffers) {
    const auto it = buffers.find(used.buffer);
    FERRY_CHECK(it != buffers.end());
    Buffer& buffer = it->second;
    Reservation& reservation = buffer.reservation;
    prune(fences, reservation);
    if (!reservation.users.empty() && reservation.users.back() == id) {
      continue;  // listed twice; writers come first then
    }
    FERRY_CHECK(fence_wait(id, {FenceWaiter::Who::buffer, buffer.id}));
    reservation.users.push_back(id);
    if (used.access == Access::write) {
      reservation.exclusive = id;
      reservation.shared.clear();
    } else {
      reservation.shared.push_back(id);
    }
    if (buffer.lru != 0) {
      core.reclaim.touch(buffer.lru);
    }
  }
}

void Work::buffer_fence_done(BufferId id) {
  const auto it = buffers.find(id);
  FERRY_CHECK(it != buffers.end());
  Buffer& buffer = it->second;
  prune(fences, buffer.reservation);
  look_at(buffer);
  if (buffer.spec.userptr) {
    userptr_let_go(buffer);
  }
  look();
}

// --- checks ----------------------------------------------------------------------------------------------------------

bool Work::buffers_quiescent() const {
  return looking.empty() && std::all_of(buffers.begin(), buffers.end(), [](const auto& entry) {
           const Buffer& buffer = entry.second;
           return buffer.step == Buffer::Step::rest && buffer.outstanding == 0 && !buffer.walking && !buffer.closing &&
                  std::all_of(buffer.mappings.begin(), buffer.mappings.end(), [](const BufferMapping& mapping) {
                    return !mapping.unmapping && !mapping.cpu_waiting && mapping.waves.empty();
                  });
         });
}

void Work::verify_buffers() const {
  FERRY_CHECK(looking.empty() && !looking_now && !claim_again);
  using Step = Buffer::Step;
  using Where = Buffer::Where;
  std::vector<std::uint64_t> chunks(core.devices.size());
  std::size_t mappings = 0;
  for (const auto& [id, buffer] : buffers) {
    FERRY_CHECK(id == buffer.id && buffer.closing == buffer.holds.empty());
    FERRY_CHECK(buffer.claimed_by == 0 || jobs.contains(buffer.claimed_by));
    FERRY_CHECK_EQ(buffer.step == Step::need_memory, buffer.memory_request != 0);
    for (const FenceId user : buffer.reservation.users) {  // I-28
      const auto fence = fences.find(user);
      FERRY_CHECK(fence != fences.end() && fence->second.visible && !fence->second.signalled);
      const auto& waiters = fence->second.waiters;
      FERRY_CHECK_EQ(std::count(waiters.begin(), waiters.end(), FenceWaiter{FenceWaiter::Who::buffer, id}), 1);
    }
    const bool used = busy(buffer) || buffer.claimed_by != 0;
    if (buffer.spec.userptr) {
      FERRY_CHECK(buffer.mappings.empty() && buffer.step == Step::rest && buffer.charged_pages == 0);
      FERRY_CHECK(userptrs.contains({buffer.maker, id}));
      FERRY_CHECK_EQ(userptrs_in_use.contains(id), used || buffer.outstanding != 0);
      continue;
    }
    // I-24: while a visible fence uses it, it stays where it is.
    FERRY_CHECK(buffer.step == Step::rest || buffer.step == Step::need_memory || !busy(buffer));
    FERRY_CHECK(!busy(buffer) || buffer.where == Where::system || buffer.where == Where::vram);
    // I-26: what it holds is counted, and nothing else.
    const bool counts = core.reclaim.counts();
    if (buffer.step == Step::rest || buffer.step == Step::need_memory) {
      FERRY_CHECK_EQ(buffer.charged_pages, counts && buffer.where == Where::system ? buffer.spec.count_pages : 0);
      FERRY_CHECK_EQ(buffer.vram_chunks != 0, buffer.where == Where::vram);
      FERRY_CHECK_EQ(buffer.stored_pages, buffer.where == Where::store ? buffer.spec.count_pages : 0);
    }
    if (buffer.vram_chunks != 0) {
      const DeviceId device = buffer.where == Where::vram    ? buffer.device
                              : buffer.step == Step::release ? buffer.leaving_device
                                                             : buffer.to_device;
      chunks[device] += buffer.vram_chunks;
    }
    for (const BufferMapping& mapping : buffer.mappings) {
      ++mappings;
      const auto at = mapped_at.find({mapping.client, mapping.at});
      FERRY_CHECK(at != mapped_at.end() && at->second == id && core.find_client(mapping.client) != nullptr);
      if (buffer.step == Step::move || buffer.step == Step::release) {  // I-25
        FERRY_CHECK(!mapping.cpu_mapped && mapping.device_mapped == 0);
        FERRY_CHECK(!mapping.cpu_busy && mapping.device_busy == 0);
      }
      // I-27: whoever waits, waits for something that is under way.
      const bool comes = buffer.step != Step::rest;
      FERRY_CHECK(comes || !mapping.cpu_waiting || mapping.cpu_busy);
      for (const BufferMapping::Wave& wave : mapping.waves) {
        FERRY_CHECK(comes || (mapping.device_busy >> wave.device & 1U) != 0);
      }
    }
  }
  for (const KeptFree& kept : core.kept_frees) {  // I-29
    const FreeRequest& free = core.frees[kept.request];
    const Block* block = Core::Impl::find_block(std::as_const(*free.client), kept.block);
    const PageSpan span = block == nullptr ? free.span : core.freed_in(kept.request, *block, kept.granule);
    const bool pinned = block != nullptr && core.pinned(*free.client, span);
    FERRY_CHECK(free.in_use && (pinned || userptr_keeps(free.client->id, span)));
    FERRY_CHECK(pinned || block == nullptr || block->granules[kept.granule].slot == none_index);
  }
  FERRY_CHECK_EQ(mappings, mapped_at.size());
  for (DeviceId d = 0; d < core.devices.size(); ++d) {
    FERRY_CHECK_EQ(chunks[d], core.devices[d].buffer_chunks);  // I-26
  }
}

std::uint64_t Work::digest_buffers() const {
  Digest d;
  const auto number = [](auto value) { return static_cast<std::uint64_t>(value); };
  for (const auto& [id, buffer] : buffers) {
    d.add(id).add(buffer.maker).add(number(buffer.where)).add(buffer.device).add(number(buffer.step));
    d.add(number(buffer.to)).add(buffer.to_device).add(number(buffer.leaving)).add(buffer.leaving_device);
    d.add(buffer.claimed_by)
        .add((buffer.placed ? 1U : 0U) | (buffer.foreign ? 2U : 0U) | (buffer.closing ? 4U : 0U) |
             (buffer.stale ? 8U : 0U) | (buffer.memory_request != 0 ? 16U : 0U));
    d.add(buffer.outstanding).add(buffer.failure).add(buffer.vram_chunks).add(buffer.charged_pages);
    d.add(buffer.stored_pages).add(buffer.looked_up).add(buffer.lookups);
    d.add((buffer.walking ? 1U : 0U) | (buffer.in_place ? 2U : 0U));
    d.add(buffer.spec.count_pages).add(buffer.spec.home).add(buffer.spec.user_pages);
    for (const auto& [client, count] : buffer.holds) {
      d.add(client).add(count);
    }
    d.add(buffer.reservation.exclusive).add(buffer.reservation.shared.size());
    for (const FenceId fence : buffer.reservation.shared) {
      d.add(fence);
    }
    for (const FenceId fence : buffer.reservation.users) {
      d.add(fence);
    }
    for (const BufferMapping& m : buffer.mappings) {
      d.add(m.client).add(m.at).add(m.device_mapped).add(m.device_busy).add(m.device_doubt);
      d.add((m.cpu_mapped ? 1U : 0U) | (m.cpu_busy ? 2U : 0U) | (m.cpu_doubt ? 4U : 0U) | (m.unmapping ? 8U : 0U) |
            (m.cpu_waiting ? 16U : 0U) | (m.wants_reply ? 32U : 0U));
      d.add(m.wants_reply ? m.unmap_cookie.value : 0);
      for (const BufferMapping::Wave& wave : m.waves) {
        d.add(wave.token.value).add(wave.device).add(wave.page).add(number(wave.access)).add(wave.cu);
      }
    }
  }
  return d.add(claiming).value();
}

}  // namespace ferry::core

// userptr: buffers over a client's own memory, which have none of their own.
//   Claim:   the pages come to system memory and stay there, at their place, while a job gathers or a visible fence uses
//            them (userptr_in_use); then the device looks them up (map_buffer), unless it knows them and nothing changed.
//   Change:  the notifier marks the buffer and returns. The job whose fence is visible goes on with the pages that it has;
//            the next one looks them up again.
//   Free:    marks, then gives pages back when no job uses them. A page is its address (the system file's offset is the
//            address), so the reply, after which the address may be used again, comes after those fences. Nobody inside
//            waits: faults on the pages fail at once, and no operation of theirs is begun.
#include <algorithm>

#include "core/impl.h"

namespace ferry::core {
namespace {
/// A client that changes its pages faster than they can be looked up holds up the line of jobs no longer than this.
constexpr std::uint32_t lookups_max = 8;
/// Of Buffer::looked_up: the engines that need no mapping (copy, video).
constexpr std::uint32_t engines_bit = 1U << max_devices;

std::uint32_t bit_of(DeviceId target) { return target == no_device ? engines_bit : 1U << target; }
}  // namespace

void Work::userptr_invalidate(ClientId client, PageSpan span) {
  for (auto it = userptrs.lower_bound({client, 0}); it != userptrs.end() && it->first == client; ++it) {
    Buffer& buffer = buffers.find(it->second)->second;
    if (buffer.spec.user_pages.overlaps(span)) {
      buffer.stale = true;
      if (buffer.claimed_by != 0) {
        look_at(buffer);
      }
    }
  }
  look();
}

bool Work::userptr_in_use(ClientId client, PageSpan span) const {
  return std::any_of(userptrs_in_use.begin(), userptrs_in_use.end(), [&](BufferId id) {
    const Buffer& buffer = buffers.find(id)->second;
    return buffer.maker == client && buffer.spec.user_pages.overlaps(span);
  });
}

bool Work::userptr_keeps(ClientId client, PageSpan span) const {
  return std::any_of(userptrs_in_use.begin(), userptrs_in_use.end(), [&](BufferId id) {
    const Buffer& buffer = buffers.find(id)->second;
    return buffer.maker == client && buffer.spec.user_pages.overlaps(span) && (busy(buffer) || buffer.outstanding != 0);
  });
}

FenceId Work::userptr_fence(ClientId client, PageSpan span) const {
  for (const BufferId id : userptrs_in_use) {
    const Buffer& buffer = buffers.find(id)->second;
    if (buffer.maker == client && buffer.spec.user_pages.overlaps(span) && busy(buffer)) {
      return buffer.reservation.users.back();
    }
  }
  return 0;
}

Work::Claim Work::userptr_claim(Buffer& buffer, const Job& job) {
  const DeviceId device = job.spec.device;
  Client& client = *core.find_client(buffer.maker);
  if (!buffer.failure.ok()) {
    return Claim::failed;
  }
  if (buffer.walking || buffer.outstanding != 0) {
    return Claim::waits;
  }
  if (!Core::Impl::all_allocated(client, buffer.spec.user_pages)) {
    buffer.failure = Code::not_allocated;
    return Claim::failed;
  }
  const bool maps = job.spec.engine == Engine::graphics && client.devices[device].attached;
  const DeviceId target = maps ? device : no_device;
  if (!buffer.in_place) {
    if (buffer.lookups++ == lookups_max) {
      buffer.failure = Code::no_memory;
      return Claim::failed;
    }
    buffer.walking = true;
    core.walk_in_place(client, buffer.spec.user_pages, target, buffer.id);
    return buffer.walking ? Claim::waits : userptr_claim(buffer, job);
  }
  if (core.planted(PlantedBug::userptr_keeps_old) && buffer.looked_up != 0) {
    return Claim::ready;
  }
  if (!buffer.stale && (buffer.looked_up & bit_of(target)) != 0) {
    return Claim::ready;
  }
  if (buffer.stale) {
    if (buffer.lookups++ == lookups_max) {
      buffer.failure = Code::timed_out;
      return Claim::failed;
    }
    buffer.stale = false;
    buffer.looked_up = 0;
  }
  WorkRef ref{WorkRef::What::buffer_map, buffer.id, std::uint64_t{buffer.maker} << 8 | target};
  ref.at = buffer.spec.user_pages.first;
  ref.process = maps ? client.devices[device].process : 0;
  ++buffer.outstanding;
  Action& action = core.ask_work(Verb::map_buffer, buffer.maker, ref);
  action.buffer = buffer.id;
  action.device = target;
  action.pages = buffer.spec.user_pages;
  action.access = Access::write;
  return Claim::waits;
}

void Work::userptr_walked(BufferId id, bool moved) {
  const auto it = buffers.find(id);
  FERRY_CHECK(it != buffers.end() && it->second.walking);
  Buffer& buffer = it->second;
  buffer.walking = false;
  // What was on its way when the walk came by may be anywhere now; from the claim on nothing leaves any more.
  buffer.in_place = !moved;
  look_at(buffer);
  look();
}

void Work::userptr_looked_up(Buffer& buffer, const WorkRef& ref, Status status) {
  const auto target = static_cast<DeviceId>(ref.sub & 0xff);
  const Client* client = core.find_client(buffer.maker);
  const bool same =
      target == no_device || (client->devices[target].attached && client->devices[target].process == ref.process);
  if (status.ok() && same) {
    buffer.looked_up |= bit_of(target);
  } else if (buffer.claimed_by != 0) {
    buffer.failure = status.ok() ? Status(Code::device_lost) : status;
  }
  userptr_let_go(buffer);
}

void Work::userptr_let_go(Buffer& buffer) {
  if (buffer.claimed_by == 0 && !busy(buffer) && buffer.outstanding == 0) {
    userptrs_in_use.erase(buffer.id);
  }
  core.resume_frees();
}

}  // namespace ferry::core

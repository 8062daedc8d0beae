// Where a buffer's memory is: nowhere before its first use, then in its home's VRAM if there is room, else in system
// memory, or beneath it in the store. Moves are made of revoke, move, release (Buffer::Step). A buffer that a visible
// fence uses does not move; one that a job claims moves only to where that job needs it, and never waits for a fence:
// busy in another device's VRAM, it is reached there.
// Nothing here runs inside itself: what changed is looked at from a queue.
#include <algorithm>
#include <optional>

#include "core/impl.h"

namespace ferry::core {
namespace {

Place place_of(Buffer::Where where) {
  return where == Buffer::Where::vram ? Place::vram : where == Buffer::Where::store ? Place::store : Place::system;
}

std::uint64_t chunks_of(const Buffer& buffer) { return (buffer.spec.count_pages + block_pages - 1) / block_pages; }

}  // namespace

void Work::look_at(Buffer& buffer) {
  if (!buffer.looked_for) {
    buffer.looked_for = true;
    looking.push_back(buffer.id);
  }
}

void Work::look() {
  if (looking_now) {
    return;
  }
  looking_now = true;
  while (!looking.empty() || claim_again) {
    if (looking.empty()) {
      claim_again = false;
      claim_go_on();
      continue;
    }
    const auto it = buffers.find(looking.front());
    looking.pop_front();
    if (it != buffers.end()) {
      it->second.looked_for = false;
      buffer_go_on(it->second);
    }
  }
  looking_now = false;
}

/// Whatever can be done now. May forget the buffer.
void Work::buffer_go_on(Buffer& buffer) {
  using Step = Buffer::Step;
  claim_again = claim_again || buffer.claimed_by != 0;
  const bool idle = buffer.closing && buffer.claimed_by == 0 && !busy(buffer) && buffer.outstanding == 0;
  if (buffer.spec.userptr) {
    if (idle && !buffer.walking) {
      buffer_forget(buffer);
    }
    return;
  }
  if (buffer.step == Step::revoke && revoke_all(buffer)) {
    buffer.step = Step::move;
    if (buffer.to == Buffer::Where::store) {
      core.reclaim.store_begins(buffer.spec.count_pages, 0);
    }
    Action& action = ask_buffer(Verb::move_buffer, WorkRef::What::buffer_move, buffer);
    action.place = place_of(buffer.where);
    action.device = buffer.device;
    action.to = place_of(buffer.to);
    action.to_device = buffer.to_device;
    action.cause = buffer.to == Buffer::Where::store ? Cause::pressure : Cause::none;
  }
  if (drop_mappings(buffer)) {
    look_at(buffer);  // a client may have been told that it is done: nothing of before is certain
    return;
  }
  if (idle && buffer.step == Step::rest && buffer.mappings.empty()) {
    if (buffer.where == Buffer::Where::nowhere) {
      buffer_forget(buffer);
    } else {
      const Buffer::Where place = buffer.where;
      buffer.where = Buffer::Where::nowhere;
      release(buffer, place, buffer.device);
    }
    return;
  }
  for (BufferMapping& mapping : buffer.mappings) {
    serve_mapping(buffer, mapping);
  }
  if (buffer.step == Step::rest && buffer.claimed_by == 0) {
    buffer.failure = {};  // whoever waited was told
  }
}

// --- moves -----------------------------------------------------------------------------------------------------------

Action& Work::ask_buffer(Verb verb, WorkRef::What what, Buffer& buffer) {
  ++buffer.outstanding;
  Action& action = core.ask_work(verb, buffer.maker, {what, buffer.id});
  action.buffer = buffer.id;
  return action;
}

/// Begins to bring the buffer there. VRAM was taken by the caller; system memory is charged first, and it holds none
/// while it waits for that. REQUIRES: it is at rest, and no fence uses it.
void Work::bring(Buffer& buffer, Buffer::Where to, DeviceId device, const AllocContext& context) {
  FERRY_CHECK(buffer.step == Buffer::Step::rest);
  FERRY_CHECK(!busy(buffer) || core.planted(PlantedBug::evict_busy_buffer));  // I-24
  buffer.to = to;
  buffer.to_device = device;
  buffer.failure = {};
  if (to == Buffer::Where::system) {
    buffer.step = Buffer::Step::need_memory;
    std::uint64_t request = 0;
    if (!core.reclaim.take(buffer.spec.count_pages, context, {MemoryWaiter::Who::buffer, buffer.id, 0}, request)) {
      buffer.memory_request = request;
      return;
    }
    buffer.charged_pages = core.reclaim.counts() ? buffer.spec.count_pages : 0;
  }
  arrived(buffer);
}

/// There is room where it goes.
void Work::arrived(Buffer& buffer) {
  if (buffer.where != Buffer::Where::nowhere) {
    buffer.step = Buffer::Step::revoke;
  } else {
    buffer.step = Buffer::Step::rest;
    buffer.where = buffer.to;
    buffer.device = buffer.to_device;
    list_for_reclaim(buffer);
  }
  look_at(buffer);
}

void Work::list_for_reclaim(Buffer& buffer) {
  if (buffer.where == Buffer::Where::system && buffer.lru == 0 && core.reclaim.counts()) {
    buffer.lru = core.reclaim.insert_buffer(buffer.id);
  }
}

void Work::buffer_memory_granted(BufferId id, Status status) {
  const auto it = buffers.find(id);
  FERRY_CHECK(it != buffers.end() && it->second.step == Buffer::Step::need_memory);
  Buffer& buffer = it->second;
  buffer.memory_request = 0;
  if (status.ok()) {
    buffer.charged_pages = buffer.spec.count_pages;
    arrived(buffer);
  } else {
    buffer.step = Buffer::Step::rest;
    if (buffer.where != Buffer::Where::vram) {
      buffer.failure = status;  // in VRAM it is reached where it is
    }
    look_at(buffer);
  }
  look();
}

void Work::buffer_action_done(const WorkRef& ref, Status status) {
  const auto it = buffers.find(ref.id);
  FERRY_CHECK(it != buffers.end() && it->second.outstanding > 0);
  Buffer& buffer = it->second;
  --buffer.outstanding;
  look_at(buffer);
  switch (ref.what) {
    case WorkRef::What::buffer_move: move_answered(buffer, status); break;
    case WorkRef::What::buffer_release: release_answered(buffer); break;
    case WorkRef::What::buffer_map:
      if (buffer.spec.userptr) {
        userptr_looked_up(buffer, ref, status);
        break;
      }
      [[fallthrough]];
    case WorkRef::What::buffer_revoke: mapping_answered(buffer, ref, status); break;
    default: FERRY_CHECK(false && "not of a buffer");
  }
  look();
  core.reclaim.pump();  // it may be a victim now
}

void Work::move_answered(Buffer& buffer, Status status) {
  FERRY_CHECK(buffer.step == Buffer::Step::move);
  const std::uint64_t pages = buffer.spec.count_pages;
  const bool to_store = buffer.to == Buffer::Where::store;
  const bool from_store = buffer.where == Buffer::Where::store;
  if (to_store) {
    core.reclaim.store_ends(pages, 0);
    core.reclaim.store_answered(status);
  }
  if (!status.ok() && !(to_store && core.planted(PlantedBug::ignore_store_error))) {
    // It stays where it was; what the failed move left behind goes.
    core.stats.store_errors += to_store || from_store ? 1 : 0;
    core.stats.copy_errors += to_store || from_store ? 0 : 1;
    if (from_store) {
      buffer.failure = status;
    } else if (buffer.lru != 0) {
      core.reclaim.touch(buffer.lru);  // the next victim is tried first
    }
    release(buffer, buffer.to, buffer.to_device);
    return;
  }
  ++core.stats.buffer_moves;
  if (to_store) {
    buffer.stored_pages = pages;
    core.stats.stored_pages += pages;
    core.stats.pages_to_store += pages;
  } else if (from_store) {
    core.stats.pages_from_store += pages;
  }
  const Buffer::Where from = buffer.where;
  const DeviceId from_device = buffer.device;
  buffer.where = buffer.to;
  buffer.device = buffer.to_device;
  list_for_reclaim(buffer);
  release(buffer, from, from_device);
}

void Work::release(Buffer& buffer, Buffer::Where place, DeviceId device) {
  buffer.step = Buffer::Step::release;
  buffer.leaving = place;
  buffer.leaving_device = device;
  if (place == Buffer::Where::system && buffer.lru != 0) {
    core.reclaim.remove(buffer.lru);
    buffer.lru = 0;
  }
  Action& action = ask_buffer(Verb::release_buffer, WorkRef::What::buffer_release, buffer);
  action.place = place_of(place);
  action.device = device;
}

void Work::release_answered(Buffer& buffer) {
  FERRY_CHECK(buffer.step == Buffer::Step::release);
  buffer.step = Buffer::Step::rest;
  const Buffer::Where place = buffer.leaving;
  const DeviceId device = buffer.leaving_device;
  buffer.leaving = Buffer::Where::nowhere;
  buffer.leaving_device = no_device;
  buffer.to = Buffer::Where::nowhere;
  buffer.to_device = no_device;
  // All of the buffer is settled before others are told that there is room: they may look at it.
  if (place == Buffer::Where::system) {
    const std::uint64_t pages = buffer.charged_pages;
    buffer.charged_pages = 0;
    core.reclaim.give(pages);
  } else if (place == Buffer::Where::vram) {
    const std::uint64_t chunks = buffer.vram_chunks;
    buffer.vram_chunks = 0;
    core.give_buffer_chunks(device, chunks);
  } else if (buffer.stored_pages != 0) {
    core.stats.stored_pages -= buffer.stored_pages;
    buffer.stored_pages = 0;
    core.reclaim.store_has_room();
  }
}

Work::Reclaimable Work::reclaim_buffer(BufferId id) {
  const auto it = buffers.find(id);
  if (it == buffers.end()) {
    return {};
  }
  Buffer& buffer = it->second;
  const auto waited_for = [](const BufferMapping& m) { return m.cpu_waiting || !m.waves.empty(); };
  if (buffer.spec.userptr || buffer.where != Buffer::Where::system || buffer.step != Buffer::Step::rest ||
      buffer.claimed_by != 0 || buffer.closing || pinned() ||
      std::any_of(buffer.mappings.begin(), buffer.mappings.end(), waited_for)) {
    return {};
  }
  if (busy(buffer) && !core.planted(PlantedBug::evict_busy_buffer)) {
    // The newest: with implicit synchronization it stands for all before it.
    return {Reclaimable::Answer::wait, buffer.reservation.users.back()};
  }
  if (!core.reclaim.store_takes(buffer.spec.count_pages)) {
    return {};
  }
  bring(buffer, Buffer::Where::store, no_device, {});
  look();
  return {Reclaimable::Answer::started, 0};
}

// --- claims ----------------------------------------------------------------------------------------------------------

bool Work::claim_buffers(Job& job) {
  FERRY_CHECK_EQ(claiming, 0U);
  const FenceId id = job.spec.fence;
  std::optional<Still> still(std::in_place, *this);
  for (const JobBuffer& wanted : job.spec.buffers) {
    const auto it = buffers.find(wanted.buffer);
    if (it == buffers.end()) {
      continue;
    }
    Buffer& buffer = it->second;
    buffer.claimed_by = id;
    buffer.placed = false;
    buffer.failure = {};
    buffer.lookups = 0;
    buffer.in_place = false;
    buffer.foreign = buffer.foreign || buffer.spec.home != job.spec.device;
    if (buffer.spec.userptr) {
      userptrs_in_use.insert(buffer.id);
    }
    if (buffer.lru != 0) {
      core.reclaim.touch(buffer.lru);
    }
    if (buffer.memory_request != 0) {
      if (core.config.wait_graph) {
        add_wait(job.node, core.reclaim.node(buffer.memory_request), "needs");
      }
      core.reclaim.joined(buffer.memory_request,
                          {AllocContext::For::job, job.spec.device, job.client, AllocContext::no_cu, id});
    }
  }
  claiming = id;
  Status failure;
  const Claim claim = claim_look(job, failure);
  still.reset();
  if (claim != Claim::waits) {
    claiming = 0;
  }
  if (claim == Claim::failed) {
    job_memory_failed(id, failure);
  }
  look();
  return claim == Claim::ready;
}

void Work::unclaim_buffers(Job& job) {
  if (claiming == job.spec.fence) {
    claiming = 0;
  }
  for (const JobBuffer& wanted : job.spec.buffers) {
    const auto it = buffers.find(wanted.buffer);
    if (it == buffers.end() || it->second.claimed_by != job.spec.fence) {
      continue;
    }
    Buffer& buffer = it->second;
    buffer.claimed_by = 0;
    look_at(buffer);
    if (buffer.spec.userptr) {
      userptr_let_go(buffer);
    }
  }
  look();
}

void Work::claim_go_on() {
  const auto it = jobs.find(claiming);
  if (claiming == 0 || it == jobs.end()) {
    return;
  }
  Status failure;
  const FenceId id = claiming;
  const Claim claim = claim_look(it->second, failure);
  if (claim == Claim::waits) {
    return;
  }
  claiming = 0;
  if (claim == Claim::ready) {
    job_memory_ready(id);
  } else {
    job_memory_failed(id, failure);
  }
}

/// Are all buffers where the job can use them, and mapped? Begins what is missing.
Work::Claim Work::claim_look(Job& job, Status& failure) {
  Claim all = Claim::ready;
  for (const JobBuffer& wanted : job.spec.buffers) {
    const auto it = buffers.find(wanted.buffer);
    if (it == buffers.end() || !it->second.holds.contains(job.client)) {
      failure = Code::not_held;  // given up since the job was submitted
      return Claim::failed;
    }
    Buffer& buffer = it->second;
    const Claim claim = buffer.spec.userptr ? userptr_claim(buffer, job) : claim_place(buffer, job);
    if (claim == Claim::failed) {
      failure = buffer.failure;
      return Claim::failed;
    }
    all = claim == Claim::waits ? Claim::waits : all;
  }
  return all;
}

Work::Claim Work::claim_place(Buffer& buffer, const Job& job) {
  using Where = Buffer::Where;
  const DeviceId device = job.spec.device;
  const AllocContext context{AllocContext::For::job, device, job.client, AllocContext::no_cu, job.spec.fence};
  const bool home = buffer.spec.home == device && !pinned();
  if (!buffer.failure.ok()) {
    return Claim::failed;
  }
  if (buffer.step != Buffer::Step::rest) {
    return Claim::waits;
  }
  if (buffer.where == Where::nowhere || buffer.where == Where::store) {
    if (buffer.where == Where::nowhere && home && core.take_buffer_chunks(device, chunks_of(buffer))) {
      buffer.vram_chunks = chunks_of(buffer);
      bring(buffer, Where::vram, device, context);
    } else {
      bring(buffer, Where::system, no_device, context);
    }
  } else if (!buffer.placed && !busy(buffer)) {
    buffer.placed = true;
    if (buffer.where == Where::vram && buffer.device != device && !pinned()) {
      bring(buffer, Where::system, no_device, context);
    } else if (buffer.where == Where::system && home && !buffer.foreign &&
               core.take_buffer_chunks(device, chunks_of(buffer))) {
      buffer.vram_chunks = chunks_of(buffer);
      bring(buffer, Where::vram, device, context);
    }
  }
  if (buffer.step != Buffer::Step::rest) {
    return Claim::waits;
  }
  const Client* client = core.find_client(job.client);
  Claim claim = Claim::ready;
  if (job.spec.engine == Engine::graphics && client->devices[device].attached) {
    for (BufferMapping& mapping : buffer.mappings) {
      if (mapping.client == job.client && !mapping.unmapping && !claim_mapping(buffer, mapping, device)) {
        claim = Claim::waits;
      }
    }
  }
  return claim;
}

}  // namespace ferry::core

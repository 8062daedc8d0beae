// The shrinker: asks victims to leave, oldest first, and waits for fences where the policy lets it.
// A wait for a fence is a wait: no other victim is started behind its back, as in a kernel whose shrinker sleeps there.
// Memory that others give back meanwhile still serves the line.
#include <algorithm>

#include "core/impl.h"
#include "core/reclaim/state.h"

namespace ferry::core {

/// Starts as much as the line and the pressure need beyond what is free and on its way.
void Reclaim::State::shrink() {
  forget_started();
  while (fence == 0) {
    const std::uint64_t before = coming();
    const std::uint64_t free = capacity() - std::min(normal(), capacity());
    const bool for_line = !line.empty() && line_pages() + lent + over > free + before;
    const bool for_others = (background > 0 || lent + over > before) &&
                            before < std::uint64_t{shrink_batch} * core.config.granularity_pages;
    if (!for_line && !for_others) {
      return;
    }
    // What was given over the budget is not taken back from whoever got it last: it has not had its use of it yet.
    switch (start_victim(!for_line && background == 0)) {
      case Found::started: background -= std::min(background, coming() - std::min(before, coming())); break;
      case Found::waits: return;
      case Found::nothing: background = 0; return;
    }
  }
  show_machine();
}

/// Pages on their way out.
std::uint64_t Reclaim::State::coming() const {
  std::uint64_t pages = leaving;
  for (const Started& s : started) {
    pages += s.pages;
  }
  return pages;
}

Reclaim::State::Found Reclaim::State::start_victim(bool spare_last) {
  std::uint32_t next = none_index;
  for (std::uint32_t at = lru.first(LruEntry::active); at != none_index; at = next) {
    const LruEntry entry = lru.at(at);
    next = entry.next;
    if (spare_last && next == none_index) {
      break;
    }
    if (entry.block == nullptr) {
      const Found found = look_at_buffer(at);
      if (found != Found::nothing) {
        return found;
      }
      continue;
    }
    switch (core.start_store(*entry.block, entry.granule)) {
      case Core::Impl::StoreStart::started: return Found::started;
      case Core::Impl::StoreStart::busy: break;
      case Core::Impl::StoreStart::nothing: lru.park(at); break;
    }
  }
  return Found::nothing;
}

Reclaim::State::Found Reclaim::State::look_at_buffer(std::uint32_t at) {
  const BufferId id = lru.at(at).buffer;
  const auto it = core.work.buffers.find(id);
  FERRY_CHECK(it != core.work.buffers.end());
  if (std::any_of(started.begin(), started.end(), [id](const Started& s) { return s.buffer == id; })) {
    return Found::nothing;
  }
  const std::uint64_t pages = it->second.charged_pages;
  if (!core.reclaim.store_takes(pages)) {
    return Found::nothing;  // it has nowhere to go: nothing to wait for
  }
  for (unsigned tries = 0; tries < 2; ++tries) {
    const Work::Reclaimable answer = core.work.reclaim_buffer(id);
    switch (answer.answer) {
      case Work::Reclaimable::Answer::started: started.push_back({id, pages}); return Found::started;
      case Work::Reclaimable::Answer::never: return Found::nothing;
      case Work::Reclaimable::Answer::wait: break;
    }
    // Pressure from outside stops at what can be had without a fence.
    if (line.empty() || !core.work.may_wait(line.front().context, answer.fence, line.front().node)) {
      return Found::nothing;
    }
    if (wait_for(answer.fence)) {
      return Found::waits;
    }
    // It has signalled just now: the buffer is idle.
  }
  return Found::nothing;
}

bool Reclaim::State::wait_for(FenceId id) {
  const MemoryRequest& front = line.front();
  if (!core.work.fence_wait(id, {FenceWaiter::Who::reclaim, front.id})) {
    return false;
  }
  fence = id;
  fence_for = front.id;
  ++core.stats.fence_waits_in_reclaim;
  if (graph_kept()) {
    const auto it = core.work.fences.find(id);
    const graph::NodeId node = it == core.work.fences.end() ? graph::no_node : it->second.node;
    if (node != graph::no_node) {
      // What is on its way out may serve the request as well.
      shows_machine = under_way();
      if (shows_machine) {
        if (!core.graph.exists(machine)) {
          machine = core.graph.add(core.classes.machine, 0);
        }
        const graph::NodeId both[] = {machine, node};
        core.work.circle_found(core.graph.wait_any(front.node, both));
      } else {
        core.work.circle_found(core.graph.wait(front.node, node));
      }
    }
  }
  return true;
}

/// The first in line waits for no fence any more.
void Reclaim::State::unwait() {
  if (fence == 0) {
    return;
  }
  core.work.fence_unwait(fence, {FenceWaiter::Who::reclaim, fence_for});
  for (const MemoryRequest& request : line) {
    if (request.id == fence_for && graph_kept()) {
      core.graph.done_all(request.node);
    }
  }
  fence = 0;
  fence_for = 0;
  shows_machine = false;
}

/// While the shrinker waits: what was on its way out has come, and did not help.
void Reclaim::State::show_machine() {
  if (fence != 0 && shows_machine && !under_way()) {
    shows_machine = false;
    core.graph.done(line.front().node, machine);
    recheck();  // what the policy allowed beside another way it may refuse now
    if (fence == 0) {
      again = true;
    } else {
      core.work.circle_found(core.graph.stuck(line.front().node));
    }
  }
}

/// Others wait since the shrinker began to: is the wait still fine?
void Reclaim::State::recheck() {
  if (fence != 0 && !core.work.may_wait(line.front().context, fence, line.front().node)) {
    unwait();
  }
}

void Reclaim::State::forget_started() {
  std::erase_if(started, [this](const Started& s) {
    const auto it = core.work.buffers.find(s.buffer);
    const bool rests =
        it == core.work.buffers.end() || (it->second.step == Buffer::Step::rest && it->second.outstanding == 0);
    // One that is wanted back already has left before: only on its way to the store does it give memory back.
    if (!rests && it->second.step != Buffer::Step::need_memory && it->second.to == Buffer::Where::store) {
      return false;
    }
    return true;
  });
}

/// Something will end by itself and may give memory back, or can be a victim then.
bool Reclaim::State::under_way() const {
  if (leaving != 0 || !started.empty() || core.returning_pages != 0) {
    return true;
  }
  std::uint64_t standing = core.memory_line_ops;
  for (const Device& device : core.devices) {
    standing += device.waiting.size();
  }
  if (core.ops_in_use > standing) {
    return true;
  }
  for (const auto& [id, client] : core.clients) {
    if (client->dying && client->charged_pages != 0 && core.work.memory_idle(id)) {
      return true;
    }
  }
  for (const auto& [id, buffer] : core.work.buffers) {
    if (buffer.outstanding != 0) {
      return true;
    }
  }
  return false;
}

void Reclaim::fence_done(Request request) {
  State& s = *state_;
  if (s.fence == 0 || s.fence_for != request) {
    return;
  }
  for (const MemoryRequest& r : s.line) {
    if (r.id == request && s.graph_kept()) {
      s.core.graph.done_all(r.node);
    }
  }
  s.fence = 0;
  s.fence_for = 0;
  s.shows_machine = false;
  s.moved_ns = s.core.now_ns;
  pump();
}

// --- the store -------------------------------------------------------------------------------------------------------

bool Reclaim::State::store_rests() const { return store_full || store_rest_until != 0; }

bool Reclaim::store_takes(std::uint64_t pages) const {
  const State& s = *state_;
  const std::uint64_t room = s.core.config.store_pages;
  return !s.store_rests() && s.core.stats.stored_pages + s.storing + pages <= room;
}

void Reclaim::store_begins(std::uint64_t write_pages, std::uint64_t leave_pages) {
  state_->storing += write_pages;
  state_->leaving += leave_pages;
}

void Reclaim::store_ends(std::uint64_t write_pages, std::uint64_t leave_pages) {
  FERRY_CHECK(state_->storing >= write_pages && state_->leaving >= leave_pages);
  state_->storing -= write_pages;
  state_->leaving -= leave_pages;
}

void Reclaim::store_answered(Status status) {
  State& s = *state_;
  if (status.ok()) {
    s.store_failures = 0;
    return;
  }
  if (status.code == Code::no_space) {
    s.store_full = true;
    s.store_rest_until = s.core.now_ns + store_rest_ns;
  } else if (++s.store_failures >= store_failures_most) {
    s.store_rest_until = s.core.now_ns + store_rest_ns;
  }
}

void Reclaim::store_has_room() {
  State& s = *state_;
  if (s.store_full) {
    s.store_full = false;
    s.store_rest_until = 0;
  }
  if (!s.store_rests()) {
    s.lru.unpark_all();
  }
}

}  // namespace ferry::core

// Fences: made, visible, signalled; arrays of them; deadlines; who waits, and telling them. Waiters are told one after
// another from a queue, never from inside each other: a chain of fences may be as long as somebody cares to make it.
#include <algorithm>

#include "core/digest.h"
#include "core/impl.h"

namespace ferry::core {

Fence& Work::fence_make(FenceId id, ClientId owner) {
  FERRY_CHECK(id != 0 && !fences.contains(id));
  Fence& fence = fences[id];
  fence.id = id;
  fence.owner = owner;
  return fence;
}

void Work::fence_publish(FenceId id) {
  const auto it = fences.find(id);
  FERRY_CHECK(it != fences.end() && !it->second.visible);
  Fence& fence = it->second;
  fence.visible = true;
  fence.visible_ns = core.now_ns;
  if (core.config.wait_graph) {
    fence.node = core.graph.add(core.classes.fence, id, fence.any ? graph::Needs::any : graph::Needs::all);
    core.graph.begin_section(fence.node);
  }
}

void Work::fence_drop(FenceId id) {
  const auto it = fences.find(id);
  if (it != fences.end()) {
    FERRY_CHECK(!it->second.visible && it->second.waiters.empty());
    fences.erase(it);
  }
}

void Work::fence_signal(FenceId id, Status status) {
  const auto it = fences.find(id);
  FERRY_CHECK(it != fences.end() && it->second.visible);
  Fence& fence = it->second;
  FERRY_CHECK(!fence.signalled);  // I-21
  fence.signalled = true;
  fence.status = status;
  core.graph.end_section(fence.node);
  core.graph.remove(fence.node);
  fence.node = graph::no_node;
  Action& action = core.emit_for(Verb::signal_fence, fence.owner);
  action.fence = id;
  action.status = status;
  for (const FenceId part : fence.parts) {
    fence_unwait(part, {FenceWaiter::Who::array, id});
  }
  fence.parts.clear();
  if (core.planted(PlantedBug::forget_fence_waiter) && fence.waiters.size() > 1) {
    fence.waiters.pop_back();
  }
  for (const FenceWaiter& waiter : fence.waiters) {
    telling.push_back({waiter, id, status});
  }
  fence.waiters.clear();
  if (fence.forgotten) {
    fences.erase(it);
  }
  if (telling_now) {
    return;
  }
  telling_now = true;
  while (!telling.empty()) {
    const Told told = telling.front();
    telling.pop_front();
    notify(told.waiter, told.fence, told.status);
  }
  telling_now = false;
}

bool Work::fence_wait(FenceId id, FenceWaiter waiter) {
  const auto it = fences.find(id);
  if (it == fences.end() || it->second.signalled) {
    return false;
  }
  FERRY_CHECK(it->second.visible);  // nobody inside waits for a fence that may never be
  it->second.waiters.push_back(waiter);
  return true;
}

void Work::fence_unwait(FenceId id, FenceWaiter waiter) {
  if (const auto it = fences.find(id); it != fences.end()) {
    auto& waiters = it->second.waiters;
    if (const auto at = std::find(waiters.begin(), waiters.end(), waiter); at != waiters.end()) {
      waiters.erase(at);
      return;
    }
  }
  const auto told =
      std::find_if(telling.begin(), telling.end(), [&](const Told& t) { return t.fence == id && t.waiter == waiter; });
  if (told != telling.end()) {
    telling.erase(told);
  }
}

void Work::notify(const FenceWaiter& waiter, FenceId fence, Status status) {
  switch (waiter.who) {
    case FenceWaiter::Who::job: job_fence_done(waiter.id, fence, status); return;
    case FenceWaiter::Who::array: array_part_done(waiter.id, fence, status); return;
    case FenceWaiter::Who::timeline: timeline_fence_done(waiter.id, fence, status); return;
    case FenceWaiter::Who::reclaim: core.reclaim.fence_done(waiter.id); return;
    case FenceWaiter::Who::buffer: buffer_fence_done(waiter.id); return;
  }
}

// --- arrays ----------------------------------------------------------------------------------------------------------

Status Work::fence_array(ClientId client, FenceId id, const std::vector<FenceId>& parts, bool any) {
  const Client* owner = core.find_client(client);
  if (owner == nullptr || owner->dying) {
    return Code::client_gone;
  }
  if (id == 0 || parts.empty() || parts.size() > job_waits_max) {
    return Code::bad_range;
  }
  if (fences.contains(id) || jobs.contains(id)) {
    return Code::in_use;
  }
  for (const FenceId part : parts) {
    const auto it = fences.find(part);
    if (it == fences.end() || !it->second.visible) {
      return Code::not_held;
    }
  }
  Fence& fence = fence_make(id, client);
  fence.is_array = true;
  fence.any = any;
  bool done = false;
  for (const FenceId part : parts) {
    if (std::find(fence.parts.begin(), fence.parts.end(), part) != fence.parts.end()) {
      continue;
    }
    if (fence_wait(part, {FenceWaiter::Who::array, id})) {
      fence.parts.push_back(part);
      continue;
    }
    const Status status = fences.find(part)->second.status;
    if (fence.status.ok() && !done) {
      fence.status = status;
    }
    done = done || any;
  }
  done = done || fence.parts.empty();
  fence_publish(id);
  if (done) {
    fence_signal(id, fence.status);
    return {};
  }
  if (core.config.wait_graph) {
    std::vector<graph::NodeId> nodes;
    for (const FenceId part : fence.parts) {
      nodes.push_back(fences.find(part)->second.node);
    }
    if (any) {
      circle_found(core.graph.wait_any(fence.node, nodes, "is any of an array with"));
    } else {
      for (const graph::NodeId node : nodes) {
        circle_found(core.graph.wait(fence.node, node, "is an array with"));
      }
    }
  }
  return {};
}

void Work::array_part_done(FenceId id, FenceId part, Status status) {
  const auto it = fences.find(id);
  if (it == fences.end() || it->second.signalled) {
    return;
  }
  Fence& array = it->second;
  std::erase(array.parts, part);
  if (array.any) {
    fence_signal(id, status);
    return;
  }
  if (array.status.ok()) {
    array.status = status;
  }
  if (array.parts.empty()) {
    fence_signal(id, array.status);
  }
}

// --- deadlines and what the outside sees -----------------------------------------------------------------------------

Status Work::fence_deadline(FenceId id, std::uint64_t deadline_ns) {
  const auto it = fences.find(id);
  if (it == fences.end()) {
    return Code::not_held;
  }
  Fence& fence = it->second;
  if (deadline_ns == 0 || fence.signalled || (fence.deadline_ns != 0 && fence.deadline_ns <= deadline_ns)) {
    return {};
  }
  fence.deadline_ns = deadline_ns;
  raising.push_back(id);
  if (raising_now) {
    return {};
  }
  raising_now = true;
  while (!raising.empty()) {
    const FenceId next = raising.front();
    raising.pop_front();
    const auto found = fences.find(next);
    if (found == fences.end() || found->second.signalled) {
      continue;
    }
    if (!found->second.is_array) {
      job_deadline(next);
      continue;
    }
    const std::vector<FenceId> parts = found->second.parts;
    for (const FenceId part : parts) {
      (void)fence_deadline(part, found->second.deadline_ns);
    }
  }
  raising_now = false;
  return {};
}

FenceInfo Work::fence_info(FenceId id) const {
  FenceInfo info;
  if (const auto it = fences.find(id); it != fences.end()) {
    const Fence& fence = it->second;
    info.known = true;
    info.visible = fence.visible;
    info.signalled = fence.signalled;
    info.status = fence.signalled ? fence.status : Status{};
    info.deadline_ns = fence.deadline_ns;
  }
  return info;
}

void Work::fence_forget(FenceId id) {
  const auto it = fences.find(id);
  if (it == fences.end()) {
    return;
  }
  it->second.forgotten = true;
  if (it->second.signalled) {
    fences.erase(it);
  }
}

// --- checks ----------------------------------------------------------------------------------------------------------

void Work::verify_fences() const {
  FERRY_CHECK(telling.empty() && !telling_now && raising.empty() && !raising_now);
  for (const auto& [id, fence] : fences) {
    FERRY_CHECK_EQ(id, fence.id);
    FERRY_CHECK(fence.visible || (!fence.signalled && !fence.is_array && fence.waiters.empty()));  // I-21
    FERRY_CHECK(!fence.signalled || (fence.waiters.empty() && fence.parts.empty() && !fence.forgotten));
    FERRY_CHECK_EQ(core.graph.exists(fence.node), core.config.wait_graph && fence.visible && !fence.signalled);
    FERRY_CHECK(fence.signalled || fence.is_array != fence.parts.empty());  // I-22
    for (const FenceId part : fence.parts) {
      const auto it = fences.find(part);
      FERRY_CHECK(it != fences.end() && !it->second.signalled);
      FERRY_CHECK_EQ(
          std::count(it->second.waiters.begin(), it->second.waiters.end(), FenceWaiter{FenceWaiter::Who::array, id}),
          1);
    }
    for (const FenceWaiter& waiter : fence.waiters) {
      switch (waiter.who) {
        case FenceWaiter::Who::job: FERRY_CHECK(jobs.contains(waiter.id)); break;
        case FenceWaiter::Who::array: FERRY_CHECK(fences.contains(waiter.id)); break;
        case FenceWaiter::Who::timeline: FERRY_CHECK(timelines.contains(waiter.id)); break;
        case FenceWaiter::Who::buffer: FERRY_CHECK(buffers.contains(waiter.id)); break;
        case FenceWaiter::Who::reclaim: break;
      }
    }
  }
}

std::uint64_t Work::digest_fences() const {
  Digest d;
  for (const auto& [id, fence] : fences) {
    d.add(id).add(fence.owner);
    d.add((fence.is_array ? 1U : 0U) | (fence.any ? 2U : 0U) | (fence.visible ? 4U : 0U) | (fence.signalled ? 8U : 0U) |
          (fence.forgotten ? 16U : 0U));
    d.add(fence.status).add(fence.deadline_ns == 0 ? 0 : 1 + time_left(core.now_ns, fence.deadline_ns));
    d.add(fence.parts.size());
    for (const FenceId part : fence.parts) {
      d.add(part);
    }
    d.add(fence.waiters.size());
    for (const FenceWaiter& waiter : fence.waiters) {
      // Reclaim's requests are numbered as they come: the number says nothing of the state.
      d.add(static_cast<std::uint64_t>(waiter.who)).add(waiter.who == FenceWaiter::Who::reclaim ? 0 : waiter.id);
    }
  }
  return d.value();
}

}  // namespace ferry::core

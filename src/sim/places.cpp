// What simulated applications ask about the places of their pages: pins with DMA that no page table stops, discards,
// memory without contents, moves with a fence. And what may be answered.
#include <algorithm>

#include "sim/violation.h"
#include "sim/world.h"

namespace ferry::sim {
namespace {
unsigned long long u(std::uint64_t v) { return v; }
}  // namespace

/// Somebody has pinned the page, or is about to have.
bool World::may_be_pinned(unsigned slot, PageSpan span) const {
  const auto overlaps = [&](const Pin& pin) { return pin.span.overlaps(span); };
  if (std::any_of(clients_[slot].pins.begin(), clients_[slot].pins.end(), overlaps)) return true;
  return std::any_of(requests_.begin(), requests_.end(), [&](const auto& r) {
    return r.second.kind == RequestKind::pin && r.second.slot == slot && r.second.span.overlaps(span);
  });
}

PageSpan World::part_of_allocation(unsigned slot) {
  Client& c = clients_[slot];
  PageSpan span = c.spans[random_.below(c.spans.size())];
  const std::uint64_t skip = random_.below(span.count_pages);
  span = {span.first + skip, 1 + random_.below(std::min<std::uint64_t>(span.count_pages - skip, 600))};
  return span;
}

void World::ask_places(unsigned slot) {
  switch (random_.below(8)) {
    case 0:
    case 1: do_pin(slot); return;
    case 2: do_unpin(slot, false); return;
    case 3: do_discard(slot); return;
    case 4: do_populate(slot); return;
    case 5: do_migrate(slot); return;
    default: do_dma(slot); return;
  }
}

void World::do_pin(unsigned slot) {
  Client& c = clients_[slot];
  PageSpan span = part_of_allocation(slot);
  if (random_.chance(500)) span.count_pages = std::min<std::uint64_t>(span.count_pages, 1 + random_.below(8));
  if (random_.chance(50)) span = random_span(slot);
  DeviceId device = no_device;
  if (random_.chance(500)) device = static_cast<DeviceId>(random_.below(swarm_.devices));
  for (Page p = span.first; p < span.end(); ++p) {
    if (memory_.inside({p, 1}) && memory_.zeroing(slot, p)) return;
  }
  if (under_move(slot, span)) return;  // of what is new there too: refused
  const std::uint64_t cookie = new_cookie(RequestKind::pin, slot, span);
  requests_[cookie].device = device;
  const Status status = core_->pin(now_ns_, c.id, span, device, {cookie});
  line(Line::pin, slot, device, span.first, span.count_pages, static_cast<std::uint64_t>(status.code), cookie);
  if (!status.ok()) requests_.erase(cookie);
  const bool all = !span_has(slot, span, AllocState::none) && !span_has(slot, span, AllocState::freeing);
  const bool lost = device != no_device && c.devices[device].state != DeviceState::attached;
  bool fair = false;
  switch (status.code) {
    case Code::ok: fair = all; break;
    case Code::not_allocated: fair = !all; break;
    case Code::device_lost: fair = lost; break;
    case Code::no_memory: fair = true; break;  // how much is pinned is the core's to count (I-60)
    default: break;
  }
  if (!fair) {
    violate(Invariant::answers_right, "pin of %llu+%llu of client %u gives: %s", u(span.first), u(span.count_pages),
            c.id, to_string(status.code));
  }
}

void World::pinned(const Request& r) {
  keep_for_children(r.slot, r.span);
  for (Page page = r.span.first; page < r.span.end(); ++page) {
    look_at(r.slot, page);
    memory_.pin(r.slot, page, r.device);
  }
  clients_[r.slot].pins.push_back({r.span, r.device});
}

void World::do_unpin(unsigned slot, bool all) {
  Client& c = clients_[slot];
  while (!c.pins.empty()) {
    const std::size_t i = random_.below(c.pins.size());
    const Pin pin = c.pins[i];
    c.pins.erase(c.pins.begin() + static_cast<std::ptrdiff_t>(i));
    for (Page page = pin.span.first; page < pin.span.end(); ++page) memory_.unpin(slot, page);
    line(Line::unpin, slot, pin.device, pin.span.first, pin.span.count_pages);
    const Status status = core_->unpin(now_ns_, c.id, pin.span);
    if (!status.ok()) {
      violate(Invariant::answers_right, "unpin of %llu+%llu of client %u, which pinned it, gives: %s",
              u(pin.span.first), u(pin.span.count_pages), c.id, to_string(status.code));
    }
    take_actions();
    if (!all) return;
  }
}

/// What is pinned is read and written with no regard to page tables (I-60).
void World::do_dma(unsigned slot) {
  const Client& c = clients_[slot];
  if (c.pins.empty()) return;
  const Pin& pin = c.pins[random_.below(c.pins.size())];
  const Page page = pin.span.first + random_.below(pin.span.count_pages);
  look_at(slot, page);
  const Op op = random_.chance(500) ? Op::add : Op::read;
  memory_.dma(slot, page, op);
  line(Line::dma, slot, pin.device, page, static_cast<std::uint64_t>(op));
}

void World::do_discard(unsigned slot) {
  Client& c = clients_[slot];
  const PageSpan span = random_.chance(100) ? random_span(slot) : part_of_allocation(slot);
  for (Page p = span.first; p < span.end(); ++p) {
    if (memory_.inside({p, 1}) && memory_.moving(slot, p)) return;  // whether it is before or after is not known
  }
  keep_for_children(slot, span);
  const std::uint64_t cookie = new_cookie(RequestKind::discard, slot, span);
  const Status status = core_->change(now_ns_, c.id, core::Change::lazy_free, span, 0, core::span_all, {cookie});
  line(Line::discard, slot, no_device, span.first, span.count_pages, static_cast<std::uint64_t>(status.code), cookie);
  if (status.ok()) {
    requests_[cookie].begun = memory_.begin_discard(slot, span);
  } else {
    requests_.erase(cookie);
  }
  const bool some = span_has(slot, span, AllocState::allocated) || span_has(slot, span, AllocState::freeing);
  const bool fair = status.ok()                          ? some
                    : status.code == Code::in_use        ? may_be_pinned(slot, span)
                    : status.code == Code::not_allocated ? !span_has(slot, span, AllocState::allocated)
                                                         : false;
  if (!fair) {
    violate(Invariant::answers_right, "discard of %llu+%llu of client %u gives: %s", u(span.first), u(span.count_pages),
            c.id, to_string(status.code));
  }
}

void World::do_populate(unsigned slot) {
  Client& c = clients_[slot];
  const PageSpan span = part_of_allocation(slot);
  DeviceId device = no_device;
  if (random_.chance(500)) device = static_cast<DeviceId>(random_.below(swarm_.devices));
  const std::uint64_t cookie = new_cookie(RequestKind::prefetch, slot, span);
  const Status status = core_->populate(now_ns_, c.id, span, device, {cookie});
  line(Line::populate, slot, device, span.first, span.count_pages, static_cast<std::uint64_t>(status.code), cookie);
  if (!status.ok()) {
    violate(Invariant::answers_right, "populate of %llu+%llu of client %u gives: %s", u(span.first),
            u(span.count_pages), c.id, to_string(status.code));
  }
}

void World::do_migrate(unsigned slot) {
  Client& c = clients_[slot];
  const PageSpan span = part_of_allocation(slot);
  DeviceId device = no_device;
  if (random_.chance(600)) device = static_cast<DeviceId>(random_.below(swarm_.devices));
  const std::uint64_t cookie = new_cookie(RequestKind::migrate, slot, span);
  const Status status = core_->migrate(now_ns_, c.id, span, device, cookie + 1);
  line(Line::migrate, slot, device, span.first, span.count_pages, static_cast<std::uint64_t>(status.code), cookie);
  const core::FenceInfo info = core_->fence_info(cookie + 1);
  if (!status.ok() || !info.known) {
    violate(Invariant::answers_right, "migrate of %llu+%llu of client %u gives: %s", u(span.first), u(span.count_pages),
            c.id, to_string(status.code));
  }
}

/// I-62: the fence of a migration signals once, when all has moved, or with an error when its client has ended.
void World::check_signal(const core::Action& a) {
  const auto it = a.fence == 0 ? requests_.end() : requests_.find(a.fence - 1);
  if (it == requests_.end() || it->second.replied || it->second.kind != RequestKind::migrate) {
    violate(Invariant::reply_once, "fence %llu signals, which nobody waits for", u(a.fence));
  }
  Request& r = it->second;
  r.replied = true;
  const bool ended = clients_[r.slot].state == ClientState::leaving;  // the core has heard of it
  if (a.status.code != (ended ? Code::client_gone : Code::ok)) {
    violate(Invariant::answers_right, "the fence of a migration of client %u signals with: %s", clients_[r.slot].id,
            to_string(a.status.code));
  }
  core_->fence_forget(a.fence);
}

void World::check_pin_reply(const Request& r, const core::Action& a) const {
  const Client& c = clients_[r.slot];
  if (c.state != ClientState::running) return;
  bool fair = true;
  switch (a.status.code) {
    case Code::ok:
    case Code::no_memory:
    case Code::in_use:
    case Code::not_allocated: break;  // freed meanwhile, maybe by now allocated anew; I-60 is what counts
    case Code::device_lost: fair = c.devices[r.device].life != 0 && swarm_.kill_device != 0; break;
    default: fair = false;
  }
  if (!fair) {
    violate(Invariant::answers_right, "the pin of %llu+%llu of client %u ends with: %s", u(r.span.first),
            u(r.span.count_pages), c.id, to_string(a.status.code));
  }
}

}  // namespace ferry::sim

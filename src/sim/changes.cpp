// What simulated applications do to their address space beside allocating and freeing: unmap anything, discard contents,
// take rights away and give them back, all while migrations, evictions and faults go on.
#include <algorithm>

#include "sim/violation.h"
#include "sim/world.h"

namespace ferry::sim {

/// The parts of the span that are allocated, neighbours together; `moving`: or on their way to or from another address.
std::vector<PageSpan> World::allocated_in(unsigned slot, PageSpan span, bool moving) const {
  std::vector<PageSpan> parts;
  for (Page p = span.first; p < span.end(); ++p) {
    if (moving ? !may_free(slot, p) : memory_.state(slot, p) != AllocState::allocated) continue;
    if (!parts.empty() && parts.back().end() == p) {
      ++parts.back().count_pages;
    } else {
      parts.push_back({p, 1});
    }
  }
  return parts;
}

/// Threads and waves choose other pages from now on. False: one of them is at the span at this moment.
bool World::leave_alone(unsigned slot, PageSpan span) {
  for (const auto index : clients_[slot].agents) {
    Agent& a = agents_[index];
    if (a.alive && a.has_op && span.contains(a.page)) return false;
    if (span.overlaps(a.target)) a.left = 0;  // also of those that will run in a new process
  }
  return true;
}

void World::do_unmap(unsigned slot) {
  Client& c = clients_[slot];
  PageSpan span = random_span(slot);
  if (random_.chance(600)) {
    span = c.spans[random_.below(c.spans.size())];
    const std::uint64_t skip = random_.below(span.count_pages);
    span = {span.first + skip, 1 + random_.below(span.count_pages - skip)};
  }
  if (const PageSpan part = part_of_move(slot); part.count_pages != 0) span = part;
  for (Page p = span.first; p < span.end(); ++p) {
    if (memory_.zeroing(slot, p) && !memory_.moving(slot, p)) return;
  }
  if (!swarm_.free_while_used && !leave_alone(slot, span)) return;
  ++stats_.changes;
  std::vector<PageSpan> parts = allocated_in(slot, span, true);
  for (const PageSpan& part : parts) {
    if (!planted(core::PlantedBug::free_before_child)) keep_for_children(slot, part);
    for (Page p = part.first; p < part.end(); ++p) c.said[p - memory_.window().first] = {};
    memory_.begin_free(slot, part);
    drop_span(slot, part);
  }
  const std::uint64_t cookie = new_cookie(RequestKind::unmap, slot, span);
  const std::uint64_t before = core_->changes(c.id);
  const Status status = core_->change(now_ns_, c.id, core::Change::unmap, span, 0, 0, {cookie});
  line(Line::change, slot, no_device, span.first, span.count_pages,
       cookie << 16 | static_cast<std::uint64_t>(status.code), static_cast<std::uint64_t>(core::Change::unmap));
  if (status.code != (parts.empty() ? Code::not_allocated : Code::ok) ||
      core_->changes(c.id) != before + (parts.empty() ? 0 : 1)) {
    violate(Invariant::answers_right, "unmap of %llu+%llu of client %u gives: %s; the span is %s",
            static_cast<unsigned long long>(span.first), static_cast<unsigned long long>(span.count_pages), c.id,
            to_string(status.code), parts.empty() ? "free" : "allocated, in part at least");
  }
  if (!status.ok()) {
    requests_.erase(cookie);
    return;
  }
  for (Page p = span.first; p < span.end(); ++p) c.unmapped[p - memory_.window().first] = core_->changes(c.id);
  requests_[cookie].parts = std::move(parts);
}

void World::do_zero(unsigned slot) {
  Client& c = clients_[slot];
  PageSpan span = c.spans[random_.below(c.spans.size())];
  if (random_.chance(500)) {
    const std::uint64_t skip = random_.below(span.count_pages);
    span = {span.first + skip, 1 + random_.below(span.count_pages - skip)};
  }
  if (random_.chance(200)) span = random_span(slot);
  const auto asked = [&](const auto& r) {  // a pin that is not answered yet may be had before or after
    return r.second.kind == RequestKind::pin && r.second.slot == slot && r.second.span.overlaps(span);
  };
  if (std::any_of(requests_.begin(), requests_.end(), asked) || !leave_alone(slot, span)) return;
  ++stats_.changes;
  const bool held = may_be_pinned(slot, span);
  // What is allocated in the span later is not what it is about.
  std::vector<PageSpan> parts = allocated_in(slot, span);
  for (Page p = span.first; p < span.end(); ++p) {
    if (memory_.zeroing(slot, p)) return;
  }
  if (parts.empty()) return;
  for (const PageSpan& part : parts) {
    keep_for_children(slot, part);
    memory_.begin_zero(slot, part);
  }
  const std::uint64_t cookie = new_cookie(RequestKind::zero, slot, span);
  const Status status = core_->change(now_ns_, c.id, core::Change::discard, span, 0, 0, {cookie});
  line(Line::change, slot, no_device, span.first, span.count_pages,
       cookie << 16 | static_cast<std::uint64_t>(status.code), static_cast<std::uint64_t>(core::Change::discard));
  if (status.code != (held ? Code::in_use : Code::ok)) {
    violate(Invariant::answers_right, "discard of %llu+%llu of client %u gives: %s; the span is %s",
            static_cast<unsigned long long>(span.first), static_cast<unsigned long long>(span.count_pages), c.id,
            to_string(status.code), held ? "pinned, in part at least" : "allocated");
  }
  if (!status.ok()) {
    for (const PageSpan& part : parts) memory_.cancel_zero(slot, part);
    requests_.erase(cookie);
    return;
  }
  for (const PageSpan& part : parts) drop_span(slot, part);
  requests_[cookie].parts = std::move(parts);
}

void World::do_protect(unsigned slot) {
  const Client& c = clients_[slot];
  // One at a time: with two over one page, which came last is known only when both are answered.
  for (const auto& [cookie, r] : requests_) {
    if (r.kind == RequestKind::protect && r.slot == slot) return;
  }
  PageSpan span = random_.chance(200) ? random_span(slot) : c.spans[random_.below(c.spans.size())];
  if (random_.chance(500)) {
    const std::uint64_t skip = random_.below(span.count_pages);
    span = {span.first + skip, 1 + random_.below(span.count_pages - skip)};
  }
  for (Page p = span.first; p < span.end(); ++p) {
    if (memory_.state(slot, p) == AllocState::freeing) return;
  }
  constexpr std::uint8_t prots[] = {0, core::span_read, core::span_read | core::span_exec, core::span_all,
                                    core::span_all};
  const std::uint8_t prot = prots[random_.below(std::size(prots))];
  ++stats_.changes;
  const bool some = span_has(slot, span, AllocState::allocated);
  memory_.begin_protect(slot, span, prot);
  const std::uint64_t cookie = new_cookie(RequestKind::protect, slot, span);
  const Status status = core_->change(now_ns_, c.id, core::Change::protect, span, 0, prot, {cookie});
  line(Line::change, slot, no_device, span.first, span.count_pages,
       cookie << 16 | static_cast<std::uint64_t>(status.code),
       static_cast<std::uint64_t>(core::Change::protect) | std::uint64_t{prot} << 8);
  if (status.code != (some ? Code::ok : Code::not_allocated)) {
    violate(Invariant::answers_right, "protect of %llu+%llu of client %u gives: %s; the span is %s",
            static_cast<unsigned long long>(span.first), static_cast<unsigned long long>(span.count_pages), c.id,
            to_string(status.code), some ? "allocated, in part at least" : "free");
  }
  if (!status.ok()) requests_.erase(cookie);
}

/// The core has decided the answer: from here on the change is a fact.
void World::change_replied(const Request& r, Status status) {
  switch (r.kind) {
    case RequestKind::unmap:
      for (const PageSpan& part : r.parts) memory_.end_free(r.slot, part);
      return;
    case RequestKind::zero:
      for (const PageSpan& part : r.parts) {
        memory_.end_zero(r.slot, part);
        if (clients_[r.slot].state == ClientState::running) clients_[r.slot].spans.push_back(part);
      }
      return;
    case RequestKind::protect: memory_.end_protect(r.slot, r.span); return;
    case RequestKind::move: moved(r, status); return;
    default: return;
  }
}

}  // namespace ferry::sim

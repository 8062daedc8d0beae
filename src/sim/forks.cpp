// Forks: the executor's part of docs/design/0018-fork.md. A child has a word of its own for each page that its parent had;
// the page is pending until the child has it. What a mapping would let change, and what goes, is copied before.
#include <algorithm>

#include "sim/violation.h"
#include "sim/world.h"

namespace ferry::sim {
namespace {
constexpr std::size_t most_children = 3;
unsigned long long u(std::uint64_t v) { return v; }
}  // namespace

// --- the machine's side ----------------------------------------------------------------------------------------------

void Memory::fork(unsigned slot) {
  ClientMemory& c = clients_[slot];
  Child child;
  child.pages.resize(pages_);
  for (std::uint32_t i = 0; i < pages_; ++i) {
    PageState& p = c.pages[i];
    // What is being freed is no page of the application any more.
    for (DeviceId d = 0; d < devices_ && (p.alloc == AllocState::allocated || p.zeroing); ++d) {
      if (c.devices[d].table[i].kind != DeviceKind::absent) {
        violate(Invariant::fork_is_quiet, "the fork of client %u is answered while device %u reaches its page %llu",
                c.id, unsigned{d}, u(first_ + i));
      }
    }
    // Whoever touches it from here on comes by the executor.
    if (reaches(p.cpu)) p.cpu = CpuEntry::revoked;
    if (p.alloc == AllocState::allocated) child.pages[i] = {p.shadow, 0, true, loose(p)};
  }
  c.children.push_back(std::move(child));
}

bool Memory::child_needs(unsigned slot, Page page) const {
  const auto& children = clients_[slot].children;
  return std::any_of(children.begin(), children.end(),
                     [&](const Child& child) { return child.pages[page - first_].pending; });
}

void Memory::give_children(unsigned slot, Page page, ChildSource from) {
  if (clients_[slot].children.empty() || !child_needs(slot, page)) return;
  const PageState& p = at(slot, page);
  const Word word = from.device != no_device ? vram_at(slot, from.device, from.vram).word
                    : from.store             ? p.stored
                                             : p.system;
  for (Child& child : clients_[slot].children) {
    ChildPage& own = child.pages[page - first_];
    if (!own.pending) continue;
    if (word != own.want && !(own.loose && word == 0)) {
      violate(Invariant::fork_sees_own, "a child of client %u gets %s for page %llu; at the fork it was %s; %s",
              clients_[slot].id, describe(word).c_str(), u(page), describe(own.want).c_str(),
              copies_of(slot, page).c_str());
    }
    own.want = own.has = word;
    own.pending = own.loose = false;
  }
}

/// REQUIRES: the child has the page, or never had one there.
void Memory::child_access(unsigned slot, std::size_t child, Page page, Op op) {
  ChildPage& own = clients_[slot].children[child].pages[page - first_];
  if (own.has != own.want) {
    violate(Invariant::fork_sees_own, "a child of client %u reads %s at page %llu; its last write was %s",
            clients_[slot].id, describe(own.has).c_str(), u(page), describe(own.want).c_str());
  }
  if (op == Op::write) own.want = own.has = (Word{slot + 1} << 56) | (++stamp_ << 16);
}

void Memory::end_child(unsigned slot, std::size_t child) {
  auto& children = clients_[slot].children;
  children.erase(children.begin() + static_cast<std::ptrdiff_t>(child));
}

// --- programs and the executor ---------------------------------------------------------------------------------------

void World::do_fork(unsigned slot) {
  Client& c = clients_[slot];
  if (c.forking || memory_.children(slot) >= most_children) {
    do_child(slot);
    return;
  }
  const std::uint64_t cookie = new_cookie(RequestKind::fork, slot, {});
  const Status status = core_->client_fork(now_ns_, c.id, {cookie});
  line(Line::fork, slot, no_device, cookie, static_cast<std::uint64_t>(status.code));
  if (!status.ok()) {
    violate(Invariant::answers_right, "client_fork of client %u gives: %s", c.id, to_string(status.code));
  }
  // Its own threads and the manager keep faults of its devices back until the answer.
  c.forking = true;
}

/// The answer is decided: this is the moment of the fork.
void World::forked(const Request& request, Status status) {
  Client& c = clients_[request.slot];
  c.forking = false;
  for (const std::uint64_t token : c.held) schedule(1 + random_.below(1000), Kind::post, 0, 0, token);
  c.held.clear();
  if (c.state != ClientState::running) return;
  if (!status.ok()) {
    violate(Invariant::answers_right, "the fork of client %u ends with: %s", c.id, to_string(status.code));
  }
  for (const Flight& f : flights_) {
    if (f.in_use && f.slot == request.slot && f.action.verb == core::Verb::map_device && f.action.client == c.id &&
        span_exists(request.slot, f.action.pages)) {
      violate(Invariant::fork_is_quiet, "the fork of client %u is answered while map_device #%llu is under way", c.id,
              u(f.action.id));
    }
  }
  ++stats_.forks;
  memory_.fork(request.slot);
  // DMA writes what is pinned without asking anybody.
  for (const Pin& pin : c.pins) keep_for_children(request.slot, pin.span);
}

/// Pages that children still need are about to go, or to change unseen.
void World::keep_for_children(unsigned slot, PageSpan span) {
  if (memory_.children(slot) == 0) return;
  for (Page page = span.first; page < span.end(); ++page) {
    if (!memory_.inside({page, 1}) || !memory_.child_needs(slot, page)) continue;
    look_at(slot, page);
    // Where it lies is what the core says.
    const core::Residency r = core_->query(clients_[slot].id, page);
    Memory::ChildSource from;
    if (!r.system_current && r.vram_device != no_device) {
      from = {r.vram_device, r.vram_page, false};
    } else {
      from.store = !r.system_current && r.stored;
    }
    ++stats_.child_pages;
    memory_.give_children(slot, page, from);
  }
}

void World::do_child(unsigned slot) {
  const std::size_t children = memory_.children(slot);
  if (children == 0) return;
  const std::size_t child = random_.below(children);
  if (random_.chance(60)) {
    line(Line::child, slot, no_device, 0, 2, child);
    memory_.end_child(slot, child);  // killed, or another program now
    return;
  }
  const PageSpan window = memory_.window();
  for (unsigned i = 0; i < 8; ++i) {
    const Page page = window.first + random_.below(window.count_pages);
    keep_for_children(slot, {page, 1});
    const Op op = random_.chance(500) ? Op::read : Op::write;
    memory_.child_access(slot, child, page, op);
    line(Line::child, slot, no_device, page, static_cast<std::uint64_t>(op), child);
  }
}

/// All that children still need, wherever it lies; then they have private memory like any process.
void World::leave_children(unsigned slot) {
  keep_for_children(slot, memory_.window());
  while (memory_.children(slot) != 0) memory_.end_child(slot, 0);
}

}  // namespace ferry::sim

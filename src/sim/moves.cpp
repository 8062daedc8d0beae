// mremap, on the simulated machine: a span's pages are to have another address, with what they read, and to lie where they
// lay. While a move is under way its pages mean nothing to anybody; when it is answered they are held against what they
// read before.
#include <algorithm>

#include "sim/order.h"
#include "sim/violation.h"
#include "sim/world.h"

namespace ferry::sim {
namespace {
unsigned long long u(std::uint64_t v) { return v; }
}  // namespace

// --- the machine's side ----------------------------------------------------------------------------------------------

void Memory::begin_move(unsigned slot, PageSpan span, Page to) {
  begin_zero(slot, span);
  begin_zero(slot, {to, span.count_pages});
  for (std::uint64_t i = 0; i < span.count_pages; ++i) {
    PageState& from = at(slot, span.first + i);
    PageState& there = at(slot, to + i);
    there.coming = from.shadow;
    there.coming_loose = loose(from);
    from.coming = 0;
    from.coming_loose = false;
    from.moving = there.moving = true;
  }
}

/// Where the core says that the newest bytes of a page are. Its slot in VRAM may have been another page's.
Word Memory::settle_place(unsigned slot, Page page, const core::Residency& r) {
  const auto index = static_cast<std::uint32_t>(page - first_);
  for (DeviceId d = 0; d < devices_; ++d) {
    std::uint32_t& where = clients_[slot].devices[d].vram_of[index];
    if (where != 0 && vram_at(slot, d, where - 1).holds != index) where = 0;
  }
  if (r.vram_device == no_device) return !r.system_current && r.stored ? at(slot, page).stored : at(slot, page).system;
  VramState& v = vram_at(slot, r.vram_device, r.vram_page);
  v.holds = index;
  clients_[slot].devices[r.vram_device].vram_of[index] = r.vram_page + 1;
  return v.word;
}

bool Memory::reached(unsigned slot, Page page) const {
  bool by_device = false;
  for (DeviceId d = 0; d < devices_; ++d) {
    by_device = by_device || device_entry(slot, d, page).kind != DeviceKind::absent;
  }
  return by_device || reaches(at(slot, page).cpu);
}

/// Threads and devices that reach the page read what it holds now.
void Memory::check_moved(unsigned slot, Page from, Page to, Page page) const {
  const PageState& p = at(slot, page);
  if (reaches(p.cpu) && p.system != p.shadow) {
    violate(Invariant::moved_pages, "page %llu of client %u was moved to %llu, and at %llu the CPU reads %s", u(from),
            clients_[slot].id, u(to), u(page), describe(p.system).c_str());
  }
  for (DeviceId d = 0; d < devices_; ++d) {
    const DeviceEntry e = device_entry(slot, d, page);
    if (e.kind == DeviceKind::absent) continue;
    const auto& chunks = clients_[slot].devices[e.kind == DeviceKind::system ? d : e.owner].chunks;
    const Word read =
        e.kind == DeviceKind::system ? p.system : chunks[e.vram / block_pages]->pages[e.vram % block_pages].word;
    if (read != p.shadow) {
      violate(Invariant::moved_pages, "page %llu of client %u was moved to %llu, and at %llu device %u reads %s",
              u(from), clients_[slot].id, u(to), u(page), unsigned{d}, describe(read).c_str());
    }
  }
  check_current(slot, page, "it was moved");
}

/// I-74. `all`: the core says that every page has moved; else each is at one of its two places, whole.
void Memory::end_move(unsigned slot, Page from, const core::Residency& from_place, Page to,
                      const core::Residency& to_place, bool all) {
  PageState& source = at(slot, from);
  PageState& target = at(slot, to);
  if (!source.moving || !target.moving) {
    if (source.moving) end_half(slot, from, to, from, from_place);
    if (target.moving) end_half(slot, from, to, to, to_place);
    return;
  }
  const Word there = settle_place(slot, to, to_place);
  const Word here = settle_place(slot, from, from_place);
  for (PageState* p : {&source, &target}) {
    p->alloc = AllocState::allocated;
    p->zeroing = p->moving = false;
    p->shadow = p->coming;
    p->discarded = p->coming_loose;
  }
  // Of a page that was discarded the target may read as zeros, moved or not: the source tells.
  if (!all && (!reads_right(target, there) || !reads_right(source, here))) {
    // It stayed.
    source.shadow = target.shadow;
    source.discarded = target.discarded;
    target.shadow = 0;
    target.discarded = false;
  }
  for (const auto& [page, p, word] : {std::tuple{from, &source, here}, std::tuple{to, &target, there}}) {
    if (!reads_right(*p, word)) {
      violate(Invariant::moved_pages, "page %llu of client %u was moved to %llu; page %llu has %s; %s", u(from),
              clients_[slot].id, u(to), u(page), describe(word).c_str(), copies_of(slot, page).c_str());
    }
    // What nobody reaches may be dropped yet, where it was discarded.
    if (reached(slot, page)) settle(*p, word);
    check_moved(slot, from, to, page);
  }
}

/// The other page of the pair was freed while the move was under way: this one is as before, as after, or empty.
void Memory::end_half(unsigned slot, Page from, Page to, Page page, const core::Residency& place) {
  PageState& p = at(slot, page);
  const Word word = settle_place(slot, page, place);
  p.alloc = AllocState::allocated;
  p.zeroing = p.moving = false;
  if (word != p.shadow && word != p.coming && word != 0) {
    violate(Invariant::moved_pages, "page %llu of client %u was to be moved to %llu, half was freed; page %llu has %s",
            u(from), clients_[slot].id, u(to), u(page), describe(word).c_str());
  }
  p.shadow = word;
  p.discarded = p.discarded || p.coming_loose;
  check_moved(slot, from, to, page);
}

void Memory::copy_system(unsigned slot, Page from, Page page, bool torn) {
  check_target(slot, no_device, page, core::Place::system, 0);
  check_quiet(slot, from, "copied to another address");
  check_pin(slot, page, no_device, 0, "overwritten");
  PageState& p = at(slot, page);
  occupy(slot, p);
  p.system = torn ? torn_word : at(slot, from).system;
  check_current(slot, page, "another page was copied over it");
}

// --- programs and the executor ---------------------------------------------------------------------------------------

/// All of the span is allocated, and no request is under way that would change what is in it.
bool World::may_move(unsigned slot, PageSpan span) const {
  if (!memory_.inside(span)) return false;
  for (Page p = span.first; p < span.end(); ++p) {
    if (memory_.state(slot, p) != AllocState::allocated) return false;
  }
  return std::none_of(requests_.begin(), requests_.end(), [&](const auto& r) {
    const RequestKind kind = r.second.kind;
    return r.second.slot == slot && r.second.span.overlaps(span) &&
           (kind == RequestKind::pin || kind == RequestKind::discard || kind == RequestKind::protect);
  });
}

void World::do_move(unsigned slot) {
  Client& c = clients_[slot];
  PageSpan span = c.spans[random_.below(c.spans.size())];
  if (random_.chance(500)) {
    const std::uint64_t skip = random_.below(span.count_pages);
    span = {span.first + skip, 1 + random_.below(span.count_pages - skip)};
  }
  const std::uint64_t granule = swarm_.core.granularity_pages;
  for (unsigned tries = random_.chance(700) ? 12 : 0; tries > 0;
       --tries) {  // most of what moves for nothing lies in VRAM
    const PageSpan some = c.spans[random_.below(c.spans.size())];
    const Page page = some.first + random_.below(some.count_pages);
    if (core_->query(c.id, page).vram_device == no_device) continue;
    const Page first = std::max(page - page % granule, some.first);
    span = {first, std::min(page - page % granule + granule * (1 + random_.below(3)), some.end()) - first};
    break;
  }
  const bool keeps_slots = random_.chance(700);
  PageSpan place;
  Page to = 0;
  for (unsigned tries = random_.chance(900) ? 12 : 1; tries > 0; --tries) {
    place = c.spans[random_.below(c.spans.size())];
    to = place.first + random_.below(place.count_pages);
    if (keeps_slots) {
      to = to - to % granule + span.first % granule;
      if (to < place.first) to += granule;
      if (to >= place.end()) continue;
    }
    const Page last = to + std::min(span.count_pages, place.end() - to) - 1;
    const bool whole = last - to + 1 == span.count_pages || tries < 4;
    if (whole && (block_of(last) < block_of(span.first) || block_of(to) > block_of(span.end() - 1))) break;
  }
  if (to < place.first || to >= place.end()) return;
  span.count_pages = std::min(span.count_pages, place.end() - to);
  const PageSpan target{to, span.count_pages};
  const bool shared =
      block_of(span.first) <= block_of(target.end() - 1) && block_of(target.first) <= block_of(span.end() - 1);
  if (!may_move(slot, span) || !may_move(slot, target)) return;
  if (!shared && (!leave_alone(slot, span) || !leave_alone(slot, target))) return;
  ++stats_.changes;
  keep_for_children(slot, span);
  keep_for_children(slot, target);
  const bool held = may_be_pinned(slot, span) || may_be_pinned(slot, target) || c.forking || under_move(slot, span) ||
                    under_move(slot, target);
  const std::uint64_t cookie = new_cookie(RequestKind::move, slot, span);
  const Status status = core_->change(now_ns_, c.id, core::Change::move, span, to, 0, {cookie});
  line(Line::change, slot, no_device, span.first, span.count_pages,
       cookie << 16 | static_cast<std::uint64_t>(status.code),
       static_cast<std::uint64_t>(core::Change::move) | to << 16);
  if (status.code != (shared ? Code::unsupported : held ? Code::in_use : Code::ok)) {
    violate(Invariant::answers_right, "move of %llu+%llu of client %u to %llu gives: %s; %s", u(span.first),
            u(span.count_pages), c.id, u(to), to_string(status.code),
            shared ? "a block has pages of both"
            : held ? "some are pinned or another move's, or it forks"
                   : "all are allocated");
  }
  if (!status.ok()) {
    requests_.erase(cookie);
    return;
  }
  ++stats_.moves;
  memory_.begin_move(slot, span, to);
  drop_span(slot, span);
  drop_span(slot, target);
  requests_[cookie].parts = {span, target};
}

/// Part of a span, or of its target, that a move under way is about; of no pages: there is none.
PageSpan World::part_of_move(unsigned slot) {
  for (const auto& [cookie, r] : requests_) {
    if (r.kind != RequestKind::move || r.slot != slot || r.replied || !random_.chance(400)) continue;
    PageSpan span = r.parts[random_.below(2)];
    const std::uint64_t skip = random_.below(span.count_pages);
    return {span.first + skip, 1 + random_.below(std::min<std::uint64_t>(span.count_pages - skip, 64))};
  }
  return {};
}

/// A move that is not answered is about some page of the span, or about what was there before.
bool World::under_move(unsigned slot, PageSpan span) const {
  return std::any_of(requests_.begin(), requests_.end(), [&](const auto& r) {
    return r.second.kind == RequestKind::move && r.second.slot == slot && !r.second.replied &&
           std::any_of(r.second.parts.begin(), r.second.parts.end(),
                       [&](const PageSpan& part) { return part.overlaps(span); });
  });
}

/// From here on the pages are at their new addresses.
void World::moved(const Request& r, Status status) {
  Client& c = clients_[r.slot];
  if (c.state != ClientState::running) return;
  if (!status.ok() && status.code != Code::no_memory && (status.code != Code::io_error || stats_.failed_actions == 0)) {
    violate(Invariant::answers_right, "the move of %llu+%llu of client %u ends with: %s", u(r.span.first),
            u(r.span.count_pages), c.id, to_string(status.code));
  }
  for (const PageSpan& part : r.parts) {
    // But for what was freed meanwhile, and what was allocated there since.
    for (Page p = part.first; p < part.end(); ++p) {
      if (!memory_.moving(r.slot, p)) continue;
      if (!c.spans.empty() && c.spans.back().end() == p && p != part.first) {
        ++c.spans.back().count_pages;
      } else {
        c.spans.push_back({p, 1});
      }
    }
  }
  for (std::uint64_t i = 0; i < r.span.count_pages; ++i) {
    const Page from = r.parts[0].first + i;
    const Page to = r.parts[1].first + i;
    look_at(r.slot, to);
    memory_.end_move(r.slot, from, core_->query(c.id, from), to, core_->query(c.id, to), status.ok());
  }
}

}  // namespace ferry::sim

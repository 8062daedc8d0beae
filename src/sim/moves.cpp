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

/// I-74. `all`: the core says that every page has moved; else each is at one of its two places, whole.
void Memory::end_move(unsigned slot, Page from, const core::Residency& from_place, Page to,
                      const core::Residency& to_place, bool all) {
  PageState& source = at(slot, from);
  PageState& target = at(slot, to);
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
    settle(*p, word);
    if (reaches(p->cpu) && p->system != p->shadow) {
      violate(Invariant::moved_pages, "page %llu of client %u was moved to %llu, and at %llu the CPU reads %s", u(from),
              clients_[slot].id, u(to), u(page), describe(p->system).c_str());
    }
    for (DeviceId d = 0; d < devices_; ++d) {
      const DeviceEntry e = device_entry(slot, d, page);
      if (e.kind == DeviceKind::absent) continue;
      const Word read = e.kind == DeviceKind::system ? p->system : vram_at(slot, e.owner, e.vram).word;
      if (read != p->shadow) {
        violate(Invariant::moved_pages, "page %llu of client %u was moved to %llu, and at %llu device %u reads %s",
                u(from), clients_[slot].id, u(to), u(page), unsigned{d}, describe(read).c_str());
      }
    }
    check_current(slot, page, "it was moved");
  }
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
  PageSpan place = c.spans[random_.below(c.spans.size())];
  Page to = place.first + random_.below(place.count_pages);
  const std::uint64_t granule = swarm_.core.granularity_pages;
  if (random_.chance(600)) {  // so that slots can change hands
    to = to - to % granule + span.first % granule;
    if (to < place.first) to += granule;
    if (to >= place.end()) return;
  }
  span.count_pages = std::min(span.count_pages, place.end() - to);
  const PageSpan target{to, span.count_pages};
  const bool shared =
      block_of(span.first) <= block_of(target.end() - 1) && block_of(target.first) <= block_of(span.end() - 1);
  if (!may_move(slot, span) || !may_move(slot, target)) return;
  if (!shared && (!leave_alone(slot, span) || !leave_alone(slot, target))) return;
  ++stats_.changes;
  keep_for_children(slot, span);
  keep_for_children(slot, target);
  const bool held = may_be_pinned(slot, span) || may_be_pinned(slot, target) || c.forking;
  const std::uint64_t cookie = new_cookie(RequestKind::move, slot, span);
  const Status status = core_->change(now_ns_, c.id, core::Change::move, span, to, 0, {cookie});
  line(Line::change, slot, no_device, span.first, span.count_pages,
       cookie << 16 | static_cast<std::uint64_t>(status.code),
       static_cast<std::uint64_t>(core::Change::move) | to << 16);
  if (status.code != (shared ? Code::unsupported : held ? Code::in_use : Code::ok)) {
    violate(Invariant::answers_right, "move of %llu+%llu of client %u to %llu gives: %s; %s", u(span.first),
            u(span.count_pages), c.id, u(to), to_string(status.code),
            shared ? "a block has pages of both"
            : held ? "some are pinned, or it forks"
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

/// From here on the pages are at their new addresses.
void World::moved(const Request& r, Status status) {
  Client& c = clients_[r.slot];
  if (c.state != ClientState::running) return;
  if (!status.ok() && status.code != Code::no_memory && (status.code != Code::io_error || stats_.failed_actions == 0)) {
    violate(Invariant::answers_right, "the move of %llu+%llu of client %u ends with: %s", u(r.span.first),
            u(r.span.count_pages), c.id, to_string(status.code));
  }
  for (std::uint64_t i = 0; i < r.span.count_pages; ++i) {
    const Page from = r.parts[0].first + i;
    const Page to = r.parts[1].first + i;
    look_at(r.slot, to);
    memory_.end_move(r.slot, from, core_->query(c.id, from), to, core_->query(c.id, to), status.ok());
  }
  for (const PageSpan& part : r.parts) c.spans.push_back(part);
}

}  // namespace ferry::sim

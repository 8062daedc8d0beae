// Programs that say things about their memory, a model of what they said, and what must hold because of it: nothing is
// mapped that may not be (I-50), what is read back is what was said (I-51), and only who may not gets an error.
#include <algorithm>

#include "sim/violation.h"
#include "sim/world.h"

namespace ferry::sim {
namespace {

using core::Attribute;
using core::Attributes;
using core::AttributeType;
using core::DeviceAccess;

void apply(Attributes& to, const Attribute& a) {
  switch (a.type) {
    case AttributeType::preferred_loc: to.preferred = static_cast<core::Location>(a.value); break;
    case AttributeType::prefetch_loc: to.prefetch = static_cast<core::Location>(a.value); break;
    case AttributeType::access: to.set_access(a.device, static_cast<DeviceAccess>(a.value)); break;
    case AttributeType::set_flags: to.flags = static_cast<std::uint8_t>(to.flags | a.value); break;
    case AttributeType::clr_flags: to.flags = static_cast<std::uint8_t>(to.flags & ~a.value); break;
    case AttributeType::granularity: to.granularity = static_cast<std::uint8_t>(a.value); break;
  }
}

unsigned long long u(std::uint64_t v) { return v; }

}  // namespace

void World::ask_attributes(unsigned slot) {
  Client& c = clients_[slot];
  PageSpan span = c.spans[random_.below(c.spans.size())];
  if (span.count_pages > 1 && random_.chance(600)) {
    const std::uint64_t skip = random_.below(span.count_pages);
    span = {span.first + skip, 1 + random_.below(span.count_pages - skip)};
  } else if (random_.chance(200)) {
    span = random_span(slot);
  }
  if (swarm_.read_mostly_share != 0 && random_.chance(swarm_.read_mostly_share / 2)) {
    // Most programs that say it say it of much at once.
    set_lines(slot, memory_.window(), {{AttributeType::set_flags, no_device, core::svm_read_mostly}});
    return;
  }
  switch (random_.below(10)) {
    case 0: reset_attributes(slot, span); break;
    case 1: check_get(slot, span); break;
    case 2: {
      const auto group = static_cast<std::uint32_t>(1 + random_.below(2));
      if (random_.chance(500)) {
        if (core_->group_assign(now_ns_, c.id, span, group).ok()) c.groups = true;
      } else {
        (void)core_->group_migration(now_ns_, c.id, group, random_.chance(600));
      }
      break;
    }
    default: do_set(slot, span); break;
  }
}

void World::do_set(unsigned slot, PageSpan span) {
  std::vector<Attribute> changes;
  const std::uint64_t lines = 1 + random_.below(3);
  for (std::uint64_t i = 0; i < lines; ++i) {
    const auto device = static_cast<DeviceId>(random_.below(swarm_.devices));
    Attribute a;
    switch (random_.below(8)) {
      case 0:
        a = {AttributeType::preferred_loc, no_device,
             random_.chance(500)   ? device
             : random_.chance(500) ? core::loc_system
                                   : core::loc_undefined};
        break;
      case 1:
        a = {AttributeType::prefetch_loc, no_device, random_.chance(600) ? std::uint32_t{device} : core::loc_system};
        break;
      case 2:
      case 3: a = {AttributeType::access, device, static_cast<std::uint32_t>(random_.below(3))}; break;
      case 4:
      case 5: {
        const bool copies = swarm_.read_mostly_share != 0 && random_.chance(swarm_.read_mostly_share);
        a = {AttributeType::set_flags, no_device,
             copies ? std::uint32_t{core::svm_read_mostly} : 1U << random_.below(8)};
        break;
      }
      case 6: a = {AttributeType::clr_flags, no_device, static_cast<std::uint32_t>(random_.below(256))}; break;
      default: a = {AttributeType::granularity, no_device, static_cast<std::uint32_t>(random_.below(12))}; break;
    }
    changes.push_back(a);
  }
  set_lines(slot, span, std::move(changes));
}

void World::set_lines(unsigned slot, PageSpan span, std::vector<Attribute> changes) {
  Client& c = clients_[slot];
  const bool bad = random_.chance(50);
  if (bad) changes.push_back({AttributeType::access, static_cast<DeviceId>(swarm_.devices), 0});
  const bool some = span_exists(slot, span);
  auto expected = static_cast<unsigned>(changes.size());
  Code code = bad ? Code::bad_range : some ? Code::ok : Code::not_allocated;
  if (bad) expected = static_cast<unsigned>(changes.size()) - 1;
  for (Page p = span.first; code != Code::bad_range && some && p < span.end(); ++p) {
    if (!memory_.inside({p, 1}) || !memory_.exists(slot, p)) continue;
    Attributes a = said(slot, p);
    for (unsigned i = 0; i < changes.size(); ++i) {
      apply(a, changes[i]);
      if (changes[i].type == AttributeType::prefetch_loc && changes[i].value < swarm_.devices &&
          a.access_of(static_cast<DeviceId>(changes[i].value)) == DeviceAccess::none && i < expected) {
        expected = i;
        code = Code::not_permitted;
      }
    }
  }
  unsigned wrong = 0;
  const std::uint64_t cookie = new_cookie(RequestKind::attributes, slot, span);
  if (code == Code::ok) {
    // What the core decides in the call, it decides by what is said now.
    c.plain = false;
    for (Page p = span.first; p < span.end(); ++p) {
      if (!memory_.inside({p, 1}) || !memory_.exists(slot, p)) continue;
      for (const Attribute& a : changes) apply(c.said[p - memory_.window().first], a);
    }
  }
  const Status status = core_->svm_set(now_ns_, c.id, span, changes, {cookie}, wrong);
  line(Line::attributes, slot, no_device, span.first, span.count_pages, static_cast<std::uint64_t>(status.code),
       cookie);
  if (!status.ok()) requests_.erase(cookie);
  if (status.code != code || wrong != expected) {
    violate(Invariant::answers_right, "svm_set of %llu+%llu of client %u gives: %s, line %u; expected: %s, line %u",
            u(span.first), u(span.count_pages), c.id, to_string(status.code), wrong, to_string(code), expected);
  }
}

void World::reset_attributes(unsigned slot, PageSpan span) {
  Client& c = clients_[slot];
  const bool some = span_exists(slot, span);
  const std::uint64_t cookie = new_cookie(RequestKind::attributes, slot, span);
  if (some) {
    for (Page p = span.first; p < span.end(); ++p) {
      if (memory_.inside({p, 1})) c.said[p - memory_.window().first] = {};
    }
  }
  const Status status = core_->svm_reset(now_ns_, c.id, span, {cookie});
  line(Line::attributes, slot, no_device, span.first, span.count_pages, static_cast<std::uint64_t>(status.code),
       cookie);
  if (!status.ok()) requests_.erase(cookie);
  if (status.code != (some ? Code::ok : Code::not_allocated)) {
    violate(Invariant::answers_right, "svm_reset of %llu+%llu of client %u gives: %s", u(span.first),
            u(span.count_pages), c.id, to_string(status.code));
  }
}

/// Retry faults off, or on again. No compute has asked for units: what is not mapped fails, what is goes on.
void World::do_retry(unsigned slot) {
  const Client& c = clients_[slot];
  const bool on = !core_->retry_faults(c.id, 0);
  const Status status = core_->set_retry_faults(now_ns_, c.id, on);
  line(Line::retry, slot, no_device, on ? 1 : 0, static_cast<std::uint64_t>(status.code));
  if (!status.ok() || core_->retry_faults(c.id, 0) != on) {
    violate(Invariant::answers_right, "switching retry faults of client %u %s gives: %s", c.id, on ? "on" : "off",
            to_string(status.code));
  }
}

/// The random phase is over: whatever was said is taken back, so that what follows may expect what is usual.
void World::forget_attributes(unsigned slot) {
  Client& c = clients_[slot];
  if (c.state == ClientState::running && !core_->retry_faults(c.id, 0)) do_retry(slot);
  if (c.state != ClientState::running || swarm_.attributes_weight == 0 || !span_exists(slot, memory_.window())) return;
  for (std::uint32_t group = 1; group <= 2; ++group) (void)core_->group_migration(now_ns_, c.id, group, true);
  reset_attributes(slot, memory_.window());
}

void World::check_get(unsigned slot, PageSpan span) {
  const Client& c = clients_[slot];
  std::vector<Attribute> queries{{AttributeType::preferred_loc, no_device, 0},
                                 {AttributeType::prefetch_loc, no_device, 0},
                                 {AttributeType::set_flags, no_device, 0},
                                 {AttributeType::clr_flags, no_device, 0},
                                 {AttributeType::granularity, no_device, 0}};
  for (DeviceId d = 0; d < swarm_.devices; ++d) queries.push_back({AttributeType::access, d, 0});
  std::vector<Attribute> expected = queries;
  bool first = true;
  for (Page p = span.first; p < span.end(); ++p) {
    if (!memory_.inside({p, 1}) || !memory_.exists(slot, p)) continue;
    const Attributes& a = said(slot, p);
    for (Attribute& e : expected) {
      switch (e.type) {
        case AttributeType::preferred_loc:
          e.value = first || e.value == a.preferred ? a.preferred : core::loc_undefined;
          break;
        case AttributeType::prefetch_loc:
          e.value = first || e.value == a.prefetch ? a.prefetch : core::loc_undefined;
          break;
        case AttributeType::set_flags: e.value = first ? a.flags : e.value & a.flags; break;
        case AttributeType::clr_flags: e.value = (first ? 0xffU : e.value) & ~std::uint32_t{a.flags}; break;
        case AttributeType::granularity:
          e.value = first ? a.granularity : std::min<std::uint32_t>(e.value, a.granularity);
          break;
        case AttributeType::access: {
          const auto own = static_cast<std::uint32_t>(a.access_of(e.device));
          e.value = first ? own : std::min(e.value, own);
        }
      }
    }
    first = false;
  }
  unsigned wrong = 0;
  const Status status = core_->svm_get(c.id, span, queries, wrong);
  if (status.code != (first ? Code::not_allocated : Code::ok)) {
    violate(Invariant::answers_right, "svm_get of %llu+%llu of client %u gives: %s", u(span.first), u(span.count_pages),
            c.id, to_string(status.code));
  }
  for (std::size_t i = 0; status.ok() && i < queries.size(); ++i) {
    if (queries[i].value != expected[i].value) {
      violate(Invariant::attributes_are_true, "svm_get of %llu+%llu of client %u, type %u: %u; it is %u", u(span.first),
              u(span.count_pages), c.id, static_cast<unsigned>(queries[i].type), queries[i].value, expected[i].value);
    }
  }
}

bool World::may_reach(unsigned slot, Page page, DeviceId device, bool write) const {
  const Attributes& a = said(slot, page);
  return a.access_of(device) != DeviceAccess::none && !(write && (a.flags & core::svm_gpu_ro) != 0);
}

/// When a mapping is decided, and when a SET is answered.
void World::check_mapping(const core::Action& a) const {
  const unsigned slot = slot_of(a);
  for (Page p = a.pages.first; p < a.pages.end(); ++p) {
    if (memory_.exists(slot, p) && !may_reach(slot, p, a.device, a.prot == Prot::read_write)) {
      look_at(slot, p);
      violate(Invariant::nothing_forbidden, "device %u is to map page %llu of client %u, which it may not%s",
              unsigned{a.device}, u(p), a.client, may_reach(slot, p, a.device, false) ? " write" : "");
    }
  }
}

void World::check_attributes_reply(const Request& request) const {
  for (Page p = request.span.first; p < request.span.end(); ++p) {
    if (!memory_.inside({p, 1}) || !memory_.exists(request.slot, p)) continue;
    const bool asked_again = std::any_of(requests_.begin(), requests_.end(), [&](const auto& other) {
      return other.second.kind == RequestKind::attributes && other.second.slot == request.slot &&
             !other.second.replied && other.second.span.contains(p);
    });
    for (DeviceId d = 0; d < swarm_.devices && !asked_again; ++d) {
      const DeviceEntry entry = memory_.device_entry(request.slot, d, p);
      if (clients_[request.slot].devices[d].state == DeviceState::attached && entry.kind != DeviceKind::absent &&
          !may_reach(request.slot, p, d, entry.writable)) {
        look_at(request.slot, p);
        violate(Invariant::nothing_forbidden, "a SET is answered while device %u still reaches page %llu of client %u",
                unsigned{d}, u(p), clients_[request.slot].id);
      }
    }
  }
}

/// A CPU thread was refused its page: it is in VRAM, where the host may not reach it, or in a group that stays.
/// VRAM holds the page, and it was said, or is pinned, so that no touch of a CPU thread brings it home.
bool World::keeps_from_cpu(unsigned slot, Page page, const core::Residency& place) const {
  return place.vram_device != no_device && ((said(slot, page).flags & core::svm_host_access) == 0 ||
                                            clients_[slot].groups || may_be_pinned(slot, {page, 1}));
}

void World::check_refused(const core::Action& a) const {
  const unsigned slot = slot_of(a);
  for (Page p = a.pages.first; p < a.pages.end(); ++p) {
    if ((said(slot, p).flags & core::svm_host_access) != 0 && !clients_[slot].groups) {
      look_at(slot, p);
      violate(Invariant::answers_right, "a CPU thread is refused page %llu of client %u, which it may reach", u(p),
              a.client);
    }
  }
}

void World::check_said(unsigned slot, Page page) const {
  if (swarm_.attributes_weight != 0 && !(core_->attributes(clients_[slot].id, page) == said(slot, page))) {
    violate(Invariant::attributes_are_true, "the core has other attributes of page %llu of client %u than were set",
            u(page), clients_[slot].id);
  }
}

}  // namespace ferry::sim

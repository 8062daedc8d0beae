// The executor: what src/linux does with system calls, late, in any order, in parts, and with failures. The checks here
// are those that see an action before it is performed, so that they need no luck with its timing.
#include <algorithm>

#include "sim/order.h"
#include "sim/violation.h"
#include "sim/world.h"

namespace ferry::sim {
namespace {
using core::Action;
using core::Place;
using core::Verb;

}  // namespace

void World::take_actions() {
  // Answers are never given from inside, so one round is enough.
  core_->take_actions(taken_);
  for (const Action& a : taken_) issue(a);
}

unsigned World::slot_of(const Action& a) const {
  for (unsigned slot = 0; slot < clients_.size(); ++slot) {
    if (clients_[slot].id == a.client && clients_[slot].state != ClientState::closed) return slot;
  }
  violate(Invariant::all_given_back, "the core asks for %s for client %u, which is not there", core::to_string(a.verb),
          a.client);
}

void World::issue(const Action& a) {
  ++stats_.actions;
  trace_.add_action(now_ns_, steps_, a);
  const unsigned slot = slot_of(a);
  if (is_answered(a.verb) != (a.id != 0)) {
    violate(Invariant::answers_right, "%s #%llu: an id is for actions that are answered", core::to_string(a.verb),
            static_cast<unsigned long long>(a.id));
  }
  const bool has_pages = a.verb != Verb::wake_wave && a.verb != Verb::reply && a.verb != Verb::release_chunk &&
                         a.verb != Verb::signal_fence;
  if (has_pages) {
    if (a.pages.count_pages == 0 || (!memory_.inside(a.pages) && a.verb != Verb::wake_cpu)) {
      violate(Invariant::answers_right, "%s of %llu+%llu: no pages that client %u ever had", core::to_string(a.verb),
              static_cast<unsigned long long>(a.pages.first), static_cast<unsigned long long>(a.pages.count_pages),
              a.client);
    }
    const bool may_cross = a.verb == Verb::discard_system || a.verb == Verb::wake_cpu;
    if (!may_cross && block_of(a.pages.first) != block_of(a.pages.end() - 1)) {
      violate(Invariant::answers_right, "%s of %llu+%llu crosses a block's end", core::to_string(a.verb),
              static_cast<unsigned long long>(a.pages.first), static_cast<unsigned long long>(a.pages.count_pages));
    }
  }
  const bool has_device = touches_device_table(a.verb) || a.verb == Verb::copy || a.verb == Verb::release_chunk;
  if (has_device && (a.device >= swarm_.devices || clients_[slot].devices[a.device].state == DeviceState::none)) {
    violate(Invariant::answers_right, "%s for client %u on device %u, which it never attached", core::to_string(a.verb),
            a.client, unsigned{a.device});
  }
  check_conflicts(a);
  if (uses_vram(a)) memory_.use_vram(slot, vram_owner(a), a.vram_first, a.pages.count_pages);
  if (is_direct(a)) {
    if (a.to_device >= swarm_.devices || (a.device != a.to_device && !linked(a.device, a.to_device))) {
      violate(Invariant::answers_right, "a copy from device %u to %u, which are not linked", unsigned{a.device},
              unsigned{a.to_device});
    }
    memory_.use_vram(slot, a.to_device, a.vram_to, a.pages.count_pages);
  }
  if (a.verb == Verb::map_device && a.owner != no_device && !linked(a.device, a.owner)) {
    violate(Invariant::answers_right, "device %u is to map VRAM of device %u; they are not linked", unsigned{a.device},
            unsigned{a.owner});
  }
  if (a.verb == Verb::wake_wave || (a.verb == Verb::map_device && a.has_token)) check_wake(a);
  if (a.verb == Verb::map_device) check_mapping(a);
  if (a.verb == Verb::copy_system && !memory_.inside({a.from_page, a.pages.count_pages})) {
    violate(Invariant::answers_right, "copy_system from page %llu, which client %u never had",
            static_cast<unsigned long long>(a.from_page), a.client);
  }
  if (moves(a.verb) && !is_inside_vram(a)) check_copy(a);
  if (a.verb == Verb::wake_cpu && !a.status.ok()) {
    check_told(a);
    // Marks are made as the core says so, and taken out by the process's agent, whenever that comes to it.
    if (a.status.code == Code::in_use || a.status.code == Code::not_permitted) {
      for_window(a.pages, [&](Page p) { memory_.refuse_cpu(slot, p); });
    }
  }
  if (a.verb == Verb::reply) check_reply(a);
  if (a.verb == Verb::signal_fence) check_signal(a);

  std::uint32_t index;
  if (flight_holes_.empty()) {
    index = static_cast<std::uint32_t>(flights_.size());
    flights_.emplace_back();
  } else {
    index = flight_holes_.back();
    flight_holes_.pop_back();
  }
  Flight& f = flights_[index];
  f = Flight{a, f.stamp + 1, true, slot, 1, 0, has_device ? clients_[slot].devices[a.device].life : 0, {}};
  const bool may_split = has_pages && a.pages.count_pages > 1 && a.verb != Verb::wake_cpu;
  if (may_split && random_.chance(swarm_.split)) {
    f.parts_left = 2;
    f.split = 1 + static_cast<std::uint32_t>(random_.below(a.pages.count_pages - 1));
    schedule(delay(), Kind::part, index, f.stamp, 1);
  }
  schedule(delay(), Kind::part, index, f.stamp, 0);
}

void World::check_conflicts(const Action& a) const {
  if (!is_answered(a.verb)) return;
  for (const Flight& f : flights_) {
    if (!f.in_use || f.action.id == 0 || f.action.client != a.client || !order_matters(f.action, a)) continue;
    look_at(f.slot, a.pages.count_pages == 0 ? f.action.pages.first : std::max(a.pages.first, f.action.pages.first));
    violate(
        Invariant::order_free,
        "%s #%llu of %llu+%llu is asked for while %s #%llu of %llu+%llu is not answered: the result depends on which "
        "comes first (client %u, device %u)",
        core::to_string(a.verb), static_cast<unsigned long long>(a.id), static_cast<unsigned long long>(a.pages.first),
        static_cast<unsigned long long>(a.pages.count_pages), core::to_string(f.action.verb),
        static_cast<unsigned long long>(f.action.id), static_cast<unsigned long long>(f.action.pages.first),
        static_cast<unsigned long long>(f.action.pages.count_pages), a.client, unsigned{a.device});
  }
}

void World::check_wake(const Action& a) {
  const auto token = static_cast<unsigned long long>(a.token.value);
  const auto it = faults_.find(a.token.value);
  if (it == faults_.end() || it->second.ended || it->second.carried) {
    violate(Invariant::fault_ends_once, "%s for token %llu of client %u, whose fault has ended or never was",
            core::to_string(a.verb), token, a.client);
  }
  Fault& f = it->second;
  look_at(f.slot, f.page);
  if (!f.delivered || clients_[f.slot].id != a.client || f.device != a.device) {
    violate(Invariant::fault_ends_once,
            "%s for token %llu names client %u device %u; the fault is of client %u device %u", core::to_string(a.verb),
            token, a.client, unsigned{a.device}, clients_[f.slot].id, unsigned{f.device});
  }
  if (f.forgotten) {
    violate(Invariant::fault_ends_once, "%s for token %llu: device %u of client %u was reported gone before",
            core::to_string(a.verb), token, unsigned{a.device}, a.client);
  }
  if (f.old && (a.verb != Verb::wake_wave || !a.status.ok())) {
    violate(Invariant::old_fault_again,
            "the fault at page %llu of client %u, older than an unmap of the page, is answered by %s: %s",
            static_cast<unsigned long long>(f.page), a.client, core::to_string(a.verb), to_string(a.status.code));
  }
  if (a.verb == Verb::map_device) {
    if (!a.pages.contains(f.page) || (f.access == Access::write && a.prot == Prot::read)) {
      violate(Invariant::fault_ends_once, "map_device carries token %llu, but does not serve its fault at page %llu",
              token, static_cast<unsigned long long>(f.page));
    }
    f.carried = true;
    return;
  }
  f.ended = true;
  if (!a.status.ok()) ++seen_.faults_failed;
  const bool never_there = !memory_.inside({f.page, 1});
  switch (a.status.code) {
    case Code::ok:
      if (!never_there && !f.old && memory_.state(f.slot, f.page) == AllocState::allocated &&
          !may_reach(f.slot, f.page, f.device, f.access == Access::write)) {
        violate(Invariant::nothing_forbidden,
                "the fault at page %llu of client %u ends well; device %u may not touch it",
                static_cast<unsigned long long>(f.page), a.client, unsigned{f.device});
      }
      // A fault that is older than all unmaps that are remembered is tried again, whatever its page.
      if (never_there && f.seen == core_->changes(a.client)) {
        violate(Invariant::answers_right, "the fault at page %llu of client %u, where nothing is, ends well",
                static_cast<unsigned long long>(f.page), a.client);
      }
      break;
    case Code::not_allocated:
      if (!never_there && f.was_allocated && memory_.state(f.slot, f.page) == AllocState::allocated &&
          memory_.generation(f.slot, f.page) == f.page_generation) {
        violate(Invariant::answers_right, "the fault at page %llu of client %u fails: not allocated; but it is",
                static_cast<unsigned long long>(f.page), a.client);
      }
      break;
    case Code::in_use:
      if (never_there || !may_be_pinned(f.slot, {f.page, 1})) {
        violate(Invariant::answers_right, "the fault at page %llu of client %u fails: in use; but nobody has pinned it",
                static_cast<unsigned long long>(f.page), a.client);
      }
      break;
    case Code::kernel_fault:
      // Without retry faults a touch of what is not mapped is an error.
      if (f.no_retry) break;
      if (!never_there &&
          (memory_.was_protected(f.slot, f.page) || memory_.generation(f.slot, f.page) != f.page_generation)) {
        break;
      }
      if (never_there || may_reach(f.slot, f.page, f.device, f.access == Access::write)) {
        violate(Invariant::answers_right, "the fault at page %llu of client %u fails; device %u may touch it",
                static_cast<unsigned long long>(f.page), a.client, unsigned{f.device});
      }
      break;
    case Code::io_error:
    case Code::no_memory:
    case Code::no_mappings:
      // Fair only in a run whose machine fails.
      if (stats_.failed_actions == 0) {
        violate(Invariant::answers_right, "the fault at page %llu of client %u fails: %s; but nothing has failed yet",
                static_cast<unsigned long long>(f.page), a.client, to_string(a.status.code));
      }
      break;
    default:
      // A device that is lost ends its faults by being gone.
      if (a.status.code == Code::device_lost && clients_[f.slot].devices[f.device].state != DeviceState::attached)
        break;
      if (a.status.code == Code::client_gone && clients_[f.slot].state != ClientState::running) break;
      violate(Invariant::answers_right, "the fault at page %llu of client %u fails with: %s",
              static_cast<unsigned long long>(f.page), a.client, to_string(a.status.code));
  }
}

/// A CPU thread is told that its page cannot be had: fair only where the store has failed.
void World::check_told(const Action& a) const {
  if (clients_[slot_of(a)].state != ClientState::running) return;  // none of its threads is there to be told
  if (a.status.code == Code::in_use) {
    for (Page page = a.pages.first; page < a.pages.end(); ++page) {
      if (!may_be_pinned(slot_of(a), {page, 1})) {
        violate(Invariant::answers_right, "CPU threads at page %llu of client %u are told that it is pinned; it is not",
                static_cast<unsigned long long>(page), a.client);
      }
    }
    return;
  }
  if (a.status.code == Code::not_permitted) {
    check_refused(a);
    return;
  }
  if (stats_.failed_actions != 0) return;
  violate(Invariant::answers_right, "CPU threads at page %llu of client %u are told: %s; but nothing has failed yet",
          static_cast<unsigned long long>(a.pages.first), a.client, to_string(a.status.code));
}

void World::check_reply(const Action& a) {
  const auto it = requests_.find(a.cookie.value);
  if (it == requests_.end() || it->second.replied) {
    violate(Invariant::reply_once, "reply to cookie %llu of client %u, which nobody waits for",
            static_cast<unsigned long long>(a.cookie.value), a.client);
  }
  Request& r = it->second;
  r.replied = true;
  if (clients_[r.slot].id != a.client) {
    violate(Invariant::reply_once, "reply to cookie %llu names client %u; the request is of client %u",
            static_cast<unsigned long long>(a.cookie.value), a.client, clients_[r.slot].id);
  }
  for (const Flight& f : flights_) {
    if (!f.in_use || f.action.id == 0 || f.action.client != a.client) continue;
    const bool concerns =
        r.kind == RequestKind::gone ||
        (r.kind == RequestKind::free && f.action.verb != Verb::release_chunk && f.action.pages.overlaps(r.span)) ||
        (r.kind == RequestKind::unmap && f.action.verb != Verb::release_chunk &&
         std::any_of(r.parts.begin(), r.parts.end(),
                     [&](const PageSpan& part) { return f.action.pages.overlaps(part); }));
    if (concerns) {
      violate(r.kind == RequestKind::gone ? Invariant::all_given_back : Invariant::free_is_final,
              "the %s of client %u is answered while %s #%llu of %llu+%llu is under way",
              r.kind == RequestKind::gone ? "end" : "free", a.client, core::to_string(f.action.verb),
              static_cast<unsigned long long>(f.action.id), static_cast<unsigned long long>(f.action.pages.first),
              static_cast<unsigned long long>(f.action.pages.count_pages));
    }
  }
  if (r.kind == RequestKind::attributes) check_attributes_reply(r);
  if (r.kind == RequestKind::free) {
    if (!a.status.ok() && clients_[r.slot].state == ClientState::running) {
      violate(Invariant::answers_right, "a free that was taken ends with: %s", to_string(a.status.code));
    }
    memory_.end_free(r.slot, r.span);
  }
  if (r.kind == RequestKind::pin) {
    check_pin_reply(r, a);
    if (a.status.ok() && clients_[r.slot].state == ClientState::running) pinned(r);
  }
  if (r.kind == RequestKind::discard) memory_.end_discard(r.slot, r.span, r.begun);
  if (r.kind == RequestKind::fork) forked(r, a.status);
  change_replied(r, a.status);
}

Status World::inject_failure(const Action& a) {
  if (phase_ != Phase::random) return {};
  switch (a.verb) {
    case Verb::copy:
    case Verb::copy_system:
      if (random_.chance(swarm_.copy_io_error)) return Code::io_error;
      if (random_.chance(swarm_.copy_no_memory)) return Code::no_memory;
      return {};
    case Verb::map_cpu: return random_.chance(swarm_.map_cpu_no_memory) ? Status(Code::no_memory) : Status();
    case Verb::map_device:
      if (random_.chance(swarm_.map_device_no_memory)) return Code::no_memory;
      if (random_.chance(swarm_.map_device_no_mappings)) return Code::no_mappings;
      return {};
    case Verb::store: return random_.chance(swarm_.store_io_error) ? Status(Code::io_error) : Status();
    case Verb::load: return random_.chance(swarm_.load_io_error) ? Status(Code::io_error) : Status();
    default: return {};
  }
}

void World::perform_part(std::uint32_t index, unsigned part) {
  Flight& f = flights_[index];
  const Action& a = f.action;
  if (touches_cpu_table(a.verb) || touches_device_table(a.verb)) {
    const DeviceId where = touches_device_table(a.verb) ? a.device : no_device;
    const Client& c = clients_[f.slot];
    const bool alive = where == no_device
                           ? c.state == ClientState::running
                           : c.devices[where].state == DeviceState::attached && c.devices[where].life == f.device_life;
    if (!alive) {
      f.status = where == no_device ? Code::client_gone : Code::device_lost;
    } else if (Process& process = process_of(f.slot, where); process.stopped) {
      process.waiting.push_back(Event{now_ns_, 0, part, index, f.stamp, Kind::part});
      return;
    }
  }
  PageSpan pages = a.pages;
  if (f.split != 0) {
    pages =
        part == 0 ? PageSpan{a.pages.first, f.split} : PageSpan{a.pages.first + f.split, a.pages.count_pages - f.split};
  }
  if (f.status.ok()) {
    f.status = inject_failure(a);
    if (f.status.ok() && a.verb == Verb::store && !swarm_.has_room(memory_.stored_pages() + pages.count_pages)) {
      f.status = Code::no_space;
    }
    if (!f.status.ok()) {
      ++stats_.failed_actions;
      fail_pages(f, pages);
    } else {
      line(Line::part, f.slot, a.device, pages.first, pages.count_pages, a.id, static_cast<std::uint64_t>(a.verb));
      perform_pages(f, pages);
    }
  }
  if (--f.parts_left == 0) finish_flight(index);
}

/// What a failed action leaves behind, within what core/action.h allows.
void World::fail_pages(Flight& f, PageSpan pages) {
  const Action& a = f.action;
  if (a.verb == Verb::copy) {
    for (Page p = pages.first; p < pages.end(); ++p) {
      look_at(f.slot, p);
      if (is_direct(a)) {
        const auto at = static_cast<VramPage>(p - a.pages.first);
        memory_.copy_direct(f.slot, p, a.device, a.vram_first + at, a.to_device, a.vram_to + at, true);
        continue;
      }
      memory_.tear(f.slot, a.device, p, target_of(a), a.vram_first + static_cast<VramPage>(p - a.pages.first));
    }
    return;
  }
  if (a.verb == Verb::copy_system) {
    for (Page p = pages.first; p < pages.end(); ++p) {
      memory_.copy_system(f.slot, a.from_page + (p - a.pages.first), p, true);
    }
    return;
  }
  if (a.verb == Verb::store || a.verb == Verb::load) {
    for (Page p = pages.first; p < pages.end(); ++p) {
      look_at(f.slot, p);
      if (a.verb == Verb::store) {
        memory_.tear_store(f.slot, p);
      } else {
        memory_.tear_system(f.slot, p);
      }
    }
    return;
  }
  const std::uint64_t outcome = random_.below(3);
  if (outcome == 0) return;  // as before
  const std::uint64_t some = random_.below(pages.count_pages + 1);
  if (outcome == 1) {
    perform_pages(f, {pages.first, some});
  } else if (a.verb == Verb::map_device) {
    for (Page p = pages.first; p < pages.first + some; ++p) memory_.revoke_device(f.slot, a.device, p);
  }
}

void World::perform_pages(Flight& f, PageSpan pages) {
  const Action& a = f.action;
  for (Page p = pages.first; p < pages.end(); ++p) {
    const auto vram = a.vram_first + static_cast<VramPage>(p - a.pages.first);
    look_at(f.slot, p);
    switch (a.verb) {
      case Verb::revoke_cpu: memory_.revoke_cpu(f.slot, p); break;
      case Verb::protect_cpu: memory_.protect_cpu(f.slot, p); break;
      case Verb::map_cpu:
        if (a.prot == Prot::read_write) memory_.give_children(f.slot, p, {});
        memory_.map_cpu(f.slot, p, a.prot);
        break;
      case Verb::revoke_device: memory_.revoke_device(f.slot, a.device, p); break;
      case Verb::map_device:
        if (a.prot == Prot::read_write) {
          memory_.give_children(
              f.slot, p,
              a.place == Place::system ? Memory::ChildSource{} : Memory::ChildSource{vram_owner(a), vram, false});
        }
        memory_.map_device(
            f.slot, a.device, p,
            {a.place == Place::system ? DeviceKind::system : DeviceKind::vram, a.prot == Prot::read_write,
             a.place == Place::system ? 0 : vram, a.place == Place::system ? no_device : vram_owner(a)});
        break;
      case Verb::copy:
        if (is_direct(a)) {
          memory_.copy_direct(f.slot, p, a.device, vram, a.to_device,
                              a.vram_to + static_cast<VramPage>(p - a.pages.first), false);
          ++stats_.copied_pages;
          break;
        }
        memory_.copy(f.slot, a.device, p, target_of(a), vram);
        ++stats_.copied_pages;
        break;
      case Verb::copy_system:
        memory_.copy_system(f.slot, a.from_page + (p - a.pages.first), p, false);
        ++stats_.copied_pages;
        break;
      case Verb::discard_system: memory_.discard_system(f.slot, p); break;
      case Verb::store:
        if (!memory_.store(f.slot, p)) f.status = Code::no_space;
        break;
      case Verb::load: memory_.load(f.slot, p); break;
      case Verb::discard_store: memory_.discard_store(f.slot, p); break;
      default: break;
    }
  }
  switch (a.verb) {
    case Verb::map_cpu: wake_cpu_waiters(f.slot, pages, {}, a.prot == Prot::read); break;
    case Verb::wake_cpu:
      if (a.status.ok()) {
        for_window(a.pages, [&](Page p) { memory_.let_cpu(f.slot, p); });
      }
      wake_cpu_waiters(f.slot, a.pages, a.status);
      break;
    case Verb::release_chunk: memory_.wipe_chunk(f.slot, a.device, a.vram_first); break;
    case Verb::wake_wave: end_fault(a.token.value, a.status); break;
    default: break;
  }
}

void World::finish_flight(std::uint32_t index) {
  Flight& f = flights_[index];
  const Action a = f.action;
  if (a.verb == Verb::store && !f.status.ok()) {
    for (Page p = a.pages.first; p < a.pages.end(); ++p) memory_.tear_store(f.slot, p);
  }
  if (a.verb == Verb::map_device && a.has_token) {
    if (f.status.ok()) {
      end_fault(a.token.value, {});
    } else if (const auto it = faults_.find(a.token.value); it != faults_.end()) {
      it->second.carried = false;  // the wave stays parked: another mapping or a wake must follow
    }
  }
  if (a.id != 0) {
    schedule(delay(), Kind::done, index, f.stamp);
    return;
  }
  f.in_use = false;
  flight_holes_.push_back(index);
  if (a.verb == Verb::reply) perform_reply(a);
  if (a.verb == Verb::signal_fence) requests_.erase(a.fence - 1);
}

void World::answer(std::uint32_t index) {
  Flight& f = flights_[index];
  const Action& a = f.action;
  line(Line::done, f.slot, a.device, 0, static_cast<std::uint64_t>(f.status.code), a.id,
       static_cast<std::uint64_t>(a.verb));
  if (a.verb == Verb::copy || a.verb == Verb::copy_system) {
    auto& count = !f.status.ok()                ? seen_.copy_errors
                  : a.verb == Verb::copy_system ? seen_.pages_copied_in_system
                  : is_inside_vram(a)           ? seen_.pages_copied_in_vram
                  : is_direct(a)                ? seen_.pages_direct
                  : target_of(a) == Place::vram ? seen_.pages_to_vram
                                                : seen_.pages_to_system;
    count += f.status.ok() ? a.pages.count_pages : 1;
  }
  if (a.verb == Verb::store || a.verb == Verb::load) {
    auto& count = !f.status.ok()          ? seen_.store_errors
                  : a.verb == Verb::store ? seen_.pages_to_store
                                          : seen_.pages_from_store;
    count += f.status.ok() ? a.pages.count_pages : 1;
  }
  if (a.verb == Verb::release_chunk) memory_.uncharge_chunk(f.slot, a.device, a.vram_first);
  f.in_use = false;
  flight_holes_.push_back(index);
  core_->action_done(now_ns_, a.id, f.status);
}

void World::end_fault(std::uint64_t token, Status status) {
  const auto it = faults_.find(token);
  if (it == faults_.end()) return;  // its client is closed
  const Fault f = it->second;
  faults_.erase(it);
  if (agents_[f.agent].life == f.agent_life) wake_agent(f.agent, status);
}

void World::perform_reply(const Action& a) {
  const auto it = requests_.find(a.cookie.value);
  if (it == requests_.end()) return;  // its client is closed
  const Request r = it->second;
  requests_.erase(it);
  if (r.kind == RequestKind::pin && phase_ != Phase::random && clients_[r.slot].state == ClientState::running) {
    do_unpin(r.slot, true);
  }
  if (r.kind == RequestKind::gone) {
    client_closed(r.slot);
  } else if (r.kind == RequestKind::free && clients_[r.slot].state == ClientState::running) {
    clients_[r.slot].freed.push_back(r.span);
  } else if (r.kind == RequestKind::unmap && clients_[r.slot].state == ClientState::running) {
    for (const PageSpan& part : r.parts) clients_[r.slot].freed.push_back(part);
  }
}

}  // namespace ferry::sim

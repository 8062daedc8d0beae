// Checks that compare what the core says with what the machine holds, and those of quiet moments.
#include <algorithm>
#include <string>

#include "sim/order.h"
#include "sim/violation.h"
#include "sim/world.h"

namespace ferry::sim {
namespace {
unsigned long long u(std::uint64_t v) { return v; }
}  // namespace

void World::periodic_check() {
  core_->verify();
  memory_.check_all();
  check_view(false);
  for (DeviceId d = 0; d < swarm_.devices; ++d) {
    if (core_->vram_used_pages(d) > swarm_.core.vram_pages) {
      violate(Invariant::budget, "the core says that device %u has %llu pages in use; its budget is %llu", unsigned{d},
              u(core_->vram_used_pages(d)), u(swarm_.core.vram_pages));
    }
    if (core_->vram_used_pages(d) < memory_.chunks_used(d) * block_pages) {
      violate(Invariant::view_is_true, "the core says that device %u has %llu pages in use, but %llu chunks are",
              unsigned{d}, u(core_->vram_used_pages(d)), u(memory_.chunks_used(d)));
    }
  }
}

/// I-16, for the pages that no action is about. `quiet`: nothing is, anywhere, and no page may be said to move.
void World::check_view(bool quiet) const {
  std::vector<bool> busy(memory_.window().count_pages);
  for (unsigned slot = 0; slot < clients_.size(); ++slot) {
    const Client& c = clients_[slot];
    if (c.state != ClientState::running) continue;
    std::fill(busy.begin(), busy.end(), false);
    for (const Flight& f : flights_) {
      if (!f.in_use || f.slot != slot || f.action.id == 0) continue;
      for (Page p = f.action.pages.first; p < f.action.pages.end(); ++p) busy[p - memory_.window().first] = true;
    }
    // Every page in quiet moments, else a share of them that shifts.
    const std::uint64_t stride = quiet ? 1 : 7;
    for (std::uint64_t i = quiet ? 0 : steps_ / 64 % stride; i < memory_.window().count_pages; i += stride) {
      const Page page = memory_.window().first + i;
      const AllocState state = memory_.state(slot, page);
      if (busy[i] || state == AllocState::freeing) continue;
      look_at(slot, page);
      const core::Residency r = core_->query(c.id, page);
      if (r.allocated != (state == AllocState::allocated)) {
        violate(Invariant::view_is_true, "the core says that page %llu of client %u is %s", u(page), c.id,
                r.allocated ? "allocated; it is not" : "not allocated; it is");
      }
      if (state == AllocState::none) continue;
      check_said(slot, page);
      if (r.moving) {
        if (quiet)
          violate(Invariant::progress, "page %llu of client %u moves, but nothing is under way", u(page), c.id);
        continue;
      }
      if (r.system_current && !memory_.system_is_current(slot, page)) {
        violate(Invariant::view_is_true,
                "the core says that page %llu of client %u is current in system memory; it is not", u(page), c.id);
      }
      if (r.vram_device != no_device && !memory_.vram_is_current(slot, r.vram_device, page)) {
        violate(Invariant::view_is_true,
                "the core says that page %llu of client %u is current in VRAM of device %u; it is not", u(page), c.id,
                unsigned{r.vram_device});
      }
      if (r.stored && !memory_.store_is_current(slot, page)) {
        violate(Invariant::view_is_true, "the core says that page %llu of client %u is current in the store; it is not",
                u(page), c.id);
      }
      if (memory_.resident(slot, page) && !r.held) {
        violate(Invariant::charged_first, "page %llu of client %u has system memory, and is not charged", u(page),
                c.id);
      }
      if (r.copies != 0 && !r.system_current && r.vram_device == no_device && !r.stored) {
        violate(Invariant::copies_are_equal, "page %llu of client %u has nothing but copies", u(page), c.id);
      }
      if (!r.system_current && r.vram_device == no_device && !r.stored) {
        violate(Invariant::current_copy, "the core knows no current copy of page %llu of client %u", u(page), c.id);
      }
      for (DeviceId d = 0; d < swarm_.devices; ++d) {
        if ((r.copies >> d & 1) != 0 && !memory_.vram_is_current(slot, d, page)) {
          violate(Invariant::copies_are_equal,
                  "the core says that device %u has a copy of page %llu of client %u; it has not, or an old one",
                  unsigned{d}, u(page), c.id);
        }
      }
      if (r.copies != 0 && (r.cpu_may_write || r.device_writable != 0)) {
        violate(Invariant::copies_not_written, "page %llu of client %u has copies, and somebody may write it", u(page),
                c.id);
      }
      if (quiet && memory_.cpu_entry(slot, page) == CpuEntry::refused && !keeps_from_cpu(slot, page, r)) {
        violate(Invariant::refused_till_let,
                "CPU threads are refused page %llu of client %u, which nothing keeps from them", u(page), c.id);
      }
      if (memory_.cpu_entry(slot, page) == CpuEntry::mapped && !r.cpu_may_write && r.cpu_may_map) {
        violate(Invariant::copies_not_written,
                "CPU threads write page %llu of client %u; the core says that they only read", u(page), c.id);
      }
      if (reaches(memory_.cpu_entry(slot, page)) && !r.cpu_may_map) {
        violate(Invariant::view_is_true, "the core says that no CPU thread reaches page %llu of client %u; they do",
                u(page), c.id);
      }
      for (DeviceId d = 0; d < swarm_.devices; ++d) {
        const DeviceEntry e = memory_.device_entry(slot, d, page);
        const bool mapped = (r.device_mapped >> d & 1) != 0;
        const bool writable = (r.device_writable >> d & 1) != 0;
        const bool alive = c.devices[d].state == DeviceState::attached;
        if (e.kind != DeviceKind::absent && (!mapped || (e.writable && !writable))) {
          violate(Invariant::view_is_true, "device %u reaches page %llu of client %u%s; the core says that it does not",
                  unsigned{d}, u(page), c.id, e.writable ? " for writing" : "");
        }
        if (e.kind == DeviceKind::vram && e.writable && !r.dirty) {
          violate(Invariant::writable_is_dirty,
                  "device %u can write VRAM of page %llu of client %u, which the core says is clean", unsigned{d},
                  u(page), c.id);
        }
        if (writable && !mapped) {
          violate(Invariant::view_is_true, "device_writable without device_mapped for page %llu of client %u", u(page),
                  c.id);
        }
        if (quiet && alive && mapped && e.kind == DeviceKind::absent && stats_.failed_actions == 0) {
          violate(Invariant::view_is_true, "the core says that device %u maps page %llu of client %u; it does not",
                  unsigned{d}, u(page), c.id);
        }
      }
    }
  }
}

std::string World::who_waits() const {
  std::string text;
  unsigned shown = 0;
  const auto add = [&](const std::string& one) {
    if (++shown <= 12) text += "\n  " + one;
  };
  for (const auto& [token, f] : faults_) {
    if (agents_[f.agent].life != f.agent_life) continue;
    add("wave " + std::to_string(agents_[f.agent].number) + " of client " + std::to_string(clients_[f.slot].id) +
        " on device " + std::to_string(unsigned{f.device}) + " waits for page " + std::to_string(f.page) + " (token " +
        std::to_string(token) + (f.delivered ? ", told to the core" : ", not yet told") +
        (f.carried ? ", carried by a map_device" : "") + (f.ended ? ", its wake is on the way)" : ")"));
  }
  for (const Agent& a : agents_) {
    if (a.is_wave || !a.alive || !a.blocked) continue;
    add("CPU thread " + std::to_string(a.number) + " of client " + std::to_string(clients_[a.slot].id) +
        " waits for page " + std::to_string(a.page));
  }
  for (const auto& [cookie, r] : requests_) {
    const char* kinds[] = {"free",    "prefetch", "client_gone", "pin",     "discard",     "migrate",
                           "svm_set", "unmap",    "zero",        "protect", "client_fork", "move"};
    const char* kind = kinds[static_cast<unsigned>(r.kind)];
    add(std::string(kind) + " (cookie " + std::to_string(cookie) + ") of client " +
        std::to_string(clients_[r.slot].id) + " for pages " + std::to_string(r.span.first) + "+" +
        std::to_string(r.span.count_pages) + " waits for its answer");
  }
  for (const Flight& f : flights_) {
    if (!f.in_use) continue;
    add(std::string("action #") + std::to_string(f.action.id) + " " + core::to_string(f.action.verb) + " of " +
        std::to_string(f.action.pages.first) + "+" + std::to_string(f.action.pages.count_pages) + " is not answered");
  }
  if (shown > 12) text += "\n  and " + std::to_string(shown - 12) + " more";
  return text.empty() ? "nobody" : text;
}

/// A circle among those who wait is the core's own explanation; none says that somebody was not told.
std::string World::circle() const {
  const std::string found = core_->deadlock();
  return found.empty() ? "\n  (no circle: something ended and nobody was told)" : "\n  a circle: " + found;
}

/// The event queue is empty: whoever still waits would wait for ever.
void World::check_stuck(const char* doing) const {
  for (const auto& [token, f] : faults_) {
    if (agents_[f.agent].life == f.agent_life) {
      violate(Invariant::fault_ends_once, "%s: nothing is under way any more, but they wait:%s", doing,
              (who_waits() + circle()).c_str());
    }
  }
  for (const Agent& a : agents_) {
    if (!a.is_wave && a.alive && a.blocked) {
      violate(Invariant::cpu_fault_ends, "%s: nothing is under way any more, but they wait:%s", doing,
              (who_waits() + circle()).c_str());
    }
  }
  for (const auto& [cookie, r] : requests_) {
    if (clients_[r.slot].life == r.client_life) {
      violate(Invariant::reply_once, "%s: nothing is under way any more, but they wait:%s", doing,
              (who_waits() + circle()).c_str());
    }
  }
}

/// I-40, I-41, at every event. The memory of clients that leave goes with their file, after the core forgot them.
void World::check_budget() const {
  std::uint64_t resident = 0;
  for (unsigned slot = 0; slot < clients_.size(); ++slot) {
    if (clients_[slot].state == ClientState::running || clients_[slot].state == ClientState::dead) {
      resident += memory_.resident_pages(slot);
    }
  }
  const core::Stats& s = core_->stats();
  if (resident > s.system_pages) {
    violate(Invariant::charged_first, "%llu pages have system memory, but %llu are charged", u(resident),
            u(s.system_pages));
  }
  if (s.system_pages > std::max(budget_, swarm_.core.system_pages) + s.over_budget_pages) {
    violate(Invariant::over_is_told, "%llu pages are charged; the budget is %llu, and %llu were given over it",
            u(s.system_pages), u(std::max(budget_, swarm_.core.system_pages)), u(s.over_budget_pages));
  }
}

/// In quiet moments, what is charged is what pages hold, to the page.
void World::check_held() const {
  std::uint64_t held = 0;
  for (unsigned slot = 0; slot < clients_.size(); ++slot) {
    if (clients_[slot].state != ClientState::running) continue;
    for (std::uint64_t i = 0; i < memory_.window().count_pages; ++i) {
      held += core_->query(clients_[slot].id, memory_.window().first + i).held ? 1 : 0;
    }
  }
  if (held != core_->stats().system_pages) {
    violate(Invariant::charged_first, "pages hold %llu pages of system memory, but %llu are charged", u(held),
            u(core_->stats().system_pages));
  }
}

void World::check_settled() const {
  for (const Flight& f : flights_) {
    if (f.in_use) {
      violate(Invariant::progress, "action #%llu (%s) was never answered", u(f.action.id),
              core::to_string(f.action.verb));
    }
  }
  for (const Client& c : clients_) {
    if (c.state != ClientState::running && c.state != ClientState::closed) {
      violate(Invariant::all_given_back, "client %u ended and is not closed", c.id);
    }
  }
  core_->verify();
  if (!core_->quiescent()) violate(Invariant::progress, "all is done, but the core says that something is in flight");
  memory_.check_all();
  check_view(true);
  if (swarm_.core.system_pages != 0) check_held();
}

namespace {
/// The statistics that can be told from outside, or that must add up over clients.
struct Counter {
  const char* name;
  std::uint64_t core::Stats::*field;
  bool seen;  ///< counted by the simulator too
};
constexpr Counter counters[] = {
    {"device_faults", &core::Stats::device_faults, true},
    {"device_faults_merged", &core::Stats::device_faults_merged, false},
    {"cpu_faults", &core::Stats::cpu_faults, true},
    {"cpu_faults_merged", &core::Stats::cpu_faults_merged, false},
    {"faults_failed", &core::Stats::faults_failed, true},
    {"pages_to_vram", &core::Stats::pages_to_vram, true},
    {"pages_to_system", &core::Stats::pages_to_system, true},
    {"pages_direct", &core::Stats::pages_direct, true},
    {"copy_errors", &core::Stats::copy_errors, true},
    {"evictions", &core::Stats::evictions, true},
    {"refaults", &core::Stats::refaults, true},
    {"contention_pins", &core::Stats::contention_pins, true},
    {"contention_waits", &core::Stats::contention_waits, false},
    {"pages_dropped_clean", &core::Stats::pages_dropped_clean, false},
    {"migrations_to_vram", &core::Stats::migrations_to_vram, true},
    {"migrations_to_system", &core::Stats::migrations_to_system, true},
    {"evicted_pages", &core::Stats::evicted_pages, false},
    {"in_place_maps", &core::Stats::in_place_maps, true},
    {"pages_to_store", &core::Stats::pages_to_store, true},
    {"pages_from_store", &core::Stats::pages_from_store, true},
    {"store_errors", &core::Stats::store_errors, true},
    {"stored_pages", &core::Stats::stored_pages, false},
    {"pages_duplicated", &core::Stats::pages_duplicated, false},
    {"pages_carried", &core::Stats::pages_carried, false},
    {"pages_copied_in_vram", &core::Stats::pages_copied_in_vram, true},
    {"pages_copied_in_system", &core::Stats::pages_copied_in_system, true},
    {"pages_collapsed", &core::Stats::pages_collapsed, false},
    {"speculated_pages", &core::Stats::speculated_pages, false},
    {"dma_mapped_pages", &core::Stats::dma_mapped_pages, false},
    {"dma_unmapped_pages", &core::Stats::dma_unmapped_pages, false},
};
}  // namespace

/// What is told about migrations, for traces and reports: each begin has its end, and nothing is copied between.
void World::check_migration(const core::Event& e) {
  const auto key = std::pair{e.client, e.pages.first};
  const auto it = moving_.find(key);
  if (e.kind == core::EventKind::migrate_begin) {
    if (it != moving_.end()) {
      violate(Invariant::counts_are_true,
              "pages %llu+%llu of client %u begin to migrate before their last migration ended", u(e.pages.first),
              u(e.pages.count_pages), e.client);
    }
    moving_[key] = {e.to, 0};
    return;
  }
  if (it == moving_.end() || it->second.to != e.to) {
    violate(Invariant::counts_are_true, "a migration of pages %llu+%llu of client %u ends that never began",
            u(e.pages.first), u(e.pages.count_pages), e.client);
  }
  if (it->second.copies == 0) {
    violate(Invariant::counts_are_true,
            "pages %llu+%llu of client %u are said to have migrated, and nothing was copied", u(e.pages.first),
            u(e.pages.count_pages), e.client);
  }
  moving_.erase(it);
}

void World::check_copy(const core::Action& a) {
  const Page granule = a.pages.first - a.pages.first % swarm_.core.granularity_pages;
  const auto it = moving_.find({a.client, granule});
  if (it == moving_.end() || it->second.to != goes_to(a)) {
    const char* where[] = {"home", "to VRAM", "to the store"};
    violate(Invariant::counts_are_true, "pages %llu+%llu of client %u are moved %s, and no migration was told",
            u(a.pages.first), u(a.pages.count_pages), a.client, where[static_cast<unsigned>(goes_to(a))]);
  }
  ++it->second.copies;
  if (goes_to(a) == core::Place::vram && core_->query(a.client, a.pages.first).contended &&
      clients_[slot_of(a)].plain) {
    violate(Invariant::answers_right,
            "page %llu of client %u is held in system memory as contended, and is copied to VRAM", u(a.pages.first),
            a.client);
  }
}

/// A client is closed: what was opened for it is closed (I-07), and its statistics enter the sum.
void World::client_counts(ClientId id) {
  const core::Stats s = core_->client_stats(id);
  if (s.dma_mapped_pages != s.dma_unmapped_pages) {
    violate(Invariant::dma_balance, "client %u is gone: %llu system pages were opened to its devices and %llu closed",
            id, u(s.dma_mapped_pages), u(s.dma_unmapped_pages));
  }
  for (const auto& [key, to] : moving_) {
    if (key.first == id) {
      violate(Invariant::counts_are_true, "client %u is gone, but the migration of its pages at %llu never ended", id,
              u(key.second));
    }
  }
  for (const Counter& c : counters) clients_sum_.*c.field += s.*c.field;
}

/// In a quiet machine, where nothing fails, requests and faults do what they are for (I-17).
void World::check_effects() {
  // Under a budget a prefetch may be refused for want of memory.
  if (swarm_.core.vram_pages < block_pages || swarm_.core.system_pages != 0) return;
  for (unsigned slot = 0; slot < clients_.size(); ++slot) {
    Client& c = clients_[slot];
    if (c.state != ClientState::running || c.spans.empty()) continue;
    const PageSpan span = c.spans[random_.below(c.spans.size())];
    const Page page = span.first + random_.below(span.count_pages);
    const auto device = static_cast<DeviceId>(random_.below(swarm_.devices));
    if (c.devices[device].state != DeviceState::attached) continue;
    const Page granule = page - page % swarm_.core.granularity_pages;
    if (memory_.has_in_place(slot, {granule, swarm_.core.granularity_pages})) continue;
    look_at(slot, page);

    ask_prefetch(slot, {page, 1}, no_device);
    take_actions();
    drain("bringing a page home");
    core::Residency r = core_->query(c.id, page);
    if (!r.system_current || r.vram_device != no_device) {
      violate(Invariant::answers_right, "page %llu of client %u was brought home, but is not there", u(page), c.id);
    }
    // A protected page's fault fails.
    if (r.contended || memory_.was_protected(slot, page)) continue;
    const std::uint64_t pins = seen_.contention_pins;
    const std::uint64_t asked_ns = now_ns_;

    // A device that has the page in place does not fault on it.
    if (r.device_mapped != 0 || random_.chance(500)) {
      ask_prefetch(slot, {page, 1}, device);
    } else {
      for (const auto index : c.agents) {
        if (agents_[index].is_wave && agents_[index].device == device) {
          agents_[index].sweep.push_back(page);
          start_agent(index, 1);
          break;
        }
      }
    }
    take_actions();
    drain("bringing a page to a device");
    r = core_->query(c.id, page);
    // A line for VRAM that stands for too long is served in place.
    const bool patient = now_ns_ - asked_ns <= swarm_.core.line_patience_ns;
    // A policy may have left it where it was; then the device reaches it there.
    const bool left = swarm_.core.leave != core::LeaveKind::never && (r.device_mapped >> device & 1U) != 0;
    if (patient && !left && seen_.contention_pins == pins && r.vram_device != device) {
      violate(Invariant::answers_right, "page %llu of client %u was brought to device %u, but is not there", u(page),
              c.id, unsigned{device});
    }
  }
}

void World::check_counts() const {
  const core::Stats& s = core_->stats();
  for (const Counter& c : counters) {
    if (c.seen && s.*c.field != seen_.*c.field) {
      violate(Invariant::counts_are_true, "the core counts %s %llu; it was %llu", c.name, u(s.*c.field),
              u(seen_.*c.field));
    }
    if (s.*c.field != clients_sum_.*c.field) {
      violate(Invariant::counts_are_true, "%s is %llu, but the clients' add up to %llu", c.name, u(s.*c.field),
              u(clients_sum_.*c.field));
    }
  }
  if (s.evicted_pages > s.evictions * swarm_.core.granularity_pages) {
    violate(Invariant::counts_are_true, "%llu pages in %llu evictions of %u pages at most", u(s.evicted_pages),
            u(s.evictions), swarm_.core.granularity_pages);
  }
}

void World::check_empty() const {
  check_settled();
  check_counts();
  const core::Stats& s = core_->stats();
  if (s.dma_mapped_pages != s.dma_unmapped_pages) {
    violate(Invariant::dma_balance, "%llu system pages were opened to devices and %llu closed", u(s.dma_mapped_pages),
            u(s.dma_unmapped_pages));
  }
  for (DeviceId d = 0; d < swarm_.devices; ++d) {
    if (memory_.chunks_used(d) != 0 || core_->vram_used_pages(d) != 0) {
      violate(Invariant::all_given_back,
              "all clients are gone, but device %u has %llu chunks in use (the core says %llu pages)", unsigned{d},
              u(memory_.chunks_used(d)), u(core_->vram_used_pages(d)));
    }
  }
  if (s.vram_pages != 0)
    violate(Invariant::all_given_back, "all clients are gone, but stats say vram_pages %llu", u(s.vram_pages));
  if (s.system_pages != 0 || s.stored_pages != 0) {
    violate(Invariant::all_given_back, "all clients are gone, but %llu pages are charged and %llu stored",
            u(s.system_pages), u(s.stored_pages));
  }
  if (s.vram_peak_pages > swarm_.core.vram_pages) {
    violate(Invariant::budget, "stats say a peak of %llu pages; the budget is %llu", u(s.vram_peak_pages),
            u(swarm_.core.vram_pages));
  }
}

}  // namespace ferry::sim

// What simulated applications do: CPU threads and waves that read, write and add, and a main thread that allocates,
// frees and prefetches. An access that faults is repeated when its thread or wave is woken, as the hardware does.
#include <algorithm>

#include "sim/violation.h"
#include "sim/world.h"

namespace ferry::sim {
namespace {
constexpr std::uint64_t huge_pages = std::uint64_t{1} << 60;
// An access that the others keep from ever being done starves. In 10,000 runs none took more than 37 tries.
constexpr std::uint32_t most_tries = 400;
}  // namespace

void World::make_agents(unsigned slot) {
  Client& c = clients_[slot];
  const std::size_t per_client = swarm_.threads + swarm_.devices * swarm_.waves;
  if (c.agents.empty()) {
    for (std::size_t i = 0; i < per_client; ++i) {
      c.agents.push_back(static_cast<std::uint32_t>(agents_.size()));
      agents_.emplace_back();
    }
  }
  for (std::size_t i = 0; i < per_client; ++i) {
    Agent& a = agents_[c.agents[i]];
    a.slot = slot;
    a.number = static_cast<std::uint32_t>(i);
    a.is_wave = i >= swarm_.threads;
    a.device = a.is_wave ? static_cast<DeviceId>((i - swarm_.threads) / swarm_.waves) : no_device;
    forget_agent(a);
    a.left = 0;
    if (!a.is_wave) start_agent(c.agents[i], 1 + random_.below(1000));
  }
}

void World::start_agent(std::uint32_t index, std::uint64_t delay_ns) {
  Agent& a = agents_[index];
  a.alive = true;
  a.parked = false;
  schedule(delay_ns, Kind::agent, index, a.life);
}

void World::pick_pattern(Agent& a) {
  const Client& c = clients_[a.slot];
  a.left = 4 + static_cast<unsigned>(random_.below(60));
  a.cursor = 0;
  if (!c.hot.empty() && random_.chance(swarm_.hot_share)) {
    a.pattern = Pattern::hot;
    return;
  }
  PageSpan span = c.spans[random_.below(c.spans.size())];
  if (span.count_pages > 1 && random_.chance(500)) {
    const std::uint64_t skip = random_.below(span.count_pages);
    span = {span.first + skip, span.count_pages - skip};
  }
  a.target = span;
  a.pattern = random_.chance(swarm_.scan_share) ? Pattern::scan : Pattern::random;
}

bool World::pick_access(Agent& a) {
  const Client& c = clients_[a.slot];
  a.stray = false;
  if (phase_ != Phase::random) {
    if (a.sweep.empty()) return false;
    a.page = a.sweep.back();
    a.sweep.pop_back();
    a.op = Op::read;
    a.has_op = true;
    return true;
  }
  if (a.is_wave && swarm_.stray_share != 0 && random_.chance(swarm_.stray_share)) {
    a.stray = true;
    a.page = random_.chance(700) ? memory_.window().first + random_.below(memory_.window().count_pages)
                                 : memory_.window().end() + random_.below(huge_pages >> 20);
    a.op = random_.chance(500) ? Op::read : Op::write;
    // What is written to a page while it is discarded may or may not be there afterwards.
    if (memory_.inside({a.page, 1}) && memory_.zeroing(a.slot, a.page)) return false;
    a.has_op = true;
    return true;
  }
  if (c.spans.empty()) return false;
  if (a.left == 0 || (a.pattern == Pattern::hot && c.hot.empty())) pick_pattern(a);
  --a.left;
  switch (a.pattern) {
    case Pattern::hot: a.page = c.hot[random_.below(c.hot.size())]; break;
    case Pattern::scan: a.page = a.target.first + a.cursor++ % a.target.count_pages; break;
    case Pattern::random: a.page = a.target.first + random_.below(a.target.count_pages); break;
  }
  const std::uint64_t dice = random_.below(1000);
  a.op = dice < swarm_.add_share ? Op::add : dice < swarm_.add_share + swarm_.write_share ? Op::write : Op::read;
  a.has_op = true;
  return true;
}

void World::run_agent(std::uint32_t index) {
  Agent& a = agents_[index];
  if (!a.alive || a.blocked || a.parked) return;
  // A few accesses in one event: those that hit cost nothing worth an event each.
  for (unsigned burst = 0; burst < 4; ++burst) {
    if (!a.has_op && !pick_access(a)) {
      if (phase_ == Phase::random) {
        schedule(swarm_.think_ns * 8, Kind::agent, index, a.life);
      } else {
        a.parked = true;
      }
      return;
    }
    Touch touch = Touch::fault;
    if (memory_.inside({a.page, 1})) {
      look_at(a.slot, a.page);
      touch =
          a.is_wave ? memory_.device_access(a.slot, a.device, a.page, a.op) : memory_.cpu_access(a.slot, a.page, a.op);
    }
    const Access access = a.op == Op::read ? Access::read : Access::write;
    if (touch == Touch::done) {
      ++stats_.accesses;
      line(a.is_wave ? Line::wave_op : Line::cpu_op, a.slot, a.device, a.page, static_cast<std::uint64_t>(a.op),
           a.number);
      a.has_op = false;
      a.retries = 0;
      continue;
    }
    if (touch == Touch::segv) {
      line(Line::segv, a.slot, no_device, a.page, 0, a.number);
      a.has_op = false;
      a.left = 0;
      continue;
    }
    stats_.most_retries = std::max<std::uint64_t>(stats_.most_retries, ++a.retries);
    if (a.retries > most_tries) {
      violate(Invariant::progress,
              "page %llu of client %u: an access has faulted and been woken %u times and is not done",
              static_cast<unsigned long long>(a.page), clients_[a.slot].id, a.retries);
    }
    a.blocked = true;
    if (a.is_wave) {
      post_fault(index, a.page, access);
    } else {
      line(Line::post_cpu_fault, a.slot, no_device, a.page, static_cast<std::uint64_t>(access), a.number);
      schedule(delay(), Kind::post_cpu, a.slot, clients_[a.slot].life,
               a.page << 1 | static_cast<std::uint64_t>(access));
    }
    return;
  }
  schedule(1 + random_.below(swarm_.think_ns), Kind::agent, index, a.life);
}

void World::post_fault(std::uint32_t index, Page page, Access access) {
  Agent& a = agents_[index];
  a.token = next_token_++;
  Fault& f = faults_[a.token];
  f.agent = index;
  f.agent_life = a.life;
  f.slot = a.slot;
  f.client_life = clients_[a.slot].life;
  f.device = a.device;
  f.page = page;
  f.access = access;
  f.seen = core_->changes(clients_[a.slot].id);
  line(Line::post_fault, a.slot, a.device, page, static_cast<std::uint64_t>(access), a.token);
  schedule(delay(), Kind::post, 0, 0, a.token);
}

void World::deliver_fault(std::uint64_t token) {
  const auto it = faults_.find(token);
  if (it == faults_.end()) return;
  Fault& f = it->second;
  if (agents_[f.agent].life != f.agent_life) {  // the port is dead: its records are not read
    faults_.erase(it);
    return;
  }
  if (clients_[f.slot].forking) {
    clients_[f.slot].held.push_back(token);
    return;
  }
  f.delivered = true;
  f.no_retry = !core_->retry_faults(clients_[f.slot].id, f.device);
  if (memory_.inside({f.page, 1})) {
    f.was_allocated = memory_.state(f.slot, f.page) == AllocState::allocated;
    f.page_generation = memory_.generation(f.slot, f.page);
    f.old = f.seen < clients_[f.slot].unmapped[f.page - memory_.window().first];
    stats_.old_faults += f.old ? 1 : 0;
  }
  ++stats_.device_faults;
  if (clients_[f.slot].state != ClientState::leaving) ++seen_.device_faults;
  line(Line::device_fault, f.slot, f.device, f.page, static_cast<std::uint64_t>(f.access), token);
  core_->device_fault(now_ns_, clients_[f.slot].id, f.device, f.page, f.access, {token}, core::AllocContext::no_cu,
                      f.seen);
}

void World::deliver_cpu_fault(unsigned slot, Page page, Access access) {
  ++stats_.cpu_faults;
  if (clients_[slot].state != ClientState::leaving) ++seen_.cpu_faults;
  line(Line::cpu_fault, slot, no_device, page, static_cast<std::uint64_t>(access));
  core_->cpu_fault(now_ns_, clients_[slot].id, page, access);
}

void World::wake_agent(std::uint32_t index, Status status) {
  Agent& a = agents_[index];
  if (!a.alive || !a.blocked) return;
  a.blocked = false;
  line(Line::resume, a.slot, a.device, a.page, static_cast<std::uint64_t>(status.code), a.number);
  if (!status.ok()) {
    ++stats_.waves_failed;
    a.has_op = false;
    a.retries = 0;
    a.left = 0;
  }
  schedule(1 + random_.below(1000), Kind::agent, index, a.life);
}

void World::wake_cpu_waiters(unsigned slot, PageSpan span, Status status, bool readers) {
  for (const auto index : clients_[slot].agents) {
    const Agent& a = agents_[index];
    if (readers && a.op != Op::read) continue;
    if (!a.is_wave && a.blocked && span.contains(a.page)) wake_agent(index, status);
  }
}

void World::manage(unsigned slot) {
  Client& c = clients_[slot];
  if (c.state != ClientState::running || phase_ != Phase::random) {
    c.parked = true;
    return;
  }
  const unsigned changes = swarm_.unmap_weight + swarm_.zero_weight + swarm_.protect_weight + swarm_.move_weight;
  const unsigned total = swarm_.alloc_weight + swarm_.free_weight + swarm_.prefetch_weight + swarm_.bad_weight +
                         swarm_.places_weight + swarm_.attributes_weight + changes + swarm_.fork_weight +
                         swarm_.retry_weight;
  auto dice = static_cast<unsigned>(random_.below(total));
  if (c.spans.empty() || dice < swarm_.alloc_weight) {
    do_alloc(slot);
  } else if ((dice -= swarm_.alloc_weight) < swarm_.free_weight) {
    do_free(slot);
  } else if ((dice -= swarm_.free_weight) < swarm_.prefetch_weight) {
    do_prefetch(slot);
  } else if ((dice -= swarm_.prefetch_weight) < swarm_.places_weight) {
    ask_places(slot);
  } else if ((dice -= swarm_.places_weight) < swarm_.attributes_weight) {
    ask_attributes(slot);
  } else if ((dice -= swarm_.attributes_weight) < swarm_.unmap_weight) {
    do_unmap(slot);
  } else if ((dice -= swarm_.unmap_weight) < swarm_.zero_weight) {
    do_zero(slot);
  } else if ((dice -= swarm_.zero_weight) < swarm_.protect_weight) {
    do_protect(slot);
  } else if ((dice -= swarm_.protect_weight) < swarm_.move_weight) {
    do_move(slot);
  } else if ((dice -= swarm_.move_weight) < swarm_.fork_weight) {
    random_.chance(300) ? do_fork(slot) : do_child(slot);
  } else if ((dice -= swarm_.fork_weight) < swarm_.retry_weight) {
    do_retry(slot);
  } else {
    do_bad_request(slot);
  }
  schedule(1 + random_.below(swarm_.manage_ns), Kind::manage, slot, c.life);
}

PageSpan World::random_span(unsigned slot) {
  const Client& c = clients_[slot];
  const PageSpan window = memory_.window();
  if (!c.freed.empty() && random_.chance(500)) return c.freed[random_.below(c.freed.size())];
  std::uint64_t count = 1 + random_.below(swarm_.max_alloc_pages);
  if (random_.chance(300)) count = 1 + random_.below(8);
  if (random_.chance(300)) count = (1 + random_.below(3)) * block_pages;
  count = std::min(count, window.count_pages);
  std::uint64_t offset = random_.below(window.count_pages - count + 1);
  if (random_.chance(500)) offset -= offset % block_pages;
  return {window.first + offset, count};
}

bool World::span_has(unsigned slot, PageSpan span, AllocState state) const {
  if (!memory_.inside(span)) return state == AllocState::none;
  for (Page p = span.first; p < span.end(); ++p) {
    if (memory_.state(slot, p) == state) return true;
  }
  return false;
}

/// Some page is allocated, and not being freed.
bool World::span_exists(unsigned slot, PageSpan span) const {
  for (Page p = span.first; p < span.end(); ++p) {
    if (memory_.inside({p, 1}) && memory_.exists(slot, p)) return true;
  }
  return false;
}

std::uint64_t World::new_cookie(RequestKind kind, unsigned slot, PageSpan span) {
  ++stats_.requests;
  const std::uint64_t cookie = next_cookie_++;
  requests_[cookie] = Request{kind, slot, clients_[slot].life, span, no_device, false, 0, {}};
  return cookie;
}

void World::do_alloc(unsigned slot) {
  Client& c = clients_[slot];
  const PageSpan span = random_span(slot);
  for (const auto& [cookie, r] : requests_) {
    // Parts of it may be free before all of it is.
    if (r.kind == RequestKind::unmap && r.slot == slot && r.span.overlaps(span)) return;
  }
  const bool in_place = random_.chance(swarm_.in_place_share);
  const bool clash = span_has(slot, span, AllocState::allocated) || span_has(slot, span, AllocState::freeing);
  const Status status =
      core_->alloc(now_ns_, c.id, span, in_place ? core::Placement::system : core::Placement::automatic);
  line(Line::alloc, slot, no_device, span.first, span.count_pages, static_cast<std::uint64_t>(status.code), in_place);
  if (status.code != (clash ? Code::overlap : Code::ok)) {
    violate(Invariant::answers_right, "alloc of %llu+%llu of client %u gives: %s; the span is %s",
            static_cast<unsigned long long>(span.first), static_cast<unsigned long long>(span.count_pages), c.id,
            to_string(status.code), clash ? "in use" : "free");
  }
  if (clash) return;
  memory_.alloc(slot, span, in_place);
  c.spans.push_back(span);
  std::erase(c.freed, span);
  while (c.hot.size() < 4 && random_.chance(500)) c.hot.push_back(span.first + random_.below(span.count_pages));
}

void World::drop_span(unsigned slot, PageSpan gone) {
  Client& c = clients_[slot];
  std::vector<PageSpan> rest;
  for (const PageSpan& s : c.spans) {
    if (!s.overlaps(gone)) {
      rest.push_back(s);
      continue;
    }
    if (s.first < gone.first) rest.push_back({s.first, gone.first - s.first});
    if (gone.end() < s.end()) rest.push_back({gone.end(), s.end() - gone.end()});
  }
  c.spans = std::move(rest);
  std::erase_if(c.hot, [&](Page p) { return gone.contains(p); });
}

void World::free_span(unsigned slot, PageSpan span) {
  Client& c = clients_[slot];
  if (memory_.inside(span)) {
    for (Page p = span.first; p < span.end(); ++p) {
      if (memory_.zeroing(slot, p) && !memory_.moving(slot, p)) return;
    }
  }
  bool fair = memory_.inside(span);
  for (Page p = span.first; fair && p < span.end(); ++p) fair = may_free(slot, p);
  if (fair) {
    if (!planted(core::PlantedBug::free_before_child)) keep_for_children(slot, span);
    // munmap comes first. It wakes nobody: threads that wait in the span are the core's to tell, and get their own fault.
    memory_.begin_free(slot, span);
    for (Page p = span.first; p < span.end(); ++p) c.said[p - memory_.window().first] = {};
    drop_span(slot, span);
  }
  const std::uint64_t cookie = new_cookie(RequestKind::free, slot, span);
  const Status status = core_->free(now_ns_, c.id, span, {cookie});
  line(Line::free, slot, no_device, span.first, span.count_pages, static_cast<std::uint64_t>(status.code), cookie);
  if (!status.ok()) requests_.erase(cookie);
  if (status.code != (fair ? Code::ok : Code::not_allocated)) {
    violate(Invariant::answers_right, "free of %llu+%llu of client %u gives: %s; the span is %s",
            static_cast<unsigned long long>(span.first), static_cast<unsigned long long>(span.count_pages), c.id,
            to_string(status.code), fair ? "allocated" : "not all allocated");
  }
}

void World::do_free(unsigned slot) {
  Client& c = clients_[slot];
  PageSpan span = c.spans[random_.below(c.spans.size())];
  if (span.count_pages > 1 && random_.chance(400)) {
    const std::uint64_t skip = random_.below(span.count_pages);
    span = {span.first + skip, 1 + random_.below(span.count_pages - skip)};
  }
  if (const PageSpan part = part_of_move(slot); part.count_pages != 0) span = part;
  if (!swarm_.free_while_used) {
    for (const auto index : c.agents) {
      Agent& a = agents_[index];
      if (a.alive && a.has_op && span.contains(a.page)) return;
      if (a.alive && span.overlaps(a.target)) a.left = 0;
    }
  }
  free_span(slot, span);
}

void World::do_prefetch(unsigned slot) {
  Client& c = clients_[slot];
  PageSpan span = c.spans[random_.below(c.spans.size())];
  if (random_.chance(300)) span = random_span(slot);
  std::vector<DeviceId> attached;
  for (DeviceId d = 0; d < swarm_.devices; ++d) {
    const DeviceState state = c.devices[d].state;
    if (state == DeviceState::attached || random_.chance(100)) attached.push_back(d);
  }
  DeviceId device = no_device;
  if (!attached.empty() && random_.chance(700)) device = attached[random_.below(attached.size())];
  ask_prefetch(slot, span, device);
}

void World::ask_prefetch(unsigned slot, PageSpan span, DeviceId device) {
  const Client& c = clients_[slot];
  const std::uint64_t cookie = new_cookie(RequestKind::prefetch, slot, span);
  const Status status = core_->prefetch(now_ns_, c.id, span, device, {cookie});
  line(Line::prefetch, slot, device, span.first, span.count_pages, static_cast<std::uint64_t>(status.code), cookie);
  if (!status.ok()) requests_.erase(cookie);
  const bool some = span_has(slot, span, AllocState::allocated);
  const bool fair =
      some ? status.ok() : status.code == Code::not_allocated || span_has(slot, span, AllocState::freeing);
  if (!fair) {
    violate(Invariant::answers_right, "prefetch of %llu+%llu of client %u gives: %s; the span is %s",
            static_cast<unsigned long long>(span.first), static_cast<unsigned long long>(span.count_pages), c.id,
            to_string(status.code), some ? "allocated, in part at least" : "not allocated");
  }
}

void World::do_bad_request(unsigned slot) {
  Client& c = clients_[slot];
  const PageSpan window = memory_.window();
  const Page somewhere = window.first + random_.below(window.count_pages);
  switch (random_.below(5)) {
    case 0: {
      const PageSpan bad = random_.chance(500) ? PageSpan{somewhere, 0} : PageSpan{somewhere, huge_pages};
      const Status status = core_->alloc(now_ns_, c.id, bad, core::Placement::automatic);
      line(Line::alloc, slot, no_device, bad.first, bad.count_pages, static_cast<std::uint64_t>(status.code));
      if (status.code != Code::bad_range) {
        violate(Invariant::answers_right, "alloc of %llu pages gives: %s",
                static_cast<unsigned long long>(bad.count_pages), to_string(status.code));
      }
      break;
    }
    case 1: free_span(slot, {window.end() + random_.below(window.count_pages), 1 + random_.below(600)}); break;
    case 2: free_span(slot, random_span(slot)); break;
    case 3: {
      const std::uint64_t cookie = new_cookie(RequestKind::prefetch, slot, {somewhere, 0});
      const Status status = core_->prefetch(now_ns_, c.id, {somewhere, 0}, no_device, {cookie});
      line(Line::prefetch, slot, no_device, somewhere, 0, static_cast<std::uint64_t>(status.code), cookie);
      requests_.erase(cookie);
      if (status.code != Code::bad_range) {
        violate(Invariant::answers_right, "prefetch of no pages gives: %s", to_string(status.code));
      }
      break;
    }
    default:
      // A CPU fault that is history by the time it is read.
      deliver_cpu_fault(slot, somewhere, random_.chance(500) ? Access::read : Access::write);
  }
}

/// Requests that were on their way when the application's end was noticed.
void World::call_the_dead(unsigned slot) {
  const ClientId id = clients_[slot].id;
  const PageSpan span = random_span(slot);
  const Status statuses[] = {core_->alloc(now_ns_, id, span, core::Placement::automatic),
                             core_->free(now_ns_, id, span, {next_cookie_}),
                             core_->prefetch(now_ns_, id, span, no_device, {next_cookie_})};
  for (const Status& status : statuses) {
    if (status.code != Code::client_gone && status.code != Code::not_allocated) {
      violate(Invariant::answers_right, "a request of client %u, which has ended, gives: %s", id,
              to_string(status.code));
    }
  }
  core_->cpu_fault(now_ns_, id, span.first, Access::read);
}

void World::start_sweep() {
  for (Client& c : clients_) {
    if (c.state != ClientState::running || c.spans.empty()) continue;
    for (const auto index : c.agents) {
      Agent& a = agents_[index];
      const bool chosen = a.is_wave ? a.number % swarm_.waves == swarm_.threads % swarm_.waves &&
                                          c.devices[a.device].state == DeviceState::attached
                                    : a.number == 0;
      if (!chosen) continue;
      for (unsigned i = 0; i < (a.is_wave ? 16U : 32U); ++i) {
        const PageSpan span = c.spans[random_.below(c.spans.size())];
        a.sweep.push_back(span.first + random_.below(span.count_pages));
      }
      start_agent(index, 1 + random_.below(1000));
    }
  }
}

}  // namespace ferry::sim

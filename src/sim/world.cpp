#include "sim/world.h"

#include <algorithm>

#include "sim/violation.h"

namespace ferry::sim {
namespace {
// Events after the random phase, for each phase: far above what the work left over can need (a few thousand), so that
// reaching it means that somebody is served again and again and never done.
constexpr std::uint64_t settle_bound = 400'000;
constexpr std::uint64_t verify_every = 64;
}  // namespace

World::World(const SimOptions& options)
    : options_(options),
      random_(options.seed),
      swarm_(make_swarm(random_, options)),
      memory_(swarm_.clients, swarm_.devices, swarm_.window_first, swarm_.window_blocks * block_pages,
              swarm_.core.vram_pages / block_pages),
      trace_(options.trace),
      command_(command_of(options)),
      core_(std::make_unique<core::Core>(swarm_.core, this)) {
  if (swarm_.core.system_pages != 0) memory_.count_system(swarm_.store_capacity);
  clients_.resize(swarm_.clients);
  for (auto& c : clients_) c.devices.resize(swarm_.devices);
  trace_.add(now_ns_, 0, Line::start, 0, no_device, swarm_.clients, swarm_.devices,
             swarm_.core.vram_pages / block_pages, swarm_.core.granularity_pages);
  if (swarm_.core.system_pages != 0) {
    trace_.add(now_ns_, 0, Line::budget, 0, no_device, swarm_.core.system_pages, swarm_.store_capacity);
  }
}

World::~World() = default;

void World::on_event(const core::Event& event) {
  trace_.add_event(steps_, event);
  switch (event.kind) {
    case core::EventKind::evict: ++seen_.evictions; break;
    case core::EventKind::refault: ++seen_.refaults; break;
    case core::EventKind::contention_pin: ++seen_.contention_pins; break;
    case core::EventKind::map_in_place: ++seen_.in_place_maps; break;
    case core::EventKind::migrate_begin:
      if (event.to == core::Place::vram) ++seen_.migrations_to_vram;
      if (event.to == core::Place::system) ++seen_.migrations_to_system;
      check_migration(event);
      break;
    case core::EventKind::migrate_end: check_migration(event); break;
    default: break;
  }
}

void World::line(Line kind, unsigned slot, DeviceId device, std::uint64_t a, std::uint64_t b, std::uint64_t c,
                 std::uint64_t d) {
  trace_.add(now_ns_, steps_, kind, clients_[slot].id, device, a, b, c, d);
}

void World::schedule(std::uint64_t delay_ns, Kind kind, std::uint32_t index, std::uint32_t stamp, std::uint64_t value) {
  queue_.push_back(Event{now_ns_ + delay_ns, order_++, value, index, stamp, kind});
  std::push_heap(queue_.begin(), queue_.end(), Later{});
}

std::uint64_t World::delay() {
  if (swarm_.tail != 0 && random_.chance(swarm_.tail)) return 1 + random_.below(swarm_.tail_ns);
  return 1 + random_.below(swarm_.delay_ns);
}

/// The core waits for its clock: what it waits for comes before all that is due later. False: nothing is.
bool World::core_tick() {
  const std::uint64_t due = core_->next_tick_ns();
  if (queue_.empty() ? due == ~std::uint64_t{0} || core_->quiescent() : due > queue_.front().time_ns) return false;
  now_ns_ = std::max(now_ns_, due);
  ++steps_;
  core_->tick(now_ns_);
  take_actions();
  return true;
}

bool World::step() {
  if (core_tick()) return true;
  if (queue_.empty()) return false;
  std::pop_heap(queue_.begin(), queue_.end(), Later{});
  const Event event = queue_.back();
  queue_.pop_back();
  now_ns_ = event.time_ns;
  ++steps_;
  subject_.known = false;
  dispatch(event);
  take_actions();
  if (swarm_.core.system_pages != 0) check_budget();
  if (phase_ == Phase::random) random_trouble();
  if (steps_ % verify_every == 0) {
    core_->tick(now_ns_);
    take_actions();
    periodic_check();
  }
  return true;
}

void World::dispatch(const Event& e) {
  switch (e.kind) {
    case Kind::agent:
      if (agents_[e.index].life != e.stamp) return;
      if (auto& process = process_of(agents_[e.index].slot, agents_[e.index].device); process.stopped) {
        process.waiting.push_back(e);
        return;
      }
      run_agent(e.index);
      return;
    case Kind::manage:
      if (clients_[e.index].life != e.stamp) return;
      if (clients_[e.index].process.stopped) {
        clients_[e.index].process.waiting.push_back(e);
        return;
      }
      manage(e.index);
      return;
    case Kind::post: deliver_fault(e.value); return;
    case Kind::post_cpu:
      if (clients_[e.index].life != e.stamp) return;
      deliver_cpu_fault(e.index, e.value >> 1, (e.value & 1) != 0 ? Access::write : Access::read);
      return;
    case Kind::part:
      if (flights_[e.index].stamp == e.stamp) perform_part(e.index, static_cast<unsigned>(e.value));
      return;
    case Kind::done:
      if (flights_[e.index].stamp == e.stamp) answer(e.index);
      return;
    case Kind::reopen:
      if (phase_ == Phase::random && clients_[e.index].state == ClientState::closed) open_client(e.index);
      return;
    default: break;
  }
  Client& c = clients_[e.index];
  if (c.life != e.stamp) return;
  const auto device = static_cast<DeviceId>(e.value);
  switch (e.kind) {
    case Kind::attach:
      if (c.state != ClientState::running ||
          (c.devices[device].state != DeviceState::none && c.devices[device].state != DeviceState::gone)) {
        return;
      }
      c.devices[device].state = DeviceState::attached;
      ++c.devices[device].life;
      line(Line::attach, e.index, device);
      core_->device_attach(c.id, device);
      for (const auto a : c.agents) {
        if (agents_[a].is_wave && agents_[a].device == device) start_agent(a, 1 + random_.below(swarm_.think_ns));
      }
      return;
    case Kind::device_dies: kill_device(e.index, device); return;
    case Kind::device_gone:
      line(Line::gone, e.index, device);
      for (auto& [token, fault] : faults_) {
        if (fault.slot == e.index && fault.client_life == c.life && fault.device == device) fault.forgotten = true;
      }
      c.devices[device].state = DeviceState::gone;
      core_->device_gone(now_ns_, c.id, device);
      // Another process may take its place.
      if (phase_ == Phase::random && random_.chance(500)) schedule(delay() * 4, Kind::attach, e.index, c.life, device);
      return;
    case Kind::client_gone: {
      leave_children(e.index);
      c.state = ClientState::leaving;
      // From here on the core may drop the contents.
      for (const PageSpan& span : c.spans) memory_.begin_free(e.index, span);
      memory_.forget_pins(e.index);
      c.pins.clear();
      c.spans.clear();
      const std::uint64_t cookie = new_cookie(RequestKind::gone, e.index, {});
      line(Line::gone, e.index, no_device, 0, 0, cookie);
      core_->client_gone(now_ns_, c.id, {cookie});
      call_the_dead(e.index);
      return;
    }
    case Kind::go_on: go_on(e.index, device); return;
    default: return;
  }
}

void World::random_trouble() {
  if (swarm_.pressure != 0 && random_.below(10'000) < swarm_.pressure) squeeze();
  if (swarm_.kill_client != 0 && random_.below(10'000) < swarm_.kill_client) {
    kill_client(static_cast<unsigned>(random_.below(clients_.size())));
  }
  if (swarm_.kill_device != 0 && random_.below(10'000) < swarm_.kill_device) {
    const auto slot = static_cast<unsigned>(random_.below(clients_.size()));
    kill_device(slot, static_cast<DeviceId>(random_.below(swarm_.devices)));
  }
  if (swarm_.stop != 0 && random_.below(10'000) < swarm_.stop) {
    const auto slot = static_cast<unsigned>(random_.below(clients_.size()));
    const auto which = random_.below(swarm_.devices + 1);
    stop_process(slot, which == swarm_.devices ? no_device : static_cast<DeviceId>(which));
  }
}

/// The machine wants memory back, or gives some.
void World::squeeze() {
  const std::uint64_t budget = swarm_.core.system_pages;
  if (random_.chance(700)) {
    const std::uint64_t pages = 1 + random_.below(budget);
    trace_.add(now_ns_, steps_, Line::pressure, 0, no_device, pages);
    core_->pressure(now_ns_, pages);
  } else {
    const std::uint64_t pages = budget / 2 + 1 + random_.below(budget);
    budget_ = std::max(budget_, pages);
    trace_.add(now_ns_, steps_, Line::budget, 0, no_device, pages, swarm_.store_capacity);
    core_->set_system_budget(now_ns_, pages);
  }
  take_actions();
}

void World::open_client(unsigned slot) {
  Client& c = clients_[slot];
  if (c.id == 0 || !swarm_.same_client_id) c.id = next_client_id_++;
  c.state = ClientState::running;
  c.process = {};
  for (auto& d : c.devices) {
    d.state = DeviceState::none;
    d.process = {};
  }
  c.spans.clear();
  c.pins.clear();
  c.freed.clear();
  c.hot.clear();
  c.said.assign(memory_.window().count_pages, {});
  c.unmapped.assign(memory_.window().count_pages, 0);
  c.forking = false;
  c.held.clear();
  c.groups = false;
  c.plain = true;
  memory_.client_open(slot, c.id);
  line(Line::open, slot, no_device, c.id);
  core_->client_open(c.id);
  make_agents(slot);
  c.parked = false;
  schedule(1 + random_.below(1000), Kind::manage, slot, c.life);
  for (DeviceId d = 0; d < swarm_.devices; ++d) {
    if (!random_.chance(900) && swarm_.devices > 1) continue;  // some clients never use some device
    schedule(1 + random_.below(random_.chance(700) ? 5'000 : 500'000), Kind::attach, slot, c.life, d);
  }
}

void World::forget_agent(Agent& agent) {
  ++agent.life;
  agent.alive = agent.blocked = agent.has_op = false;
  agent.parked = true;
  agent.sweep.clear();
}

void World::kill_client(unsigned slot) {
  Client& c = clients_[slot];
  if (c.state != ClientState::running) return;
  ++stats_.kills;
  c.state = ClientState::dead;
  line(Line::kill, slot, no_device);
  memory_.cpu_died(slot);
  for (const auto a : c.agents) {
    if (!agents_[a].is_wave) forget_agent(agents_[a]);
  }
  go_on(slot, no_device);  // what waited for it finds it dead
  schedule(delay(), Kind::client_gone, slot, c.life);
  // The devices end with their application, some sooner and some later than it is noticed.
  for (DeviceId d = 0; d < swarm_.devices; ++d) schedule(delay(), Kind::device_dies, slot, c.life, d);
}

void World::kill_device(unsigned slot, DeviceId device) {
  Client& c = clients_[slot];
  if (c.devices[device].state != DeviceState::attached) return;
  ++stats_.kills;
  c.devices[device].state = DeviceState::dead;
  line(Line::kill, slot, device);
  device_process_ended(slot, device);
  schedule(delay(), Kind::device_gone, slot, c.life, device);
}

void World::device_process_ended(unsigned slot, DeviceId device) {
  memory_.device_died(slot, device);
  for (const auto a : clients_[slot].agents) {
    if (agents_[a].is_wave && agents_[a].device == device) forget_agent(agents_[a]);
  }
  go_on(slot, device);
}

void World::stop_process(unsigned slot, DeviceId device) {
  const Client& c = clients_[slot];
  if (device == no_device ? c.state != ClientState::running : c.devices[device].state != DeviceState::attached) return;
  Process& process = process_of(slot, device);
  if (process.stopped) return;
  ++stats_.stops;
  process.stopped = true;
  line(Line::stop, slot, device);
  schedule(1 + random_.below(swarm_.tail_ns * 20), Kind::go_on, slot, c.life, device);
}

void World::go_on(unsigned slot, DeviceId device) {
  Process& process = process_of(slot, device);
  if (!process.stopped) return;
  process.stopped = false;
  line(Line::resume_process, slot, device);
  for (const Event& e : process.waiting) schedule(1 + random_.below(1000), e.kind, e.index, e.stamp, e.value);
  process.waiting.clear();
}

void World::client_closed(unsigned slot) {
  Client& c = clients_[slot];
  line(Line::closed, slot, no_device);
  client_counts(c.id);
  memory_.client_close(slot);
  for (const auto a : c.agents) forget_agent(agents_[a]);
  // Requests of the dead may stay unanswered; nobody waits for them.
  std::erase_if(requests_, [&](const auto& r) { return r.second.slot == slot && r.second.client_life == c.life; });
  std::erase_if(faults_, [&](const auto& f) { return f.second.slot == slot && f.second.client_life == c.life; });
  c.state = ClientState::closed;
  ++c.life;
  if (phase_ == Phase::random) schedule(delay() * 4, Kind::reopen, slot, 0);
}

void World::enter(Phase phase) {
  phase_ = phase;
  trace_.add(now_ns_, steps_, Line::phase, 0, no_device, static_cast<std::uint64_t>(phase));
}

void World::drain(const char* doing) {
  const std::uint64_t bound = steps_ + settle_bound;
  while (step()) {
    if (steps_ > bound) {
      violate(Invariant::progress, "%s: still busy after %llu steps without failures: %s", doing,
              static_cast<unsigned long long>(settle_bound), who_waits().c_str());
    }
  }
  check_stuck(doing);
}

SimResult World::run() {
  SimResult result;
  set_check_context(command_.c_str());
  try {
    for (unsigned slot = 0; slot < swarm_.clients; ++slot) open_client(slot);
    take_actions();
    while (steps_ < options_.steps && step()) {}

    enter(Phase::settle);
    for (unsigned slot = 0; slot < swarm_.clients; ++slot) {
      go_on(slot, no_device);
      for (DeviceId d = 0; d < swarm_.devices; ++d) go_on(slot, d);
    }
    for (unsigned slot = 0; slot < swarm_.clients; ++slot) {
      if (clients_[slot].state == ClientState::running) do_unpin(slot, true);
    }
    for (unsigned slot = 0; slot < swarm_.clients; ++slot) forget_attributes(slot);
    drain("settling");
    for (unsigned slot = 0; slot < swarm_.clients; ++slot) leave_children(slot);
    check_settled();

    enter(Phase::sweep);
    start_sweep();
    drain("reading everything once more");
    check_settled();
    check_effects();

    enter(Phase::leave);
    for (unsigned slot = 0; slot < swarm_.clients; ++slot) {
      if (clients_[slot].state != ClientState::running || !random_.chance(500)) continue;
      const std::vector<PageSpan> spans = clients_[slot].spans;
      for (const auto& span : spans) free_span(slot, span);
    }
    take_actions();
    if (random_.chance(500)) drain("freeing everything");
    for (unsigned slot = 0; slot < swarm_.clients; ++slot) kill_client(slot);
    drain("leaving");
    check_empty();
  } catch (const Violation& violation) {
    if (const auto suspect = memory_.suspect(); suspect.known) subject_ = {suspect.client, suspect.page, true};
    result.ok = false;
    result.broken = violation.invariant;
    char head[64];
    std::snprintf(head, sizeof head, "I-%02u ", static_cast<unsigned>(violation.invariant));
    result.what = head + std::string(to_string(violation.invariant)) + ": " + violation.text;
    result.failure = result.what + "\n  seed " + std::to_string(options_.seed) + ", step " + std::to_string(steps_) +
                     ", virtual time " + std::to_string(now_ns_ / 1000) +
                     " us\nlast events, accesses that hit left out:\n" + trace_.tail() + "again with: " + command_ +
                     "\n";
  }
  set_check_context(nullptr);
  result.trace_hash = trace_.hash();
  result.steps = steps_;
  result.stats = stats_;
  result.stats.evictions = seen_.evictions;
  result.stats.budgets = swarm_.core.system_pages != 0 ? 1 : 0;
  result.stats.stored_pages = seen_.pages_to_store;
  result.stats.loaded_pages = seen_.pages_from_store;
  result.stats.duplicated_pages = core_->stats().pages_duplicated;
  result.stats.carried_pages = core_->stats().pages_carried;
  result.stats.collapsed_pages = core_->stats().pages_collapsed;
  result.stats.over_budget_pages = core_->stats().over_budget_pages;
  return result;
}

}  // namespace ferry::sim

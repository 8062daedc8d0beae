// Shares of compute: who wants how many units, whose turn it is, what is granted and what is taken back. While one
// client alone wants units it has all that compute may have, and nothing happens here but its first grant.
#include <algorithm>
#include <bit>

#include "core/impl.h"

namespace ferry::core {
namespace {

constexpr std::uint64_t bit_of(unsigned cu) { return std::uint64_t{1} << cu; }
unsigned count_of(std::uint64_t mask) { return static_cast<unsigned>(std::popcount(mask)); }
unsigned minus(unsigned a, unsigned b) { return a > b ? a - b : 0; }

}  // namespace

void Work::compute_demand(ClientId client, DeviceId device, unsigned cus) {
  const Client* owner = core.find_client(client);
  if (owner == nullptr || owner->dying || device >= devices.size() || !owner->devices[device].attached) {
    return;
  }
  WorkDevice& dev = devices[device];
  if (cus == 0 && !dev.compute.contains(client)) {
    return;
  }
  const auto [it, is_new] = dev.compute.try_emplace(client);
  Compute& compute = it->second;
  compute.process = owner->devices[device].process;
  compute.demand = std::min(cus, dev.model.cu_count);
  if (core.maps_ahead(*owner, device) && (cus == 0 || is_new)) {
    compute.stopped = true;  // before the next wave all memory is looked at
  }
  unit_pump(device);
  restore_stopped(device);
}

std::uint64_t Work::compute_waiting_since(DeviceId device) const {
  std::uint64_t since_ns = ~std::uint64_t{0};
  for (const auto& [client, compute] : devices[device].compute) {
    if (compute.waiting_ns != 0) {
      since_ns = std::min(since_ns, compute.waiting_ns);
    }
  }
  return since_ns;
}

/// Units that are on their way out count for nobody; those of them that stay until a fault is repaired are missing.
unsigned Work::compute_limit(DeviceId device) const {
  const WorkDevice& dev = devices[device];
  std::uint64_t leaving = 0;
  for (unsigned cu = 0; cu < dev.units.size(); ++cu) {
    leaving |= dev.units[cu].leaving ? bit_of(cu) : 0;
  }
  const unsigned missing = count_of(leaving & stuck_units(device));
  const unsigned of_jobs = count_of(units_of(device, Unit::Holder::job));
  const unsigned all = dev.model.cu_count;
  const auto& queue = dev.queued[static_cast<unsigned>(Engine::graphics)];
  switch (dev.model.policy) {
    case Policy::reserve: return count_of(compute_allowed(device) & ~units_of(device, Unit::Holder::job));
    case Policy::reserve_in_flight: {
      const unsigned kept = core.planted(PlantedBug::grant_reserved_cu) ? 0 : kept_units(device);
      return minus(all, std::max(kept, of_jobs) + missing);
    }
    case Policy::exclusive:
      if (dev.fenced_mode) {
        return 0;
      }
      if (!dev.at_gate.empty() &&
          (dev.mode_ns == 0 || urgent(device) || core.now_ns >= dev.mode_ns + dev.model.min_run_ns)) {
        return 0;
      }
      break;
    default: break;
  }
  const FenceId first = queue.empty() || compute_turn(device) ? 0 : engine_first(device, Engine::graphics);
  return minus(all, of_jobs + missing + (first == 0 ? 0 : jobs.at(first).spec.cus_min));
}

unsigned Work::compute_grantable(DeviceId device) const {
  const WorkDevice& dev = devices[device];
  const unsigned free = count_of(units_of(device, Unit::Holder::nobody));
  const auto& queue = dev.queued[static_cast<unsigned>(Engine::graphics)];
  switch (dev.model.policy) {
    case Policy::reserve: return free;
    case Policy::reserve_in_flight: {
      const unsigned kept = core.planted(PlantedBug::grant_reserved_cu) ? 0 : kept_units(device);
      return std::min(free, minus(dev.model.cu_count, kept + count_of(units_of(device, Unit::Holder::compute))));
    }
    default: break;
  }
  if (queue.empty() || compute_turn(device)) {
    return free;
  }
  return minus(free, jobs.at(engine_first(device, Engine::graphics)).spec.cus_min);
}

std::map<ClientId, unsigned> Work::shares(DeviceId device) {
  WorkDevice& dev = devices[device];
  std::vector<ClientId> claims;  // who wants units, from the one whose turn it is
  for (auto it = dev.compute.lower_bound(dev.turn); it != dev.compute.end(); ++it) {
    if (it->second.demand != 0 && !it->second.stopped) {
      claims.push_back(it->first);
    }
  }
  for (auto it = dev.compute.begin(); it != dev.compute.lower_bound(dev.turn); ++it) {
    if (it->second.demand != 0 && !it->second.stopped) {
      claims.push_back(it->first);
    }
  }
  std::map<ClientId, unsigned> out;
  if (claims.empty()) {
    dev.turn_ns = 0;
  } else {
    unsigned wanted = 0;
    for (const ClientId client : claims) {
      wanted += dev.compute.at(client).demand;
    }
    if (dev.turn != claims.front()) {
      dev.turn = claims.front();
      dev.turn_ns = 0;
    }
    if (dev.turn_ns == 0 && compute_units(dev.turn, device) != 0) {
      dev.turn_ns = std::max<std::uint64_t>(core.now_ns, 1);
    }
    if (claims.size() > 1 && wanted > compute_limit(device) && dev.turn_ns != 0) {
      if (core.now_ns >= dev.turn_ns + dev.model.slice_ns) {
        std::rotate(claims.begin(), claims.begin() + 1, claims.end());
        dev.turn = claims.front();
        dev.turn_ns = compute_units(dev.turn, device) != 0 ? core.now_ns : 0;
      }
      if (dev.turn_ns != 0) {
        dev.due_ns = std::min(dev.due_ns, dev.turn_ns + dev.model.slice_ns);
      }
    }
  }
  unsigned left = compute_limit(device);
  for (const ClientId client : claims) {
    out[client] = std::min(left, dev.compute.at(client).demand);
    left -= out[client];
  }
  // Whoever wants none now keeps what it has while nobody else wants it: its next wave starts without asking.
  for (const auto& [client, compute] : dev.compute) {
    if (compute.demand == 0 && !compute.stopped) {
      out[client] = std::min(left, count_of(compute_units(client, device)));
      left -= out[client];
    }
  }
  if (claims.size() == 1) {
    out[claims.front()] += left;
  }
  return out;
}

void Work::share_units(DeviceId device) {
  WorkDevice& dev = devices[device];
  if (dev.compute.empty()) {
    return;
  }
  for (auto& [client, compute] : dev.compute) {
    const bool waits = compute.demand != 0 && !compute.stopped && compute_units(client, device) == 0;
    if (waits && compute.waiting_ns == 0 && dev.fenced_mode) {
      dev.again = true;  // who has just come may be let in at once, and the gate has been looked at already
    }
    compute.waiting_ns = !waits                    ? 0
                         : compute.waiting_ns != 0 ? compute.waiting_ns
                                                   : std::max<std::uint64_t>(core.now_ns, 1);
  }
  const std::map<ClientId, unsigned> wanted = shares(device);
  for (const auto& [client, compute] : dev.compute) {
    const auto share = wanted.find(client);
    take_back(device, client, share == wanted.end() ? 0 : share->second);
  }
  unsigned grantable = compute_grantable(device);
  std::uint64_t free = units_of(device, Unit::Holder::nobody) & compute_allowed(device);
  // From the one whose turn it is.
  std::vector<ClientId> order;
  for (auto it = wanted.lower_bound(dev.turn); it != wanted.end(); ++it) {
    order.push_back(it->first);
  }
  for (auto it = wanted.begin(); it != wanted.lower_bound(dev.turn); ++it) {
    order.push_back(it->first);
  }
  for (const ClientId client : order) {
    if (dev.compute.at(client).demand == 0) {
      continue;
    }
    std::uint64_t mask = 0;
    for (unsigned has = count_of(compute_units(client, device)); has < wanted.at(client) && grantable > 0 && free != 0;
         ++has, --grantable) {
      const std::uint64_t lowest = free & -free;
      mask |= lowest;
      free &= ~lowest;
    }
    if (mask != 0) {
      grant(device, client, mask);
    }
  }
  // Compute that waits behind jobs has its turn after a slice.
  const std::uint64_t since_ns = compute_waiting_since(device);
  if (dev.fences_in_flight + dev.at_gate.size() != 0 && since_ns != ~std::uint64_t{0} &&
      since_ns + dev.model.slice_ns > core.now_ns) {
    dev.due_ns = std::min(dev.due_ns, since_ns + dev.model.slice_ns);
  }
}

void Work::grant(DeviceId device, ClientId client, std::uint64_t cu_mask) {
  WorkDevice& dev = devices[device];
  for (unsigned cu = 0; cu < dev.units.size(); ++cu) {
    if ((cu_mask & bit_of(cu)) != 0) {
      unit_take(device, cu, Unit::Holder::compute, client, 0);
    }
  }
  Compute& compute = dev.compute.at(client);
  compute.waiting_ns = 0;
  if (compute.evicted) {
    compute.evicted = false;
    tell_queues(EventKind::queue_restore, client, device, Cause::none);
  }
  if (dev.turn == client && dev.turn_ns == 0) {
    dev.turn_ns = std::max<std::uint64_t>(core.now_ns, 1);
    dev.again = true;  // its slice has an end now
  }
  Action& action = core.emit_for(Verb::grant_cus, client);
  action.device = device;
  action.cu_mask = cu_mask;
}

void Work::tell_queues(EventKind kind, ClientId client, DeviceId device, Cause cause) {
  if (const Client* owner = core.find_client(client); owner != nullptr) {
    core.tell(kind, *owner, device, {}, cause);
  }
}

/// Asks the client's compute to leave units until it keeps `keep`: first those without faults, then those it has had
/// for longest; none before its minimum run, unless a deadline asks for it.
void Work::take_back(DeviceId device, ClientId client, unsigned keep) {
  WorkDevice& dev = devices[device];
  Compute& compute = dev.compute.at(client);
  const std::uint64_t allowed = compute_allowed(device);
  std::vector<unsigned> held;
  for (unsigned cu = 0; cu < dev.units.size(); ++cu) {
    const Unit& unit = dev.units[cu];
    if (unit.holder == Unit::Holder::compute && unit.client == client && !unit.leaving) {
      held.push_back(cu);
    }
  }
  if (held.size() <= keep) {
    return;
  }
  std::stable_sort(held.begin(), held.end(), [&](unsigned a, unsigned b) {
    const auto rank = [&](unsigned cu) {
      return std::tuple((allowed & bit_of(cu)) != 0, !dev.units[cu].faults.empty(), dev.units[cu].since_ns);
    };
    return rank(a) != rank(b) ? rank(a) < rank(b) : a > b;
  });
  std::uint64_t mask = 0;
  const bool at_once = compute.demand == 0 || urgent(device);
  for (std::size_t i = 0; i < held.size() - keep; ++i) {
    Unit& unit = dev.units[held[i]];
    const std::uint64_t until_ns = unit.since_ns + dev.model.min_run_ns;
    if (!at_once && until_ns > core.now_ns) {
      dev.due_ns = std::min({dev.due_ns, until_ns, urgent_ns(device)});
      continue;
    }
    unit.leaving = true;
    mask |= bit_of(held[i]);
  }
  if (mask != 0 && keep == 0 && compute.demand != 0 && !compute.evicted) {
    compute.evicted = true;
    tell_queues(EventKind::queue_eviction, client, device, compute.stopped ? Cause::invalidated : Cause::preempted);
  }
  // A unit that waits for its faults must not keep the answer for the others back.
  const bool together = leaves_while_faulting(device);
  while (mask != 0) {
    const std::uint64_t part = together ? mask : mask & -mask;
    mask &= ~part;
    ++dev.revokes[client];
    WorkRef ref;
    ref.what = WorkRef::What::revoke_units;
    ref.id = client;
    ref.sub = (std::uint64_t{device} << 32) | compute.process;
    ref.cu_mask = part;
    Action& action = core.ask_work(Verb::revoke_cus, client, ref);
    action.device = device;
    action.cu_mask = part;
  }
}

}  // namespace ferry::core

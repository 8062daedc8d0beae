// Compute without retry faults (DeviceModel::retry_faults cleared, or switched off for the client): all of a client's memory is mapped before its waves
// get units, and before any of it is taken from the device the units are (a preempt fence, with its minimum run).
// A revocation that must wait for that is an action that the machine gets later: to its operation it is one that is slow
// to answer. Afterwards the memory is brought back, later each time that it was taken soon again.
#include <algorithm>

#include "core/impl.h"

namespace ferry::core {
namespace {

constexpr std::uint64_t look_again_ns = 1'000'000;  ///< while memory is on its way back
constexpr std::uint64_t backoff_least_ns = 1'000'000;
constexpr std::uint64_t backoff_most_ns = 100'000'000;  ///< ran for so long: the next stop is the first again
constexpr unsigned restore_window = 64;                 ///< operations at a time
/// Looks without any progress before the client gets its units anyway: what it then touches fails its kernel. Memory
/// that cannot be had must not keep a kernel waiting for ever. A look at which the last one's answers are still awaited is
/// none: whoever owes them may have to wait for a processor.
constexpr unsigned restore_tries = 100;

}  // namespace

/// REQUIRES: `action` is the core's last, a revocation from the client's device.
void Work::hold_revocation(ClientId client, DeviceId device) {
  WorkDevice& dev = devices[device];
  const auto it = dev.compute.find(client);
  if (it == dev.compute.end()) {
    return;
  }
  Compute& compute = it->second;
  const std::uint64_t units = compute_units(client, device);
  if (!compute.stopped && units != 0) {
    std::uint64_t since_ns = core.now_ns;
    for (const Unit& unit : dev.units) {
      since_ns = unit.client == client ? std::min(since_ns, unit.since_ns) : since_ns;
    }
    compute.backoff_ns = core.now_ns - since_ns >= backoff_most_ns
                             ? backoff_least_ns
                             : std::clamp(2 * compute.backoff_ns, backoff_least_ns, backoff_most_ns);
  }
  if (!compute.stopped) {
    compute.stopped = true;
    compute.tries = 0;
  }
  if (units == 0) {
    return;
  }
  compute.held.push_back(core.actions.back());
  core.actions.pop_back();
  unit_pump(device);
}

/// Its units were left, or its process is gone: what waited for that is done now.
void Work::let_revocations_go(DeviceId device, ClientId client) {
  Compute& compute = devices[device].compute.at(client);
  core.actions.insert(core.actions.end(), compute.held.begin(), compute.held.end());
  compute.held.clear();
  compute.restore_ns = core.now_ns + compute.backoff_ns;
}

/// New memory of the client is not mapped on devices that need it to be.
void Work::range_added(ClientId client) {
  for (DeviceId d = 0; d < devices.size(); ++d) {
    if (const Client* owner = core.find_client(client); owner != nullptr && !core.retry_faults(*owner, d)) {
      const auto it = devices[d].compute.find(client);
      if (it != devices[d].compute.end()) {
        it->second.stopped = true;
        it->second.tries = 0;
        unit_pump(d);
      }
    }
  }
}

Work::Stray Work::stray_fault(ClientId client, DeviceId device) const {
  if (core.retry_faults(*core.find_client(client), device)) {
    return Stray::none;
  }
  const auto it = devices[device].compute.find(client);
  // While it is being stopped a wave may touch what is not mapped yet: it tries again until it has left.
  return it != devices[device].compute.end() && it->second.stopped ? Stray::again : Stray::fails;
}

/// Compute of the client wants units of some device, or uses them.
bool Work::computes(ClientId client) const {
  return std::any_of(devices.begin(), devices.end(), [client](const WorkDevice& dev) {
    const auto it = dev.compute.find(client);
    return it != dev.compute.end() && it->second.demand != 0;
  });
}

/// Retry faults were switched for the client. REQUIRES: it computes nowhere. Units that it has kept while idle are taken:
/// its next wave waits until they are granted.
void Work::mode_changed(ClientId client) {
  const Client& owner = *core.find_client(client);
  for (DeviceId d = 0; d < devices.size(); ++d) {
    const auto it = devices[d].compute.find(client);
    if (it != devices[d].compute.end()) {
      it->second.stopped = core.maps_ahead(owner, d);
      it->second.tries = 0;
      unit_pump(d);
    }
  }
}

/// Operations for what the device does not map yet. True: nothing is missing.
bool Work::restore(ClientId id, DeviceId device) {
  Client* client = core.find_client(id);
  unsigned started = 0;
  std::uint64_t missing = 0;
  const std::uint64_t awaited = devices[device].compute.at(id).awaited;
  std::uint64_t next_awaited = 0;
  std::vector<PageSpan> spans;
  if (!core.retry_faults(*client, device)) {
    for (const auto& [first, range] : client->ranges) {
      if (!range.freeing) {
        spans.push_back({first, range.count_pages});
      }
    }
  } else {
    client->svm.map.for_runs({0, Page{1} << 52}, [&](PageSpan span, const Attributes& a) {
      if ((a.flags & svm_always_mapped) != 0) {
        spans.push_back(span);
      }
    });
    client->svm.always_mapped = !spans.empty();
  }
  for (const PageSpan& span : spans) {
    for (BlockIndex index = block_of(span.first); index <= block_of(span.end() - 1); ++index) {
      Block* found = core.find_block(*client, index);
      Block& block = found != nullptr ? *found : core.make_block(*client, index);
      ++block.holds;
      for (std::uint32_t g = 0; g < block.granules.size(); ++g) {
        const Granule& granule = block.granules[g];
        const PageMask wanted = core.not_mapped(block, g, device);
        // While an operation is under way its mapping is only asked for, or about to go.
        if (wanted.none() && (granule.op == none_index || core.must_map(block, g, device).none())) {
          continue;
        }
        ++missing;
        if (granule.op != none_index) {
          const Op& op = core.ops[granule.op];
          if (op.outstanding != 0 && (next_awaited == 0 || op.serial == awaited)) {
            next_awaited = op.serial;
          }
        }
        if (granule.op != none_index || started == restore_window) {
          continue;
        }
        if (!block.plain && core.may_go_to(block, g, device, wanted, false) != wanted) {
          Op& op = core.start_mapping(block, g, device, wanted);
          ++started;
          core.run_op(op.self);
          continue;
        }
        // Only into VRAM that is free: what must be mapped all at once cannot make room for itself. And only where no other
        // device must have it mapped, too: they would take it from each other for ever.
        bool shared = false;
        for (DeviceId d = 0; d < devices.size(); ++d) {
          shared = shared || (d != device && client->devices[d].attached && core.must_map(block, g, d).any());
        }
        const bool here = granule.slot != none_index && granule.owner == device;
        const bool up =
            !shared && (here || (granule.slot == none_index && !block.placed_system.intersects(core.granule_mask(g)) &&
                                 granule.last_move_cause != Cause::cpu_fault && core.has_free_slot(*client, device) &&
                                 !userptr_in_use(id, core.granule_span(block, g))));
        Op& op = core.start_op(block, g, up ? Goal::vram : Goal::in_place, Cause::prefetch, device, Access::write);
        if (!block.plain) {
          op.pages &= wanted;
        }
        ++started;
        core.run_op(op.self);
      }
      --block.holds;
      if (started == restore_window) {
        return false;
      }
    }
  }
  if (!core.retry_faults(*client, device)) {
    missing += map_all_buffers(id, device);
  }
  Compute& compute = devices[device].compute.at(id);
  // Only fewer than ever before is progress: memory for less than all of it can be taken back and forth for ever.
  if (compute.tries == 0 || missing < compute.missing) {
    compute.missing = missing;
    compute.tries = 1;
  } else if (next_awaited == 0 || next_awaited != awaited) {
    ++compute.tries;
  }
  compute.awaited = next_awaited;
  return missing == 0;
}

/// From tick() and compute_demand() only: it starts operations.
void Work::restore_stopped(DeviceId device) {
  WorkDevice& dev = devices[device];
  bool changed = false;
  std::vector<ClientId> due;
  for (const auto& [client, compute] : dev.compute) {
    if (compute.stopped && compute.demand != 0 && compute.restore_ns <= core.now_ns &&
        compute_units(client, device) == 0) {
      due.push_back(client);
    }
  }
  for (const ClientId client : due) {
    dev.compute.at(client).restore_ns = core.now_ns + look_again_ns;
    const bool whole = restore(client, device);
    Compute& compute = dev.compute.at(client);
    if (whole || compute.tries >= restore_tries) {
      compute.stopped = false;
      changed = true;
    }
  }
  if (changed) {
    unit_pump(device);
  }
}

std::uint64_t Work::restore_due_ns(DeviceId device) const {
  const WorkDevice& dev = devices[device];
  std::uint64_t due_ns = ~std::uint64_t{0};
  for (const auto& [client, compute] : dev.compute) {
    if (compute.stopped && compute.demand != 0 && compute_units(client, device) == 0) {
      due_ns = std::min(due_ns, compute.restore_ns);
    }
  }
  return due_ns;
}

}  // namespace ferry::core

// A fork: every device lets go of every page of the client, where it lies. docs/design/0018-fork.md.
#include "core/impl.h"

namespace ferry::core {

Status Core::Impl::client_fork(ClientId id, Cookie cookie) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  const std::uint32_t index = new_prefetch();
  PrefetchRequest& request = prefetches[index];
  request.in_use = true;
  request.client = client;
  request.span = {0, Page{1} << 52};
  request.cookie = cookie;
  request.fork = true;
  // Bytes of a move change their place with no mapping that tells: it is over before.
  for (ChangeRequest& change : changes) {
    if (change.in_use && change.client == client && change.change == Change::move) {
      change.forks.push_back(index);
      ++request.in_flight;
      request.again = true;
    }
  }
  advance_prefetch(index);
  return {};
}

/// Looks at one granule. Whatever is found to do makes the walk begin again when it is done: the one that finds nothing
/// has seen all granules at one instant.
void Core::Impl::fork_granule(std::uint32_t index, Block& block, std::uint32_t granule) {
  PrefetchRequest& request = prefetches[index];
  const Granule& state = block.granules[granule];
  if (state.op != none_index) {
    request.again = true;
    ++request.in_flight;
    ops[state.op].prefetches.push_back(index);
    return;
  }
  // What is being freed is no page of the application any more. It may stay mapped until a pin of it ends: whoever
  // waited for that would wait for the thread that forks.
  PageMask pages = block.allocated & granule_mask(granule);
  pages.remove(block.freeing);
  bool reached = false;
  for (DeviceId d = 0; d < devices.size(); ++d) {
    PageMask mapped = block.devices[d].mapped & pages;
    if (planted(PlantedBug::keep_fork_mapping)) {
      mapped.remove(block.devices[d].in_place);
    }
    reached = reached || mapped.any();
  }
  if (!reached) {
    return;
  }
  request.again = true;
  ++request.in_flight;
  Op& op = start_op(block, granule, Goal::freeze, Cause::none, no_device, Access::read);
  op.prefetches.push_back(index);
  run_op(op.self);
}

}  // namespace ferry::core

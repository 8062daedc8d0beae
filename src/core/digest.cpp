// The state of the memory side as one number, for explorers. Everything that an event, an answer or time can act upon
// goes in; statistics, indices, serials and what only ferry explain reads do not.
#include "core/digest.h"

#include <algorithm>

#include "core/impl.h"

namespace ferry::core {
namespace {

std::uint64_t place_of(const Block& block, std::uint32_t granule) {
  return Digest().add(block.client->id).add(block.index).add(granule).value();
}

void add_waiter(Digest& digest, const Waiter& waiter) {
  digest.add(waiter.token.value).add(waiter.page).add(waiter.device).add(waiter.cu);
  digest.add(static_cast<std::uint64_t>(waiter.access)).add(waiter.seen);
}

std::uint64_t digest_of(const Core::Impl& core, const Op& op) {
  Digest d;
  d.add(static_cast<std::uint64_t>(op.goal)).add(static_cast<std::uint64_t>(op.stage));
  d.add(static_cast<std::uint64_t>(op.cause)).add(op.device).add(static_cast<std::uint64_t>(op.access));
  d.add((op.reclaim ? 1U : 0U) | (op.redirected ? 2U : 0U) | (op.by_home ? 4U : 0U) | (op.at_home ? 8U : 0U) |
        (op.united ? 16U : 0U) | (op.fills ? 32U : 0U))
      .add(op.reclaim_device)
      .add(op.moved ? 1 : 0);
  d.add(op.moved ? static_cast<std::uint64_t>(op.moved_to) : 0).add(op.failure).add(op.outstanding);
  d.add(op.copy_failures)
      .add(op.tries)
      .add(op.stage == Stage::wait_turn ? time_left(core.now_ns, op.turn_ns) : 0)
      .add(op.arrived)
      .add(op.pages)
      .add(op.retry)
      .add(op.vram_first)
      .add(op.discard_next);
  if (op.partner != none_index) {
    d.add(place_of(*core.ops[op.partner].block, core.ops[op.partner].granule))
        .add(static_cast<std::uint64_t>(op.shift));
  }
  d.add(op.remap).add(op.remap_next).add(op.svm.size());
  for (const std::uint32_t request : op.svm) {
    d.add(core.svm_requests[request].cookie.value);
  }
  d.add(op.load_failed).add(op.need).add(op.memory != 0 ? 1 : 0).add(op.write_pages).add(op.leave_pages);
  d.add(op.waiters.size());
  for (const Waiter& waiter : op.waiters) {
    add_waiter(d, waiter);
  }
  for (const std::uint32_t request : op.prefetches) {
    const PrefetchRequest& asked = core.prefetches[request];
    d.add(asked.in_use ? asked.cookie.value + asked.fence : ~std::uint64_t{0});
  }
  d.add(op.frees.size());
  for (const std::uint32_t request : op.frees) {
    d.add(core.frees[request].cookie.value);
  }
  d.add(op.next_frees.size());
  for (const std::uint32_t request : op.next_frees) {
    d.add(core.frees[request].cookie.value);
  }
  d.add(op.changes.size()).add(op.next_changes.size());
  for (const std::uint32_t request : op.changes) {
    d.add(core.changes[request].cookie.value);
  }
  for (const std::uint32_t request : op.next_changes) {
    d.add(core.changes[request].cookie.value);
  }
  return d.value();
}

std::uint64_t digest_of(const Core::Impl& core, const Block& block, std::uint32_t index) {
  const Granule& granule = block.granules[index];
  Digest d;
  d.add(granule.owner).add(granule.op_failed ? 1 : 0);
  d.add(granule.slot == none_index ? ~std::uint64_t{0} : core.devices[granule.owner].slots[granule.slot].first);
  d.add(static_cast<std::uint64_t>(granule.last_move_cause));
  if (core.config.contention_threshold != 0) {
    const std::uint64_t window = core.config.contention_window_ns + 1;
    const std::uint64_t age = time_since(core.now_ns, granule.flip_window_ns, window);
    const bool counting = granule.flips != 0 && age < window;
    d.add(counting ? granule.flips : 0).add(counting ? age : 0);
    d.add(time_left(core.now_ns, granule.pinned_until_ns)).add(granule.longer);
  }
  d.add(granule.sample ? 1 : 0);
  if (core.config.leave != LeaveKind::never) {
    d.add(granule.returns).add(granule.touches);
    if (granule.slot != none_index) {
      const Device& device = core.devices[granule.owner];
      const std::uint64_t turnover = std::max<std::uint64_t>(device.chunk_total * core.slots_per_chunk(), 1);
      d.add(std::min(device.evictions - device.slots[granule.slot].arrived, 2 * turnover + 1));
    }
  }
  if (granule.evict_mark != 0) {
    for (const Device& device : core.devices) {
      // Past 16 turnovers all distances count alike (policy/victim.cpp).
      const std::uint64_t turnover = std::max<std::uint64_t>(device.chunk_total * core.slots_per_chunk(), 1);
      d.add(std::min(device.evictions - granule.evict_mark, 16 * turnover + 1));
    }
  }
  if (granule.op != none_index) {
    d.add(digest_of(core, core.ops[granule.op]));
  }
  return d.value();
}

std::uint64_t digest_of(const Core::Impl& core, const Block& block) {
  Digest d;
  d.add(block.index).add(block.allocated).add(block.freeing).add(block.placed_system).add(block.system_current);
  d.add(block.vram_current).add(block.cpu_mapped).add(block.cpu_waiting).add(block.held).add(block.stored);
  for (const DeviceView& view : block.devices) {
    d.add(view.mapped).add(view.writable).add(view.in_place).add(view.peer);
  }
  if (block.extras != nullptr) {
    d.add(block.extras->pinned).add(block.extras->discarded).add(block.extras->refused);
    for (unsigned bit = 0; bit < block_pages; ++bit) {
      d.add(block.extras->pin_count[bit]);
    }
  }
  if (block.copies != nullptr) {
    d.add(block.copies->cpu_read_only).add(block.copies->cpu_reads & block.cpu_waiting);
    for (const PageMask& current : block.copies->current) {
      d.add(current);
    }
    for (std::size_t i = 0; i < block.copies->slots.size(); ++i) {
      const SlotIndex slot = block.copies->slots[i];
      d.add(slot == none_index ? ~std::uint64_t{0} : core.devices[i % core.devices.size()].slots[slot].first);
    }
  }
  for (std::uint32_t g = 0; g < block.granules.size(); ++g) {
    d.add(digest_of(core, block, g));
  }
  return d.value();
}

std::uint64_t digest_of(const Core::Impl& core, const ClientDevice& own) {
  Digest d;
  d.add(own.attached ? 1 : 0).add(own.idle_chunks);
  std::size_t chunks = own.chunks.size();
  while (chunks > 0 && !own.chunks[chunks - 1].owned) {
    --chunks;
  }
  for (std::size_t c = 0; c < chunks; ++c) {
    const Chunk& chunk = own.chunks[c];
    d.add((chunk.owned ? 1U : 0U) | (chunk.draining ? 2U : 0U) | (chunk.releasing ? 4U : 0U) |
          (chunk.counted ? 8U : 0U))
        .add(chunk.used);
  }
  d.add(own.free_slots.size());
  for (const VramPage first : own.free_slots) {
    d.add(first);
  }
  if (core.config.speculation_granules != 0) {
    for (const auto& prefetcher : own.prefetchers) {
      d.add(prefetcher == nullptr ? 0 : prefetcher->digest());
    }
    d.add(own.gate.digest());
  }
  return d.value();
}

std::uint64_t digest_of(const Core::Impl& core, const Client& client) {
  Digest d;
  d.add(client.id).add(client.dying ? 1 + client.gone_cookie.value : 0).add(client.ops).add(client.upkeep);
  d.add(client.svm.map.digest()).add(client.svm.groups.digest()).add(client.svm.retry_faults ? 1 : 0);
  d.add(client.svm.always_mapped ? 1 : 0).add(client.svm.fixed.size());
  for (const std::uint32_t group : client.svm.fixed) {
    d.add(group);
  }

  d.add(client.charged_pages);
  for (const auto& [first, range] : client.ranges) {
    d.add(first).add(range.count_pages).add(static_cast<std::uint64_t>(range.placement)).add(range.freeing ? 1 : 0);
  }
  for (const auto& [first, span] : client.protections) {
    d.add(first).add(span.count_pages).add(span.prot);
  }
  // Faults under way name the numbers they have seen.
  d.add(client.changes);
  for (const PastUnmap& past : client.past_unmaps) {
    d.add(past.number).add(past.span);
  }
  SetDigest blocks;
  for (const auto& block : client.blocks) {
    if (block != nullptr) {
      blocks.add(digest_of(core, *block));
    }
  }
  d.add(blocks.value());
  for (const ClientDevice& own : client.devices) {
    d.add(digest_of(core, own));
  }
  return d.value();
}

std::uint64_t digest_of(const Core::Impl& core, const Device& device) {
  Digest d;
  d.add(device.chunk_owned).add(device.reclaims).add(device.line_stands ? 1 : 0);
  const auto place = [&](SlotIndex slot) { return place_of(*device.slots[slot].block, device.slots[slot].granule); };
  d.add(device.victims.digest(device.evictions, place)).add(device.throttle.digest());
  if (!device.waiting.empty()) {
    d.add(time_since(core.now_ns, device.line_moved_ns, core.config.line_patience_ns + 1));
  }
  for (const OpIndex op : device.waiting) {
    d.add(place_of(*core.ops[op].block, core.ops[op].granule));
  }
  return d.value();
}

/// What the machine still has to answer. Which id an answer will carry is the explorer's business.
std::uint64_t digest_of(const Core::Impl& core, const Pending& pending) {
  Digest d;
  d.add(static_cast<std::uint64_t>(pending.verb));
  if (pending.is_work) {
    d.add(static_cast<std::uint64_t>(pending.work.what)).add(pending.work.id).add(pending.work.sub);
    return d.add(pending.work.at).value();
  }
  d.add(pending.client->id).add(pending.device).add(pending.pages).add(pending.vram_first);
  d.add(pending.has_token ? 1 + pending.token.value : 0);
  if (pending.op != none_index) {
    d.add(place_of(*core.ops[pending.op].block, core.ops[pending.op].granule));
  }
  if (pending.request != none_index) {
    d.add(core.frees[pending.request].cookie.value);
  }
  if (pending.device != no_device) {
    d.add(pending.process == pending.client->devices[pending.device].process ? 1 : 0);
  }
  return d.value();
}

std::uint64_t digest_of(const Action& a) {
  Digest d;
  d.add(static_cast<std::uint64_t>(a.verb)).add(static_cast<std::uint64_t>(a.place));
  d.add(static_cast<std::uint64_t>(a.prot)).add(static_cast<std::uint64_t>(a.cause)).add(a.device).add(a.client);
  d.add(a.pages).add(a.vram_first).add(a.has_token ? 1 + a.token.value : 0).add(a.cookie.value).add(a.status);
  d.add(a.vram_to).add(a.owner).add(a.from_page);
  d.add(static_cast<std::uint64_t>(a.to)).add(a.to_device).add(static_cast<std::uint64_t>(a.engine));
  d.add(static_cast<std::uint64_t>(a.access)).add(a.buffer).add(a.fence).add(a.cu_mask);
  return d.value();
}

}  // namespace

std::uint64_t Core::Impl::digest() const {
  Digest d;
  for (const auto& [id, client] : clients) {
    d.add(digest_of(*this, *client));
  }
  for (const Device& device : devices) {
    d.add(digest_of(*this, device));
  }
  SetDigest requests;
  for (const FreeRequest& free : frees) {
    if (free.in_use) {
      requests.add(Digest()
                       .add(1)
                       .add(free.client->id)
                       .add(free.span)
                       .add(free.cookie.value)
                       .add(free.remaining)
                       .add(free.charged_pages)
                       .value());
    }
  }
  for (const PrefetchRequest& prefetch : prefetches) {
    if (prefetch.in_use) {
      Digest p;
      p.add(2).add(prefetch.client->id).add(prefetch.span).add(prefetch.cursor).add(prefetch.device);
      p.add(prefetch.svm == none_index ? prefetch.cookie.value : svm_requests[prefetch.svm].cookie.value);
      p.add(prefetch.svm == none_index ? 0 : 1).add(prefetch.in_flight).add(prefetch.started_granules);
      p.add(static_cast<std::uint64_t>(prefetch.kind)).add(prefetch.fence).add(prefetch.status);
      p.add(prefetch.pinned.size()).add(prefetch.rests ? 1 : 0);
      requests.add(p.value());
    }
  }
  for (const SvmRequest& svm : svm_requests) {
    if (svm.in_use) {
      Digest s;
      s.add(3).add(svm.client->id).add(svm.span).add(svm.cookie.value).add(svm.remaining).add(svm.cursor);
      s.add((svm.home ? 1U : 0U) | (svm.map ? 2U : 0U) | (svm.unite ? 4U : 0U) | (svm.rests ? 8U : 0U))
          .add(svm.prefetch)
          .add(svm.tries);
      requests.add(s.value());
    }
  }
  for (const ChangeRequest& change : changes) {
    if (change.in_use) {
      Digest c;
      c.add(4).add(change.client->id).add(change.span).add(static_cast<std::uint64_t>(change.change));
      c.add(change.to).add(change.cursor).add(change.status).add(change.forks.size());
      c.add(change.rests ? 1 : 0);
      for (const MovePiece& piece : change.pieces) {
        c.add(piece.first).add(piece.tries).add(static_cast<std::uint64_t>(piece.state)).add(piece.wait_block);
        c.add(piece.wait_granule);
      }
      requests.add(c.add(change.cookie.value).add(change.remaining).value());
    }
  }
  SetDigest unanswered;
  for (const Pending& pending : pendings) {
    if (pending.in_use) {
      unanswered.add(digest_of(*this, pending));
    }
  }
  d.add(requests.value()).add(unanswered.value());
  for (const Action& action : actions) {
    d.add(digest_of(action));
  }
  return d.add(work.digest()).add(reclaim.digest()).value();
}

}  // namespace ferry::core

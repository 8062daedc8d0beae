// The invariants of docs/INVARIANTS.md, checked over the whole state; and looking in from outside.
#include <algorithm>

#include "core/impl.h"

namespace ferry::core {

Residency Core::Impl::query(ClientId id, Page page) const {
  Residency r;
  const Client* client = find_client(id);
  if (client == nullptr || !all_allocated(*client, {page, 1})) {
    return r;
  }
  r.allocated = true;
  const Block* block = find_block(*client, block_of(page));
  if (block == nullptr) {
    r.system_current = true;
    r.cpu_may_map = r.cpu_may_write = !reclaim.counts();
    return r;
  }
  const auto bit = static_cast<unsigned>(page & (block_pages - 1));
  const Granule& granule = block->granules[granule_of(page)];
  r.system_current = block->system_current.test(bit);
  if (block->vram_current.test(bit)) {
    r.vram_device = granule.owner;
    r.vram_page =
        devices[granule.owner].slots[granule.slot].first + static_cast<VramPage>(bit % config.granularity_pages);
    r.dirty = !r.system_current;
  }
  r.cpu_may_map = block->cpu_mapped.test(bit);
  r.cpu_may_write = r.cpu_may_map && (block->copies == nullptr || !block->copies->cpu_read_only.test(bit));
  for (DeviceId d = 0; d < devices.size(); ++d) {
    const auto device_bit = static_cast<std::uint16_t>(1U << d);
    if (block->copies != nullptr && block->copies->current[d].test(bit)) {
      r.copies = static_cast<std::uint16_t>(r.copies | device_bit);
    }
    if (block->devices[d].mapped.test(bit)) {
      r.device_mapped = static_cast<std::uint16_t>(r.device_mapped | device_bit);
    }
    if (block->devices[d].writable.test(bit)) {
      r.device_writable = static_cast<std::uint16_t>(r.device_writable | device_bit);
    }
  }
  r.pinned = block->extras != nullptr && block->extras->pinned.test(bit);
  r.held = block->held.test(bit);
  r.stored = block->stored.test(bit);
  r.moving = granule.op != none_index;
  r.contended = is_contended(granule);
  r.last_move_cause = granule.last_move_cause;
  r.last_move_ns = granule.last_move_ns;
  return r;
}

SpanState Core::Impl::span_state(ClientId id, PageSpan span) const {
  SpanState state;
  const Client* client = find_client(id);
  if (client == nullptr) {
    return state;
  }
  for (const auto& block : client->blocks) {
    const PageSpan all{block == nullptr ? 0 : first_page_of(block->index), block_pages};
    if (block == nullptr || !all.overlaps(span)) {
      continue;
    }
    const Page from = std::max(all.first, span.first);
    const Page to = std::min(all.end(), span.end());
    const PageMask pages =
        block->allocated & PageMask::range(static_cast<unsigned>(from - all.first), static_cast<unsigned>(to - from));
    state.pinned = state.pinned || pinned(*block, pages).any();
    state.placed_system = state.placed_system || block->placed_system.intersects(pages);
    state.home = state.home && block->system_current.contains(pages) && !block->stored.intersects(pages);
    for (std::uint32_t g = 0; g < block->granules.size(); ++g) {
      state.home = state.home && (block->granules[g].op == none_index || !pages.intersects(granule_mask(g)));
    }
  }
  for (const PrefetchRequest& request : prefetches) {
    const bool pins = request.in_use && request.kind == PrefetchRequest::Kind::pin && request.client == client;
    state.pinned = state.pinned || (pins && request.span.overlaps(span));
  }
  return state;
}

bool Core::Impl::quiescent() const {
  if (ops_in_use != 0 || pending_in_use != 0 || !actions.empty() || !resting.empty()) {
    return false;
  }
  for (const auto& device : devices) {
    if (!device.waiting.empty()) {
      return false;
    }
  }
  return reclaim.quiescent() && work.quiescent();
}

void Core::Impl::verify() const {
  std::uint64_t mapped_in_place = 0;
  std::uint64_t operations = 0;
  for (const auto& [id, client] : clients) {
    std::uint32_t own_operations = 0;
    std::uint64_t held = 0;
    std::uint64_t stored = 0;
    for (const auto& block : client->blocks) {
      if (block == nullptr) {
        continue;
      }
      verify_block(*block);
      held += block->held.count();
      stored += block->stored.count();
      for (const auto& view : block->devices) {
        mapped_in_place += view.in_place.count();
      }
      for (const auto& granule : block->granules) {
        own_operations += granule.op != none_index ? 1 : 0;
      }
    }
    verify_svm(*client);
    verify_pins(*client);  // I-60
    FERRY_CHECK_EQ(own_operations, client->ops);
    if (!client->dying) {
      verify_changes(*client);
    }
    for (const FreeRequest& free : frees) {
      held += free.in_use && free.client == client.get() ? free.charged_pages : 0;
    }
    FERRY_CHECK(client->dying || held == client->charged_pages);  // I-40
    FERRY_CHECK_EQ(stored, client->stats.stored_pages);           // I-42
    operations += own_operations;
  }
  FERRY_CHECK_EQ(operations, ops_in_use);
  verify_turns();
  reclaim.verify();
  work.verify();
  FERRY_CHECK_EQ(stats.dma_mapped_pages - stats.dma_unmapped_pages, mapped_in_place);  // I-07
  for (DeviceId d = 0; d < devices.size(); ++d) {
    verify_vram(d);
  }
}

void Core::Impl::verify_block(const Block& block) const {
  const PageMask& allocated = block.allocated;
  FERRY_CHECK(allocated.contains(block.freeing));
  FERRY_CHECK((block.system_current | block.vram_current | block.stored).contains(allocated));  // I-01
  FERRY_CHECK(allocated.contains(block.vram_current));
  FERRY_CHECK(block.system_current.contains(block.cpu_mapped & allocated));  // I-03
  if (!reclaim.counts()) {
    FERRY_CHECK(block.held.none() && block.stored.none());
  } else {
    FERRY_CHECK(allocated.contains(block.held | block.stored));
    FERRY_CHECK(block.held.contains(block.cpu_mapped));       // I-40
    FERRY_CHECK(!block.stored.intersects(block.cpu_mapped));  // I-42
    for (const DeviceView& view : block.devices) {
      FERRY_CHECK(block.held.contains(view.in_place));                     // I-40
      FERRY_CHECK(!block.stored.intersects(view.mapped & view.writable));  // I-42
    }
  }
  verify_copies(block);
  for (std::uint32_t g = 0; g < block.granules.size(); ++g) {
    const Granule& granule = block.granules[g];
    const PageMask mask = granule_mask(g);
    if (granule.slot == none_index) {
      FERRY_CHECK(!block.vram_current.intersects(mask));
      FERRY_CHECK_EQ(granule.owner, no_device);
    } else {
      const Slot& slot = devices[granule.owner].slots[granule.slot];
      FERRY_CHECK(slot.block == &block && slot.granule == g && slot.client == block.client);
    }
    if (granule.op != none_index) {
      const Op& op = ops[granule.op];
      FERRY_CHECK(op.in_use && op.block == &block && op.granule == g);
    }
    for (DeviceId d = 0; d < devices.size(); ++d) {
      const DeviceView& view = block.devices[d];
      const PageMask mapped = view.mapped & mask;
      PageMask in_vram = mapped;
      in_vram.remove(view.in_place);
      const PageMask peer = view.peer & mask;
      FERRY_CHECK(in_vram.contains(peer));                                    // I-63
      FERRY_CHECK(block.vram_current.contains(peer));                         // I-63
      FERRY_CHECK(peer.none() || linked(granule.owner, d));                   // I-63
      FERRY_CHECK(!(peer & view.writable).intersects(block.system_current));  // I-09
      in_vram.remove(peer);
      FERRY_CHECK(mapped.contains(view.writable & mask));
      FERRY_CHECK(mapped.contains(view.in_place & mask));
      FERRY_CHECK(has_here(block, g, d).contains(in_vram));                                 // I-03
      FERRY_CHECK(!(in_vram & view.writable).intersects(block.system_current));             // I-02, I-09
      FERRY_CHECK(!(view.in_place & view.writable & mask).intersects(block.vram_current));  // I-02
      FERRY_CHECK(block.system_current.contains(view.in_place & mask));                     // I-03
    }
    if (granule.op == none_index) {
      FERRY_CHECK(block.client->dying || granule.slot == none_index || block.vram_current.intersects(mask));  // I-06
      PageMask cpu_writable = block.cpu_mapped & allocated & mask;
      if (block.copies != nullptr) {
        cpu_writable.remove(block.copies->cpu_read_only);
      }
      FERRY_CHECK(!cpu_writable.intersects(block.vram_current));                // I-02
      FERRY_CHECK(block.client->dying || !block.cpu_waiting.intersects(mask));  // I-06
    }
  }
}

void Core::Impl::verify_svm(const Client& client) const {
  client.svm.map.for_runs({0, Page{1} << 52}, [&](PageSpan span, const Attributes& a) {
    FERRY_CHECK(client.dying || a == Attributes{} || all_allocated(client, span));  // I-51
  });
  for (const auto& block : client.blocks) {
    if (block == nullptr) {
      continue;
    }
    const PageSpan span{first_page_of(block->index), block_pages};
    FERRY_CHECK(!block->plain || (client.svm.map.plain(span) && client.svm.groups.plain(span)));  // I-52
    for (std::uint32_t g = 0; g < block->granules.size(); ++g) {
      for (DeviceId d = 0; d < devices.size() && block->granules[g].op == none_index; ++d) {
        FERRY_CHECK(client.dying || forbidden(*block, g, d).none());  // I-50
      }
    }
  }
  const bool waits = std::any_of(svm_requests.begin(), svm_requests.end(), [&](const SvmRequest& request) {
    return request.in_use && request.client == &client && !request.rests;
  });
  const bool moves = std::any_of(prefetches.begin(), prefetches.end(), [&](const PrefetchRequest& request) {
    return request.in_use && request.client == &client;
  });
  FERRY_CHECK(!waits || moves || client.ops != 0);  // I-53
}

void Core::Impl::verify_turns() const {  // I-64
  std::size_t waiting = 0;
  for (const Op& op : ops) {
    waiting += op.in_use && op.stage == Stage::wait_turn ? 1 : 0;
  }
  FERRY_CHECK_EQ(waiting, turns.size());
  for (const OpIndex index : turns) {
    const Op& op = ops[index];
    FERRY_CHECK(op.in_use && op.stage == Stage::wait_turn && op.outstanding == 0);
    FERRY_CHECK_LE(op.turn_ns, granule_state(op).last_move_ns + slice_of(granule_state(op)));
  }
}

void Core::Impl::verify_vram(DeviceId d) const {
  const Device& device = devices[d];
  FERRY_CHECK_LE(device.chunk_owned, device.chunk_total);  // I-04
  std::uint64_t owned = 0;
  std::uint64_t used = 0;
  for (const auto& [id, client] : clients) {
    const ClientDevice& own = client->devices[d];
    std::uint32_t idle = 0;
    for (std::uint32_t c = 0; c < own.chunks.size(); ++c) {
      const Chunk& chunk = own.chunks[c];
      if (!chunk.owned) {
        continue;
      }
      ++owned;
      used += chunk.used;
      idle += chunk.used == 0 && !chunk.draining ? 1 : 0;
    }
    FERRY_CHECK(client->dying || idle == own.idle_chunks);
    for (const VramPage first : own.free_slots) {
      FERRY_CHECK(own.chunks[first / block_pages].owned && !own.chunks[first / block_pages].draining);
      FERRY_CHECK_EQ(own.slot_at[first / config.granularity_pages], none_index);  // I-05
    }
  }
  FERRY_CHECK(device.waiting.empty() || device.line_stands || room_is_coming(d));  // I-06
  FERRY_CHECK_EQ(owned + device.buffer_chunks, device.chunk_owned);                // I-08
  FERRY_CHECK_EQ(used, device.victims.size());
  FERRY_CHECK_EQ(device.used_pages, device.victims.size() * config.granularity_pages);
}

std::string Core::deadlock() const {
  const graph::Circle circle = impl_->work.find_circle();
  return circle.empty() ? std::string() : impl_->graph.sentences(circle);
}

}  // namespace ferry::core

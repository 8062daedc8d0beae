// What is allocated: ranges by page, apart from residency. Allocate, free, prefetch.
#include "core/impl.h"

namespace ferry::core {
namespace {
constexpr Page page_limit = Page{1} << 52;

bool well_formed(PageSpan span) {
  return span.count_pages > 0 && span.first < page_limit && span.count_pages <= page_limit - span.first;
}

std::uint32_t new_request(auto& requests) {
  for (std::uint32_t i = 0; i < requests.size(); ++i) {
    if (!requests[i].in_use) {
      requests[i] = {};
      return i;
    }
  }
  requests.emplace_back();
  return static_cast<std::uint32_t>(requests.size() - 1);
}
}  // namespace

// --- blocks ----------------------------------------------------------------------------------------------------------

Block* Core::Impl::find_block(Client& client, BlockIndex index) {
  if (client.last_index == index) {
    return client.last_block;
  }
  const auto it = client.block_at.find(index);
  if (it == client.block_at.end()) {
    return nullptr;
  }
  client.last_index = index;
  client.last_block = client.blocks[it->second].get();
  return client.last_block;
}

/// The first block that exists at or after `from`; past the last: ~0.
BlockIndex Core::Impl::next_block(const Client& client, BlockIndex from) {
  // Near ones by looking them up, then all of them, whichever is less.
  const std::uint64_t count = client.block_at.size();
  for (std::uint64_t i = 0; i < count; ++i) {
    if (client.block_at.contains(from + i)) {
      return from + i;
    }
  }
  BlockIndex next = ~BlockIndex{0};
  for (const auto& block : client.blocks) {
    if (block != nullptr && block->index >= from) {
      next = std::min(next, block->index);
    }
  }
  return next;
}

const Block* Core::Impl::find_block(const Client& client, BlockIndex index) {
  const auto it = client.block_at.find(index);
  return it == client.block_at.end() ? nullptr : client.blocks[it->second].get();
}

namespace {
void take_range(Block& block, Page first, const Range& range) {
  const Page block_first = first_page_of(block.index);
  const Page from = std::max(first, block_first);
  const Page to = std::min(first + range.count_pages, block_first + block_pages);
  const auto mask = PageMask::range(static_cast<unsigned>(from - block_first), static_cast<unsigned>(to - from));
  block.allocated |= mask;
  if (range.placement == Placement::system) {
    block.placed_system |= mask;
  } else {
    block.placed_system.remove(mask);
  }
}
}  // namespace

Block& Core::Impl::make_block(Client& client, BlockIndex index) {
  if (Block* found = find_block(client, index)) {
    return *found;
  }
  auto block = std::make_unique<Block>();
  block->client = &client;
  block->index = index;
  block->system_current = PageMask::all();
  block->cpu_mapped = reclaim.counts() ? PageMask() : PageMask::all();
  block->devices.resize(devices.size());
  block->granules.resize(slots_per_chunk());
  const Page first = first_page_of(index);
  auto it = client.ranges.upper_bound(first);
  if (it != client.ranges.begin()) {
    --it;
  }
  for (; it != client.ranges.end() && it->first < first + block_pages; ++it) {
    // Pages that are being freed and have no block are forgotten already, all but their range.
    if (it->first + it->second.count_pages > first && !it->second.freeing) {
      take_range(*block, it->first, it->second);
    }
  }
  if (!client.protections.empty() && !planted(PlantedBug::forget_protection)) {
    protect_block(client, *block);
  }
  std::uint32_t at = 0;
  if (client.block_holes.empty()) {
    at = static_cast<std::uint32_t>(client.blocks.size());
    client.blocks.emplace_back();
  } else {
    at = client.block_holes.back();
    client.block_holes.pop_back();
  }
  look_plain(*block);
  client.blocks[at] = std::move(block);
  client.block_at[index] = at;
  client.last_index = index;
  client.last_block = client.blocks[at].get();
  return *client.last_block;
}

void Core::Impl::drop_block_if_empty(Client& client, Block& block) {
  if (block.holds != 0 || block.allocated.any()) {
    return;
  }
  for (const auto& granule : block.granules) {
    if (granule.op != none_index) {
      return;
    }
  }
  forget_block(client, block);
}

void Core::Impl::forget_block(Client& client, const Block& block) {
  const auto it = client.block_at.find(block.index);
  client.last_index = ~BlockIndex{0};
  client.last_block = nullptr;
  const std::uint32_t at = it->second;
  client.block_at.erase(it);
  client.blocks[at].reset();
  client.block_holes.push_back(at);
}

// --- allocate and free -----------------------------------------------------------------------------------------------

Status Core::Impl::alloc(ClientId id, PageSpan span, Placement placement) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  if (!well_formed(span)) {
    return Code::bad_range;
  }
  auto next = client->ranges.lower_bound(span.first);
  if (next != client->ranges.end() && next->first < span.end()) {
    return Code::overlap;
  }
  if (next != client->ranges.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second.count_pages > span.first) {
      return Code::overlap;
    }
  }
  if (work.overlaps_buffer(id, span)) {
    return Code::overlap;
  }
  const Range range{span.count_pages, placement, false};
  client->ranges.emplace(span.first, range);
  for_blocks(*client, span, [&](Block& block) { take_range(block, span.first, range); });
  tell(EventKind::alloc, *client, no_device, span, Cause::none);
  work.range_added(id);
  return {};
}

void Core::Impl::split_range(Client& client, Page at) {
  auto it = client.ranges.upper_bound(at);
  if (it == client.ranges.begin()) {
    return;
  }
  --it;
  if (it->first == at || it->first + it->second.count_pages <= at) {
    return;
  }
  Range tail = it->second;
  tail.count_pages = it->first + it->second.count_pages - at;
  it->second.count_pages = at - it->first;
  client.ranges.emplace(at, tail);
}

bool Core::Impl::all_allocated(const Client& client, PageSpan span) {
  auto it = client.ranges.upper_bound(span.first);
  if (it == client.ranges.begin()) {
    return false;
  }
  --it;
  for (Page at = span.first; at < span.end(); ++it) {
    if (it == client.ranges.end() || it->first > at || it->first + it->second.count_pages <= at || it->second.freeing) {
      return false;
    }
    at = it->first + it->second.count_pages;
  }
  return true;
}

Status Core::Impl::free(ClientId id, PageSpan span, Cookie cookie) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  if (!well_formed(span) || !all_allocated(*client, span)) {
    return Code::not_allocated;
  }
  start_free(*client, span, cookie, none_index);
  return {};
}

/// REQUIRES: all of the span is allocated, and not being freed.
void Core::Impl::start_free(Client& owner, PageSpan span, Cookie cookie, std::uint32_t change) {
  Client* const client = &owner;
  const ClientId id = owner.id;
  split_range(*client, span.first);
  split_range(*client, span.end());
  for (auto it = client->ranges.find(span.first); it != client->ranges.end() && it->first < span.end(); ++it) {
    it->second.freeing = true;
  }
  if (!client->protections.empty() && !planted(PlantedBug::keep_protection)) {
    set_protection(*client, span, span_all);
    for_blocks(*client, span, [&](Block& block) { protect_block(*client, block); });
  }
  const std::uint32_t index = new_request(frees);
  frees[index].in_use = true;
  frees[index].client = client;
  frees[index].span = span;
  frees[index].cookie = cookie;
  frees[index].change = change;
  frees[index].remaining = 1;  // held until every granule was asked
  tell(EventKind::free, *client, no_device, span, Cause::freed);
  work.userptr_invalidate(id, span);
  svm_forget(*client, span);
  leave_out_of_discards(owner, span);

  const auto free_in = [&](Block& block) {
    const Page block_first = first_page_of(block.index);
    const Page from = std::max(span.first, block_first);
    const Page to = std::min(span.end(), block_first + block_pages);
    const auto mask =
        PageMask::range(static_cast<unsigned>(from - block_first), static_cast<unsigned>(to - from)) & block.allocated;
    block.freeing |= mask;
    ++block.holds;
    for (std::uint32_t g = granule_of(from); g <= granule_of(to - 1); ++g) {
      const PageMask pages = mask & granule_mask(g);
      if (pages.none()) {
        continue;
      }
      ++frees[index].remaining;
      if (work.userptr_keeps(id, freed_in(index, block, g)) || pinned(block, pages).any()) {
        kept_frees.push_back({index, block.index, g});
        // Threads that waited for them before need not wait for the fence; waves are told when their operation ends.
        const PageMask waiting = block.cpu_waiting & pages;
        waiting.for_each_run([&](unsigned first, unsigned count) {
          emit(Verb::wake_cpu, *client).pages = {block_first + first, count};
        });
        block.cpu_waiting.remove(waiting);
      } else {
        free_granule(index, block, g);
      }
    }
    --block.holds;
    drop_block_if_empty(*client, block);
  };
  for_blocks(*client, span, free_in);
  if (work.userptr_keeps(id, span)) {
    ++frees[index].remaining;  // for pages that have no block, and are used all the same
    kept_frees.push_back({index, no_block, 0});
  }
  free_granule_done(index);
}

PageSpan Core::Impl::freed_in(std::uint32_t request, const Block& block, std::uint32_t granule) const {
  const PageSpan span = granule_span(block, granule);
  const PageSpan& freed = frees[request].span;
  const Page first = std::max(span.first, freed.first);
  return {first, std::min(span.end(), freed.end()) - first};
}

/// The pages of the request in the granule are given up, after the operation that is under way there.
void Core::Impl::free_granule(std::uint32_t request, Block& block, std::uint32_t granule) {
  const PageSpan span = freed_in(request, block, granule);
  const auto pages = PageMask::range(static_cast<unsigned>(span.first - first_page_of(block.index)),
                                     static_cast<unsigned>(span.count_pages)) &
                     block.allocated;
  if (block.granules[granule].op != none_index) {
    Op& op = ops[block.granules[granule].op];
    op.discard_next |= pages;
    if (!planted(PlantedBug::forget_free_waiter)) {
      op.next_frees.push_back(request);
    }
    return;
  }
  Op& op = start_op(block, granule, Goal::discard, Cause::freed, no_device, Access::read);
  op.pages = pages;
  op.frees.push_back(request);
  run_op(op.self);
}

/// A userptr buffer is in use no more: frees that were kept from going on for it go on.
void Core::Impl::resume_frees() {
  resume_changes();
  for (std::size_t i = 0; i < kept_frees.size();) {
    const KeptFree kept = kept_frees[i];
    Client& client = *frees[kept.request].client;
    Block* block = kept.block == no_block ? nullptr : find_block(client, kept.block);
    const PageSpan span = block == nullptr ? frees[kept.request].span : freed_in(kept.request, *block, kept.granule);
    if (work.userptr_keeps(client.id, span) || (block != nullptr && pinned(client, span))) {
      ++i;
      continue;
    }
    kept_frees.erase(kept_frees.begin() + static_cast<std::ptrdiff_t>(i));
    if (block == nullptr) {
      free_granule_done(kept.request);
    } else {
      free_granule(kept.request, *block, kept.granule);
    }
  }
}

void Core::Impl::free_granule_done(std::uint32_t request) {
  FreeRequest& free = frees[request];
  FERRY_CHECK(free.in_use && free.remaining > 0);
  if (--free.remaining != 0 || free.client->dying) {
    return;
  }
  std::uint32_t pending = 0;
  Action& action = ask_client(Verb::discard_system, *free.client, pending);
  action.pages = free.span;
  action.cause = Cause::freed;
  pendings[pending].request = request;
  free.started = true;
  returning_pages += free.charged_pages;
}

void Core::Impl::free_forgotten(std::uint32_t request) {
  FreeRequest& free = frees[request];
  Client& client = *free.client;
  const std::uint64_t charged = free.charged_pages;
  returning_pages -= charged;
  free.started = false;
  if (!client.dying) {
    auto it = client.ranges.find(free.span.first);
    while (it != client.ranges.end() && it->first < free.span.end()) {
      it = client.ranges.erase(it);
    }
    if (free.change != none_index) {
      change_part_done(free.change);
    } else {
      reply(free.cookie, client, {});
    }
  }
  free.in_use = false;
  if (charged != 0) {
    free.charged_pages = 0;
    uncharge(client, charged);
  }
  finish_client_if_idle(client);
}

// --- walks of userptr buffers ----------------------------------------------------------------------------------------

std::uint32_t Core::Impl::new_prefetch() { return new_request(prefetches); }

void Core::Impl::walk_in_place(Client& client, PageSpan span, DeviceId device, BufferId userptr) {
  const std::uint32_t index = new_prefetch();
  PrefetchRequest& request = prefetches[index];
  request.in_use = true;
  request.client = &client;
  request.span = span;
  request.cursor = span.first;
  request.device = device;
  request.userptr = userptr;
  advance_prefetch(index);
}

/// Like prefetch_granule(), to system memory, where the pages stay from now on; mapped there on the device, if any.
bool Core::Impl::walk_granule(std::uint32_t index, Block& block, std::uint32_t granule) {
  PrefetchRequest& request = prefetches[index];
  Granule& g = block.granules[granule];
  const DeviceId device = request.device;
  if (g.op != none_index) {
    ++request.started_granules;
    ++request.in_flight;
    ops[g.op].prefetches.push_back(index);
    return true;
  }
  PageMask pages = block.allocated & granule_mask(granule);
  pages.remove(block.freeing);
  const bool here = !block.vram_current.intersects(pages) && block.system_current.contains(pages) &&
                    !copied(block).intersects(pages) && (!reclaim.counts() || block.held.contains(pages));
  if (here && (device == no_device || block.devices[device].in_place.contains(pages))) {
    return true;
  }
  ++request.started_granules;
  ++request.in_flight;
  Op& op = start_op(block, granule, device == no_device ? Goal::system : Goal::in_place, Cause::prefetch, device,
                    Access::write);
  op.prefetches.push_back(index);
  run_op(op.self);
  return true;
}

// --- prefetch --------------------------------------------------------------------------------------------------------

Status Core::Impl::prefetch(ClientId id, PageSpan span, DeviceId device, Cookie cookie) {
  std::uint32_t index = 0;
  const Status status = request_moves(id, span, device, PrefetchRequest::Kind::prefetch, index);
  if (status.ok()) {
    prefetches[index].cookie = cookie;
    advance_prefetch(index);
  }
  return status;
}

/// Checks and notes a request; advance_prefetch() begins it.
Status Core::Impl::request_moves(ClientId id, PageSpan span, DeviceId device, PrefetchRequest::Kind kind,
                                 std::uint32_t& index) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  if (!well_formed(span)) {
    return Code::bad_range;
  }
  if (device != no_device && device >= devices.size()) {
    return Code::bad_range;
  }
  const auto it = client->ranges.lower_bound(span.first);
  const bool starts_inside = it != client->ranges.end() && it->first < span.end();
  const bool covers_first =
      it != client->ranges.begin() && std::prev(it)->first + std::prev(it)->second.count_pages > span.first;
  if (!starts_inside && !covers_first) {
    return Code::not_allocated;
  }
  if (kind == PrefetchRequest::Kind::prefetch) {
    tell(EventKind::prefetch, *client, device, span, Cause::prefetch, Access::read,
         device == no_device ? Place::system : Place::vram);
  }
  index = new_prefetch();
  PrefetchRequest& request = prefetches[index];
  request.in_use = true;
  request.kind = kind;
  request.client = client;
  request.span = span;
  request.cursor = span.first;
  request.device = device;
  return {};
}

/// As prefetch(), for a SET, which is told at the end.
void Core::Impl::prefetch_for(std::uint32_t svm, Client& client, PageSpan span, DeviceId device) {
  tell(EventKind::prefetch, client, device, span, Cause::prefetch, Access::read,
       device == no_device ? Place::system : Place::vram);
  const std::uint32_t index = new_prefetch();
  PrefetchRequest& request = prefetches[index];
  request.in_use = true;
  request.client = &client;
  request.span = span;
  request.cursor = span.first;
  request.device = device;
  request.svm = svm;
  advance_prefetch(index);
}

/// False: the request has brought as much as the device holds, more would push out what it just brought.
bool Core::Impl::prefetch_granule(std::uint32_t index, Block& block, std::uint32_t granule) {
  PrefetchRequest& request = prefetches[index];
  const DeviceId device = request.device;
  Granule& g = block.granules[granule];
  if (g.op != none_index) {
    ++request.in_flight;
    ops[g.op].prefetches.push_back(index);
    return true;
  }
  PageMask pages = block.allocated & granule_mask(granule);
  pages.remove(block.freeing);
  if (!block.plain) {
    pages = device == no_device ? pages & ~(fixed_pages(block, granule) & block.vram_current)
                                : may_go_to(block, granule, device, pages, true);
  }
  pages.remove(pinned(block, pages));
  if (!block.plain && prefetch_copy(index, block, granule, pages)) {
    return true;
  }
  if (pages.none()) {
    return true;
  }
  if (device == no_device) {
    if (!block.vram_current.intersects(pages) && block.cpu_mapped.contains(pages)) {
      return true;
    }
  } else {
    if ((g.owner == device && block.vram_current.contains(pages)) || is_contended(g) ||
        block.placed_system.intersects(pages) || !block.client->devices[device].attached ||
        work.userptr_in_use(block.client->id, granule_span(block, granule))) {
      return true;
    }
    if (request.started_granules >= devices[device].chunk_total * slots_per_chunk()) {
      return false;
    }
  }
  ++request.started_granules;
  ++request.in_flight;
  Op& op =
      start_op(block, granule, device == no_device ? Goal::system : Goal::vram, Cause::prefetch, device, Access::read);
  op.pages &= pages;
  op.prefetches.push_back(index);
  run_op(op.self);
  return true;
}

void Core::Impl::prefetch_op_done(std::uint32_t index) {
  PrefetchRequest& request = prefetches[index];
  if (!request.in_use) {
    return;
  }
  FERRY_CHECK_GE(request.in_flight, 1U);
  --request.in_flight;
  advance_prefetch(index);
}

}  // namespace ferry::core

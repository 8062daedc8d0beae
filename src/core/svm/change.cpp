// What the application does to its own pages: unmap, protect, discard. Each is carried out granule by granule, after the
// operation that is under way there, and before whoever waits there is looked at again.
#include "core/impl.h"

namespace ferry::core {
namespace {

constexpr Page page_limit = Page{1} << 52;
/// Unmaps that are told apart. A fault that is older than all of them is tried again: then it is a new one.
constexpr std::size_t past_unmaps_max = 64;
/// Granules of one discard under way at a time.
constexpr std::uint64_t discard_window = 64;
/// Spans with a protection of their own, a client: more than the kernel has mappings for by default.
constexpr std::size_t protections_max = std::size_t{1} << 20;

bool well_formed(PageSpan span) {
  return span.count_pages > 0 && span.first < page_limit && span.count_pages <= page_limit - span.first;
}

PageSpan cut(PageSpan span, PageSpan to) {
  const Page first = std::max(span.first, to.first);
  const Page end = std::min(span.end(), to.end());
  return {first, end > first ? end - first : 0};
}

/// The parts of the span that are allocated and not being freed, neighbours together.
std::vector<PageSpan> allocated_parts(const Client& client, PageSpan span) {
  std::vector<PageSpan> parts;
  auto it = client.ranges.upper_bound(span.first);
  if (it != client.ranges.begin()) {
    --it;
  }
  for (; it != client.ranges.end() && it->first < span.end(); ++it) {
    const PageSpan part = cut({it->first, it->second.count_pages}, span);
    if (part.count_pages == 0 || it->second.freeing) {
      continue;
    }
    if (!parts.empty() && parts.back().end() == part.first) {
      parts.back().count_pages += part.count_pages;
    } else {
      parts.push_back(part);
    }
  }
  return parts;
}

PageMask mask_in(const Block& block, PageSpan span) {
  const Page first = first_page_of(block.index);
  const PageSpan part = cut(span, {first, block_pages});
  return part.count_pages == 0
             ? PageMask()
             : PageMask::range(static_cast<unsigned>(part.first - first), static_cast<unsigned>(part.count_pages));
}

}  // namespace

/// The span is freed: discards and moves that are under way are not about what is allocated there next.
void Core::Impl::leave_out_of_discards(const Client& client, PageSpan span) {
  for (PrefetchRequest& request : prefetches) {
    if (request.in_use && request.client == &client && request.kind == PrefetchRequest::Kind::forget &&
        request.span.overlaps(span)) {
      request.other.push_back(span);
    }
  }
  for (ChangeRequest& request : changes) {
    const bool goes = request.change == Change::move && span.overlaps({request.to, request.span.count_pages});
    if (request.in_use && request.client == &client &&
        (request.change == Change::discard || request.change == Change::move) &&
        (request.span.overlaps(span) || goes)) {
      request.other.push_back(span);
    }
  }
}

/// What lies between the parts of the span that are allocated, or is being freed.
std::vector<PageSpan> Core::Impl::not_allocated_parts(const Client& client, PageSpan span) {
  std::vector<PageSpan> gaps;
  Page at = span.first;
  for (const PageSpan part : allocated_parts(client, span)) {
    if (part.first > at) {
      gaps.push_back({at, part.first - at});
    }
    at = part.end();
  }
  if (at < span.end()) {
    gaps.push_back({at, span.end() - at});
  }
  return gaps;
}

std::uint32_t Core::Impl::new_change() {
  std::uint32_t index = 0;
  while (index < changes.size() && changes[index].in_use) {
    ++index;
  }
  if (index == changes.size()) {
    changes.emplace_back();
  }
  changes[index] = {};
  changes[index].serial = ++change_serial;
  return index;
}

Status Core::change(std::uint64_t now_ns, ClientId client, Change change, PageSpan span, Page to, std::uint8_t prot,
                    Cookie cookie) {
  impl_->now_ns = now_ns;
  return impl_->change(client, change, span, to, prot, cookie);
}

std::uint64_t Core::changes(ClientId client) const {
  const Client* c = impl_->find_client(client);
  return c == nullptr ? 0 : c->changes;
}

Status Core::Impl::change(ClientId id, Change change, PageSpan span, Page to, std::uint8_t prot, Cookie cookie) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  if (!well_formed(span) || (change == Change::protect && (prot & ~span_all) != 0)) {
    return Code::bad_range;
  }
  if (change == Change::move) {
    return move(*client, span, to, cookie);
  }
  if (change == Change::lazy_free) {
    return discard_contents(id, span, cookie);
  }
  if (allocated_parts(*client, span).empty()) {
    return Code::not_allocated;
  }
  if (change == Change::discard && pinned(*client, span)) {
    return Code::in_use;
  }
  if (change == Change::protect && prot != span_all && client->protections.size() >= protections_max) {
    return Code::no_mappings;
  }
  const std::uint32_t index = new_change();
  ChangeRequest& request = changes[index];
  request.in_use = true;
  request.client = client;
  request.change = change;
  request.span = span;
  request.cookie = cookie;
  request.remaining = 1;  // held until every part was asked
  switch (change) {
    case Change::unmap: start_unmap(index); break;
    case Change::protect: start_protect(index, prot); break;
    case Change::discard: start_discard(index); break;
    case Change::lazy_free:
    case Change::move: break;
  }
  change_part_done(index);
  return {};
}

void Core::Impl::change_part_done(std::uint32_t index) {
  ChangeRequest& request = changes[index];
  FERRY_CHECK(request.in_use && request.remaining > 0);
  if (--request.remaining != 0) {
    if (request.change == Change::discard && !request.walked) {
      advance_discard(index);
    }
    return;
  }
  request.in_use = false;
  const std::vector<std::uint32_t> forks = std::move(request.forks);
  reply(request.cookie, *request.client, request.status);
  for (const std::uint32_t fork : forks) {
    prefetch_op_done(fork);
  }
}

/// An operation that the request has begun has ended.
void Core::Impl::change_op_done(std::uint32_t index, const Block& block, std::uint32_t granule) {
  if (changes[index].change == Change::move) {
    move_ended(index, block, granule);
  } else {
    change_part_done(index);
  }
}

// --- unmap -----------------------------------------------------------------------------------------------------------

void Core::Impl::start_unmap(std::uint32_t index) {
  Client& client = *changes[index].client;
  const PageSpan span = changes[index].span;
  client.past_unmaps.push_back({++client.changes, span});
  if (client.past_unmaps.size() > past_unmaps_max) {
    client.past_unmaps.pop_front();
  }
  for (const PageSpan part : allocated_parts(client, span)) {
    ++changes[index].remaining;
    start_free(client, part, {}, index);
  }
}

bool Core::Impl::unmapped_since(const Client& client, Page page, std::uint64_t seen) {
  if (seen >= client.changes) {
    return false;
  }
  for (auto it = client.past_unmaps.rbegin(); it != client.past_unmaps.rend(); ++it) {
    if (it->number <= seen) {
      return false;
    }
    if (it->span.contains(page)) {
      return true;
    }
  }
  // Older than what is remembered.
  return client.past_unmaps.front().number > seen + 1;
}

// --- protection ------------------------------------------------------------------------------------------------------

/// Says it of the allocated pages of the span, whatever was said before.
void Core::Impl::set_protection(Client& client, PageSpan span, std::uint8_t prot) {
  auto& map = client.protections;
  auto it = map.upper_bound(span.first);
  if (it != map.begin()) {
    --it;
  }
  while (it != map.end() && it->first < span.end()) {
    const PageSpan old{it->first, it->second.count_pages};
    const std::uint8_t old_prot = it->second.prot;
    if (!old.overlaps(span)) {
      ++it;
      continue;
    }
    it = map.erase(it);
    if (old.first < span.first) {
      map.emplace(old.first, ProtectedSpan{span.first - old.first, old_prot});
    }
    if (old.end() > span.end()) {
      it = map.emplace(span.end(), ProtectedSpan{old.end() - span.end(), old_prot}).first;
    }
  }
  if (prot == span_all) {
    return;
  }
  for (const PageSpan part : allocated_parts(client, span)) {
    auto here = map.emplace(part.first, ProtectedSpan{part.count_pages, prot}).first;
    const auto next = std::next(here);
    if (next != map.end() && next->first == part.end() && next->second.prot == prot) {
      here->second.count_pages += next->second.count_pages;
      map.erase(next);
    }
    if (here != map.begin()) {
      const auto before = std::prev(here);
      if (before->first + before->second.count_pages == here->first && before->second.prot == prot) {
        before->second.count_pages += here->second.count_pages;
        map.erase(here);
      }
    }
  }
}

/// What the client's map says of the block's pages.
void Core::Impl::protect_block(const Client& client, Block& block) const {
  PageMask no_read;
  PageMask no_write;
  const Page first = first_page_of(block.index);
  auto it = client.protections.upper_bound(first);
  if (it != client.protections.begin()) {
    --it;
  }
  for (; it != client.protections.end() && it->first < first + block_pages; ++it) {
    const PageMask mask = mask_in(block, {it->first, it->second.count_pages});
    // Page tables know no page that can be written and not read.
    if ((it->second.prot & (span_read | span_write)) == 0) {
      no_read |= mask;
    }
    if ((it->second.prot & span_write) == 0) {
      no_write |= mask;
    }
  }
  if (no_write.none()) {
    block.protection.reset();
    return;
  }
  if (block.protection == nullptr) {
    block.protection = std::make_unique<Protection>();
  }
  block.protection->no_read = no_read;
  block.protection->no_write = no_write;
}

void Core::Impl::start_protect(std::uint32_t index, std::uint8_t prot) {
  Client& client = *changes[index].client;
  const PageSpan span = changes[index].span;
  set_protection(client, span, prot);
  for_blocks(client, span, [&](Block& block) {
    // At once: what is mapped from now on obeys. What is mapped already follows.
    protect_block(client, block);
    change_granules(index, block);
  });
}

// --- contents --------------------------------------------------------------------------------------------------------

void Core::Impl::start_discard(std::uint32_t index) {
  ChangeRequest& request = changes[index];
  work.userptr_invalidate(request.client->id, request.span);
  request.other = not_allocated_parts(*request.client, request.span);
  request.cursor = request.span.first;
  ++request.remaining;  // until every granule was begun
  advance_discard(index);
}

void Core::Impl::advance_discard(std::uint32_t index) {
  if (changes[index].advancing || changes[index].rests) {
    return;
  }
  changes[index].advancing = true;
  Client& client = *changes[index].client;
  unsigned visited = 0;
  while (changes[index].remaining <= discard_window && changes[index].cursor < changes[index].span.end()) {
    ChangeRequest& request = changes[index];
    if (++visited > walk_granules_most) {
      rest(request.rests, Rest::Of::change, index);
      break;
    }
    auto it = client.ranges.upper_bound(request.cursor);
    if (it != client.ranges.begin() && std::prev(it)->first + std::prev(it)->second.count_pages > request.cursor) {
      --it;
    } else {
      request.cursor = it == client.ranges.end() ? request.span.end() : std::min(it->first, request.span.end());
      continue;
    }
    const Page end = std::min(it->first + it->second.count_pages, request.span.end());
    if (it->second.freeing) {
      request.cursor = end;
      continue;
    }
    if (reclaim.counts() && find_block(client, block_of(request.cursor)) == nullptr) {
      // Such pages have no memory. Without a budget the CPU alone has touched them, who knows which.
      const BlockIndex next = next_block(client, block_of(request.cursor));
      request.cursor = next <= block_of(end - 1) ? first_page_of(next) : end;
      continue;
    }
    Block& block = make_block(client, block_of(request.cursor));
    const std::uint32_t granule = granule_of(request.cursor);
    request.cursor = granule_span(block, granule).end();
    ++request.remaining;
    ++block.holds;
    change_granule(index, block, granule);
    --block.holds;
    drop_block_if_empty(client, block);
  }
  ChangeRequest& request = changes[index];
  request.advancing = false;
  if (!request.walked && request.cursor >= request.span.end()) {
    request.walked = true;
    change_part_done(index);
  }
}

/// Revoked everywhere, the pages lose every copy; system memory reads as zeros once the machine has taken it.
void Core::Impl::zero(Op& op) {
  Block& block = *op.block;
  const Granule& state = granule_state(op);
  if (!planted(PlantedBug::keep_discarded)) {
    block.vram_current.remove(op.pages);
    let_cpu(block);
  }
  block.system_current |= op.pages;
  written(block, op.pages);  // nothing of theirs may be dropped any more: they are zeros
  if (state.slot != none_index && !block.vram_current.intersects(granule_mask(op.granule))) {
    release_slot(block, op.granule);
  }
  // Those, too, that are not charged: memory that had contents before it was managed is not, until its granule was free.
  op.pages.for_each_run([&](unsigned first, unsigned count) {
    ask(Verb::discard_system, op, {first_page_of(block.index) + first, count});
  });
}

// --- granule by granule ----------------------------------------------------------------------------------------------

void Core::Impl::change_granules(std::uint32_t index, Block& block) {
  Client& client = *block.client;
  const PageMask pages = mask_in(block, changes[index].span) & block.allocated;
  ++block.holds;
  for (std::uint32_t g = 0; g < block.granules.size(); ++g) {
    if (pages.intersects(granule_mask(g))) {
      ++changes[index].remaining;
      change_granule(index, block, g);
    }
  }
  --block.holds;
  drop_block_if_empty(client, block);
}

void Core::Impl::change_granule(std::uint32_t index, Block& block, std::uint32_t granule) {
  if (changes[index].change == Change::move) {
    move_granule(index, block, granule);
    return;
  }
  if (block.granules[granule].op != none_index) {
    // It may have asked for mappings and copies already, as things were.
    ops[block.granules[granule].op].next_changes.push_back(index);
    return;
  }
  const Change kind = changes[index].change;
  PageMask pages = mask_in(block, changes[index].span) & block.allocated & granule_mask(granule);
  pages.remove(block.freeing);
  if (kind == Change::protect) {
    PageMask wrong;
    for (const DeviceView& view : block.devices) {
      wrong |= block.protection == nullptr
                   ? PageMask()
                   : (view.mapped & block.protection->no_read) | (view.writable & block.protection->no_write);
    }
    pages &= wrong;
  }
  if (kind == Change::discard) {
    pages.remove(pinned(block, pages));  // pinned since it was asked for
    for (const PageSpan other : changes[index].other) {
      pages.remove(mask_in(block, other));
    }
  }
  if (pages.none()) {
    change_part_done(index);
    return;
  }
  if (kind != Change::protect && work.userptr_keeps(block.client->id, granule_span(block, granule))) {
    kept_changes.push_back({index, block.index, granule});
    return;
  }
  Op& op = start_op(block, granule, kind == Change::protect ? Goal::protect : Goal::zero, Cause::change, no_device,
                    Access::read);
  op.pages = pages;
  op.changes.push_back(index);
  run_op(op.self);
}

/// Goals zero and protect: who may not reach the pages any more lets go.
void Core::Impl::revoke_for_change(Op& op) {
  Block& block = *op.block;
  if (op.goal == Goal::zero) {
    revoke_everything(op);
    (op.pages & block.cpu_mapped).for_each_run([&](unsigned first, unsigned count) {
      ask(Verb::revoke_cpu, op, {first_page_of(block.index) + first, count});
    });
    return;
  }
  if (block.protection == nullptr || planted(PlantedBug::keep_protected_mapping)) {
    return;
  }
  for (DeviceId d = 0; d < devices.size(); ++d) {
    const DeviceView& view = block.devices[d];
    revoke_device(
        op, d, op.pages & ((view.mapped & block.protection->no_read) | (view.writable & block.protection->no_write)));
  }
}

/// A userptr buffer is in use no more: changes that were kept from its pages go on.
void Core::Impl::resume_changes() {
  for (std::size_t i = 0; i < kept_changes.size();) {
    const KeptFree kept = kept_changes[i];
    Client& client = *changes[kept.request].client;
    Block* block = find_block(client, kept.block);
    if (block != nullptr && work.userptr_keeps(client.id, granule_span(*block, kept.granule))) {
      ++i;
      continue;
    }
    kept_changes.erase(kept_changes.begin() + static_cast<std::ptrdiff_t>(i));
    if (block == nullptr) {
      change_part_done(kept.request);
    } else {
      change_granule(kept.request, *block, kept.granule);
    }
  }
}

void Core::Impl::forget_changes(const Client& client) {
  std::erase_if(kept_changes, [&](const KeptFree& kept) { return changes[kept.request].client == &client; });
  for (ChangeRequest& request : changes) {
    if (request.client == &client) {
      request.in_use = false;
    }
  }
}

void Core::Impl::verify_changes(const Client& client) const {
  // I-71: what is said of a page ends with its allocation.
  for (auto it = client.protections.begin(); it != client.protections.end(); ++it) {
    FERRY_CHECK(it->second.prot != span_all && it->second.count_pages != 0);
    FERRY_CHECK(all_allocated(client, {it->first, it->second.count_pages}));
    const auto next = std::next(it);
    FERRY_CHECK(next == client.protections.end() || next->first >= it->first + it->second.count_pages);
  }
  verify_moves(client);
  FERRY_CHECK(client.past_unmaps.empty() || client.past_unmaps.back().number == client.changes);
  for (const auto& block : client.blocks) {
    if (block == nullptr) {
      continue;
    }
    PageMask no_write;
    for (const auto& [first, span] : client.protections) {
      if ((span.prot & span_write) == 0) {
        no_write |= mask_in(*block, {first, span.count_pages});
      }
    }
    FERRY_CHECK((block->protection == nullptr ? PageMask() : block->protection->no_write) == no_write);
    if (block->protection == nullptr) {
      continue;
    }
    FERRY_CHECK(block->protection->no_write.contains(block->protection->no_read));
    for (std::uint32_t g = 0; g < block->granules.size(); ++g) {
      if (block->granules[g].op != none_index) {
        continue;
      }
      for (const DeviceView& view : block->devices) {  // I-70
        FERRY_CHECK(!(view.mapped & granule_mask(g)).intersects(block->protection->no_read));
        FERRY_CHECK(!(view.writable & granule_mask(g)).intersects(block->protection->no_write));
      }
    }
  }
}

}  // namespace ferry::core

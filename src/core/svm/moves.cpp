// Moves that an application asks for: with a fence at the end, memory without contents, contents that nobody needs.
#include "core/impl.h"

namespace ferry::core {

Extras& Core::Impl::extras_of(Block& block) {
  if (block.extras == nullptr) {
    block.extras = std::make_unique<Extras>();
  }
  return *block.extras;
}

void Core::Impl::drop_extras_if_empty(Block& block) {
  if (block.extras != nullptr && block.extras->empty()) {
    block.extras.reset();
  }
}

bool Core::Impl::visit_granule(std::uint32_t index, Block& block, std::uint32_t granule) {
  if (prefetches[index].userptr != 0) {
    return walk_granule(index, block, granule);
  }
  switch (prefetches[index].kind) {
    case PrefetchRequest::Kind::prefetch: return prefetch_granule(index, block, granule);
    case PrefetchRequest::Kind::populate: return populate_granule(index, block, granule);
    case PrefetchRequest::Kind::pin: return pin_granule(index, block, granule);
    case PrefetchRequest::Kind::forget: return forget_granule(index, block, granule);
  }
  return false;
}

void Core::Impl::end_request(std::uint32_t index) {
  PrefetchRequest& request = prefetches[index];
  request.in_use = false;
  if (request.kind == PrefetchRequest::Kind::pin && request.status.ok()) {
    std::uint64_t left = request.span.count_pages;
    for (const PageSpan& span : request.pinned) {
      left -= span.count_pages;
    }
    if (left != 0) {
      request.status = Code::not_allocated;  // freed before the walk came by
    }
  }
  const Status status = request.status;
  const Cookie cookie = request.cookie;
  const FenceId fence = request.fence;
  const std::uint32_t svm = request.svm;
  Client& client = *request.client;
  if (request.userptr != 0) {
    work.userptr_walked(request.userptr, request.started_granules != 0);
    return;
  }
  if (svm != none_index) {
    svm_told(svm);
    return;
  }
  if (request.kind == PrefetchRequest::Kind::pin && !status.ok()) {
    pin_failed(request);
    resume_frees();
  }
  if (fence != 0 && planted(PlantedBug::forget_moves_fence)) {
    return;
  }
  if (fence != 0) {
    work.fence_publish(fence);
    work.fence_signal(fence, status);
  } else {
    reply(cookie, client, status);
  }
}

/// Pages of the granule that the request is about.
PageMask Core::Impl::requested(const PrefetchRequest& request, const Block& block, std::uint32_t granule) const {
  const PageSpan span = granule_span(block, granule);
  const Page from = std::max(span.first, request.span.first);
  const Page to = std::min(span.end(), request.span.end());
  if (from >= to) {
    return {};
  }
  PageMask pages = PageMask::range(static_cast<unsigned>(from & (block_pages - 1)), static_cast<unsigned>(to - from)) &
                   block.allocated;
  pages.remove(block.freeing);
  for (const PageSpan gone : request.other) {
    const Page first = std::max(span.first, gone.first);
    const Page end = std::min(span.end(), gone.end());
    if (first < end) {
      pages.remove(
          PageMask::range(static_cast<unsigned>(first & (block_pages - 1)), static_cast<unsigned>(end - first)));
    }
  }
  return pages;
}

/// The fence stays out of sight until its pages have moved: a move may wait for memory, and what memory management may
/// wait for must not. Nobody inside waits for it before; whoever is outside hears of it by its signal.
Status Core::Impl::migrate(ClientId id, PageSpan span, DeviceId device, FenceId fence) {
  if (fence == 0) {
    return Code::bad_range;
  }
  if (work.fences.contains(fence) || work.jobs.contains(fence)) {
    return Code::in_use;
  }
  std::uint32_t index = 0;
  const Status status = request_moves(id, span, device, PrefetchRequest::Kind::prefetch, index);
  if (status.ok()) {
    prefetches[index].fence = fence;
    work.fence_make(fence, id);
    advance_prefetch(index);
  }
  return status;
}

Status Core::Impl::populate(ClientId id, PageSpan span, DeviceId device, Cookie cookie) {
  std::uint32_t index = 0;
  const Status status = request_moves(id, span, device, PrefetchRequest::Kind::populate, index);
  if (status.ok()) {
    prefetches[index].cookie = cookie;
    advance_prefetch(index);
  }
  return status;
}

Status Core::Impl::discard_contents(ClientId id, PageSpan span, Cookie cookie) {
  const Client* client = find_client(id);
  if (client != nullptr && pinned(*client, span)) {
    return Code::in_use;
  }
  std::uint32_t index = 0;
  const Status status = request_moves(id, span, no_device, PrefetchRequest::Kind::forget, index);
  if (status.ok()) {
    prefetches[index].cookie = cookie;
    prefetches[index].other = not_allocated_parts(*client, span);
    advance_prefetch(index);
  }
  return status;
}

/// What has memory stays where it is. Without a budget nobody knows which pages have some: a granule that never moved
/// counts as one that has none, and goes to the device, with what is in it.
bool Core::Impl::populate_granule(std::uint32_t index, Block& block, std::uint32_t granule) {
  PrefetchRequest& request = prefetches[index];
  Granule& g = block.granules[granule];
  if (g.op != none_index) {
    ++request.in_flight;
    ops[g.op].prefetches.push_back(index);
    return true;
  }
  PageMask pages = block.allocated & granule_mask(granule);
  pages.remove(block.freeing);
  PageMask bare = pages;
  bare.remove(block.vram_current | block.held);
  const bool empty = g.slot == none_index && !holds_copies(block, granule) && g.last_move_cause == Cause::none &&
                     (!reclaim.counts() || !(block.held | block.stored).intersects(pages));
  const bool up = request.device != no_device && empty && !block.placed_system.intersects(pages) && !is_contended(g) &&
                  pinned(block, pages).none() && has_free_slot(*block.client, request.device) &&
                  !work.userptr_in_use(block.client->id, granule_span(block, granule));
  if (!up && (!reclaim.counts() || bare.none())) {
    return true;
  }
  ++request.started_granules;
  ++request.in_flight;
  Op& op = start_op(block, granule, up ? Goal::vram : Goal::system, Cause::prefetch, up ? request.device : no_device,
                    Access::read);
  if (!up) {
    op.pages &= bare;
  }
  op.prefetches.push_back(index);
  run_op(op.self);
  return true;
}

/// Discards what the request has of the granule.
bool Core::Impl::forget_granule(std::uint32_t index, Block& block, std::uint32_t granule) {
  PrefetchRequest& request = prefetches[index];
  const Granule& g = block.granules[granule];
  if (g.op != none_index) {
    ++request.in_flight;
    ops[g.op].prefetches.push_back(index);
    return true;
  }
  PageMask pages = requested(request, block, granule);
  pages.remove(pinned(block, pages));
  if (pages.none()) {
    return true;
  }
  ++request.in_flight;
  Op& op = start_op(block, granule, Goal::forget, Cause::none, no_device, Access::read);
  op.pages = pages;
  op.prefetches.push_back(index);
  run_op(op.self);
  return true;
}

/// Nobody reaches the pages now, so nobody can have written them since they were given up.
void Core::Impl::forgotten(Op& op) {
  PageMask pages = op.pages;
  pages.remove(pinned(*op.block, pages));
  extras_of(*op.block).discarded |= pages;
  drop_extras_if_empty(*op.block);
}

/// The pages are about to be mapped: what they read from now on is what they hold.
void Core::Impl::written(Block& block, const PageMask& pages) {
  if (block.extras != nullptr && block.extras->discarded.intersects(pages)) {
    block.extras->discarded.remove(pages);
    drop_extras_if_empty(block);
  }
}

/// The operation on the granule has ended, and requests that have not got what they want from it look again, before
/// whoever else waits is served: so nobody can keep the granule from them. Those that are done stay in `requests`.
/// `waiters` go to the operation that is begun here, if one is. REQUIRES: nothing is under way on the granule.
void Core::Impl::revisit(Block& block, std::uint32_t granule, const Op& ended, std::vector<std::uint32_t>& requests,
                         std::vector<Waiter>& waiters) {
  const Goal goal = ended.goal;
  const std::uint32_t tries = ended.tries;
  OpIndex next = none_index;
  for (std::size_t i = 0; i < requests.size();) {
    const std::uint32_t index = requests[i];
    PrefetchRequest& request = prefetches[index];
    bool again = false;
    if (next != none_index && request.in_use && request.revisits()) {
      again = true;  // when the operation that has just been begun has ended
    } else if (request.in_use && request.kind == PrefetchRequest::Kind::forget) {
      PageMask left = requested(request, block, granule);
      left.remove(discarded(block) | pinned(block, left));
      again = goal != Goal::forget && left.any();
    } else if (request.in_use && request.kind == PrefetchRequest::Kind::pin) {
      switch (pin_step(index, block, granule)) {
        case PinStep::pinned:
        case PinStep::failed: break;
        case PinStep::bring:
          again = tries < pin_tries_most;
          if (!again) {
            request.status = Code::no_memory;
          }
          break;
      }
    }
    if (!again) {
      ++i;
      continue;
    }
    requests.erase(requests.begin() + static_cast<std::ptrdiff_t>(i));
    if (next == none_index) {
      Op& op = request.kind == PrefetchRequest::Kind::pin
                   ? start_pin_op(index, block, granule)
                   : start_op(block, granule, Goal::forget, Cause::none, no_device, Access::read);
      if (request.kind == PrefetchRequest::Kind::forget) {
        op.pages = requested(request, block, granule);
        op.pages.remove(pinned(block, op.pages));
      }
      next = op.self;
      op.tries = tries + 1;
    }
    ops[next].prefetches.push_back(index);
  }
  if (next != none_index) {
    ops[next].waiters.swap(waiters);
    run_op(next);
  }
}

}  // namespace ferry::core

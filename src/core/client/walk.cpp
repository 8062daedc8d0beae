// Walks over spans, granule by granule. A span may be as large as the window, and most of what a walk looks at may want
// nothing: it rests then, so that others are served, and goes on with the next tick, which is at once.
#include "core/impl.h"

namespace ferry::core {
namespace {

/// Granules of one prefetch that move at a time: enough to keep copy threads busy, few enough to leave room to faults.
constexpr std::uint32_t prefetch_window = 8;

}  // namespace

void Core::Impl::rest(bool& rests, Rest::Of of, std::uint32_t index) {
  if (!rests) {
    rests = true;
    resting.push_back({of, index});
  }
}

/// One goes on. What has ended since it began to rest, and whatever has its place now, is none.
void Core::Impl::end_rest() {
  while (!resting.empty()) {
    const Rest next = resting.front();
    resting.pop_front();
    switch (next.of) {
      case Rest::Of::walk:
        if (PrefetchRequest& request = prefetches[next.index]; request.in_use && request.rests) {
          request.rests = false;
          advance_prefetch(next.index);
          return;
        }
        break;
      case Rest::Of::change:
        if (ChangeRequest& request = changes[next.index]; request.in_use && request.rests) {
          request.rests = false;
          request.change == Change::move ? advance_move(next.index) : advance_discard(next.index);
          return;
        }
        break;
      case Rest::Of::set:
        if (SvmRequest& request = svm_requests[next.index]; request.in_use && request.rests) {
          request.rests = false;
          svm_go_on(next.index);
          return;
        }
        break;
    }
  }
}

/// A walk is about to look into the block. The one that it looked into before, if that was made for it and nothing came of
/// it, goes: a walk over pages that nobody touched leaves nothing behind. REQUIRES: the walk uses that no more.
void Core::Impl::look_in(Client& client, BlockIndex index, MadeBlock& made) {
  if (index == made.index) {
    return;
  }
  if (made.fresh && made.op_serial == op_serial) {
    Block* block = find_block(client, made.index);
    if (block != nullptr && block->holds == 0 && block->extras == nullptr && block->copies == nullptr) {
      forget_block(client, *block);
    }
  }
  made = {index, op_serial, index != no_block && find_block(client, index) == nullptr};
}

void Core::Impl::advance_prefetch(std::uint32_t index) {
  if (prefetches[index].advancing || prefetches[index].rests) {
    return;
  }
  prefetches[index].advancing = true;
  Client& client = *prefetches[index].client;
  // These are to see all of their granules at one moment.
  const bool may_rest = !prefetches[index].fork && prefetches[index].userptr == 0;
  MadeBlock made;
  unsigned visited = 0;
  while (prefetches[index].in_use && prefetches[index].in_flight < prefetch_window &&
         prefetches[index].cursor < prefetches[index].span.end()) {
    PrefetchRequest& request = prefetches[index];
    if (may_rest && ++visited > walk_granules_most) {
      rest(request.rests, Rest::Of::walk, index);
      break;
    }
    auto it = client.ranges.upper_bound(request.cursor);
    if (it != client.ranges.begin() && std::prev(it)->first + std::prev(it)->second.count_pages > request.cursor) {
      --it;
    } else if (it == client.ranges.end()) {
      request.cursor = request.span.end();
      break;
    } else {
      request.cursor = it->first;
      continue;
    }
    if (it->second.freeing) {
      if (request.kind == PrefetchRequest::Kind::pin) {
        request.status = Code::not_allocated;
      }
      request.cursor = it->first + it->second.count_pages;
      continue;
    }
    // What cannot go there is passed over at once: a span may be as large as the window.
    using Kind = PrefetchRequest::Kind;
    if (request.kind == Kind::pin || (request.kind == Kind::populate && reclaim.counts())) {
      // The same.
    } else if (request.userptr != 0 && (request.device != no_device || reclaim.counts())) {
      // All of it is to have memory, and mappings.
    } else if (request.device != no_device) {
      if (!client.devices[request.device].attached) {
        request.cursor = request.span.end();
        break;
      }
      if (it->second.placement == Placement::system) {
        request.cursor = it->first + it->second.count_pages;
        continue;
      }
    } else if (const BlockIndex next = next_block(client, block_of(request.cursor)); next != block_of(request.cursor)) {
      // A block that was never steered lies in system memory, mapped by the CPU: nothing to bring home.
      request.cursor = next < block_of(request.span.end() - 1) + 1 ? first_page_of(next) : request.span.end();
      continue;
    }
    const Page at = request.cursor;
    request.cursor = (at / config.granularity_pages + 1) * config.granularity_pages;
    look_in(client, block_of(at), made);
    Block& block = make_block(client, block_of(at));
    if (request.fork) {
      fork_granule(index, block, granule_of(at));
      continue;
    }
    if (!visit_granule(index, block, granule_of(at))) {
      prefetches[index].cursor = prefetches[index].span.end();
    }
  }
  look_in(client, no_block, made);
  PrefetchRequest& request = prefetches[index];
  request.advancing = false;
  if (request.in_use && request.in_flight == 0 && request.cursor >= request.span.end()) {
    if (request.again) {
      request.again = false;
      request.cursor = request.span.first;
      advance_prefetch(index);
      return;
    }
    end_request(index);
  }
}

}  // namespace ferry::core

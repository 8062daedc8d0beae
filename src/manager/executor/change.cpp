// What the application did to its own mappings.
#include <fcntl.h>

#include "manager/executor/executor.h"

namespace ferry::manager {

/// From now on the application's mapping is kept where it is: one made anew would allow everything.
void Executor::protected_by_application(Client& client, PageSpan pages, bool back_to_normal) {
  const auto note = [&](BlockIndex index, BlockState& b) {
    const PageMask mask = BlockTable::mask_in(index, pages);
    if (back_to_normal) {
      b.own_protection.remove(mask);
    } else {
      b.own_protection |= mask & b.managed;
    }
  };
  // Blocks that are not there yet learn it when they are made: the span may be as large as the window.
  client.own_protections.cut(pages);
  auto it = client.spans.upper_bound(pages.first);
  if (it != client.spans.begin()) --it;
  for (; !back_to_normal && it != client.spans.end() && it->first < pages.end(); ++it) {
    const Page from = std::max(it->first, pages.first);
    const Page end = std::min(it->first + it->second, pages.end());
    if (from < end) client.own_protections.add({from, end - from});
  }
  client.blocks.for_each(pages, note);
}

/// Something else is mapped there. Registrations went with the old mapping; threads that wait for the old pages retry,
/// and what they wrote into the file after it was emptied must not be what the next allocation reads.
void Executor::mapped_over(Client& client, PageSpan pages) {
  client.blocks.for_each(pages, [&](BlockIndex index, BlockState& b) {
    PageMask gone = BlockTable::mask_in(index, pages);
    gone.remove(b.managed);
    const bool was = b.armed.any();
    b.armed.remove(gone);
    if (was && b.armed.none()) --client.armed_blocks;
    b.revoked.remove(gone);
    b.backed.remove(gone);
    b.huge = false;
    b.mirrored = false;
  });
  client.userfault.wake(client.address_of(pages.first), pages.count_pages * page_bytes);
  const auto punch = [&](Page first, Page end) {
    if (first >= end) return;
    // What cannot be taken back stays this application's own, and goes with it.
    [[maybe_unused]] const int done =
        ::fallocate(client.system_file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(first * page_bytes), static_cast<off_t>((end - first) * page_bytes));
  };
  Page at = pages.first;
  auto it = client.spans.upper_bound(at);
  if (it != client.spans.begin()) --it;
  for (; it != client.spans.end() && it->first < pages.end(); ++it) {
    if (it->first + it->second <= at) continue;
    punch(at, it->first);
    at = it->first + it->second;
  }
  punch(at, pages.end());
}

}  // namespace ferry::manager

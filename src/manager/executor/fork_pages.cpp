// What children of forks still need: given before anybody may write it, and when they touch it.
// docs/design/0018-fork.md.
#include <linux/userfaultfd.h>

#include <algorithm>
#include <cstring>

#include "manager/executor/executor.h"
#include "manager/limits.h"
#include "manager/log.h"

namespace ferry::manager {
namespace {

/// Given with a page that a child touches first, and most that are while it goes on behind them.
constexpr unsigned around_pages_first = 16;
/// The child's own changes of its mappings make the kernel say "again"; they end soon, unless it is stopped.
constexpr unsigned tries_max = 200;
constexpr unsigned messages_a_read = 16;
/// Blocks copied for children of a parent that has ended before others have their turn.
constexpr unsigned drained_a_turn = 16;
/// Each look-up goes through all moves: a child that makes more gets all that is missing now, and one that makes many
/// more before it has that is not served any further.
constexpr std::size_t moves_few = 64;
constexpr std::size_t moves_max = 16384;

}  // namespace

// --- giving ----------------------------------------------------------------------------------------------------------

/// Copies pages of one block to the child: page i of it lies at bytes + i * page_bytes (null: all are zeros). What the
/// child cannot take now is kept for it.
void Executor::give_child(Fork& fork, BlockIndex index, PageMask pages, const std::byte* bytes) {
  const Page first_page = first_page_of(index);
  for (unsigned tries = 0; fork.userfault && tries < tries_max; ++tries) {
    pages &= fork.pending_in(index);  // its messages may have taken some away
    if (pages.none()) return;
    PageMask given;
    bool again = false;
    pages.for_each_run([&](unsigned first, unsigned count) {
      unsigned most = count;
      for (unsigned at = first; at < first + count && !again && !fork.gone;) {
        const std::uint64_t address = fork.address_now(fork.window.address_of_page(first_page + at));
        // Memory that the child moved goes page by page: the next page may be elsewhere.
        const unsigned length = fork.moves.empty() ? std::min(most, first + count - at) : 1;
        std::uint64_t done_bytes = 0;
        const std::byte* from = bytes == nullptr ? nullptr : bytes + std::uint64_t{at} * page_bytes;
        const linux::Fault fault = fork.userfault.fill(address, from, length * page_bytes, done_bytes);
        const auto done_pages = static_cast<unsigned>(done_bytes / page_bytes);
        if (done_pages != 0) given.set_range(at, done_pages);
        at += done_pages;
        if (fault == linux::Fault::ok) {
          most = count;
          continue;
        }
        if (fault == linux::Fault::process_gone) {
          end_fork(fork);
        } else if (fault == linux::Fault::again || fault == linux::Fault::no_memory) {
          again = true;
        } else if (fault != linux::Fault::exists && done_pages == 0 && length > 1) {
          // The kernel fills pages of one mapping a call. The child has several here: its mprotect, or its parent's.
          most = length / 2;
        } else if (fault != linux::Fault::exists && done_pages != 0) {
          continue;  // at the next page, what is wrong there shows
        } else {
          // It has the page (its own parent's), or no memory there any more.
          fork.userfault.wake(address, page_bytes);
          given.set(at++);
        }
      }
    });
    if (fork.gone) return;
    fork.settle(index, given);
    if (again) read_child(fork);
  }
  pages &= fork.pending_in(index);
  if (pages.any() && taken_pages(fork) + pages.count() > taken_pages_max) {
    log("more is written than can be kept for a child of a fork that does not take it: the child is ended");
    fork.rings = true;
    end_fork(fork);
    return;
  }
  pages.for_each_run([&](unsigned first, unsigned count) {
    for (unsigned at = first; at < first + count; ++at) {
      std::unique_ptr<Fork::PageBytes> copy;
      if (bytes != nullptr) {
        copy = std::make_unique<Fork::PageBytes>();
        std::memcpy(copy->data(), bytes + std::uint64_t{at} * page_bytes, page_bytes);
      }
      fork.taken[first_page + at] = std::move(copy);
    }
  });
  fork.settle(index, pages);
}

/// That are kept for it and all others of its origin.
std::uint64_t Executor::taken_pages(const Fork& fork) const {
  if (fork.origin == nullptr) return fork.taken.size();
  std::uint64_t pages = 0;
  for (const auto& other : forks_) {
    if (other->origin == fork.origin) pages += other->taken.size();
  }
  return pages;
}

/// Pages that were kept for the child.
void Executor::give_taken(Fork& fork) {
  for (unsigned tries = 0; fork.userfault && !fork.gone && !fork.taken.empty() && tries < tries_max;) {
    const auto it = fork.taken.begin();
    const std::uint64_t address = fork.address_now(fork.window.address_of_page(it->first));
    std::uint64_t done_bytes = 0;
    const void* from = it->second == nullptr ? nullptr : it->second->data();
    switch (fork.userfault.fill(address, from, page_bytes, done_bytes)) {
      case linux::Fault::process_gone: end_fork(fork); return;
      case linux::Fault::again:
      case linux::Fault::no_memory:
        ++tries;
        read_child(fork);
        break;
      case linux::Fault::ok: fork.taken.erase(it); break;
      default:
        fork.userfault.wake(address, page_bytes);
        fork.taken.erase(it);
        break;
    }
  }
}

/// Where the newest bytes of a page are that nobody can write: page i of its block at the result + i * page_bytes.
/// Null, with `hole` set: zeros; with `hole` cleared: only the store has them.
const std::byte* Executor::newest_bytes(Client& origin, Page page, bool& hole) {
  hole = false;
  const core::Residency r = core_.query(origin.id, page);
  const std::uint64_t in_block = page & (block_pages - 1);
  if (r.allocated && !r.system_current && r.vram_device != no_device) {
    const std::ptrdiff_t base = static_cast<std::ptrdiff_t>(r.vram_page) - static_cast<std::ptrdiff_t>(in_block);
    return origin.devices[r.vram_device].vram.data() + base * static_cast<std::ptrdiff_t>(page_bytes);
  }
  if (r.allocated && !r.system_current) return nullptr;
  const std::uint64_t offset = page * page_bytes;
  std::byte* const mirror = origin.mirror(page);
  hole = mirror == nullptr || linux::next_data(origin.system_file.get(), offset, offset + page_bytes) != offset;
  return hole ? nullptr : mirror - in_block * page_bytes;
}

/// Gives pages of a block, wherever they lie. Those that only the store has are sent for, and stay pending.
void Executor::give_block(Fork& fork, BlockIndex index, const PageMask& wanted) {
  Client& origin = *fork.origin;
  const PageMask pages = wanted & fork.pending_in(index);
  PageMask run;
  const std::byte* run_bytes = nullptr;
  bool run_hole = false;
  const auto flush_run = [&] {
    if (run.any()) give_child(fork, index, run, run_bytes);
    run = {};
  };
  const Page granule_pages = config_.machine.granule_bytes() / page_bytes;
  Page asked = ~Page{0};
  pages.for_each_run([&](unsigned first, unsigned count) {
    for (unsigned at = first; at < first + count && !fork.gone; ++at) {
      bool hole = false;
      const std::byte* bytes = newest_bytes(origin, first_page_of(index) + at, hole);
      if (bytes == nullptr && !hole) {
        // It comes home, is mapped for the application, and given to the children on the way.
        const Page page = first_page_of(index) + at;
        if (page / granule_pages != asked && !core_.query(origin.id, page).moving) {
          core_.cpu_fault(now_ns_, origin.id, page, Access::read);
        }
        asked = page / granule_pages;
        continue;
      }
      if (run.any() && (bytes != run_bytes || hole != run_hole)) flush_run();
      if (fork.gone) return;
      run.set(at);
      run_bytes = bytes;
      run_hole = hole;
    }
  });
  if (!fork.gone) flush_run();
}

/// Before anybody may write the pages: all children get their copies. False: some only the store has; they are on their
/// way, and the caller has to come again.
bool Executor::give_children(Client& client, PageSpan pages) {
  if (client.forks == 0) return true;
  bool all = true;
  for (std::size_t i = 0; i < forks_.size(); ++i) {
    Fork& fork = *forks_[i];
    if (fork.gone || fork.origin != &client) continue;
    for (BlockIndex index = block_of(pages.first); index <= block_of(pages.end() - 1) && !fork.gone; ++index) {
      const PageMask mask = BlockTable::mask_in(index, pages);
      if (!fork.pending_in(index).intersects(mask)) continue;
      give_block(fork, index, mask);
      if (!fork.gone && fork.pending_in(index).intersects(mask)) all = false;
    }
    finish_if_complete(fork);
  }
  return all;
}

/// The same for an action that is about to map pages: it says itself where they are.
void Executor::give_children_before(Client& client, const core::Action& action) {
  const BlockIndex index = block_of(action.pages.first);
  const PageMask mask = BlockTable::mask_in(index, action.pages);
  const auto in_block = static_cast<std::ptrdiff_t>(action.pages.first & (block_pages - 1));
  for (std::size_t i = 0; i < forks_.size(); ++i) {
    Fork& fork = *forks_[i];
    if (fork.gone || fork.origin != &client || !fork.pending_in(index).intersects(mask)) continue;
    if (action.verb == core::Verb::map_device && action.place == core::Place::vram) {
      const DeviceId owner = action.owner != no_device ? action.owner : action.device;
      const std::ptrdiff_t base = static_cast<std::ptrdiff_t>(action.vram_first) - in_block;
      give_child(fork, index, mask, client.devices[owner].vram.data() + base * static_cast<std::ptrdiff_t>(page_bytes));
    } else {
      give_file_pages(fork, client, index, mask);
    }
    finish_if_complete(fork);
  }
}

/// Pages whose newest bytes the system file has, or which are zeros.
void Executor::give_file_pages(Fork& fork, Client& client, BlockIndex index, const PageMask& pages) {
  const std::byte* mirror = client.mirror(first_page_of(index));
  const int file = client.system_file.get();
  const std::uint64_t base = first_page_of(index) * page_bytes;
  (pages & fork.pending_in(index)).for_each_run([&](unsigned first, unsigned count) {
    const std::uint64_t end = base + std::uint64_t{first + count} * page_bytes;
    for (std::uint64_t at = base + std::uint64_t{first} * page_bytes; at < end && !fork.gone;) {
      const std::uint64_t data = mirror == nullptr ? end : linux::next_data(file, at, end);
      const auto part = [&](std::uint64_t from, std::uint64_t to) {
        return PageMask::range(static_cast<unsigned>((from - base) / page_bytes),
                               static_cast<unsigned>((to - from) / page_bytes));
      };
      if (data > at) give_child(fork, index, part(at, data), nullptr);
      at = data;
      if (at >= end || fork.gone) break;
      const std::uint64_t hole =
          linux::all_resident(mirror + (at - base), end - at) ? end : linux::next_hole(file, at, end);
      give_child(fork, index, part(at, hole), mirror);
      at = hole;
    }
  });
}

// --- what children ask for -------------------------------------------------------------------------------------------

/// Takes the child's messages. False: it has gone.
bool Executor::read_child(Fork& fork) {
  std::array<uffd_msg, messages_a_read> messages;
  const int count = fork.userfault.read(messages);
  if (count < 0) {
    end_fork(fork);
    return false;
  }
  // Changes first, before anything is given where they were made.
  for (int i = 0; i < count && !fork.gone; ++i) {
    const uffd_msg& m = messages[static_cast<std::size_t>(i)];
    switch (m.event) {
      case UFFD_EVENT_REMOVE:
      case UFFD_EVENT_UNMAP: child_dropped(fork, m.arg.remove.start, m.arg.remove.end); break;
      case UFFD_EVENT_REMAP: child_moved(fork, {m.arg.remap.from, m.arg.remap.to, m.arg.remap.len}); break;
      default: break;
    }
  }
  for (int i = 0; i < count && !fork.gone; ++i) {
    const uffd_msg& m = messages[static_cast<std::size_t>(i)];
    if (m.event == UFFD_EVENT_PAGEFAULT) fork_touches_.push_back({fork.number, m.arg.pagefault.address});
  }
  return !fork.gone;
}

bool Executor::on_child(Fork& fork) {
  const std::size_t before = fork_touches_.size();
  read_child(fork);
  return fork_touches_.size() != before;
}

bool Executor::children_wait() const {
  return !fork_touches_.empty() ||
         std::any_of(forks_.begin(), forks_.end(), [](const auto& fork) { return fork->leaving && !fork->gone; });
}

/// What children touched. Some may have to wait for the store: they are looked at again.
bool Executor::serve_children() {
  for (std::size_t i = 0; i < forks_.size(); ++i) {
    if (forks_[i]->leaving && !forks_[i]->gone) let_go(*forks_[i]);
  }
  if (fork_touches_.empty()) return false;
  std::vector<ForkTouch> touches;
  touches.swap(fork_touches_);
  bool progress = false;
  for (const ForkTouch& touch : touches) {
    Fork* fork = find_fork(touch.fork);
    if (fork == nullptr) continue;
    if (child_touched(*fork, touch.address)) {
      progress = true;
    } else {
      fork_touches_.push_back(touch);
    }
  }
  return progress;
}

/// False: to be tried again.
bool Executor::child_touched(Fork& fork, std::uint64_t address) {
  address &= ~(page_bytes - 1);
  Page page = 0;
  const bool known = fork.page_at(address, page);
  if (known && fork.taken.contains(page)) {
    give_taken(fork);
    finish_if_complete(fork);
    return fork.gone || !fork.taken.contains(page);
  }
  const BlockIndex index = block_of(page);
  const auto bit = static_cast<unsigned>(page & (block_pages - 1));
  if (!known || !fork.pending_in(index).test(bit)) {
    // It was given up since, or has just come.
    std::uint64_t done_bytes = 0;
    const linux::Fault fault = fork.userfault.fill(address, nullptr, page_bytes, done_bytes);
    if (fault == linux::Fault::again || fault == linux::Fault::no_memory) return !read_child(fork);
    if (fault == linux::Fault::process_gone)
      end_fork(fork);
    else if (fault != linux::Fault::ok)
      fork.userfault.wake(address, page_bytes);
    return true;
  }
  fork.around_pages = page == fork.next_page ? std::min(2 * fork.around_pages, block_pages) : around_pages_first;
  const unsigned first = bit / fork.around_pages * fork.around_pages;
  fork.next_page = first_page_of(index) + first + fork.around_pages;
  give_block(fork, index, PageMask::range(first, fork.around_pages));
  if (fork.gone) return true;
  const bool given = !fork.pending_in(index).test(bit) && !fork.taken.contains(page);
  finish_if_complete(fork);
  return given;
}

void Executor::child_moved(Fork& fork, const Fork::Move& move) {
  if (fork.moves.size() >= moves_max) {
    log("a child of a fork moves memory again and again before it has it: it gets no more");
    end_fork(fork);
    return;
  }
  fork.moves.push_back(move);
  fork.hurry = fork.hurry || fork.moves.size() >= moves_few;
}

/// Reads as zeros from now on, or is no memory at all.
void Executor::child_dropped(Fork& fork, std::uint64_t start, std::uint64_t end) {
  // Page by page where memory was moved: what is missing may be far less than what is dropped.
  const std::uint64_t steps = (end - start) / (fork.moves.empty() ? block_bytes : page_bytes);
  if (steps > (fork.moves.empty() ? 1 : block_pages) * fork.pending.size() + fork.taken.size()) {
    const auto dropped = [&](Page page) {
      const std::uint64_t now = fork.address_now(fork.window.address_of_page(page));
      return now >= start && now < end;
    };
    for (auto& [index, pages] : fork.pending) {
      const PageMask before = pages;
      before.for_each_run([&, block = index, &left = pages](unsigned first, unsigned count) {
        for (unsigned at = first; at < first + count; ++at) {
          if (dropped(first_page_of(block) + at)) left.reset(at);
        }
      });
    }
    std::erase_if(fork.pending, [](const auto& entry) { return entry.second.none(); });
    std::erase_if(fork.taken, [&](const auto& entry) { return dropped(entry.first); });
    return;
  }
  for (std::uint64_t at = start; at < end;) {
    Page page = 0;
    if (!fork.page_at(at, page)) {
      at += page_bytes;
      continue;
    }
    const BlockIndex index = block_of(page);
    const auto first = static_cast<unsigned>(page & (block_pages - 1));
    const auto count =
        fork.moves.empty()
            ? static_cast<unsigned>(std::min<std::uint64_t>(block_pages - first, (end - at) / page_bytes))
            : 1U;
    fork.settle(index, PageMask::range(first, count));
    for (unsigned i = 0; i < count && !fork.taken.empty(); ++i) fork.taken.erase(page + i);
    at += std::uint64_t{count} * page_bytes;
  }
}

/// The store cannot read them back. What of them nobody else has, children cannot be given either.
void Executor::lose_children(Client& client, PageSpan pages) {
  const BlockIndex index = block_of(pages.first);
  const PageMask mask = BlockTable::mask_in(index, pages);
  for (std::size_t i = 0; i < forks_.size(); ++i) {
    Fork& fork = *forks_[i];
    if (fork.gone || fork.origin != &client) continue;
    const PageMask wanted = fork.pending_in(index) & mask;
    wanted.for_each_run([&](unsigned first, unsigned count) {
      for (unsigned at = first; at < first + count && !fork.gone; ++at) {
        const Page page = first_page_of(index) + at;
        bool hole = false;
        if (newest_bytes(client, page, hole) != nullptr || hole) continue;
        fork.settle(index, PageMask::range(at, 1));
        lose_child(fork, page);
      }
    });
    if (!fork.gone) finish_if_complete(fork);
  }
}

/// A touch of the page raises SIGBUS in the child; where the kernel cannot do that, the child ends as if we had.
void Executor::lose_child(Fork& fork, Page page) {
  if (!fork.userfault) {
    fork.lost.push_back(page);
    return;
  }
  const std::uint64_t address = fork.address_now(fork.window.address_of_page(page));
  linux::Fault fault = linux::Fault::again;
  for (unsigned tries = 0; fault == linux::Fault::again && !fork.gone && tries < tries_max; ++tries) {
    fault = fork.userfault.poison(address, page_bytes);
    if (fault == linux::Fault::again) read_child(fork);
  }
  if (fork.gone || fault == linux::Fault::ok || fault == linux::Fault::range_gone || fault == linux::Fault::exists) {
    return;
  }
  // Armed as they are: the child hears of it.
  fork.rings = true;
  end_fork(fork);
}

/// The application has ended: what its children need is copied, some in each turn. True: nothing of it is needed.
bool Executor::drain_forks(Client& client) {
  for (std::size_t i = 0; i < forks_.size() && client.forks != 0; ++i) {
    Fork& fork = *forks_[i];
    if (!fork.gone && fork.origin == &client) drain(fork);
    if (!fork.gone && fork.origin == &client && fork.pending.empty()) leave_origin(fork);
  }
  return client.forks == 0;
}

bool Executor::drain_hurried() {
  bool some = false;
  for (std::size_t i = 0; i < forks_.size(); ++i) {
    Fork& fork = *forks_[i];
    if (fork.gone || !fork.hurry) continue;
    drain(fork);
    some = true;
  }
  return some;
}

void Executor::drain(Fork& fork) {
  if (fork.origin != nullptr && fork.origin->gate != nullptr && !fork.origin->gate->at_once) return;
  for (unsigned left = drained_a_turn; left != 0 && !fork.gone && !fork.pending.empty(); --left) {
    const auto [index, mask] = *fork.pending.begin();
    give_block(fork, index, mask);
    if (!fork.gone && fork.pending_in(index).any()) return;  // the store is asked
  }
  if (fork.gone || !fork.pending.empty()) return;
  give_taken(fork);
  finish_if_complete(fork);
}

}  // namespace ferry::manager

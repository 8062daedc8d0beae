// A child of an application's fork, as far as memory is still missing in it. docs/design/0018-fork.md.
// Plain state; what is done with it is in executor/fork.cpp and fork_requests.cpp. Main thread only.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/bitmap.h"
#include "base/types.h"
#include "core/core.h"
#include "linux/fd.h"
#include "linux/userfaultfd.h"
#include "wire/port.h"

namespace ferry::manager {

struct Client;

struct Fork {
  std::uint64_t number = 0;      ///< for epoll
  Client* origin = nullptr;      ///< whose pages; null: nothing of it is needed any more
  linux::Fd socket;              ///< closes when the child ends or executes another program
  linux::Userfaultfd userfault;  ///< of the child; invalid until it has said hello
  linux::Fd alarm;               ///< reading end of a pipe: while it is armed, the child ends when ...
  linux::Fd alarm_held;          ///< ... the last of these closes, which is with us
  Window window;
  std::map<Page, std::uint64_t> spans;  ///< of the origin when it forked

  /// Set: the child sees the page as the origin holds it; cleared: it has its own, or reads zeros, or `taken` has it.
  std::unordered_map<BlockIndex, PageMask> pending;
  using PageBytes = std::array<std::byte, page_bytes>;
  /// Copied while the child could not take it; null: zeros.
  std::map<Page, std::unique_ptr<PageBytes>> taken;
  std::vector<Page> lost;  ///< that the store cannot give any more, until the child can be told
  struct Move {
    std::uint64_t from;
    std::uint64_t to;
    std::uint64_t bytes;
  };
  std::vector<Move> moves;     ///< mremap in the child, oldest first
  Page next_page = ~Page{0};   ///< after the last ones that a touch brought ...
  unsigned around_pages = 0;   ///< ... and how many those were: doubled while touches go on there
  bool hurry = false;          ///< the child gets all the rest, some in each turn
  bool leaving = false;        ///< nothing is missing: it waits for changes of its mappings that have begun
  std::size_t moves_left = 0;  ///< leaving: so many of `moves` are not watched any more
  bool rings = false;          ///< its alarm stays armed when it is gone: the child is to end
  bool gone = false;           ///< to be forgotten at the end of the turn

  [[nodiscard]] PageMask pending_in(BlockIndex block) const {
    const auto it = pending.find(block);
    return it == pending.end() ? PageMask() : it->second;
  }
  void settle(BlockIndex block, const PageMask& pages) {
    const auto it = pending.find(block);
    if (it == pending.end()) return;
    it->second.remove(pages);
    if (it->second.none()) pending.erase(it);
  }
  /// Where the child has what was at `address` when it was forked, and back.
  [[nodiscard]] std::uint64_t address_now(std::uint64_t address) const {
    for (const Move& m : moves) {
      if (address - m.from < m.bytes) address = address - m.from + m.to;
    }
    return address;
  }
  /// False: what the child has at `address` now was not there when it was forked, as that was moved away.
  [[nodiscard]] bool page_at(std::uint64_t address, Page& page) const {
    std::uint64_t then = address;
    for (auto m = moves.rbegin(); m != moves.rend(); ++m) {
      if (then - m->to < m->bytes) then = then - m->to + m->from;
    }
    page = window.page_of_address(then);
    return address_now(then) == address;
  }
};

/// While an application forks: what it and its devices ask for waits here, from the question (fork_begin) until one of
/// both processes says that the fork is over.
struct ForkGate {
  enum class State : std::uint8_t {
    revoking,  ///< the core takes pages from devices
    zapping,   ///< the agent takes them from the application
    copying,   ///< nobody reaches a page; what is pinned is copied, some in each turn
    frozen,    ///< nobody reaches a page; the application was told
  };
  State state = State::revoking;
  std::uint32_t thread = 0;               ///< that forks; it is never held back
  std::uint64_t request = 0;              ///< to be answered
  std::uint64_t fork = 0;                 ///< Fork::number
  std::uint64_t frozen_ns = 0;            ///< when nobody reached a page any more, or the forking thread had heard so
  std::uint64_t looked_ns = 0;            ///< when it was last looked whether the forking thread comes on
  std::map<pid_t, std::uint64_t> ran_ns;  ///< of the threads, then
  bool goes = false;                      ///< the forking thread has heard that it may fork
  std::uint32_t zaps = 0;                 ///< unanswered
  std::vector<BlockIndex> uncopied;       ///< copying: blocks that are still to be looked at for pinned pages
  bool at_once = false;                   ///< only devices are held back, until the child has everything
  Page own_page = ~Page{0};               ///< that the forking thread waits for
  struct Touch {
    std::uint64_t address;
    Access access;
  };
  struct Wave {
    DeviceId device;
    unsigned cu;
    wire::UpRecord record;
  };
  std::vector<Touch> touches;
  std::vector<Wave> waves;
  std::vector<core::Action> maps;
};

}  // namespace ferry::manager

// System memory: one budget for managed pages and buffers, a line of those who wait for some, and the shrinker that
// makes room: least recently used first, to the store beneath, waiting for fences where the policy allows.
// With a budget of 0 nothing here runs and nothing is counted.
//
// Rules (docs/design/0011-reclaim.md):
//   - nothing is set aside, but for policy track's repair reserve and policy pinned's half;
//   - whoever waits in line holds nothing that reclaim would need;
//   - when nothing can be reclaimed and nothing is under way that will give memory back: the line is served over the
//     budget (a fault must be repaired; Stats::over_budget_pages tells), or a job's request fails with no_memory.
#pragma once

#include <cstdint>

#include "core/core.h"
#include "graph/graph.h"

namespace ferry::core {

struct Block;

/// Who is granted memory later, when it could not be had at once.
struct MemoryWaiter {
  enum class Who : std::uint8_t { op, buffer } who = Who::op;
  std::uint64_t id = 0;      ///< index of the operation; buffer
  std::uint64_t serial = 0;  ///< of the operation
};

class Reclaim {
 public:
  using Request = std::uint64_t;  ///< 0: none
  using Entry = std::uint64_t;    ///< of the LRU; 0: none

  explicit Reclaim(Core::Impl& core);
  ~Reclaim();
  Reclaim(const Reclaim&) = delete;
  Reclaim& operator=(const Reclaim&) = delete;

  /// Cleared: no budget, nothing is counted.
  [[nodiscard]] bool counts() const { return counts_; }
  /// True: charged at once. False: in line as `request`; memory_granted of the waiter follows, never from inside this
  /// call, unless withdrawn. False with request 0, operations only: refused. The node of the request waits for what it
  /// waits for; who waits for the request is added here: the operation's faults, the buffer's job or waves.
  bool take(std::uint64_t pages, const AllocContext& context, const MemoryWaiter& waiter, Request& request);
  /// Charged at once or not at all, and nobody is asked to leave: for what nobody waits for.
  bool try_take(std::uint64_t pages);
  void give(std::uint64_t pages);
  void withdraw(Request request);
  /// Somebody else waits for what `request` is for. The stronger need counts, and a wait for a fence that was fine may
  /// close a circle now.
  void joined(Request request, const AllocContext& context);
  [[nodiscard]] graph::NodeId node(Request request) const;

  /// LRU. Granules and buffers that hold system memory are in it, whether they can be reclaimed now or not.
  Entry insert_granule(Block& block, std::uint32_t granule);
  Entry insert_buffer(BufferId buffer);
  void touch(Entry entry);
  void remove(Entry entry);

  /// Something changed that may let the line on: memory came back, an operation or a buffer's move ended, a fence
  /// signalled, a policy's answer changed. Cheap when nobody waits.
  void pump();
  [[nodiscard]] bool waits() const;  ///< for a fence
  void suspend();                    ///< waits for none any more; pump() or resume() asks anew
  void resume();
  void fence_done(Request request);  ///< a fence that reclaim waited for has signalled
  void pressure(std::uint64_t pages);
  void set_budget(std::uint64_t pages);
  void tick();
  [[nodiscard]] std::uint64_t next_tick_ns() const;
  [[nodiscard]] std::uint64_t used_pages() const;
  [[nodiscard]] std::uint64_t budget_pages() const;
  [[nodiscard]] bool quiescent() const;
  void verify() const;
  [[nodiscard]] std::uint64_t digest() const;

  // The store, as far as it decides who can leave. Called by the operation that moves a granule there.
  [[nodiscard]] bool store_takes(std::uint64_t pages) const;
  void store_begins(std::uint64_t write_pages, std::uint64_t leave_pages);
  void store_ends(std::uint64_t write_pages, std::uint64_t leave_pages);
  void store_answered(Status status);
  void store_has_room();  ///< stored pages were forgotten

 private:
  struct State;
  State* state_;
  bool counts_ = false;
};

}  // namespace ferry::core

// What Reclaim consists of, for its own files only.
//   reclaim.cpp  the budget and its line     lru.cpp  who was used when     shrink.cpp  victims, fences, ends of patience
#pragma once

#include <algorithm>
#include <vector>

#include "core/impl.h"
#include "core/reclaim/reclaim.h"

namespace ferry::core {

/// One who waits for system memory.
struct MemoryRequest {
  std::uint64_t id = 0;
  std::uint64_t pages = 0;
  AllocContext context;
  MemoryWaiter waiter;
  graph::NodeId node = graph::no_node;
};

/// A granule (block != nullptr) or a buffer that holds system memory.
struct LruEntry {
  /// | list   | means                                                                                            |
  /// |--------|--------------------------------------------------------------------------------------------------|
  /// | active | may be a victim; oldest first                                                                    |
  /// | parked | was looked at and has nothing that can leave as it is; comes back when it is used, or the store has room |
  enum List : std::uint8_t { active, parked, unused };
  std::uint32_t previous = none_index;
  std::uint32_t next = none_index;
  List list = unused;
  Block* block = nullptr;
  std::uint32_t granule = 0;
  BufferId buffer = 0;
};

class Lru {
 public:
  std::uint32_t insert(Block* block, std::uint32_t granule, BufferId buffer);
  void remove(std::uint32_t index);
  void touch(std::uint32_t index);
  void park(std::uint32_t index);
  void unpark_all();  ///< they are older than all that is active
  [[nodiscard]] std::uint32_t first(LruEntry::List list) const { return ends_[list].head; }
  [[nodiscard]] const LruEntry& at(std::uint32_t index) const { return entries_[index]; }
  [[nodiscard]] std::uint64_t size() const { return ends_[0].size + ends_[1].size; }

 private:
  struct Ends {
    std::uint32_t head = none_index;
    std::uint32_t tail = none_index;
    std::uint64_t size = 0;
  };
  void push(std::uint32_t index, LruEntry::List list);
  void unlink(std::uint32_t index);

  std::vector<LruEntry> entries_;
  std::vector<std::uint32_t> holes_;
  Ends ends_[2];
};

/// Stores that fail in a row before the store is left alone for `store_rest_ns`.
inline constexpr unsigned store_failures_most = 4;
inline constexpr std::uint64_t store_rest_ns = 1'000'000'000;
/// Granules on their way out for pressure at a time, beside what the line needs.
inline constexpr unsigned shrink_batch = 16;

struct Reclaim::State {
  explicit State(Core::Impl& c) : core(c) {}

  // reclaim.cpp
  [[nodiscard]] std::uint64_t normal() const { return used - std::min(used, lent + over); }
  [[nodiscard]] std::uint64_t capacity() const { return budget - reserve; }
  [[nodiscard]] bool fits(std::uint64_t pages) const { return normal() + pages <= capacity(); }
  void charge(std::uint64_t pages);
  void rebalance();
  void enter_line(std::uint64_t pages, const AllocContext& context, const MemoryWaiter& waiter);
  void leave_line(std::size_t at);
  void link_waiter(const MemoryRequest& request);
  void tell(const MemoryRequest& request, Status status);
  bool serve_front();
  void deliver_refusals();
  void resolve();
  void refuse_front();
  void pump();
  [[nodiscard]] std::uint64_t line_pages() const;
  [[nodiscard]] bool graph_kept() const { return core.config.wait_graph; }

  // shrink.cpp
  void shrink();
  [[nodiscard]] std::uint64_t coming() const;
  enum class Found : std::uint8_t { started, waits, nothing };
  Found start_victim(bool spare_last);
  Found look_at_buffer(std::uint32_t entry);
  bool wait_for(FenceId fence);
  void unwait();
  void show_machine();
  void recheck();
  void forget_started();
  [[nodiscard]] bool under_way() const;
  [[nodiscard]] bool store_rests() const;

  Core::Impl& core;
  std::uint64_t budget = 0;
  std::uint64_t reserve = 0;  ///< of the budget, for track's repairs
  std::uint64_t used = 0;     ///< charged. Of these ...
  std::uint64_t lent = 0;     ///< ... from the reserve
  std::uint64_t over = 0;     ///< ... over the budget
  std::uint64_t serial = 0;
  std::vector<MemoryRequest> line;     ///< first come, first served
  std::vector<MemoryRequest> refused;  ///< to be told at the next pump
  Request taking = 0;                  ///< take() runs for it: it is told by its return value
  bool taken = false;
  std::uint64_t moved_ns = 0;  ///< when the line was last empty or served
  /// The line has stood for longer than Config::line_patience_ns; until memory comes back.
  bool impatient = false;

  FenceId fence = 0;  ///< the shrinker waits for it on behalf of `fence_for`, the first in line; 0: it does not
  Request fence_for = 0;
  bool suspended = false;      ///< a wait was ended: pump() is due
  bool shows_machine = false;  ///< the node of `fence_for` has the machine as an alternative
  graph::NodeId machine = graph::no_node;

  std::uint64_t leaving = 0;  ///< pages of granules on their way out
  std::uint64_t storing = 0;  ///< pages on their way into the store
  struct Started {
    BufferId buffer = 0;
    std::uint64_t pages = 0;
  };
  std::vector<Started> started;  ///< buffers on their way out
  std::uint64_t background = 0;  ///< pages that pressure still wants

  unsigned store_failures = 0;  ///< in a row
  std::uint64_t store_rest_until = 0;
  bool store_full = false;  ///< it said so, and nothing was forgotten since

  Lru lru;
  bool pumping = false;
  bool again = false;
};

}  // namespace ferry::core

// What clients have asked for and the core has not answered yet: frees, changes, and walks over spans.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "base/types.h"
#include "core/block/block.h"
#include "core/svm/types.h"
#include "core/work/types.h"

namespace ferry::core {

struct FreeRequest {
  Client* client = nullptr;
  PageSpan span;
  Cookie cookie;
  std::uint64_t remaining = 0;      ///< granules still to discard
  std::uint64_t charged_pages = 0;  ///< to be given back when the machine has taken the memory
  bool in_use = false;
  bool started = false;               ///< the machine was asked to take the memory
  std::uint32_t change = none_index;  ///< of that request's unmap, which is told instead of the cookie
};

/// Part of a move: in one granule on either side.
struct MovePiece {
  enum class State : std::uint8_t {
    waits,   ///< for the operation that is under way in a granule of it, or for a userptr buffer there
    runs,    ///< two operations of its own are; the source's ends it
    leaves,  ///< one operation is, at the target, which is left as zeros; it ends it
  } state = State::waits;
  std::uint64_t id = 0;
  Page first = 0;
  Page to = 0;
  std::uint64_t count = 0;
  unsigned tries = 0;  ///< ordinary operations that were to make it possible
  BlockIndex wait_block = 0;
  std::uint32_t wait_granule = 0;
};

/// A change of the address space under way.
struct ChangeRequest {
  Client* client = nullptr;
  Change change = Change::unmap;
  PageSpan span;
  Cookie cookie;
  std::uint64_t remaining = 0;  ///< granules, and parts that are freed, still to come
  bool in_use = false;
  /// Discards, moves: not allocated when it was asked for, or freed since. What is allocated there next is not what it is
  /// about.
  std::vector<PageSpan> other = {};
  std::uint64_t serial = 0;  ///< of all requests that were ever made
  // Discards, moves:
  Page cursor = 0;
  bool advancing = false;  ///< it is being walked, and will be looked at again
  bool rests = false;      ///< it goes on with the next tick
  bool walked = false;     ///< every granule or piece was begun
  // Moves:
  Page to = 0;
  Status status;  ///< why some of it stays where it is
  std::uint64_t pieces_begun = 0;
  std::vector<MovePiece> pieces = {};
  std::vector<std::uint32_t> forks = {};  ///< of prefetches: forks that wait for it
};

/// A walk over a span, granule by granule.
struct PrefetchRequest {
  /// | kind     | of each granule                                                                    |
  /// |----------|------------------------------------------------------------------------------------|
  /// | prefetch | is brought where it is wanted, if it can be                                        |
  /// | populate | gets memory; what has some stays where it is                                       |
  /// | pin      | is brought there and pinned, or the whole request fails                            |
  /// | forget   | is reached by nobody for a moment, and its contents are discarded                  |
  enum class Kind : std::uint8_t { prefetch, populate, pin, forget } kind = Kind::prefetch;
  Client* client = nullptr;
  PageSpan span;
  Page cursor = 0;
  DeviceId device = no_device;
  Cookie cookie;
  std::uint32_t in_flight = 0;
  std::uint64_t started_granules = 0;
  std::uint32_t svm = none_index;  ///< the request of svm_requests that is told at the end, in place of a reply
  bool in_use = false;
  bool advancing = false;  ///< advance_prefetch() runs and will look again
  bool rests = false;      ///< it goes on with the next tick
  bool fork = false;       ///< of client_fork: pages stay where they are
  bool again = false;      ///< fork: this walk found something to do
  /// Not 0: for that userptr buffer. To system memory; with a device, mapped there in place. Work is told at the end.
  BufferId userptr = 0;
  FenceId fence = 0;                  ///< not 0: it signals at the end, in place of the reply
  Status status;                      ///< kind pin: why it fails
  std::vector<PageSpan> pinned = {};  ///< kind pin: done so far
  /// Kind forget: not allocated when it was asked for, or freed since. What is allocated there next is not what it is about.
  std::vector<PageSpan> other = {};
  /// It looks at a granule again when the operation there has ended, before anybody else is served.
  [[nodiscard]] bool revisits() const { return kind == Kind::pin || kind == Kind::forget; }
};

/// A walk that goes on with the next tick.
struct Rest {
  enum class Of : std::uint8_t { walk, change, set } of = Of::walk;
  std::uint32_t index = 0;
};

/// The block that a walk looks into.
struct MadeBlock {
  BlockIndex index = ~BlockIndex{0};
  std::uint64_t op_serial = 0;  ///< when it began to
  bool fresh = false;           ///< it was not there before
};

/// Pages being freed of a granule that a userptr buffer in use lies over: given up when it is in use no more.
struct KeptFree {
  std::uint32_t request = none_index;
  BlockIndex block = 0;
  std::uint32_t granule = 0;
};

}  // namespace ferry::core

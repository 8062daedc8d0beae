// Fences as the outside sees them, and tokens: the descriptors by which buffers, fences and timelines pass between
// applications (docs/design/0014-buffers.md). Plain state; Manager's work_requests.cpp and tokens.cpp do things with it.
// Main thread only.
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "core/work/types.h"
#include "linux/fd.h"

namespace ferry::manager {

struct FenceEntry {
  ClientId owner = 0;
  bool is_job = false;
  bool visible = false;
  bool signalled = false;
  Status status;
  Status early;  ///< of an array: a part that had failed before the core could wait for it
  /// Of a job that is not visible yet: a timeline whose point 1 it promises. Jobs that wait for it wait for that point,
  /// so that the core holds them back and finds loops. 0: visible, or over.
  core::TimelineId gate = 0;
  std::vector<core::BufferId> buffers;  ///< of such a job: held for it, so that they may be closed after submission
  std::uint32_t holds = 0;              ///< applications' handles and tokens
  std::vector<std::uint64_t> tokens;    ///< to be written to when it signals
};

struct Token {
  enum class Kind : std::uint8_t { buffer, fence, timeline } kind = Kind::buffer;
  std::uint64_t object = 0;
  ClientId exporter = 0;
  std::uint64_t cookie = 0;  ///< of the other end, as the kernel numbers sockets: never used twice
  linux::Fd end;             ///< ours: hangs up when no process has the other one any more
};

struct WorkTable {
  std::unordered_map<core::FenceId, FenceEntry> fences;
  std::unordered_map<std::uint64_t, Token> tokens;             ///< by number
  std::unordered_map<std::uint64_t, std::uint64_t> by_cookie;  ///< number of the token
  std::uint64_t next_id = 1;                                   ///< of buffers, fences and timelines
  std::uint64_t next_token = 1;
  ClientId exports = 0;  ///< holds, in the core, what tokens stand for; 0: there was none yet
  bool timelines_changed = false;
  std::unordered_map<core::BufferId, std::uint32_t> buffer_holds;  ///< applications' handles and tokens
  std::vector<core::BufferId> leaving;  ///< nobody holds them; their memory goes when the core has let go of them
};

}  // namespace ferry::manager

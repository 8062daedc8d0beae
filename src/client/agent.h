// The session's two threads in the application. The agent obeys the manager's commands about the program's mappings
// (its page table is only reachable from inside); the reader takes messages from the manager's socket.
// Neither ever touches managed memory or the managed heap: a fault of theirs would wait for themselves.
// All signals are blocked in both: a handler of the program could touch managed memory.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/status.h"
#include "linux/socket.h"
#include "wire/control.h"

namespace ferry::client {

struct AgentStart {
  wire::AppControl* control = nullptr;
  int kick_fd = -1;
  int system_fd = -1;
  std::uint64_t window_base = 0;
  std::uint64_t window_bytes = 0;
};

/// Starts the agent. It lives as long as the process. ERRORS: no_memory.
Status start_agent(const AgentStart& start);

/// Which file the agent maps when a command names the buffer number `slot`. The descriptor stays the caller's. Any thread.
void set_agent_buffer_file(unsigned slot, int fd);
/// Before the descriptor is closed. Where another handle has the number by now, its file stays.
void forget_agent_buffer_file(unsigned slot, int fd);

/// Starts a thread with a small stack of its own, all signals blocked, none of its memory managed. ERRORS: no_memory.
Status start_session_thread(void* (*body)(void*));

/// Called by the reader for every message, with it, and once with `closed` when the manager has gone.
struct ReaderCalls {
  void (*message)(linux::Incoming& in) = nullptr;
  void (*closed)() = nullptr;
};

/// Starts the reader. It lives as long as the process. ERRORS: no_memory.
Status start_reader(int socket, const ReaderCalls& calls);

}  // namespace ferry::client

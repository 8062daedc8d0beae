// What the template process itself runs: see zygote.h. Single-threaded; only zygote.cpp calls this, in the new process.
#pragma once

#include "client/zygote.h"

namespace ferry::client {

inline constexpr auto spawn_device_message = static_cast<wire::MessageType>(1001);
inline constexpr auto spawn_manager_message = static_cast<wire::MessageType>(1002);
inline constexpr auto spawned_message = static_cast<wire::MessageType>(1003);

struct ManagerSpawn {
  char path[4096];
  /// FERRY_* variables, each NUL-terminated.
  char environment[16384];
  std::uint32_t environment_bytes;
};

struct Spawned {
  std::int32_t pid;
  std::int32_t error;
};

/// Never returns: ends when the program closes its end of `socket`. Takes ownership of the socket. `main_thread`: the one that
/// forked was the program's main thread.
[[noreturn]] void run_zygote(int socket, bool early, bool main_thread);

}  // namespace ferry::client

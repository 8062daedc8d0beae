// What kind of process this is, which every entry point asks first. Set once, by the thread that forked; read by any.
#pragma once

#include <atomic>
#include <cstdint>

namespace ferry::client {

enum class ProcessKind : std::uint8_t {
  application,
  template_process,  ///< the zygote: forks device processes, runs no program code
  device,
  forked_child,  ///< of an application that has a session: has its memory, as private memory, but no session
};

extern std::atomic<ProcessKind> process_kind;

}  // namespace ferry::client

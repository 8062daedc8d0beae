// What one ferryd was started with. Plain data, fixed once the manager runs.
#pragma once

#include <cstdint>
#include <string>

#include "manager/options.h"
#include "wire/slots.h"

namespace ferry::manager {

struct ManagerConfig {
  MachineOptions machine;
  unsigned copy_threads = 0;  ///< 0: chosen by the number of CPUs
  std::string title;          ///< what runs, for the report

  // Exactly one of the three says where applications come from.
  std::string socket_path;  ///< a socket to make
  int listen_fd = -1;       ///< a listening socket that was inherited
  int private_fd = -1;      ///< the one application's connection; the manager ends with it

  // Empty: not written.
  std::string stats_file;
  std::string trace_file;
  std::string report_file;

  /// How long the main thread polls after the last event of a peer before it sleeps.
  std::uint64_t spin_ns = 100'000;
  /// The same while an answer or a copy is under way.
  std::uint64_t spin_expecting_ns = 1'000'000;
  /// A device that owes an answer for this long is ended: memory of others may wait for it.
  std::uint64_t answer_timeout_ns = 10'000'000'000;

  /// Cleared: as on a kernel that cannot protect pages from being written (for tests).
  bool protect_pages = true;

  // What one application may have at a time (fences and timelines: wire/slots.h).
  std::size_t buffers_max = wire::buffer_slots;
  std::size_t places_max = 4096;
  std::uint32_t jobs_max = 1024;
  std::uint32_t arrays_max = 4096;
  std::uint32_t exports_max = 1024;
  std::size_t groups_max = 4096;

  [[nodiscard]] bool is_private() const { return private_fd >= 0; }
};

}  // namespace ferry::manager

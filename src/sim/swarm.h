// What makes one run unlike another: sizes, program mixes, delays and which failures can happen, all drawn from the
// seed. A failure that is always possible hides the bugs that need it to be absent, so each is off in many runs.
#pragma once

#include <cstdint>

#include "base/random.h"
#include "core/config.h"
#include "sim/sim.h"

namespace ferry::sim {

struct Swarm {
  unsigned clients = 1;
  DeviceId devices = 1;
  unsigned threads = 1;  ///< CPU threads of each client
  unsigned waves = 1;    ///< of each client on each device
  unsigned window_blocks = 4;
  Page window_first = 0;

  // Failures, per thousand actions that may have them; 0: not in this run.
  unsigned copy_io_error = 0;
  unsigned copy_no_memory = 0;
  unsigned map_cpu_no_memory = 0;
  unsigned map_device_no_memory = 0;
  unsigned map_device_no_mappings = 0;
  unsigned store_io_error = 0;
  unsigned load_io_error = 0;
  // Events of processes, per 10,000 steps of the random phase.
  unsigned kill_client = 0;
  unsigned kill_device = 0;
  unsigned stop = 0;
  unsigned pressure = 0;  ///< system memory is asked back, or the budget changes

  // Delays: most are uniform below `delay_ns`, `tail` of 1000 below `tail_ns`.
  std::uint64_t delay_ns = 5'000;
  unsigned tail = 20;
  std::uint64_t tail_ns = 1'000'000;
  std::uint64_t think_ns = 1'000;    ///< between two accesses of a thread or wave
  std::uint64_t manage_ns = 50'000;  ///< between two requests of a client
  unsigned split = 300;              ///< of 1000 actions are performed in two parts

  // Programs.
  unsigned write_share = 300;  ///< of 1000 accesses
  unsigned add_share = 100;
  unsigned hot_share = 300;   ///< of 1000 choices of a pattern: few pages, wanted by all
  unsigned scan_share = 400;  ///< sequential
  unsigned stray_share = 0;   ///< of 1000 accesses of waves: anywhere in the window or beyond it
  unsigned in_place_share = 100;
  unsigned alloc_weight = 30, free_weight = 12, prefetch_weight = 20, bad_weight = 3;
  unsigned places_weight = 0;      ///< pins, discards, moves with a fence
  unsigned attributes_weight = 0;  ///< svm_set and its like
  unsigned retry_weight = 0;       ///< retry faults go off and on
  unsigned fork_weight = 0;        ///< forks, and what their children do
  unsigned read_mostly_share = 0;  ///< of the flags that are set, per mille
  unsigned unmap_weight = 0, zero_weight = 0, protect_weight = 0, move_weight = 0;
  std::uint64_t max_alloc_pages = 2048;
  bool free_while_used = true;  ///< programs free what their own threads and waves still touch
  bool same_client_id = true;   ///< an id that became free is used again

  /// What the store holds; less than Config::store_pages: it says no_space.
  std::uint64_t store_capacity = 0;
  [[nodiscard]] bool has_room(std::uint64_t pages) const { return pages <= store_capacity; }

  core::Config core;
};

/// What concerns the budget of system memory, or changes of the address space, is drawn from numbers of its own: seeds without one keep their meaning.
[[nodiscard]] Swarm make_swarm(Random& random, const SimOptions& options);

}  // namespace ferry::sim

#include "sim/swarm.h"

namespace ferry::sim {
namespace {
unsigned pick(Random& r, unsigned low, unsigned high) { return low + static_cast<unsigned>(r.below(high - low + 1)); }

/// Off in half of the runs, else one of several strengths.
unsigned maybe(Random& r, unsigned weak, unsigned strong) {
  if (r.chance(500)) return 0;
  return r.chance(500) ? weak : strong;
}

/// The same for failures of actions. Now and then almost all fail, as on a full machine or a broken one.
unsigned failures(Random& r, unsigned weak, unsigned strong) { return r.chance(30) ? 950 : maybe(r, weak, strong); }
}  // namespace

namespace {
void draw_budget(Swarm& s, const SimOptions& options) {
  Random r(options.seed ^ 0x5e1f'ca3e'1e55'0017);
  const bool by_seed = r.chance(500);
  if (options.budget == SimOptions::Budget::off || (options.budget == SimOptions::Budget::by_seed && !by_seed)) return;
  // A share of what all clients can allocate, now and then less than one granule.
  const std::uint64_t all = std::uint64_t{s.clients} * s.window_blocks * block_pages;
  s.core.system_pages = r.chance(100) ? 1 + r.below(block_pages) : all / pick(r, 2, 12) + r.below(block_pages);
  const unsigned kind = pick(r, 0, 9);
  if (kind >= 1) {  // 0: no store at all
    s.store_capacity = kind <= 6 ? all * 2 : 1 + r.below(all / 2);
    s.core.store_pages = r.chance(500) ? s.store_capacity : all * 2;
  }
  s.store_io_error = failures(r, 20, 200);
  s.load_io_error = failures(r, 20, 200);
  s.pressure = maybe(r, 20, 100);
  if (r.chance(300)) {
    core::DeviceModel model;
    model.policy = core::Policy::track;
    model.repair_reserve_granules = pick(r, 0, 4);
    s.core.models.assign(s.devices, model);
  }
}
/// Of their own random numbers: what else a seed means does not depend on which policies there are.
void draw_policies(Swarm& s, const SimOptions& options) {
  Random r(options.seed ^ 0x9011'c1e5'0000'0020);
  if (r.chance(400)) return;  // the defaults
  s.core.prefetch = static_cast<core::PrefetchKind>(pick(r, 0, core::prefetch_kind_count - 1));
  s.core.density_percent = pick(r, 1, 100);
  s.core.leave = static_cast<core::LeaveKind>(pick(r, 0, core::leave_kind_count - 1));
  s.core.leave_returns = pick(r, 0, 4);
  s.core.victims = static_cast<core::VictimKind>(pick(r, 0, core::victim_kind_count - 1));
}
}  // namespace

namespace {
/// Pins and the like, from numbers of their own too.
void draw_places(Swarm& s, const SimOptions& options) {
  Random r(options.seed ^ 0x91ac'e5f0'0b1e'2c3d);
  if (r.chance(400)) return;
  s.places_weight = pick(r, 10, 80);
  if (s.devices > 1 && r.chance(700)) {
    s.core.hives.assign(s.devices, 1);
    if (s.devices > 2 && r.chance(300)) s.core.hives[0] = 2;
  }
  if (r.chance(300)) s.core.pin_pages = 1 + r.below(std::uint64_t{s.window_blocks} * block_pages);
}
/// Attributes, from numbers of their own: what else a seed means stays as it is.
void draw_attributes(Swarm& s, const SimOptions& options) {
  Random r(options.seed ^ 0xa77b'1b07'e5a7'7b1b);
  if (!r.chance(500)) return;
  s.attributes_weight = pick(r, 10, 80);
}

/// Copies: many of the runs with attributes say more often than others that pages are read mostly, and keep to it. All do
/// where a bug of copies is looked for.
void draw_copies(Swarm& s, const SimOptions& options) {
  Random r(options.seed ^ 0x2ead'3057'1700'c091);
  const bool wanted =
      options.bug >= core::PlantedBug::keep_copy && options.bug <= core::PlantedBug::map_copied_writable;
  if (!wanted && (s.attributes_weight == 0 || !r.chance(800))) return;
  if (wanted) s.attributes_weight = std::max(s.attributes_weight, 30U);
  s.read_mostly_share = pick(r, 100, 900);
  if (r.chance(wanted ? 300 : 600)) {
    s.write_share /= 8;
    s.add_share /= 4;
  }
  if (s.devices > 1 && s.core.hives.empty() && r.chance(500)) s.core.hives.assign(s.devices, 1);
  if (r.chance(wanted ? 900 : 600)) {
    // So that copies and their homes have to leave.
    s.core.vram_pages = std::min<std::uint64_t>(s.core.vram_pages, std::uint64_t{pick(r, 1, 2)} * block_pages);
    s.core.granularity_pages = std::min(s.core.granularity_pages, 1U << pick(r, 6, 9));
  }
}

void draw_changes(Swarm& s, const SimOptions& options) {
  Random r(options.seed ^ 0xc4a6'9e00'51de'0070);
  // Pins make free and discard wait or fail, attributes make faults fail: often each is alone, often all are mixed.
  const bool mixed = Random(options.seed ^ 0x3a11'7e57'ed00'0081).chance(600);
  if ((s.places_weight != 0 || s.attributes_weight != 0) && !mixed) return;
  s.unmap_weight = r.chance(300) ? 0 : pick(r, 2, 15);
  s.zero_weight = r.chance(300) ? 0 : pick(r, 5, 30);
  s.protect_weight = r.chance(300) ? 0 : pick(r, 5, 30);
}

/// Moves: all runs have some where a bug of moves is looked for.
void draw_moves(Swarm& s, const SimOptions& options) {
  Random r(options.seed ^ 0x30fe'5000'0000'0074);
  const bool wanted =
      options.bug >= core::PlantedBug::keep_moved_mapping && options.bug <= core::PlantedBug::lose_moved;
  if (!wanted && !r.chance(400)) return;
  s.move_weight = pick(r, 5, 40);
  s.window_blocks = std::max(s.window_blocks, 4U);
  s.max_alloc_pages = std::max<std::uint64_t>(s.max_alloc_pages, block_pages / 2);
}

void draw_forks(Swarm& s, const SimOptions& options) {
  Random r(options.seed ^ 0xf02c'ed00'0000'0080);
  if (r.chance(500)) return;
  s.fork_weight = pick(r, 3, 30);
  if (r.chance(300)) s.retry_weight = pick(r, 1, 5);
}

/// Numbers of pages in the window, of adopted ones behind it, or some of both.
void draw_window(Swarm& s, const SimOptions& options) {
  Random r(options.seed ^ 0xad09'7ed0'0000'0017);
  const Window window;
  const unsigned kind = pick(r, 0, 3);
  if (kind == 0) s.window_first = window.page_of_address(0x7f00'0000'0000 + r.below(1U << 20) * block_bytes);
  if (kind == 1) s.window_first = window.pages() - (1 + r.below(s.window_blocks)) * block_pages;
}
}  // namespace

Swarm make_swarm(Random& r, const SimOptions& options) {
  Swarm s;
  s.clients = r.chance(400) ? 1 : pick(r, 2, 4);
  s.devices = static_cast<DeviceId>(r.chance(500) ? 1 : pick(r, 2, 3));
  s.threads = pick(r, 1, 3);
  s.waves = pick(r, 1, 6);
  s.window_blocks = pick(r, 2, 8);
  s.window_first = (r.chance(300) ? 0 : r.below(1U << 20)) * block_pages;

  s.copy_io_error = failures(r, 10, 100);
  s.copy_no_memory = failures(r, 10, 100);
  s.map_cpu_no_memory = failures(r, 10, 150);
  s.map_device_no_memory = failures(r, 10, 150);
  s.map_device_no_mappings = failures(r, 20, 300);
  s.kill_client = maybe(r, 4, 20);
  s.kill_device = maybe(r, 4, 20);
  s.stop = maybe(r, 10, 60);

  s.delay_ns = std::uint64_t{1} << pick(r, 9, 15);
  s.tail = pick(r, 0, 60);
  s.tail_ns = std::uint64_t{1} << pick(r, 14, 21);
  s.think_ns = std::uint64_t{1} << pick(r, 7, 13);
  s.manage_ns = std::uint64_t{1} << pick(r, 13, 17);
  s.split = r.chance(300) ? 0 : pick(r, 100, 600);

  s.write_share = pick(r, 0, 800);
  s.add_share = r.chance(400) ? 0 : pick(r, 50, 200);
  s.hot_share = r.chance(300) ? 0 : pick(r, 100, 800);
  s.scan_share = pick(r, 100, 900);
  s.stray_share = r.chance(600) ? 0 : pick(r, 1, 30);
  s.in_place_share = r.chance(500) ? 0 : pick(r, 50, 400);
  s.free_weight = r.chance(200) ? 0 : pick(r, 5, 30);
  s.prefetch_weight = r.chance(300) ? 0 : pick(r, 5, 60);
  s.bad_weight = r.chance(500) ? 0 : 4;
  s.max_alloc_pages = std::uint64_t{1} << pick(r, 3, 11);
  s.free_while_used = r.chance(700);
  s.same_client_id = r.chance(500);

  // Small granules only fill VRAM where much is asked for at once, so large ones are the common case.
  s.core.granularity_pages = r.chance(400) ? block_pages : 1U << pick(r, 0, 8);
  s.core.device_count = s.devices;
  s.core.vram_pages = std::uint64_t{r.chance(300) ? pick(r, 0, 1) : pick(r, 2, 6)} * block_pages;
  s.core.contention_threshold = pick(r, 1, 6);
  s.core.contention_window_ns = std::uint64_t{1} << pick(r, 16, 26);
  s.core.contention_hold_ns = std::uint64_t{1} << pick(r, 14, 28);
  // Without a draw of its own: seeds keep their meaning. Stopped processes stay so for longer than the shortest.
  s.core.line_patience_ns = s.core.contention_window_ns * 4;
  s.core.contention_slice_ns = s.core.contention_hold_ns / 8;
  s.core.copy_retries = pick(r, 0, 4);
  s.core.speculation_granules = r.chance(300) ? 0 : pick(r, 1, 8);
  s.core.bug = options.bug;
  draw_budget(s, options);
  draw_policies(s, options);
  draw_places(s, options);
  draw_attributes(s, options);
  draw_copies(s, options);
  draw_changes(s, options);
  draw_forks(s, options);
  draw_moves(s, options);
  draw_window(s, options);
  return s;
}

}  // namespace ferry::sim

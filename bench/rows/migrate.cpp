// Demand migration of whole blocks, each way, against memcpy between memory files.
#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <thread>

#include <fmt/format.h>

#include "floors/floors.h"
#include "machine.h"
#include "rows/rows.h"
#include "rows/session.h"

namespace ferry::bench {

namespace {

constexpr std::size_t block = 2UL << 20U;
constexpr std::size_t words_per_block = block / sizeof(std::uint64_t);
constexpr std::size_t blocks = 128;

/// One compute unit, the manager, one thread of the application: what CPUs are left copy, so that nobody waits for a
/// CPU on either side.
unsigned copy_threads() { return std::clamp(usable_cpus(), 4U, 7U) - 3; }

Row owed(const std::string& name) { return {.name = name, .target = 0.8, .bound = Bound::at_least, .unit = "GB/s"}; }

/// The blocks of one array that go to VRAM because a kernel writes one word of each, and come home because CPU threads
/// read one word of each.
class Traveller {
 public:
  Traveller() : memory_(blocks * words_per_block) { memory_.fill(1); }

  /// GB/s of the way to VRAM; the application has a thread that runs. One block a wave.
  double to_vram() {
    const RunningThreads running(1);
    std::uint64_t* data = memory_.data();
    const std::uint64_t mark = ++mark_;
    const Counters before = counters();
    const std::uint64_t begin_ns = now_ns();
    launches_
        .launch(
            grid{.items = blocks, .wave = 1}, [data, mark](item at) { data[at.global() * words_per_block] = mark; },
            "fetch")
        .wait();
    const std::uint64_t elapsed_ns = now_ns() - begin_ns;
    require_moved(counters().bytes_to_vram - before.bytes_to_vram);
    return rate(elapsed_ns);
  }

  /// GB/s of the way home: one application thread more than copy threads faults, so that no copy thread idles.
  double to_system() {
    std::uint64_t* data = memory_.data();
    const Counters before = counters();
    std::atomic<std::size_t> taken{0};
    std::atomic<std::size_t> wrong{0};
    const std::uint64_t begin_ns = now_ns();
    {
      std::vector<std::jthread> readers;
      for (unsigned index = 0; index < copy_threads() + 1; ++index) {
        readers.emplace_back([&] {
          for (std::size_t at = taken.fetch_add(1); at < blocks; at = taken.fetch_add(1)) {
            if (data[at * words_per_block] != mark_) wrong.fetch_add(1);
          }
        });
      }
    }
    const std::uint64_t elapsed_ns = now_ns() - begin_ns;
    if (wrong != 0)
      throw std::runtime_error(fmt::format("{} blocks came home without the device's write", wrong.load()));
    require_moved(counters().bytes_to_system - before.bytes_to_system);
    return rate(elapsed_ns);
  }

 private:
  static double rate(std::uint64_t elapsed_ns) {
    return static_cast<double>(blocks * block) / static_cast<double>(elapsed_ns);
  }
  static void require_moved(std::uint64_t bytes) {
    if (bytes != blocks * block) {
      throw std::runtime_error(fmt::format("{} bytes moved where {} should have", bytes, blocks * block));
    }
  }

  Array<std::uint64_t> memory_;
  queue launches_;
  std::uint64_t mark_ = 1;
};

}  // namespace

Bench migrate() {
  Bench bench{.name = "migrate", .about = "demand migration in 2 MiB blocks, each direction"};
  bench.machine = Machine{.vram = "384M", .cus = 1, .granularity = "2M", .copy_threads = copy_threads()};
  bench.expected = {owed("migrate_to_vram_2m"), owed("migrate_to_system_2m")};
  bench.run = [](const Settings& settings) {
    floors::MemcpyMemfd copy(copy_threads(), settings.copy_bytes, floors::CopyKind::memcpy);
    floors::MemcpyMemfd streaming(copy_threads(), settings.copy_bytes, floors::CopyKind::non_temporal);
    Traveller traveller;
    // Warm: VRAM that exists, and blocks that have travelled often enough for the manager to give them huge pages.
    for (int trip = 0; trip < 4; ++trip) {
      (void)traveller.to_vram();
      (void)traveller.to_system();
    }
    std::vector<double> home;
    std::vector<double> reference;
    const Pair there = sample_in_turn(
        settings, "migrate",
        [&] {
          const double rate = traveller.to_vram();
          home.push_back(traveller.to_system());
          return rate;
        },
        [&] {
          reference.push_back(streaming.sample(blocks));
          return copy.sample(blocks);
        });
    home.erase(home.begin());  // the warm-up's
    if (settings.verbose) {
      for (const double rate : home) fmt::print(stderr, "migrate_to_system_2m: sample {:.4g}\n", rate);
    }
    const std::string note = fmt::format("{} copy thread(s); non-temporal copy of the same blocks {:.1f} GB/s",
                                         copy_threads(), median(reference));
    Row to_vram = make_row(owed("migrate_to_vram_2m"), there.ferry, there.floor);
    Row to_system = make_row(owed("migrate_to_system_2m"), median(home), there.floor);
    to_vram.note = note;
    to_system.note = note;
    return std::vector<Row>{to_vram, to_system};
  };
  return bench;
}

}  // namespace ferry::bench

// Blocks that go from one device's memory to a linked one's, against memcpy between memory files.
#include <algorithm>
#include <stdexcept>

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

/// The manager's main thread decides, the application waits; what CPUs are left copy.
unsigned copy_threads() { return std::clamp(usable_cpus(), 3U, 6U) - 2; }

Row owed() { return {.name = "peer_copy_2m", .target = 0.7, .bound = Bound::at_least, .unit = "GB/s"}; }

/// One array that two devices hand to each other.
class Ball {
 public:
  Ball() : memory_(blocks * words_per_block) {
    for (std::size_t i = 0; i < blocks; ++i) memory_[i * words_per_block] = i;
    prefetch(memory_.data(), memory_.bytes(), to_device(0));
    // Written there, so that no copy in system memory is as new.
    std::uint64_t* const data = memory_.data();
    first_
        .parallel_for(
            blocks, [data](std::size_t i) { data[i * words_per_block] += 1; }, "write")
        .wait();
  }

  /// GB/s from the device that has it to the other one.
  double pass() {
    const unsigned to = 1 - at_;
    const std::uint64_t through_system = counters().bytes_to_system;
    const std::uint64_t begin_ns = now_ns();
    prefetch(memory_.data(), memory_.bytes(), to_device(to));
    const std::uint64_t elapsed_ns = now_ns() - begin_ns;
    at_ = to;
    for (std::size_t i = 0; i < blocks; ++i) {
      const int where = query(memory_.data() + i * words_per_block).vram_device;
      if (where != static_cast<int>(to)) {
        throw std::runtime_error(fmt::format("block {} should be in device {}'s memory, not {}'s", i, to, where));
      }
    }
    if (const std::uint64_t bytes = counters().bytes_to_system - through_system; bytes != 0) {
      throw std::runtime_error(fmt::format("{} bytes went through system memory", bytes));
    }
    return static_cast<double>(blocks * block) / static_cast<double>(elapsed_ns);
  }

  void require_contents() const {
    for (std::size_t i = 0; i < blocks; ++i) {
      if (memory_[i * words_per_block] != i + 1) throw std::runtime_error(fmt::format("block {} is wrong", i));
    }
  }

 private:
  queue first_{0};
  queue second_{1};
  Array<std::uint64_t> memory_;
  unsigned at_ = 0;
};

}  // namespace

Bench peer() {
  Bench bench{.name = "peer", .about = "copies from device to linked device in 2 MiB blocks"};
  bench.machine = Machine{.vram = "384M", .cus = 1, .granularity = "2M", .copy_threads = copy_threads(), .devices = 2};
  bench.expected = {owed()};
  bench.run = [](const Settings& settings) {
    floors::MemcpyMemfd copy(copy_threads(), settings.copy_bytes, floors::CopyKind::memcpy);
    floors::MemcpyMemfd streaming(copy_threads(), settings.copy_bytes, floors::CopyKind::non_temporal);
    Ball ball;
    // Warm: memory of both that exists.
    for (int trip = 0; trip < 4; ++trip) (void)ball.pass();
    std::vector<double> reference;
    const Pair result = sample_in_turn(
        settings, "peer", [&] { return ball.pass(); },
        [&] {
          reference.push_back(streaming.sample(blocks));
          return copy.sample(blocks);
        });
    ball.require_contents();
    Row row = make_row(owed(), result.ferry, result.floor);
    row.note = fmt::format(
        "{} copy thread(s), 0 bytes through system memory; non-temporal copy of the same blocks {:.1f} GB/s",
        copy_threads(), median(reference));
    return std::vector<Row>{row};
  };
  return bench;
}

}  // namespace ferry::bench

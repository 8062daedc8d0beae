// mremap of memory that lies in VRAM, against mremap of ordinary memory and against copying the bytes once.
#include <sys/mman.h>

#include <algorithm>
#include <stdexcept>
#include <system_error>

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
constexpr std::size_t bytes = blocks * block;

/// The manager's main thread decides, the application waits; what CPUs are left copy, and have nothing to do.
unsigned copy_threads() { return std::clamp(usable_cpus(), 3U, 6U) - 2; }

Row owed_call() { return {.name = "move_resident_2m", .target = 40, .bound = Bound::at_most, .unit = "us"}; }
Row owed_rate() { return {.name = "move_resident_rate_2m", .target = 4, .bound = Bound::at_least, .unit = "GB/s"}; }

/// Microseconds that mremap takes to bring `bytes` from one address to the other, whatever is there.
double move_us(void* from, void* to) {
  const std::uint64_t begin_ns = now_ns();
  void* const at = ::mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
  const std::uint64_t elapsed_ns = now_ns() - begin_ns;
  if (at != to) throw std::system_error(errno, std::generic_category(), "mremap");
  return static_cast<double>(elapsed_ns) / 1e3;
}

/// Memory that goes to and fro between two addresses.
class Managed {
 public:
  double sample() {
    std::uint64_t* const data = where();
    const std::uint64_t mark = ++mark_;
    // In VRAM, and mapped there: a move has to take that mapping first.
    queue_
        .parallel_for(
            blocks, [data, mark](std::size_t i) { data[i * words_per_block] = mark + i; }, "write")
        .wait();
    for (std::size_t i = 0; i < blocks; ++i) require_in_vram(data + i * words_per_block, "what is to be moved");
    const Counters before = counters();
    const double us = move_us(data, other());
    at_ = 1 - at_;
    const Counters after = counters();
    if (after.bytes_readdressed_in_place - before.bytes_readdressed_in_place != bytes ||
        after.bytes_to_system != before.bytes_to_system || after.bytes_to_vram != before.bytes_to_vram) {
      throw std::runtime_error(fmt::format("of {} bytes {} have kept their place; {} went home, {} to VRAM", bytes,
                                           after.bytes_readdressed_in_place - before.bytes_readdressed_in_place,
                                           after.bytes_to_system - before.bytes_to_system,
                                           after.bytes_to_vram - before.bytes_to_vram));
    }
    for (std::size_t i = 0; i < blocks; ++i) require_in_vram(where() + i * words_per_block, "what was moved");
    return us;
  }

  /// Every block reads what was written to it before the last move.
  void require_contents() const {
    for (std::size_t i = 0; i < blocks; ++i) {
      if (where()[i * words_per_block] != mark_ + i) throw std::runtime_error("a moved block has other contents");
    }
  }

 private:
  [[nodiscard]] std::uint64_t* where() const { return at_ == 0 ? one_.data() : two_.data(); }
  [[nodiscard]] std::uint64_t* other() const { return at_ == 0 ? two_.data() : one_.data(); }

  Array<std::uint64_t> one_{blocks * words_per_block};
  Array<std::uint64_t> two_{blocks * words_per_block};
  queue queue_;
  unsigned at_ = 0;
  std::uint64_t mark_ = 1;
};

/// The same with private memory that has every page.
class Ordinary {
 public:
  Ordinary() {
    reserved_ = ::mmap(nullptr, 2 * bytes + block, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
    const auto first = (reinterpret_cast<std::uintptr_t>(reserved_) + block - 1) & ~(block - 1);
    places_[0] = reinterpret_cast<char*>(first);
    places_[1] = places_[0] + bytes;
    if (::mprotect(places_[0], bytes, PROT_READ | PROT_WRITE) != 0) {
      throw std::system_error(errno, std::generic_category(), "mprotect");
    }
    for (std::size_t i = 0; i < bytes; i += 4096) places_[0][i] = 1;
  }
  ~Ordinary() { ::munmap(reserved_, 2 * bytes + block); }
  Ordinary(const Ordinary&) = delete;
  Ordinary& operator=(const Ordinary&) = delete;

  double sample() {
    const double us = move_us(places_[at_], places_[1 - at_]);
    // The place that was left stays reserved, or somebody else's memory may come to lie there.
    if (::mmap(places_[at_], bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
        MAP_FAILED) {
      throw std::system_error(errno, std::generic_category(), "mmap");
    }
    at_ = 1 - at_;
    return us;
  }

 private:
  void* reserved_ = nullptr;
  char* places_[2] = {};
  unsigned at_ = 0;
};

}  // namespace

Bench move() {
  Bench bench{.name = "move", .about = "mremap of memory that lies in VRAM"};
  // No speculation: what it brings behind the array arrives when it likes.
  bench.machine =
      Machine{.vram = "512M", .cus = 1, .granularity = "2M", .speculation = 0, .copy_threads = copy_threads()};
  bench.expected = {owed_call(), owed_rate()};
  bench.run = [](const Settings& settings) {
    floors::MemcpyMemfd copy(copy_threads(), settings.copy_bytes, floors::CopyKind::memcpy);
    Ordinary ordinary;
    Managed managed;
    std::vector<double> copied;
    for (int warm = 0; warm < 2; ++warm) (void)managed.sample();
    const Pair calls = sample_in_turn(
        settings, "move", [&] { return managed.sample(); },
        [&] {
          copied.push_back(copy.sample(blocks));
          return ordinary.sample();
        });
    managed.require_contents();
    copied.erase(copied.begin());  // the warm-up's
    Row call = make_row(owed_call(), calls.ferry, calls.floor);
    call.note = fmt::format("{} blocks of 2 MiB: {:.1f} us each", blocks, calls.ferry / blocks);
    Row rate = make_row(owed_rate(), static_cast<double>(bytes) / (calls.ferry * 1e3), median(copied));
    rate.note = fmt::format("{} copy thread(s); a copy home and back would be two", copy_threads());
    return std::vector<Row>{call, rate};
  };
  return bench;
}

}  // namespace ferry::bench

// The stress test's application: CPU threads, each with memory of its own that it and the devices change in every way
// that there is, checked against a shadow in ordinary memory. Internal to stress_*.cpp.
#pragma once

#include <ferry/ferry.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace ferry::demo::stress {

inline constexpr std::size_t page_size = 4096;
inline constexpr std::size_t page_words = page_size / 8;

/// What one page of a region has to be.
struct PageState {
  bool mapped = true;
  int prot = 3;       ///< PROT_READ | PROT_WRITE
  bool lazy = false;  ///< its contents were given up: it is as before, or zeros
};

/// Where a region's memory comes from.
///
/// | origin     | memory                                                                                          |
/// |------------|-------------------------------------------------------------------------------------------------|
/// | shared_out | ferry_alloc, less than 2 MiB: what is unmapped of it would be missing from other allocations     |
/// | allocated  | ferry_alloc, of its own: can be unmapped and moved                                               |
/// | own        | the program's own mapping, outside of Ferry's window: adopted when a device touches it, or before |
enum class Origin { shared_out, allocated, own };

struct Region {
  Origin origin = Origin::shared_out;
  std::uint64_t* words = nullptr;
  std::size_t pages = 0;
  std::vector<std::uint64_t> shadow;
  std::vector<PageState> states;
};

/// What all threads share.
struct Common {
  unsigned devices = 1;
  unsigned threads = 1;
  std::uint64_t seed = 1;
  bool own_memory = true;     ///< regions of origin own
  std::vector<bool> enabled;  ///< by number of operation
  /// Counters that every thread and every device adds to; the first half may migrate, the second lies in system memory.
  static constexpr std::size_t counters = 32;
  std::array<std::uint64_t*, counters> counter{};
  std::array<std::atomic<std::uint64_t>, counters> added{};
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> steps{0};
  std::vector<std::atomic<std::uint64_t>> done;        ///< by number of operation
  std::vector<std::atomic<std::uint64_t>> on_adopted;  ///< of them, those of regions of origin own
  std::mutex mutex;
  std::string wrong;  ///< the first wrong thing; under mutex

  /// Tells what is wrong, the first time, and stops everything.
  void tell_wrong(const std::string& what) {
    const std::lock_guard lock(mutex);
    if (wrong.empty()) wrong = what;
    stop = true;
  }
};

class Worker {
 public:
  Worker(Common& common, unsigned number);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  /// Until Common::stop. Ends with everything checked and freed.
  void run();

  // Operations. False: nothing could be done with what was drawn, which counts as nothing.
  bool read();
  bool write();
  bool device_change();
  bool device_read();
  bool count_on_cpu();
  bool count_on_device();
  bool prefetch();
  bool renew();
  bool explain();
  bool spoil();
  // stress_svm.cpp
  bool attribute();
  bool reset_attributes();
  bool migrate();
  bool populate();
  bool discard();
  bool pin();
  // stress_space.cpp
  bool fork_and_write();
  bool protect();
  bool zero();
  bool free_lazily();
  bool unmap();
  bool map_again();
  bool remap();
  bool adopt();
  bool release();

 private:
  struct Span {
    std::size_t first = 0;
    std::size_t pages = 0;
  };
  std::uint64_t draw(std::uint64_t below) { return random_() % below; }
  Region& some_region() { return *(last_ = &regions_[draw(regions_.size())]); }
  Region& some_region(Origin origin);
  /// Pages that are mapped; none where the first drawn is not.
  Span some_span(const Region& region, std::size_t most);
  /// A span of pages that may be touched with `prot`. Empty where the first drawn may not.
  Span usable_span(const Region& region, int prot, std::size_t most);
  void make(Region& region);
  void drop(Region& region);
  void unmap_own(Region& region);
  bool remap_to(Region& region, std::size_t pages, bool fixed);
  /// What has no memory any more, or zeros.
  void forget(Region& region, std::size_t first, std::size_t pages, bool mapped);
  [[nodiscard]] static bool uniform(const Region& region);
  void check(const Region& region, Span span);
  /// Pages whose contents were given up are written: from now on they are what they are found to be.
  void settle(Region& region, Span span);
  void check_page(const Region& region, std::size_t page);
  void note(const Region& region, const char* what, Span span);
  [[nodiscard]] std::string place(const Region& region, std::size_t page) const;
  ferry::queue& some_queue() { return queues_[draw(queues_.size())]; }

  Common& common_;
  unsigned number_;
  std::mt19937_64 random_;
  std::vector<Region> regions_;
  Region* last_ = nullptr;            ///< drawn last
  std::vector<ferry::queue> queues_;  ///< one a device
  std::uint64_t* results_ = nullptr;  ///< where kernels say what they have read
  /// What was done last, for the report of something wrong.
  struct Did {
    const Region* region = nullptr;
    const char* what = nullptr;
    Span span;
  };
  std::array<Did, 64> log_{};
  std::uint64_t logged_ = 0;
};

inline std::uint64_t mix(std::uint64_t value, std::uint64_t salt) {
  value = (value ^ salt) * 0x9e37'79b9'7f4a'7c15;
  return value ^ (value >> 29);
}

/// The same on a device, on the CPU and in the shadow: every `stride`th word of a page depends on what it was.
inline void change_page(std::uint64_t* words, std::uint64_t salt, std::size_t stride) {
  for (std::size_t i = salt % stride; i < page_words; i += stride) words[i] = mix(words[i], salt + i);
}

/// Why an operation cannot be had here, tried on memory of its own; or nothing.
std::optional<std::string> missing_attributes();
std::optional<std::string> missing_migrate();
std::optional<std::string> missing_populate();
std::optional<std::string> missing_discard();
std::optional<std::string> missing_pin();
std::optional<std::string> missing_fork();
std::optional<std::string> missing_change();
std::optional<std::string> missing_adoption();

struct Operation {
  const char* name;
  unsigned weight;  ///< how often it is drawn; 0: only where it was asked for by name, then as often as weight 1
  bool (Worker::*run)();
  /// Why it cannot be had here, or nothing. Called once, before the threads begin.
  std::optional<std::string> (*missing)();
  bool adopted_too = false;  ///< it has to happen to adopted memory as well
  bool own_only = false;     ///< it is done to regions of origin own alone
};

/// All operations, in the order of their numbers.
[[nodiscard]] const std::vector<Operation>& operations();

}  // namespace ferry::demo::stress

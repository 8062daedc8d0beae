// The least that a memory of a given size could have moved for a given sequence of accesses, knowing the future.
// Pure computation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace ferry::bench {

/// One access to a granule (the unit that moves). A write implies a read: the granule must be loaded first.
struct GranuleAccess {
  std::uint32_t granule = 0;
  bool is_write = false;
  friend bool operator==(const GranuleAccess&, const GranuleAccess&) = default;
};

struct MinResult {
  std::uint64_t loads = 0;        ///< granules copied in
  std::uint64_t write_backs = 0;  ///< granules copied out because they were written since they were loaded
  [[nodiscard]] std::uint64_t moved() const { return loads + write_backs; }
};

/// Belady's MIN: a memory of `capacity` granules, empty at first, that must hold a granule while it is accessed, loads
/// on demand, and evicts the granule whose next use is farthest away (of those never used again a clean one first, then
/// the one with the lowest number). `loads` is the minimum over all schedules. `write_backs` is what this same
/// schedule writes back; granules dirty at the end stay where they are and are not counted. It is not the minimum of
/// the sum, which is NP-hard to find: a schedule with more loads may write back less.
/// Throws std::invalid_argument for a capacity of 0. O(n log capacity).
[[nodiscard]] MinResult belady_min(std::span<const GranuleAccess> accesses, std::size_t capacity);

/// Collects the accesses of a kernel, one wave after another. Within a wave each granule is kept once, at its first
/// touch, marked as written if any access of the wave wrote. Leaving accesses out can only lower the result of
/// belady_min's loads, so the floor is never too high because of it.
class AccessRecorder {
 public:
  explicit AccessRecorder(std::size_t granule_bytes);
  void touch(const void* address, std::size_t bytes, bool is_write);
  /// Ends the wave: what it touched is appended to the sequence.
  void end_wave();
  [[nodiscard]] const std::vector<GranuleAccess>& accesses() const { return accesses_; }
  /// Different granules touched so far.
  [[nodiscard]] std::size_t granules() const { return number_of_.size(); }

 private:
  struct Seen {
    std::uint32_t number = 0;
    std::uint64_t wave = 0;    ///< the last wave that touched it
    std::size_t position = 0;  ///< its place in accesses_ for that wave
  };
  void touch_granule(std::uint64_t granule, bool is_write);

  unsigned shift_;
  std::uint64_t wave_ = 1;
  std::unordered_map<std::uint64_t, Seen> number_of_;
  std::uint64_t last_granule_ = UINT64_MAX;  ///< shortcut for runs of accesses to one granule
  bool last_written_ = false;
  std::vector<GranuleAccess> accesses_;
};

}  // namespace ferry::bench

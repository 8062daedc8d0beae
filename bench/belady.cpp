#include "belady.h"

#include <bit>
#include <iterator>
#include <limits>
#include <set>
#include <stdexcept>
#include <tuple>

namespace ferry::bench {

namespace {

constexpr std::size_t never = std::numeric_limits<std::size_t>::max();

/// For each access the position of the next one to the same granule, or never.
std::vector<std::size_t> next_uses(std::span<const GranuleAccess> accesses) {
  std::vector<std::size_t> next(accesses.size(), never);
  std::unordered_map<std::uint32_t, std::size_t> later;
  for (std::size_t at = accesses.size(); at-- > 0;) {
    const auto [entry, is_last] = later.try_emplace(accesses[at].granule, at);
    if (is_last) continue;
    next[at] = entry->second;
    entry->second = at;
  }
  return next;
}

}  // namespace

MinResult belady_min(std::span<const GranuleAccess> accesses, std::size_t capacity) {
  if (capacity == 0) throw std::invalid_argument("a memory of no granules cannot serve an access");
  const std::vector<std::size_t> next = next_uses(accesses);
  struct Resident {
    std::size_t next_use;
    bool dirty;
  };
  // Eviction takes the greatest: farthest next use, then clean, then lowest number.
  using Rank = std::tuple<std::size_t, bool, std::uint32_t>;
  const auto rank = [](std::uint32_t granule, const Resident& r) {
    return Rank{r.next_use, !r.dirty, std::numeric_limits<std::uint32_t>::max() - granule};
  };
  std::unordered_map<std::uint32_t, Resident> memory;
  std::set<Rank> order;
  MinResult result;
  for (std::size_t at = 0; at < accesses.size(); ++at) {
    const auto [granule, is_write] = accesses[at];
    auto found = memory.find(granule);
    if (found != memory.end()) {
      order.erase(rank(granule, found->second));
    } else {
      if (memory.size() == capacity) {
        const auto victim = std::prev(order.end());
        const std::uint32_t number = std::numeric_limits<std::uint32_t>::max() - std::get<2>(*victim);
        if (memory.at(number).dirty) ++result.write_backs;
        memory.erase(number);
        order.erase(victim);
      }
      ++result.loads;
      found = memory.emplace(granule, Resident{never, false}).first;
    }
    found->second.next_use = next[at];
    found->second.dirty |= is_write;
    order.insert(rank(granule, found->second));
  }
  return result;
}

AccessRecorder::AccessRecorder(std::size_t granule_bytes)
    : shift_(static_cast<unsigned>(std::countr_zero(granule_bytes))) {
  if (!std::has_single_bit(granule_bytes)) throw std::invalid_argument("a granule is a power of two");
}

void AccessRecorder::touch(const void* address, std::size_t bytes, bool is_write) {
  const auto first = reinterpret_cast<std::uintptr_t>(address);
  touch_granule(first >> shift_, is_write);
  const std::uint64_t last = (first + bytes - 1) >> shift_;
  if (last != first >> shift_) touch_granule(last, is_write);
}

void AccessRecorder::touch_granule(std::uint64_t granule, bool is_write) {
  if (granule == last_granule_ && (last_written_ || !is_write)) return;
  const auto [entry, is_new] = number_of_.try_emplace(granule);
  Seen& seen = entry->second;
  if (is_new) seen.number = static_cast<std::uint32_t>(number_of_.size() - 1);
  if (seen.wave != wave_) {
    seen.wave = wave_;
    seen.position = accesses_.size();
    accesses_.push_back({.granule = seen.number, .is_write = is_write});
  }
  accesses_[seen.position].is_write |= is_write;
  last_granule_ = granule;
  last_written_ = accesses_[seen.position].is_write;
}

void AccessRecorder::end_wave() {
  ++wave_;
  last_granule_ = UINT64_MAX;
}

}  // namespace ferry::bench

// Spans of addresses, and lists of them that are never destroyed and may be used where the heap may not be touched.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/types.h"

namespace ferry::device {

struct Extent {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  [[nodiscard]] bool contains(std::uint64_t address) const { return address >= begin && address < end; }
  [[nodiscard]] bool overlaps(const Extent& o) const { return begin < o.end && o.begin < end; }
};

template <typename T, std::size_t Size>
struct List {
  std::array<T, Size> items{};
  std::size_t count = 0;

  bool add(const T& item) {
    if (count == Size) return false;
    items[count++] = item;
    return true;
  }
  [[nodiscard]] std::span<T> all() { return {items.data(), count}; }
};

constexpr std::uint64_t page_down(std::uint64_t address) { return address & ~(page_bytes - 1); }
constexpr std::uint64_t page_up(std::uint64_t address) { return page_down(address + page_bytes - 1); }

}  // namespace ferry::device

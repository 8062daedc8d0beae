// Size classes: 16 to 128 bytes in steps of 16, then four to each doubling, up to 224 KiB. Larger is a span of its own.
// At most a fifth of a slot is lost to rounding. Every class whose size is a multiple of a power of two serves requests
// aligned to it, because slabs start at multiples of heap_unit_bytes.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace ferry::client {

inline constexpr std::size_t heap_page_bytes = 4096;
/// What slabs are made of and what the page map resolves.
inline constexpr unsigned heap_unit_shift = 16;
inline constexpr std::size_t heap_unit_bytes = std::size_t{1} << heap_unit_shift;
/// A span of slabs: one block of the manager, so that a slab never shares a block with a large allocation.
inline constexpr std::size_t heap_span_bytes = std::size_t{2} << 20;
inline constexpr unsigned span_units = heap_span_bytes / heap_unit_bytes;
/// Runs of units are 1, 2, 4, ... span_units long and aligned to their length.
inline constexpr unsigned span_orders = 6;
static_assert(span_units == 1U << (span_orders - 1));

inline constexpr unsigned class_count = 51;
/// Classes up to 32 KiB are cached per thread; above, the lock is small against what is done with the memory.
inline constexpr unsigned cached_class_count = 40;

[[nodiscard]] constexpr std::size_t class_bytes(unsigned size_class) {
  if (size_class < 8) return (size_class + 1) * std::size_t{16};
  const unsigned doubling = (size_class - 8) / 4;
  const unsigned quarter = (size_class - 8) % 4;
  return (std::size_t{5} + quarter) << (5 + doubling);
}

inline constexpr std::size_t slab_bytes_max = class_bytes(class_count - 1);
static_assert(slab_bytes_max == 224 * 1024);
static_assert(class_bytes(cached_class_count - 1) == 32 * 1024);

/// Smallest class that holds `bytes`, which is 1 .. slab_bytes_max.
[[nodiscard]] constexpr unsigned class_of(std::size_t bytes) {
  const std::size_t last = bytes - 1;
  if (last < 128) return static_cast<unsigned>(last >> 4);
  const auto width = static_cast<unsigned>(std::bit_width(last));
  return 8 + (width - 8) * 4 + static_cast<unsigned>((last >> (width - 3)) & 3);
}

struct SizeClass {
  std::uint64_t reciprocal;  ///< 2^40 / bytes, rounded up: offset * reciprocal >> 40 is exact below 2 MiB
  std::uint32_t bytes;
  std::uint32_t slots;        ///< in a slab
  std::uint32_t cache_slots;  ///< that a thread keeps at most; 0 for classes not cached
  std::uint8_t order;         ///< a slab is 2^order units
};

inline constexpr unsigned reciprocal_shift = 40;
inline constexpr std::size_t slots_max = heap_unit_bytes / 16;

namespace detail {
constexpr SizeClass describe_class(unsigned size_class) {
  const std::size_t bytes = class_bytes(size_class);
  unsigned order = 0;
  while (order + 1 < span_orders) {
    const std::size_t slab = heap_unit_bytes << order;
    // Eight slots at least, and at most an eighth lost at the end.
    if (slab / bytes >= 8 && slab % bytes <= slab / 8) break;
    ++order;
  }
  const std::size_t slab = heap_unit_bytes << order;
  std::size_t cache = 0;
  if (size_class < cached_class_count) {
    cache = 64 * 1024 / bytes;
    if (cache > 256) cache = 256;
    if (cache < 4) cache = 4;
  }
  return SizeClass{((std::uint64_t{1} << reciprocal_shift) + bytes - 1) / bytes, static_cast<std::uint32_t>(bytes),
                   static_cast<std::uint32_t>(slab / bytes), static_cast<std::uint32_t>(cache),
                   static_cast<std::uint8_t>(order)};
}
constexpr std::array<SizeClass, class_count> describe_classes() {
  std::array<SizeClass, class_count> all{};
  for (unsigned i = 0; i < class_count; ++i) all[i] = describe_class(i);
  return all;
}
}  // namespace detail

inline constexpr std::array<SizeClass, class_count> size_classes = detail::describe_classes();

}  // namespace ferry::client

// Numbers that every layer agrees on: pages, blocks, the managed window, and who is who.
// Page numbers are counted from the window's base, so that no layer but linux, client and device ever holds a raw pointer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ferry {

inline constexpr std::uint64_t page_bytes = 4096;
inline constexpr unsigned page_shift = 12;

/// Pages in a block. 2 MiB is what one page-table level of x86-64 and arm64 spans: a block backed by one folio is
/// mapped, zapped and protected by one entry, 7 to 35 times cheaper than 512 small ones (`ferry bench` shows it).
inline constexpr unsigned block_pages = 512;
inline constexpr unsigned block_shift = 9;
inline constexpr std::uint64_t block_bytes = page_bytes * block_pages;

/// The managed window, equal in the application and in its devices. AddressSanitizer's shadow ends below it;
/// FERRY_WINDOW_BASE and FERRY_WINDOW_BYTES (hexadecimal) move it for tools that want another place.
inline constexpr std::uint64_t default_window_base = 0x2000'0000'0000;
inline constexpr std::uint64_t default_window_bytes = std::uint64_t{16} << 40;

/// Number of a page in the window: (address - window base) / page_bytes.
using Page = std::uint64_t;

/// Number of a block in the window: page / block_pages.
using BlockIndex = std::uint64_t;

/// User-space addresses end here (x86-64 with four page-table levels, arm64 with 48 bits has more that programs get only
/// when they ask for it).
inline constexpr std::uint64_t user_address_end = std::uint64_t{1} << 47;

/// Where managed addresses are, and how pages are numbered. Memory outside the window that was adopted in place has
/// numbers behind those of the window, so that each page of the address space has one number, and one place in the
/// client's system file: number * page_bytes.
struct Window {
  std::uint64_t base = default_window_base;
  std::uint64_t bytes = default_window_bytes;

  [[nodiscard]] constexpr bool contains(std::uint64_t address) const { return address - base < bytes; }
  [[nodiscard]] constexpr Page pages() const { return bytes >> page_shift; }
  /// Past the last number, and so the size of a system file.
  [[nodiscard]] constexpr Page page_end() const { return pages() + (user_address_end >> page_shift); }
  /// Every page of the span has the number that page_of_address gives, and no other: the window's own addresses are not
  /// numbered twice, and the numbers of neighbours are those of neighbours.
  [[nodiscard]] constexpr bool numbers(Page first, std::uint64_t count_pages) const {
    if (count_pages == 0 || first >= page_end() || count_pages > page_end() - first) return false;
    const Page end = first + count_pages;
    if (end <= pages()) return true;
    if (first < pages()) return false;
    const Page twin_first = pages() + (base >> page_shift);
    return end <= twin_first || first >= twin_first + pages();
  }
  [[nodiscard]] constexpr Page page_of_address(std::uint64_t address) const {
    return contains(address) ? (address - base) >> page_shift : pages() + (address >> page_shift);
  }
  [[nodiscard]] constexpr std::uint64_t address_of_page(Page page) const {
    return page < pages() ? base + (page << page_shift) : (page - pages()) << page_shift;
  }
};
/// Bits of a user-space address that Ferry handles: x86-64 and arm64 without larger address spaces.
inline constexpr unsigned address_bits = 48;

/// Page of a client's VRAM file on one device. Not a managed address: the same VramPage of two clients is two pages.
using VramPage = std::uint32_t;

/// One application (what a driver calls a PASID).
using ClientId = std::uint32_t;

using DeviceId = std::uint8_t;
inline constexpr unsigned max_devices = 16;
inline constexpr DeviceId no_device = 0xff;

/// What a faulting instruction wanted. A write implies the right to read.
enum class Access : std::uint8_t { read, write };

/// What a mapping allows.
enum class Prot : std::uint8_t { read, read_write };

/// A span of pages of the window; empty when count_pages is 0.
struct PageSpan {
  Page first = 0;
  std::uint64_t count_pages = 0;

  [[nodiscard]] constexpr Page end() const { return first + count_pages; }
  [[nodiscard]] constexpr bool contains(Page page) const { return page >= first && page - first < count_pages; }
  [[nodiscard]] constexpr bool overlaps(const PageSpan& o) const { return first < o.end() && o.first < end(); }
  friend constexpr bool operator==(const PageSpan&, const PageSpan&) = default;
};

[[nodiscard]] constexpr BlockIndex block_of(Page page) { return page >> block_shift; }
[[nodiscard]] constexpr Page first_page_of(BlockIndex block) { return block << block_shift; }

}  // namespace ferry

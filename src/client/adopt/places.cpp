#include "client/adopt/places.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <string_view>

#include "base/types.h"
#include "device/before_main.h"
#include "device/explain.h"
#include "device/program_data.h"

namespace ferry::client {
namespace {

struct Range {
  std::uint64_t begin;
  std::uint64_t end;
};

template <std::size_t Size>
struct Ranges {
  std::array<Range, Size> items{};
  std::atomic<std::size_t> count{0};

  void add(std::uint64_t begin, std::uint64_t end) {
    const std::size_t at = count.load(std::memory_order_relaxed);
    if (at == Size) return;
    items[at] = {begin, end};
    count.store(at + 1, std::memory_order_release);
  }
  [[nodiscard]] bool contains(std::uint64_t address) const {
    const std::size_t n = count.load(std::memory_order_acquire);
    return std::any_of(items.begin(), items.begin() + n,
                       [&](const Range& r) { return address >= r.begin && address < r.end; });
  }
  /// Cuts [begin, end) to the part around `address` that none of the ranges touches. False: one holds the address.
  [[nodiscard]] bool cut(std::uint64_t address, std::uint64_t& begin, std::uint64_t& end) const {
    const std::size_t n = count.load(std::memory_order_acquire);
    for (std::size_t i = 0; i < n; ++i) {
      const Range& r = items[i];
      if (r.begin >= end || r.end <= begin) continue;
      if (address >= r.begin && address < r.end) {
        begin = r.begin;
        end = r.end;
        return false;
      }
      if (r.end <= address) begin = std::max(begin, r.end);
      if (r.begin > address) end = std::min(end, r.begin);
    }
    return true;
  }
};

// Constant-initialized: read by threads that must not touch the heap.
constinit Ranges<1024> library_data;
constinit Ranges<32> program_image;
constinit Ranges<64> own_memory;

constexpr std::uint64_t page_down(std::uint64_t address) { return address & ~(page_bytes - 1); }
constexpr std::uint64_t page_up(std::uint64_t address) { return page_down(address + page_bytes - 1); }

int note_library(dl_phdr_info* info, std::size_t, void* first) {
  // The first object is the program: its data are what kernels are meant to reach.
  auto& is_first = *static_cast<bool*>(first);
  const bool program = is_first;
  is_first = false;
  for (unsigned i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const std::uint64_t begin = page_down(info->dlpi_addr + segment.p_vaddr);
    const std::uint64_t end = page_up(info->dlpi_addr + segment.p_vaddr + segment.p_memsz);
    if (program) {
      program_image.add(begin, end);
    } else {
      library_data.add(begin, end);
    }
  }
  return 0;
}

bool is_ferry_file(std::string_view path) { return path.starts_with("/memfd:ferry-"); }

/// Cuts the place to what is of one kind of the program's globals (true), or free of them.
bool cut_at_program_data(std::uint64_t address, Place& place) {
  for (const device::ProgramPart& part : device::program_parts()) {
    if (part.begin >= place.end || part.end <= place.begin) continue;
    if (part.contains(address)) {
      place.begin = std::max(place.begin, part.begin);
      place.end = std::min(place.end, part.end);
      place.in_place = part.in_place;
      if (!part.library) place.refusal = device::program_parts_refusal();
      return true;
    }
    if (part.end <= address) place.begin = std::max(place.begin, part.end);
    if (part.begin > address) place.end = std::min(place.end, part.begin);
  }
  return false;
}

bool is_huge(const device::MappingInfo& m) { return std::string_view(m.path).starts_with("/anon_hugepage"); }

wire::Refusal refusal_of(const device::MappingInfo& m) {
  const std::string_view path = m.path;
  if (path.starts_with("[v") || path.starts_with("/dev/") || path.starts_with("anon_inode:")) {
    return path.starts_with("/dev/zero") || path.starts_with("/dev/shm/") ? wire::Refusal::shared_memory
                                                                          : wire::Refusal::special;
  }
  if (!m.readable && !m.writable && !m.executable) return wire::Refusal::no_access;
  if (m.shared) return is_ferry_file(path) ? wire::Refusal::session : wire::Refusal::shared_memory;
  if (!m.writable && m.inode != 0 && !is_huge(m)) return wire::Refusal::read_only;
  return wire::Refusal::none;
}

Place describe(const device::MappingInfo& m, std::uint64_t address, bool after_guard) {
  const std::string_view path = m.path;
  Place place;
  place.begin = m.begin;
  place.end = m.end;
  place.prot = (m.readable ? PROT_READ : 0) | (m.writable ? PROT_WRITE : 0) | (m.executable ? PROT_EXEC : 0);
  place.adopted = m.shared && path.starts_with("/memfd:ferry-system");
  if (place.adopted) {
    place.refusal = wire::Refusal::none;
    return place;
  }
  place.refusal = refusal_of(m);
  place.stack = path.starts_with("[stack") || (after_guard && m.inode == 0 && path.empty());
  place.huge = is_huge(m);
  place.file = m.inode != 0 && !place.huge;
  if (place.refusal == wire::Refusal::read_only &&
      (program_image.contains(address) || library_data.contains(address))) {
    place.refusal = wire::Refusal::program_constant;
  }
  if (place.refusal != wire::Refusal::none) return place;
  if (!own_memory.cut(address, place.begin, place.end)) {
    place.refusal = wire::Refusal::session;
  } else if (!cut_at_program_data(address, place) && !library_data.cut(address, place.begin, place.end)) {
    place.refusal = wire::Refusal::runtime;
  }
  // The lowest page of the main stack stays what it is, or the stack could not grow below it.
  if (path.starts_with("[stack") && place.refusal == wire::Refusal::none) {
    if (address < place.begin + page_bytes) {
      place.end = place.begin + page_bytes;
      place.refusal = wire::Refusal::special;
    } else {
      place.begin += page_bytes;
    }
  }
  return place;
}

}  // namespace

void note_libraries() {
  bool first = true;
  dl_iterate_phdr(note_library, &first);
  for (const device::Extent& e : device::runtime_memory()) library_data.add(e.begin, e.end);
  [[maybe_unused]] const auto parts = device::program_parts();
}

void note_own_memory(const void* begin, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uint64_t>(begin);
  own_memory.add(page_down(at), page_up(at + bytes));
}

Place place_of(std::uint64_t address) {
  Place place;
  place.begin = page_down(address);
  place.end = place.begin + page_bytes;
  device::MappingInfo m;
  if (!device::next_mapping(address, m)) return place;
  if (m.begin > address) {
    place.end = std::max(place.end, m.begin);
    return place;
  }
  device::MappingInfo below;
  const bool after_guard = m.inode == 0 && m.path[0] == '\0' && m.begin != 0 &&
                           device::next_mapping(m.begin - 1, below) && below.end == m.begin && !below.readable &&
                           !below.writable && !below.executable;
  return describe(m, address, after_guard);
}

bool next_adopted(std::uint64_t address, std::uint64_t window_base, std::uint64_t window_end, Place& found) {
  device::MappingInfo m;
  for (std::uint64_t at = address; device::next_mapping(at, m); at = m.end) {
    if (m.begin >= window_base && m.begin < window_end) {
      m.end = window_end;
      continue;
    }
    if (!m.shared || !std::string_view(m.path).starts_with("/memfd:ferry-system")) continue;
    found = describe(m, m.begin, false);
    found.begin = std::max(found.begin, address);
    return true;
  }
  return false;
}

}  // namespace ferry::client

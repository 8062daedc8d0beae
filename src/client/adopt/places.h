// What the program has at an address, and whether it can be adopted. Looks at the kernel's list of mappings each time, as
// the program changes them without telling. No malloc, no locks: used by the thread that takes memory from all others.
#pragma once

#include <cstddef>
#include <cstdint>

#include "wire/adopt.h"

namespace ferry::client {

/// A part of the address space that is all of one kind.
struct Place {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  /// Why it cannot be adopted; none: it can.
  wire::Refusal refusal = wire::Refusal::unmapped;
  bool adopted = false;  ///< it is managed memory already
  int prot = 0;          ///< of mmap
  /// A thread's stack: the kernel itself writes there (signals, rseq), and it must grow. Served in place, never moved.
  bool stack = false;
  /// The CPU must never wait for it (device/program_data.h).
  bool in_place = false;
  /// Huge pages (hugetlb): adopted whole, and small pages from then on.
  bool huge = false;
  /// Private and of a file: userfaultfd does not watch it.
  bool file = false;
};

/// Remembers which addresses are data of the program and of libraries. Once, before the first question; takes the loader's lock.
void note_libraries();
/// [begin, begin + bytes) belongs to the session and is never adopted.
void note_own_memory(const void* begin, std::size_t bytes);

/// The place that holds `address`. Outside the window only.
[[nodiscard]] Place place_of(std::uint64_t address);

/// The first adopted place at or above `address`, outside [window_base, window_end). False: none.
[[nodiscard]] bool next_adopted(std::uint64_t address, std::uint64_t window_base, std::uint64_t window_end,
                                Place& found);

}  // namespace ferry::client

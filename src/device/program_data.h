// Where the globals of the program lie: the writable data of the main executable, and of its libraries but for those that the
// device's runtime is made of (loaded.h). A device process has none of them. It is a fork of the program from before main, so
// what it had there would be old: it gives the pages up, and a kernel that touches one gets the program's, like any memory of
// the program (docs/design/0019-adoption.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "wire/adopt.h"

namespace ferry::device {

/// Whole pages of one kind. What is read-only once the program runs (RELRO) is in none.
struct ProgramPart {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  /// Set: libraries keep variables here that the linker has moved into the program (stdout, environ), or the program's code
  /// comes by here when it calls libraries (a table that is filled at first use) or throws. The CPU must never wait for these
  /// pages, and code that may not fault needs them mapped.
  bool in_place = false;
  bool library = false;  ///< of a library; else of the main executable

  [[nodiscard]] bool contains(std::uint64_t address) const { return address >= begin && address < end; }
};

/// In the order of addresses. The first call looks, and takes the loader's lock; later ones do not.
/// Application and device find the same.
[[nodiscard]] std::span<const ProgramPart> program_parts();

/// none: devices have the main executable's pages from the program. Else why each device has its own copy. Parts of libraries
/// they always have from the program.
[[nodiscard]] wire::Refusal program_parts_refusal();

/// Device, before any kernel and with one thread: from here on a touch of the program's globals faults. Variables of libraries
/// that lie there are moved to memory of the device's own, for all libraries. Errno, 0 if well.
[[nodiscard]] int give_up_program_data();

/// True for addresses that give_up_program_data took away.
[[nodiscard]] bool is_program_data(std::uint64_t address);

/// Application, before main or, where Ferry came in later, before its first thread: what comes from the executable's file
/// becomes anonymous, which is adopted sooner than private pages of a file. Nothing is done where they are more than
/// `program_data_most_bytes`, or the program has threads already.
void make_program_data_anonymous();
inline constexpr std::size_t program_data_most_bytes = std::size_t{8} << 20;

}  // namespace ferry::device

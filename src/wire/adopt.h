// Memory that the application had before it was managed (docs/design/0019-adoption.md): what it and the manager say to each
// other about it.
//
// | type         | from        | body         | means                                            | answer             |
// |--------------|-------------|--------------|--------------------------------------------------|--------------------|
// | adopt_ask    | manager     | AdoptAsk     | a device touched `address`, which is not managed | adopt_answer       |
// | adopt_answer | application | AdoptAnswer  | it is managed now (alloc went before), or why not | -                 |
// | adopt_faults | application | AdoptFaults  | before the first alloc: with the userfaultfd of all memory outside the window | done |
// | adopt_begin  | application | Span         | whatever was adopted there is gone; the span is  | done, when its     |
// |              |             |              | about to be adopted, or was unmapped             | file is empty there |
// | adopt_settle | application | AdoptFaults  | whatever was unmapped before is no business of devices | done, when it  |
// |              |             |              | any more                                         | is so              |
// | release      | application | Span         | bring the span home, take it from devices, and   | done, when nobody  |
// |              |             |              | forget it; its bytes stay in the system file     | but the CPU has it |
// | released     | application | Span         | the bytes were taken from the system file; or    | done               |
// |              |             |              | (span_has_contents) cannot be: managed again, as |                    |
// |              |             |              | it was                                           |                    |
#pragma once

#include <cstdint>
#include <type_traits>

namespace ferry::wire {

/// Why memory cannot be adopted. Travels in AdoptAnswer, and to the device in DownRecord::buffer of a resume.
enum class Refusal : std::uint32_t {
  none = 0,
  unmapped,        ///< the application has nothing there
  no_access,       ///< PROT_NONE: a guard page, or reserved addresses
  read_only,       ///< a write, and the application may not write there either
  special,         ///< of the kernel (vdso, vvar), or of another device (io, pfn)
  foreign_faults,  ///< another userfaultfd serves it
  session,         ///< Ferry's own: stacks and tables of the session
  runtime,         ///< data of the run-time libraries, which the device has for itself
  device_memory,   ///< the device has memory of its own at these addresses
  shared_memory,   ///< shared with other processes, without a file that can be opened
  file_changed,    ///< the mapped file cannot be opened under its name any more
  late_code,       ///< code that was loaded after the device's template was forked
  huge_pages,      ///< of hugetlb, and not aligned so that they could be replaced
  system_calls,    ///< no privilege for a full userfaultfd: what the kernel writes there would fail meanwhile
  no_memory,
  no_mappings,
  program_runtime,   ///< globals of a program that holds what the device's own runtime needs
  program_constant,  ///< read-only data of an executable or library: the device has the same bytes
  file_end,          ///< the mapped file has nothing there: it ends before, or cannot be read, or has no room
  private_pages,     ///< a private mapping of a file of which the program has copies of its own
  pinned,            ///< memory that was unmapped at the address is pinned
  kernel,            ///< the kernel refused a step; AdoptAnswer::sys_errno says how
};
inline constexpr std::uint32_t refusal_count = static_cast<std::uint32_t>(Refusal::kernel) + 1;

/// A clause that goes on after "which cannot be adopted: ".
[[nodiscard]] constexpr const char* to_text(Refusal refusal) {
  switch (refusal) {
    case Refusal::none: return "no reason";
    case Refusal::unmapped: return "the program has nothing mapped there";
    case Refusal::no_access: return "the program itself may not touch it (a guard page, or reserved addresses)";
    case Refusal::read_only: return "the program itself may not write there";
    case Refusal::special: return "it belongs to the kernel or to another device";
    case Refusal::foreign_faults: return "another userfaultfd of the program serves its faults";
    case Refusal::session: return "it is Ferry's own";
    case Refusal::runtime: return "it is data of a shared library, of which the device has its own";
    case Refusal::device_memory: return "the device's own runtime has memory at the same address";
    case Refusal::shared_memory: return "it is shared memory without a file that could be opened";
    case Refusal::file_changed: return "the mapped file cannot be opened under its name any more";
    case Refusal::late_code: return "it belongs to a library that was loaded after the device was prepared";
    case Refusal::huge_pages: return "it is part of a huge page, the rest of which cannot be adopted with it";
    case Refusal::system_calls:
      return "the kernel itself writes there, which fails while it moves without the privilege for a full userfaultfd "
             "(`ferry doctor` says more)";
    case Refusal::no_memory: return "there is no memory for the copy";
    case Refusal::no_mappings: return "the process has no mappings left (vm.max_map_count)";
    case Refusal::program_runtime:
      return "the program itself holds what the device's own runtime works with (Ferry, malloc or another function of "
             "the "
             "C library, or tables of the loader for want of -z relro), so the device has globals of its own";
    case Refusal::program_constant:
      return "it is read-only data of the program, of which the device has the same bytes";
    case Refusal::file_end: return "the mapped file ends before it, cannot be read there, or finds no room for it";
    case Refusal::private_pages: return "it is a private mapping of a file, of which the program has copies of its own";
    case Refusal::pinned: return "memory that the program has unmapped there is still pinned";
    case Refusal::kernel: return "the kernel refused";
  }
  return "no reason";
}

struct AdoptAsk {
  std::uint64_t address;
  std::uint32_t write;    ///< 1: the touch was a write
  std::uint32_t devices;  ///< bit d: device d has waves that wait for the page
};

/// The descriptor tells of unmapped memory, too: C libraries unmap without asking anybody.
struct AdoptFaults {
  std::uint64_t reserved0;
};

struct AdoptAnswer {
  std::uint64_t address;  ///< of the question
  std::uint32_t refusal;  ///< wire::Refusal
  std::int32_t sys_errno;
};

static_assert(std::is_trivially_copyable_v<AdoptAsk> && sizeof(AdoptAsk) == 16);
static_assert(std::is_trivially_copyable_v<AdoptAnswer> && sizeof(AdoptAnswer) == 16);

}  // namespace ferry::wire

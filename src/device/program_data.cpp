#include "device/program_data.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "device/explain.h"
#include "device/extent.h"
#include "device/loaded.h"
#include "device/memory.h"

namespace ferry::device {
namespace {

#if defined(__x86_64__)
constexpr std::uint32_t relocation_copy = R_X86_64_COPY;
constexpr std::uint32_t relocation_global = R_X86_64_GLOB_DAT;
constexpr std::uint32_t relocation_call = R_X86_64_JUMP_SLOT;
constexpr std::uint32_t relocation_address = R_X86_64_64;
#elif defined(__aarch64__)
constexpr std::uint32_t relocation_copy = R_AARCH64_COPY;
constexpr std::uint32_t relocation_global = R_AARCH64_GLOB_DAT;
constexpr std::uint32_t relocation_call = R_AARCH64_JUMP_SLOT;
constexpr std::uint32_t relocation_address = R_AARCH64_ABS64;
#else
#error "no names of relocations for this processor"
#endif

/// What an object has.
struct Segments {
  List<Extent, 16> data;      ///< writable segments, whole pages, without RELRO
  List<Extent, 16> of_file;   ///< the pages of `data` that are mapped from the file
  List<Extent, 64> in_place;  ///< whole pages, apart
  bool too_many = false;
  /// Tables of the loader are among it (-z norelro), which reads them whenever a library calls another for the first time.
  bool of_loader = false;
};

struct Found {
  bool looked = false;
  wire::Refusal refusal = wire::Refusal::none;
  List<Extent, 512> moved;             ///< library's variables in the program, by COPY relocations
  List<ProgramPart, 2048> parts;       ///< data cut by what is in place
  List<std::uint64_t, 512> libraries;  ///< addresses that those libraries were loaded at which have parts
};
constinit Found found;
constinit bool given_up = false;

/// False: it lies in no page of `data`.
bool add_in_place(std::uint64_t begin, std::uint64_t end, Segments& s) {
  Extent pages{page_down(begin), page_up(end)};
  const bool inside =
      std::any_of(s.data.all().begin(), s.data.all().end(), [&](const Extent& e) { return e.overlaps(pages); });
  if (!inside) return false;
  for (Extent& e : s.in_place.all()) {
    if (pages.begin > e.end || e.begin > pages.end) continue;
    e = {std::min(e.begin, pages.begin), std::max(e.end, pages.end)};
    return true;
  }
  if (!s.in_place.add(pages)) s.too_many = true;
  return true;
}

/// By program headers alone.
void find_segments(const dl_phdr_info& object, Segments& s) {
  Extent relro;
  std::array<Extent, 2> needed{};  // what the loader reads whenever it likes
  for (unsigned i = 0; i < object.dlpi_phnum; ++i) {
    const auto& segment = object.dlpi_phdr[i];
    const std::uint64_t at = object.dlpi_addr + segment.p_vaddr;
    // As the loader rounds.
    if (segment.p_type == PT_GNU_RELRO) relro = {page_down(at), page_down(at + segment.p_memsz)};
    if (segment.p_type == PT_DYNAMIC) needed[0] = {at, at + segment.p_memsz};
    if (segment.p_type == PT_TLS && segment.p_filesz != 0) needed[1] = {at, at + segment.p_filesz};
  }
  for (unsigned i = 0; i < object.dlpi_phnum; ++i) {
    const auto& segment = object.dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) == 0 || (segment.p_flags & PF_X) != 0) continue;
    const std::uint64_t at = object.dlpi_addr + segment.p_vaddr;
    Extent data{page_down(at), page_up(at + segment.p_memsz)};
    const std::uint64_t file_end = page_up(at + segment.p_filesz);
    if (relro.contains(data.begin)) data.begin = relro.end;
    if (data.begin >= data.end) continue;
    if (!s.data.add(data)) s.too_many = true;
    if (file_end > data.begin && !s.of_file.add({data.begin, std::min(file_end, data.end)})) s.too_many = true;
  }
  for (const Extent& n : needed) {
    for (const Extent& data : s.data.all()) s.of_loader = s.of_loader || (n.begin != n.end && n.overlaps(data));
  }
}

/// The tables of exceptions name them by a word in the program's data.
bool is_for_exceptions(const char* name) {
  return std::strstr(name, "_personality_") != nullptr || std::strncmp(name, "_ZTI", 4) == 0;
}

/// False: there are too many variables of libraries in the program.
bool find_relocations(const dl_phdr_info& object, Segments& s, List<Extent, 512>& moved) {
  bool room = true;
  const Dynamic d = read_dynamic(object);
  for (const auto& table : {d.relocations, d.calls}) {
    for (const ElfW(Rela) & r : table) {
      const std::uint64_t at = object.dlpi_addr + r.r_offset;
      const auto type = static_cast<std::uint32_t>(ELF64_R_TYPE(r.r_info));
      if (type == relocation_copy) {
        const std::uint64_t bytes = d.symbols[ELF64_R_SYM(r.r_info)].st_size;
        if (add_in_place(at, at + bytes, s)) room = moved.add({at, at + bytes}) && room;
      } else if (type == relocation_global || type == relocation_call ||
                 (type == relocation_address &&
                  is_for_exceptions(d.strings + d.symbols[ELF64_R_SYM(r.r_info)].st_name))) {
        add_in_place(at, at + sizeof(void*), s);
      }
    }
  }
  return room;
}

/// False, and nothing of it is there: there is no room.
bool cut_parts(Segments& s, bool library, List<ProgramPart, 2048>& parts) {
  const auto by_begin = [](const auto& a, const auto& b) { return a.begin < b.begin; };
  const std::size_t before = parts.count;
  bool room = !s.too_many;
  std::sort(s.data.all().begin(), s.data.all().end(), by_begin);
  std::sort(s.in_place.all().begin(), s.in_place.all().end(), by_begin);
  for (const Extent& data : s.data.all()) {
    std::uint64_t at = data.begin;
    for (const Extent& e : s.in_place.all()) {
      if (!e.overlaps(data)) continue;
      const Extent own{std::max(e.begin, at), std::min(e.end, data.end)};
      if (own.begin >= own.end) continue;
      if (own.begin > at) room = parts.add({at, own.begin, false, library}) && room;
      room = parts.add({own.begin, own.end, true, library}) && room;
      at = own.end;
    }
    if (at < data.end) room = parts.add({at, data.end, false, library}) && room;
  }
  if (!room) parts.count = before;
  return room;
}

void look(Found& f) {
  bool program = true;
  for (const Loaded& object : look_at_loaded()) {
    Segments s;
    if (program) {
      find_segments(object.info, s);
      const bool room = find_relocations(object.info, s, f.moved);
      if (object.of_runtime || !room || s.of_loader) f.refusal = wire::Refusal::program_runtime;
      if (!cut_parts(s, false, f.parts)) f.refusal = wire::Refusal::program_runtime;
    } else if (!object.of_runtime && f.libraries.count < f.libraries.items.size()) {
      List<Extent, 512> none;
      find_segments(object.info, s);
      find_relocations(object.info, s, none);
      if (s.data.count != 0 && !s.of_loader && cut_parts(s, true, f.parts)) f.libraries.add(object.info.dlpi_addr);
    }
    program = false;
  }
  std::sort(f.parts.all().begin(), f.parts.all().end(),
            [](const ProgramPart& a, const ProgramPart& b) { return a.begin < b.begin; });
  f.looked = true;
}

/// Writes a word that the loader may have made read-only.
int write_word(std::uint64_t at, std::uint64_t value) {
  MappingInfo m;
  if (!find_mapping(at, m)) return EFAULT;
  void* page = reinterpret_cast<void*>(page_down(at));
  const std::size_t bytes = page_up(at + sizeof value) - page_down(at);
  if (!m.writable && ::mprotect(page, bytes, PROT_READ | PROT_WRITE) != 0) return errno;
  std::memcpy(reinterpret_cast<void*>(at), &value, sizeof value);
  if (!m.writable && ::mprotect(page, bytes, PROT_READ) != 0) return errno;
  return 0;
}

/// Libraries find each other's variables, and those of theirs that were moved into the program, by words that the loader has
/// filled. Those that name one of `from` name the same byte of its copy from here on; those of the program's own libraries go
/// on to name the program's.
int move_variables(std::span<const Extent> from, std::span<const std::uint64_t> copies) {
  int error = 0;
  for_each_object([&](const dl_phdr_info& object, bool is_program) {
    const auto libraries = found.libraries.all();
    if (is_program || error != 0 || std::count(libraries.begin(), libraries.end(), object.dlpi_addr) != 0) return;
    const Dynamic d = read_dynamic(object);
    for (const ElfW(Rela) & r : d.relocations) {
      const auto type = static_cast<std::uint32_t>(ELF64_R_TYPE(r.r_info));
      if (type != relocation_global && type != relocation_address) continue;
      const std::uint64_t at = object.dlpi_addr + r.r_offset;
      std::uint64_t value = 0;
      std::memcpy(&value, reinterpret_cast<const void*>(at), sizeof value);
      for (std::size_t i = 0; i < from.size() && error == 0; ++i) {
        if (from[i].contains(value)) {
          error = write_word(at, copies[i] + (value - from[i].begin));
          break;
        }
      }
    }
  });
  return error;
}

/// Whole pages, whatever is in them: under AddressSanitizer that may be its marks between two variables.
#ifdef __SANITIZE_ADDRESS__
__attribute__((no_sanitize_address)) void copy_words(void* to, const void* from, std::size_t bytes) {
  const auto* words = static_cast<const volatile std::uint64_t*>(from);
  for (std::size_t i = 0; i < bytes / sizeof *words; ++i) static_cast<std::uint64_t*>(to)[i] = words[i];
}
#else
void copy_words(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
#endif

/// All of it is mapped as the loader has mapped it.
bool is_as_loaded(const Extent& e) {
  bool as_loaded = true;
  std::uint64_t at = e.begin;
  visit_mappings([&](const MappingInfo& m) {
    if (m.end <= e.begin) return true;
    if (m.begin >= e.end) return false;
    as_loaded = as_loaded && m.begin <= at && m.readable && m.writable && !m.executable && !m.shared && m.inode != 0;
    at = m.end;
    return as_loaded;
  });
  return as_loaded && at >= e.end;
}

}  // namespace

std::span<const ProgramPart> program_parts() {
  if (!found.looked) look(found);
  return found.parts.all();
}

wire::Refusal program_parts_refusal() {
  if (!found.looked) look(found);
  return found.refusal;
}

int give_up_program_data() {
  const auto parts = program_parts();
  const bool with_program = found.refusal == wire::Refusal::none;
  std::size_t bytes = 0;
  constexpr std::size_t alignment = 64;
  const auto room = [](const Extent& e) { return (e.end - e.begin + 2 * alignment - 1) & ~(alignment - 1); };
  if (with_program) {
    for (const Extent& e : found.moved.all()) bytes += room(e);
  }
  if (bytes != 0) {
    auto* const copies = static_cast<std::byte*>(map_own(bytes));
    if (copies == nullptr) return ENOMEM;
    static std::array<std::uint64_t, 512> at;
    std::size_t used = 0;
    for (std::size_t i = 0; i < found.moved.count; ++i) {
      const Extent& e = found.moved.items[i];
      at[i] = reinterpret_cast<std::uint64_t>(copies) + used;
      std::memcpy(copies + used, reinterpret_cast<const void*>(e.begin), e.end - e.begin);
      used += room(e);
    }
    if (const int error = move_variables(found.moved.all(), at); error != 0) return error;
  }
  for (const ProgramPart& p : parts) {
    if (!p.library && !with_program) continue;
    void* const gone = ::mmap(reinterpret_cast<void*>(p.begin), p.end - p.begin, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (gone == MAP_FAILED) return errno;
  }
  given_up = true;
  return 0;
}

bool is_program_data(std::uint64_t address) {
  if (!given_up) return false;
  const auto parts = found.parts.all();
  const bool with_program = found.refusal == wire::Refusal::none;
  return std::any_of(parts.begin(), parts.end(),
                     [&](const ProgramPart& p) { return p.contains(address) && (p.library || with_program); });
}

void make_program_data_anonymous() {
  Segments f;
  for_each_object([&](const dl_phdr_info& object, bool is_program) {
    if (is_program) find_segments(object, f);
  });
  std::size_t bytes = 0;
  for (const Extent& e : f.of_file.all()) bytes += e.end - e.begin;
  if (bytes == 0 || bytes > program_data_most_bytes || f.too_many || f.of_loader) return;
  // A thread of a static constructor's could write between copy and exchange: a directory has a link for each that it holds.
  struct stat tasks {};
  if (::stat("/proc/self/task", &tasks) != 0 || tasks.st_nlink != 3) return;
  // And so could a handler.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, &before);
  for (const Extent& e : f.of_file.all()) {
    if (!is_as_loaded(e)) continue;
    const std::size_t size = e.end - e.begin;
    void* const at = reinterpret_cast<void*>(e.begin);
    void* const copy = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED) break;
    copy_words(copy, at, size);
    if (::mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED) ::munmap(copy, size);
  }
  ::sigprocmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace ferry::device

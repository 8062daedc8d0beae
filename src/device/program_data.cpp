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

struct Found {
  bool looked = false;
  bool too_many = false;
  wire::Refusal refusal = wire::Refusal::none;
  List<Extent, 8> data;          ///< writable segments, whole pages, without RELRO
  List<Extent, 8> of_file;       ///< the pages of `data` that are mapped from the file
  List<Extent, 512> moved;       ///< library's variables in the program, by COPY relocations
  List<Extent, 64> in_place;     ///< whole pages, apart, in order
  List<ProgramPart, 160> parts;  ///< `data` cut by `in_place`
};
constinit Found found;
constinit bool given_up = false;

/// The parts of an object's dynamic table that tell of its symbols and relocations.
struct Dynamic {
  const ElfW(Sym) * symbols = nullptr;
  const char* strings = nullptr;
  std::span<const ElfW(Rela)> relocations;
  std::span<const ElfW(Rela)> calls;
};

Dynamic read_dynamic(const dl_phdr_info& object) {
  Dynamic d;
  const ElfW(Rela)* relocations = nullptr;
  const ElfW(Rela)* calls = nullptr;
  std::size_t relocations_bytes = 0;
  std::size_t calls_bytes = 0;
  bool calls_are_rela = false;
  for (unsigned i = 0; i < object.dlpi_phnum; ++i) {
    if (object.dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
    const auto* entry = reinterpret_cast<const ElfW(Dyn)*>(object.dlpi_addr + object.dlpi_phdr[i].p_vaddr);
    for (; entry->d_tag != DT_NULL; ++entry) {
      // The loader has made addresses of these, but for what the kernel brings (the vdso).
      const std::uint64_t at =
          entry->d_un.d_ptr < object.dlpi_addr ? entry->d_un.d_ptr + object.dlpi_addr : entry->d_un.d_ptr;
      switch (entry->d_tag) {
        case DT_SYMTAB: d.symbols = reinterpret_cast<const ElfW(Sym)*>(at); break;
        case DT_STRTAB: d.strings = reinterpret_cast<const char*>(at); break;
        case DT_RELA: relocations = reinterpret_cast<const ElfW(Rela)*>(at); break;
        case DT_RELASZ: relocations_bytes = entry->d_un.d_val; break;
        case DT_JMPREL: calls = reinterpret_cast<const ElfW(Rela)*>(at); break;
        case DT_PLTRELSZ: calls_bytes = entry->d_un.d_val; break;
        case DT_PLTREL: calls_are_rela = entry->d_un.d_val == DT_RELA; break;
        default: break;
      }
    }
  }
  if (d.symbols == nullptr || d.strings == nullptr) return {};
  if (relocations != nullptr) d.relocations = {relocations, relocations_bytes / sizeof *relocations};
  if (calls != nullptr && calls_are_rela) d.calls = {calls, calls_bytes / sizeof *calls};
  return d;
}

bool holds(const dl_phdr_info& object, std::uint64_t address) {
  for (unsigned i = 0; i < object.dlpi_phnum; ++i) {
    const auto& segment = object.dlpi_phdr[i];
    if (segment.p_type == PT_LOAD && address - object.dlpi_addr - segment.p_vaddr < segment.p_memsz) return true;
  }
  return false;
}

/// Calls fn(object, is_program) for all that is loaded; the first is the program.
template <typename Fn>
void for_each_object(Fn fn) {
  struct Context {
    Fn& fn;
    bool first = true;
  } context{fn};
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* raw) {
        auto& c = *static_cast<Context*>(raw);
        c.fn(*info, c.first);
        c.first = false;
        return 0;
      },
      &context);
}

/// Segments, by program headers alone.
void find_segments(const dl_phdr_info& program, Found& f) {
  Extent relro;
  std::array<Extent, 2> needed{};  // what the loader reads whenever it likes
  for (unsigned i = 0; i < program.dlpi_phnum; ++i) {
    const auto& segment = program.dlpi_phdr[i];
    const std::uint64_t at = program.dlpi_addr + segment.p_vaddr;
    // As the loader rounds.
    if (segment.p_type == PT_GNU_RELRO) relro = {page_down(at), page_down(at + segment.p_memsz)};
    if (segment.p_type == PT_DYNAMIC) needed[0] = {at, at + segment.p_memsz};
    if (segment.p_type == PT_TLS && segment.p_filesz != 0) needed[1] = {at, at + segment.p_filesz};
  }
  for (unsigned i = 0; i < program.dlpi_phnum; ++i) {
    const auto& segment = program.dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) == 0 || (segment.p_flags & PF_X) != 0) continue;
    const std::uint64_t at = program.dlpi_addr + segment.p_vaddr;
    Extent data{page_down(at), page_up(at + segment.p_memsz)};
    const std::uint64_t file_end = page_up(at + segment.p_filesz);
    if (relro.contains(data.begin)) data.begin = relro.end;
    if (data.begin >= data.end) continue;
    for (const Extent& n : needed) {
      if (n.overlaps(data)) f.refusal = wire::Refusal::program_runtime;
    }
    if (!f.data.add(data)) f.too_many = true;
    if (file_end > data.begin && !f.of_file.add({data.begin, std::min(file_end, data.end)})) f.too_many = true;
  }
}

/// The program brings a function that the device's runtime calls outside of kernels: its data would be needed there.
/// C++ names are passed over: what the device does outside of kernels allocates nothing in C++.
bool program_replaces_functions(const dl_phdr_info& program, const dl_phdr_info& ferry) {
  const auto is_programs = [&](const char* name) {
    void* at = ::dlsym(RTLD_DEFAULT, name);
    return at != nullptr && holds(program, reinterpret_cast<std::uint64_t>(at));
  };
  // What the C library itself calls by name.
  for (const char* name : {"malloc", "calloc", "realloc", "free", "memalign", "aligned_alloc", "posix_memalign"}) {
    if (is_programs(name)) return true;
  }
  const Dynamic d = read_dynamic(ferry);
  for (const ElfW(Rela) & r : d.calls) {
    const char* name = d.strings + d.symbols[ELF64_R_SYM(r.r_info)].st_name;
    if (std::strncmp(name, "_Z", 2) != 0 && is_programs(name)) return true;
  }
  return false;
}

/// False: it lies in no page of `data`.
bool add_in_place(std::uint64_t begin, std::uint64_t end, Found& f) {
  Extent pages{page_down(begin), page_up(end)};
  const bool inside =
      std::any_of(f.data.all().begin(), f.data.all().end(), [&](const Extent& e) { return e.overlaps(pages); });
  if (!inside) return false;
  for (Extent& e : f.in_place.all()) {
    if (pages.begin > e.end || e.begin > pages.end) continue;
    e = {std::min(e.begin, pages.begin), std::max(e.end, pages.end)};
    return true;
  }
  if (!f.in_place.add(pages)) f.too_many = true;
  return true;
}

/// The tables of exceptions name them by a word in the program's data.
bool is_for_exceptions(const char* name) {
  return std::strstr(name, "_personality_") != nullptr || std::strncmp(name, "_ZTI", 4) == 0;
}

void find_relocations(const dl_phdr_info& program, Found& f) {
  const Dynamic d = read_dynamic(program);
  for (const auto& table : {d.relocations, d.calls}) {
    for (const ElfW(Rela) & r : table) {
      const std::uint64_t at = program.dlpi_addr + r.r_offset;
      const auto type = static_cast<std::uint32_t>(ELF64_R_TYPE(r.r_info));
      if (type == relocation_copy) {
        const std::uint64_t bytes = d.symbols[ELF64_R_SYM(r.r_info)].st_size;
        if (add_in_place(at, at + bytes, f) && !f.moved.add({at, at + bytes})) f.too_many = true;
      } else if (type == relocation_global || type == relocation_call ||
                 (type == relocation_address &&
                  is_for_exceptions(d.strings + d.symbols[ELF64_R_SYM(r.r_info)].st_name))) {
        add_in_place(at, at + sizeof(void*), f);
      }
    }
  }
}

void cut_parts(Found& f) {
  const auto by_begin = [](const auto& a, const auto& b) { return a.begin < b.begin; };
  std::sort(f.data.all().begin(), f.data.all().end(), by_begin);
  std::sort(f.in_place.all().begin(), f.in_place.all().end(), by_begin);
  for (const Extent& data : f.data.all()) {
    std::uint64_t at = data.begin;
    for (const Extent& e : f.in_place.all()) {
      if (!e.overlaps(data)) continue;
      const Extent own{std::max(e.begin, at), std::min(e.end, data.end)};
      if (own.begin >= own.end) continue;
      if (own.begin > at && !f.parts.add({at, own.begin, false})) f.too_many = true;
      if (!f.parts.add({own.begin, own.end, true})) f.too_many = true;
      at = own.end;
    }
    if (at < data.end && !f.parts.add({at, data.end, false})) f.too_many = true;
  }
}

void look(Found& f) {
  const auto own_code = reinterpret_cast<std::uint64_t>(&look);
  dl_phdr_info program{};
  dl_phdr_info ferry{};
  for_each_object([&](const dl_phdr_info& object, bool is_program) {
    if (is_program) program = object;
    if (holds(object, own_code)) ferry = object;
  });
  find_segments(program, f);
  find_relocations(program, f);
  cut_parts(f);
  if (f.too_many || holds(program, own_code) || program_replaces_functions(program, ferry)) {
    f.refusal = wire::Refusal::program_runtime;
  }
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
/// filled. Those that name one of `from` name the same byte of its copy from here on.
int move_variables(std::span<const Extent> from, std::span<const std::uint64_t> copies) {
  int error = 0;
  for_each_object([&](const dl_phdr_info& object, bool is_program) {
    if (is_program || error != 0) return;
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
  if (found.refusal != wire::Refusal::none) return 0;
  std::size_t bytes = 0;
  constexpr std::size_t alignment = 64;
  const auto room = [](const Extent& e) { return (e.end - e.begin + 2 * alignment - 1) & ~(alignment - 1); };
  for (const Extent& e : found.moved.all()) bytes += room(e);
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
  return std::any_of(parts.begin(), parts.end(), [&](const ProgramPart& p) { return p.contains(address); });
}

void make_program_data_anonymous() {
  Found f;
  for_each_object([&](const dl_phdr_info& object, bool is_program) {
    if (is_program) find_segments(object, f);
  });
  std::size_t bytes = 0;
  for (const Extent& e : f.of_file.all()) bytes += e.end - e.begin;
  if (bytes == 0 || bytes > program_data_most_bytes || f.too_many || f.refusal != wire::Refusal::none) return;
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

#include "device/loaded.h"

#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstring>

#include "device/extent.h"

namespace ferry::device {
namespace {

constinit List<Loaded, 512> loaded;

std::string_view file_of(const char* path) {
  const std::string_view whole = path != nullptr ? path : "";
  const std::size_t slash = whole.rfind('/');
  return slash == std::string_view::npos ? whole : whole.substr(slash + 1);
}

/// Calls fn(entry, address) for the object's dynamic table; the address is the loader's, or was made one of.
template <typename Fn>
void for_each_entry(const dl_phdr_info& object, Fn fn) {
  for (unsigned i = 0; i < object.dlpi_phnum; ++i) {
    if (object.dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
    const auto* entry = reinterpret_cast<const ElfW(Dyn)*>(object.dlpi_addr + object.dlpi_phdr[i].p_vaddr);
    for (; entry->d_tag != DT_NULL; ++entry) {
      // The loader has made addresses of these, but for what the kernel brings (the vdso).
      fn(*entry, entry->d_un.d_ptr < object.dlpi_addr ? entry->d_un.d_ptr + object.dlpi_addr : entry->d_un.d_ptr);
    }
  }
}

const char* strings_of(const dl_phdr_info& object) {
  const char* strings = nullptr;
  for_each_entry(object, [&](const ElfW(Dyn) & entry, std::uint64_t at) {
    if (entry.d_tag == DT_STRTAB) strings = reinterpret_cast<const char*>(at);
  });
  return strings;
}

/// The object is what another asks for by this name.
bool is_named(const dl_phdr_info& object, std::string_view name) {
  if (file_of(object.dlpi_name) == name) return true;
  const char* const strings = strings_of(object);
  bool is = false;
  for_each_entry(object, [&](const ElfW(Dyn) & entry, std::uint64_t) {
    if (entry.d_tag == DT_SONAME && strings != nullptr && name == strings + entry.d_un.d_val) is = true;
  });
  return is;
}

/// Calls fn(object) for each that the object is linked with.
template <typename Fn>
void for_each_needed(const dl_phdr_info& object, Fn fn) {
  const char* const strings = strings_of(object);
  if (strings == nullptr) return;
  for_each_entry(object, [&](const ElfW(Dyn) & entry, std::uint64_t) {
    if (entry.d_tag != DT_NEEDED) return;
    const std::string_view name = file_of(strings + entry.d_un.d_val);
    for (Loaded& o : loaded.all()) {
      if (is_named(o.info, name)) fn(o);
    }
  });
}

/// And all that it is linked with.
void mark(Loaded& object) {
  if (object.of_runtime) return;
  object.of_runtime = true;
  for_each_needed(object.info, [](Loaded& needed) { mark(needed); });
}

/// State of threads that a device does not have, marks of memory, tables of units that only run-time libraries know.
bool is_of_a_compiler(std::string_view file) {
  constexpr std::string_view known[] = {"libferry", "libstdc++.", "libc++.",      "libc++abi.",   "libgomp.",
                                        "libomp.",  "libatomic.", "libgfortran.", "libquadmath.", "libasan.",
                                        "liblsan.", "libtsan.",   "libubsan.",    "libclang_rt."};
  return std::any_of(std::begin(known), std::end(known), [&](std::string_view k) { return file.starts_with(k); });
}

void mark_holder(std::uint64_t address) {
  for (Loaded& o : loaded.all()) {
    if (!o.of_runtime && holds(o.info, address)) o.of_runtime = true;
  }
}

/// What the device's runtime calls outside of kernels must work on data of the device's own. C++ names are passed over: what
/// the device does outside of kernels allocates nothing in C++.
void mark_replacements(const dl_phdr_info& ferry) {
  // What the C library itself calls by name.
  for (const char* name : {"malloc", "calloc", "realloc", "free", "memalign", "aligned_alloc", "posix_memalign"}) {
    if (void* const at = ::dlsym(RTLD_DEFAULT, name); at != nullptr) mark_holder(reinterpret_cast<std::uint64_t>(at));
  }
  const Dynamic d = read_dynamic(ferry);
  for (const ElfW(Rela) & r : d.calls) {
    const char* name = d.strings + d.symbols[ELF64_R_SYM(r.r_info)].st_name;
    if (std::strncmp(name, "_Z", 2) == 0) continue;
    // Ferry is bound at once: the word names the function.
    std::uint64_t at = 0;
    std::memcpy(&at, reinterpret_cast<const void*>(ferry.dlpi_addr + r.r_offset), sizeof at);
    mark_holder(at);
  }
}

}  // namespace

Dynamic read_dynamic(const dl_phdr_info& object) {
  Dynamic d;
  const ElfW(Rela)* relocations = nullptr;
  const ElfW(Rela)* calls = nullptr;
  std::size_t relocations_bytes = 0;
  std::size_t calls_bytes = 0;
  bool calls_are_rela = false;
  for_each_entry(object, [&](const ElfW(Dyn) & entry, std::uint64_t at) {
    switch (entry.d_tag) {
      case DT_SYMTAB: d.symbols = reinterpret_cast<const ElfW(Sym)*>(at); break;
      case DT_STRTAB: d.strings = reinterpret_cast<const char*>(at); break;
      case DT_RELA: relocations = reinterpret_cast<const ElfW(Rela)*>(at); break;
      case DT_RELASZ: relocations_bytes = entry.d_un.d_val; break;
      case DT_JMPREL: calls = reinterpret_cast<const ElfW(Rela)*>(at); break;
      case DT_PLTRELSZ: calls_bytes = entry.d_un.d_val; break;
      case DT_PLTREL: calls_are_rela = entry.d_un.d_val == DT_RELA; break;
      default: break;
    }
  });
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

std::span<const Loaded> look_at_loaded() {
  loaded.count = 0;
  for_each_object([](const dl_phdr_info& object, bool) { loaded.add({object, false}); });
  const auto own_code = reinterpret_cast<std::uint64_t>(&look_at_loaded);
  dl_phdr_info ferry{};
  for (Loaded& o : loaded.all()) {
    if (holds(o.info, own_code)) {
      ferry = o.info;
      mark(o);
    }
  }
  mark_replacements(ferry);
  for (Loaded& o : loaded.all()) {
    if (is_of_a_compiler(file_of(o.info.dlpi_name))) o.of_runtime = true;
  }
  return loaded.all();
}

}  // namespace ferry::device

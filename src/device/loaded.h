// The program and its libraries, as the loader has them, and which of them the device's own runtime is made of.
#pragma once

#include <link.h>

#include <cstdint>
#include <span>
#include <string_view>

namespace ferry::device {

/// The parts of an object's dynamic table that tell of its symbols and relocations.
struct Dynamic {
  const ElfW(Sym) * symbols = nullptr;
  const char* strings = nullptr;
  std::span<const ElfW(Rela)> relocations;
  std::span<const ElfW(Rela)> calls;
};
[[nodiscard]] Dynamic read_dynamic(const dl_phdr_info& object);

/// The address lies in a segment of the object.
[[nodiscard]] bool holds(const dl_phdr_info& object, std::uint64_t address);

struct Loaded {
  dl_phdr_info info{};
  /// Set: the device's runtime works with its data, so that each device has its own: Ferry, what Ferry is linked with, what has
  /// functions in place of those that Ferry calls (malloc), and run-time libraries of compilers.
  /// Cleared: it is the program's, as its main executable is.
  bool of_runtime = false;
};

/// All that is loaded, the main executable first. Takes the loader's lock. Valid until the next call. What is beyond its room
/// is left out.
[[nodiscard]] std::span<const Loaded> look_at_loaded();

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

}  // namespace ferry::device

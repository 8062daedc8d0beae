#include "device/before_main.h"

#include <dlfcn.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio_ext.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "device/explain.h"

extern "C" void* __libc_malloc(std::size_t bytes) noexcept;

namespace ferry::device {
namespace {

constexpr std::uint64_t mmapped_chunk_least_bytes = std::uint64_t{128} << 10;
/// Heaps of malloc's other arenas begin at multiples of it, and are no larger (glibc, HEAP_MAX_SIZE).
constexpr std::uint64_t arena_heap_bytes = std::uint64_t{64} << 20;

constinit List<Extent, 128> runtime;
constinit bool runtime_overflowed = false;
constinit List<Extent, 1024> made;
constinit bool made_given_up = false;

bool is_private_anonymous(const MappingInfo& m) {
  const std::string_view path = m.path;
  return m.inode == 0 && m.readable && !m.shared && !m.executable &&
         (path.empty() || path == "[heap]" || path.starts_with("[anon"));
}

std::uint64_t word_at(std::uint64_t address) {
  std::uint64_t word = 0;
  std::memcpy(&word, reinterpret_cast<const void*>(address), sizeof word);
  return word;
}

/// Bytes of the chunk that malloc has mapped for itself at this page, by the head that it has then: no chunk before it, whole
/// pages, and the bit IS_MMAPPED alone. 0: there is none.
std::uint64_t mmapped_chunk_at(std::uint64_t page, std::uint64_t end) {
  const std::uint64_t size = word_at(page + 8);
  if (word_at(page) != 0 || size % page_bytes != 2) return 0;
  const std::uint64_t bytes = size - 2;
  return bytes >= mmapped_chunk_least_bytes && bytes <= end - page ? bytes : 0;
}

/// Bytes of the heap of another arena than the main one at this address: its head names the arena and its size.
std::uint64_t arena_heap_at(std::uint64_t at, std::uint64_t end) {
  const std::uint64_t arena = word_at(at);
  const std::uint64_t bytes = word_at(at + 16);
  const bool is = arena % arena_heap_bytes != 0 && arena % 16 == 0 && bytes != 0 && bytes % page_bytes == 0 &&
                  bytes <= arena_heap_bytes && bytes <= end - at;
  return is ? bytes : 0;
}

/// Adds [begin, end) but for what `taken` has of it. False: there is no room.
template <typename Extents>
bool add_rest(std::uint64_t begin, std::uint64_t end, std::span<const Extent> taken, Extents& to_list) {
  for (std::uint64_t at = begin; at < end;) {
    std::uint64_t to = end;
    bool skipped = false;
    for (const Extent& t : taken) {
      if (t.contains(at)) {
        at = t.end;
        skipped = true;
        break;
      }
      if (t.begin > at) to = std::min(to, t.begin);
    }
    if (skipped) continue;
    if (!to_list.add({at, to})) return false;
    at = to;
  }
  return true;
}

/// What is no memory of the program's own making: whole pages.
using Taken = List<Extent, 4096>;
constinit Taken taken;  // too large for a stack

void take_objects() {
  taken.count = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void*) {
        for (unsigned i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          if (segment.p_type != PT_LOAD) continue;
          const std::uint64_t at = info->dlpi_addr + segment.p_vaddr;
          if (!taken.add({page_down(at), page_up(at + segment.p_memsz)})) return 1;
        }
        return 0;
      },
      nullptr);
}

void find_made(const Extent& window, Extent& heap) {
  take_objects();
  for (const Extent& e : runtime.all()) taken.add(e);
  if (!taken.add(window)) return;
  const auto self = static_cast<std::uint64_t>(pthread_self());
  const auto noted = runtime.all();
  const bool self_is_noted = std::any_of(noted.begin(), noted.end(), [&](const Extent& e) { return e.contains(self); });
  visit_mappings([&](const MappingInfo& m) {
    if (m.begin >= window.begin && m.begin < window.end) return true;
    const bool of_file = m.inode != 0 && m.readable && m.writable && !m.shared && !m.executable && m.path[0] == '/' &&
                         std::strncmp(m.path, "/dev/", 5) != 0;
    if (!of_file && !is_private_anonymous(m)) return true;
    // This thread's own: its stack, where it is not the main one.
    if (self >= m.begin && self < m.end && !self_is_noted) return true;
    if (std::strcmp(m.path, "[heap]") == 0) {
      heap = {heap.end == 0 ? m.begin : heap.begin, m.end};
      return true;
    }
    const std::size_t before = taken.count;
    for (std::uint64_t at = (m.begin + arena_heap_bytes - 1) & ~(arena_heap_bytes - 1); at < m.end;
         at += arena_heap_bytes) {
      if (const std::uint64_t bytes = arena_heap_at(at, m.end); bytes != 0) taken.add({at, at + bytes});
    }
    // What finds no room stays the device's own.
    (void)add_rest(m.begin, m.end, taken.all(), made);
    taken.count = before;
    return true;
  });
}

bool malloc_is_known() {
  void* const at = ::dlsym(RTLD_DEFAULT, "malloc");
  if (at == reinterpret_cast<void*>(&__libc_malloc)) return true;
  Dl_info info{};
  if (at == nullptr || ::dladdr(at, &info) == 0 || info.dli_fname == nullptr) return false;
  return std::strstr(info.dli_fname, "/libferry_malloc") != nullptr;
}

/// Standard output and input are buffered in memory that the program's heap gave, if they were used before main.
void move_buffers() {
  static char out_buffer[BUFSIZ];
  static char in_buffer[BUFSIZ];
  // What the program has not written yet is the program's to write.
  __fpurge(stdout);
  __fpurge(stdin);
  std::setvbuf(stdout, out_buffer, _IOFBF, sizeof out_buffer);
  std::setvbuf(stdin, in_buffer, _IOFBF, sizeof in_buffer);
  if (__fbufsize(stderr) <= 1) return;
  __fpurge(stderr);
  std::setvbuf(stderr, nullptr, _IONBF, 0);
}

/// Takes all that is free in the program's memory, so that malloc has to look elsewhere from here on. It is not given back.
void drain(const Extent& heap) {
  // Behind the break nothing can grow, and malloc maps more memory elsewhere.
  ::mmap(reinterpret_cast<void*>(heap.end), page_bytes, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  const auto is_programs = [](const void* p) {
    const auto all = made.all();
    return std::any_of(all.begin(), all.end(),
                       [&](const Extent& e) { return e.contains(reinterpret_cast<std::uint64_t>(p)); });
  };
  constexpr std::size_t largest = std::size_t{64} << 10;  // below what malloc maps for itself
  constexpr std::size_t cached_each = 1032;               // up to it blocks of each size are kept apart
  for (std::size_t bytes = largest; bytes >= 24; bytes = bytes / 2 >= cached_each ? bytes / 2
                                                         : bytes > cached_each    ? cached_each
                                                                                  : bytes - 16) {
    for (;;) {
      void* volatile const p = std::malloc(bytes);
      if (p == nullptr || !is_programs(p)) {
        std::free(p);
        break;
      }
    }
  }
}

}  // namespace

void note_runtime_memory() {
  if (runtime.count != 0) return;
  take_objects();
  // Memory that is another allocator's, or a sanitizer's and many terabytes, is not looked into.
  const bool has_chunks = malloc_is_known();
  const auto note = [](std::uint64_t begin, std::uint64_t end) {
    if (!add_rest(begin, end, taken.all(), runtime)) runtime_overflowed = true;
  };
  visit_mappings([&](const MappingInfo& m) {
    if (!is_private_anonymous(m) || std::strcmp(m.path, "[heap]") == 0) return true;
    std::uint64_t begin = m.begin;
    if (has_chunks && m.end - m.begin >= mmapped_chunk_least_bytes) {
      for (std::uint64_t at = m.begin; at < m.end;) {
        const std::uint64_t bytes = mmapped_chunk_at(at, m.end);
        if (bytes != 0) note(begin, at);
        at += std::max(bytes, page_bytes);
        if (bytes != 0) begin = at;
      }
    }
    note(begin, m.end);
    return true;
  });
}

std::span<const Extent> runtime_memory() { return runtime.all(); }

void leave_program_memory(const Extent& window, bool main_thread) {
  if (!malloc_is_known()) return;
  Extent heap;
  // Nobody knows what the C library needs where nothing was noted.
  if (runtime.count != 0 && !runtime_overflowed) find_made(window, heap);
  move_buffers();
  if (main_thread && heap.end != 0 && made.add(heap)) drain(heap);
}

int give_up_program_memory() {
  for (const Extent& e : made.all()) {
    void* const gone = ::mmap(reinterpret_cast<void*>(e.begin), e.end - e.begin, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (gone == MAP_FAILED) return errno;
  }
  made_given_up = true;
  return 0;
}

bool is_program_memory(std::uint64_t address) {
  if (!made_given_up) return false;
  const auto all = made.all();
  return std::any_of(all.begin(), all.end(), [&](const Extent& e) { return e.contains(address); });
}

}  // namespace ferry::device

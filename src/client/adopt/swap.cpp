#include "client/adopt/swap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/check.h"
#include "base/types.h"
#include "client/adopt/places.h"
#include "client/adopt/stopped.h"
#include "client/convert.h"
#include "linux/fd.h"

namespace ferry::client {
namespace {

/// The C library's own smallest (M_MMAP_THRESHOLD) is as large, plus a header.
constexpr std::uint64_t stripe_bytes = std::uint64_t{128} << 10;

void* pointer(std::uint64_t address) { return reinterpret_cast<void*>(address); }

Status of_mapping(int error) { return {error == ENOMEM ? Code::no_mappings : Code::no_memory, error}; }

/// Threads that sleep in the kernel can be woken there, by a device or a timer, and touch the span: they wait here, for
/// nobody to tell, until they are let go. Lives as long as the adopter.
linux::Userfaultfd& waiting_room(Status& status) {
  static constinit linux::Userfaultfd room;
  if (!room) {
    auto opened = linux::Userfaultfd::open({});
    if (opened) {
      room = std::move(opened).value();
    } else {
      status = Status(Code::unsupported, opened.status().sys_errno);
    }
  }
  return room;
}

/// Address space of the adopter's own, for what it maps meanwhile. Anywhere else it could come to lie where the program has
/// just unmapped something, to map something else there in the next moment. Nothing may leave a hole in it, which the
/// program would fill: what lies here is moved away with MREMAP_DONTUNMAP, or the hole is
/// filled while the threads are stopped.
class Workbench {
 public:
  explicit Workbench(std::uint64_t bytes) {
    constexpr std::uint64_t whole = 2 * swap_bytes_max + spare_pages * page_bytes;
    if (base == nullptr) {
      void* got = ::mmap(nullptr, whole, PROT_NONE, own, -1, 0);
      if (got != MAP_FAILED) base = static_cast<std::byte*>(got);
      spares_used = spare_pages;
    }
    FERRY_CHECK_LE(bytes, swap_bytes_max);
    // Neighbours with unequal protection are separate mappings.
    for (; ok() && spares_used != 0; spares_used -= 2) {
      if (::mprotect(spare(spares_used - 2), page_bytes, PROT_READ) != 0) break;
    }
  }
  ~Workbench() {
    if (ok()) put_in_order();
  }
  Workbench(const Workbench&) = delete;
  Workbench& operator=(const Workbench&) = delete;

  [[nodiscard]] static bool ok() { return base != nullptr; }
  /// All spare mappings are in stock.
  [[nodiscard]] static bool has_spares() { return spares_used == 0; }
  [[nodiscard]] static void* view() { return base; }
  [[nodiscard]] static void* stage() { return base + swap_bytes_max; }

  /// Nothing is mapped from it any more, and nobody else can have its addresses. What leaves holes in it calls this before
  /// the threads run again.
  static void put_in_order() {
    while (::mmap(base, 2 * swap_bytes_max, PROT_NONE, own | MAP_FIXED, -1, 0) == MAP_FAILED) {
      FERRY_CHECK(give_way());
    }
  }

  /// The process is at the kernel's limit of mappings: a few of them are given back for what must not fail. False: none is
  /// left.
  static bool give_way() {
    constexpr unsigned step = 8;
    if (spares_used + step > spare_pages) return false;
    // They become one, which needs no other; their addresses stay taken.
    ::mprotect(spare(spares_used), step * page_bytes, PROT_NONE);
    spares_used += step;
    return true;
  }

 private:
  static constexpr int own = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  static constexpr unsigned spare_pages = 32;
  [[nodiscard]] static void* spare(unsigned number) { return base + 2 * swap_bytes_max + number * page_bytes; }

  static constinit inline unsigned spares_used = 0;  ///< pages, the first ones: every other is a mapping by itself
  static constinit inline std::byte* base = nullptr;
};

/// REQUIRES: the threads are stopped.
Status swap_now(const Swap& s, const linux::Userfaultfd& room, const linux::Userfaultfd& watcher, std::byte* file_view,
                int pagemap, bool striped) {
  void* const at = pointer(s.begin);
  const std::uint64_t bytes = s.end - s.begin;
  const Place place = place_of(s.begin);
  if (place.refusal != wire::Refusal::none || place.adopted || place.end < s.end || place.prot != s.prot) {
    return Code::bad_range;
  }
  if (const linux::Fault f = room.register_span(s.begin, bytes, linux::track_missing); f != linux::Fault::ok) {
    return f == linux::Fault::range_gone ? Code::in_use : Code::unsupported;
  }
  // Nobody else knows where they are now, and what is left at the old place is without a page.
  void* const moved = ::mremap(at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, Workbench::stage());
  if (moved == MAP_FAILED) {
    const int error = errno;
    room.unregister_span(s.begin, bytes);
    // Not one mapping any more: stopped.h says who may have changed it.
    return error == EFAULT ? Status(Code::bad_range) : of_mapping(error);
  }
  Status result = copy_present(static_cast<const std::byte*>(moved), bytes, file_view, pagemap);
  if (result.ok() &&
      ::mmap(at, bytes, s.prot, MAP_SHARED | MAP_FIXED, s.file, static_cast<off_t>(s.offset)) == MAP_FAILED) {
    result = of_mapping(errno);
  }
  if (result.ok() && (::madvise(at, bytes, MADV_DONTFORK) != 0 || (striped && !stripe(s.begin, s.end)))) {
    result = of_mapping(errno);
  }
  // Only to be told when it is unmapped: nothing is protected.
  if (result.ok() && watcher.register_span(s.begin, bytes, linux::track_writes) != linux::Fault::ok) {
    result = Code::no_mappings;
  }
  if (result.ok()) return {};
  // Where they were, nothing else can have come, and nobody has written to the file: the threads are stopped. The unmap of
  // what lies there now is not waited for by anybody who could be told of it.
  watcher.unregister_span(s.begin, bytes);
  while (::mremap(moved, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at) != at) {
    FERRY_CHECK(errno == ENOMEM && Workbench::give_way());
  }
  Workbench::put_in_order();
  return result;
}

}  // namespace

bool stripe(std::uint64_t begin, std::uint64_t end) {
  for (std::uint64_t at = begin; at < end;) {
    const std::uint64_t next = (at / stripe_bytes + 1) * stripe_bytes;
    if (at / stripe_bytes % 2 != 0 && ::madvise(pointer(at), std::min(next, end) - at, MADV_RANDOM) != 0) return false;
    at = next;
  }
  return true;
}

Status swap_to_shared(const Swap& s, const linux::Userfaultfd& watcher, bool striped) {
  const std::uint64_t bytes = s.end - s.begin;
  Status result;
  const linux::Userfaultfd& room = waiting_room(result);
  if (!result.ok()) return result;
  const linux::Fd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap) return Status(Code::unsupported, errno);
  const Workbench bench(bytes);
  if (!Workbench::ok()) return Code::no_memory;
  // What has been begun can be taken back whatever the process has mapped by then.
  if (!Workbench::has_spares()) return Status(Code::no_mappings, ENOMEM);
  void* view = ::mmap(Workbench::view(), bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, s.file,
                      static_cast<off_t>(s.offset));
  if (view == MAP_FAILED) return of_mapping(errno);
  {
    const StoppedThreads stopped(s.begin, s.end);
    result = !stopped.all() ? Status(Code::timed_out)
                            : swap_now(s, room, watcher, static_cast<std::byte*>(view), pagemap.get(), striped);
  }
  room.wake(s.begin, bytes);
  return result;
}

Status swap_to_private(const Swap& s, const linux::Userfaultfd& watcher) {
  const Workbench bench(s.end - s.begin);
  if (!Workbench::ok()) return Code::no_memory;
  const StoppedThreads stopped(s.begin, s.end);
  if (!stopped.all()) return Code::timed_out;
  Status result;
  for (std::uint64_t at = s.begin; at < s.end && result.ok();) {
    const Place first = place_of(at);
    std::uint64_t to = std::min(first.end, s.end);
    if (first.adopted) {
      // Stripes are as one.
      for (Place next = place_of(to); to < s.end && next.adopted && next.prot == first.prot; next = place_of(to)) {
        to = std::min(next.end, s.end);
      }
      watcher.unregister_span(at, to - at);
      result =
          convert_to_private(pointer(at), to - at, first.prot, s.file, s.offset + (at - s.begin), Workbench::stage());
      Workbench::put_in_order();
      if (!result.ok()) watcher.register_span(at, to - at, linux::track_writes);
    }
    at = std::max(to, at + page_bytes);
  }
  return result;
}

}  // namespace ferry::client

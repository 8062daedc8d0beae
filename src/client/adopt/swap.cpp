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
/// program would fill: what lies here is moved away with MREMAP_DONTUNMAP, and never unmapped.
class Workbench {
 public:
  explicit Workbench(std::uint64_t bytes) {
    if (base == nullptr) {
      void* got = ::mmap(nullptr, 2 * swap_bytes_max, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (got != MAP_FAILED) base = static_cast<std::byte*>(got);
    }
    FERRY_CHECK_LE(bytes, swap_bytes_max);
  }
  ~Workbench() {
    if (!ok()) return;
    void* again =
        ::mmap(base, 2 * swap_bytes_max, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (again == MAP_FAILED) base = nullptr;
  }
  Workbench(const Workbench&) = delete;
  Workbench& operator=(const Workbench&) = delete;

  [[nodiscard]] static bool ok() { return base != nullptr; }
  [[nodiscard]] static void* view() { return base; }
  [[nodiscard]] static void* stage() { return base + swap_bytes_max; }

 private:
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
    return of_mapping(error);
  }
  Status result = copy_present(static_cast<const std::byte*>(moved), bytes, file_view, pagemap);
  if (result.ok() &&
      ::mmap(at, bytes, s.prot, MAP_SHARED | MAP_FIXED, s.file, static_cast<off_t>(s.offset)) == MAP_FAILED) {
    result = of_mapping(errno);
  }
  if (!result.ok()) {
    // Where they were, nothing else can have come: the threads are stopped. The bench stays without a hole.
    FERRY_CHECK(::mremap(moved, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, at) == at);
    return result;
  }
  ::madvise(at, bytes, MADV_DONTFORK);
  if (striped) stripe(s.begin, s.end);
  // Only to be told when it is unmapped: nothing is protected.
  watcher.register_span(s.begin, bytes, linux::track_writes);
  return {};
}

}  // namespace

void stripe(std::uint64_t begin, std::uint64_t end) {
  for (std::uint64_t at = begin; at < end;) {
    const std::uint64_t next = (at / stripe_bytes + 1) * stripe_bytes;
    if (at / stripe_bytes % 2 != 0) ::madvise(pointer(at), std::min(next, end) - at, MADV_RANDOM);
    at = next;
  }
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
    }
    at = std::max(to, at + page_bytes);
  }
  return result;
}

}  // namespace ferry::client

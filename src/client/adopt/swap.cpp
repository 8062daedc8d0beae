#include "client/adopt/swap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
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

/// REQUIRES: the threads are stopped.
Status swap_now(const Swap& s, const linux::Userfaultfd& room, const linux::Userfaultfd& watcher, std::byte* file_view,
                int pagemap, bool striped, void*& stage) {
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
  // By number: C libraries pass no new address here, and the kernel looks at it.
  void* const moved =
      reinterpret_cast<void*>(::syscall(SYS_mremap, at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr));
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
    // Where they were, nothing else can have come: the threads are stopped.
    FERRY_CHECK(::mremap(moved, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at);
    return result;
  }
  stage = moved;
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
  void* view = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s.file, static_cast<off_t>(s.offset));
  if (view == MAP_FAILED) return of_mapping(errno);
  void* stage = nullptr;
  {
    const StoppedThreads stopped(s.begin, s.end);
    result = !stopped.all() ? Status(Code::timed_out)
                            : swap_now(s, room, watcher, static_cast<std::byte*>(view), pagemap.get(), striped, stage);
  }
  room.wake(s.begin, bytes);
  if (stage != nullptr) ::munmap(stage, bytes);
  ::munmap(view, bytes);
  return result;
}

Status swap_to_private(const Swap& s, const linux::Userfaultfd& watcher) {
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
      result = convert_to_private(pointer(at), to - at, first.prot, s.file, s.offset + (at - s.begin));
    }
    at = std::max(to, at + page_bytes);
  }
  return result;
}

}  // namespace ferry::client

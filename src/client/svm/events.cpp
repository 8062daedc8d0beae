// Streams of events: a ring that the manager writes and this process reads, and a socket that says that there is
// something in it. The order of looking and sleeping is stated in wire/svm.h.
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "client/adopt/stopped.h"
#include "client/error.h"
#include "client/heap/process_heap.h"
#include "client/svm/ask.h"
#include "client/work/objects.h"
#include "core/action.h"
#include "linux/fd.h"
#include "linux/futex.h"
#include "linux/lock.h"
#include "linux/memory_file.h"

using namespace ferry;          // NOLINT(google-build-using-namespace)
using namespace ferry::client;  // NOLINT(google-build-using-namespace)

namespace {
constinit linux::LockClass events_lock("reading events", linux::LockRank::leaf);
}

struct ferry_events {
  std::uint32_t stream = 0;
  linux::Mapping map;
  linux::Fd reader;
  linux::Fd waker;
  linux::Mutex mutex{events_lock};  ///< guards what follows, and who takes records
  std::uint32_t read = 0;
  std::uint64_t lost = 0;  ///< told so far

  [[nodiscard]] wire::EventRing& ring() const { return *reinterpret_cast<wire::EventRing*>(map.data()); }
};

namespace {

/// An event for what was dropped before the number `lost`, if that was not told yet.
bool take_lost(ferry_events& events, std::uint64_t lost, std::uint64_t time_ns, ferry_event& out) {
  if (lost == events.lost) return false;
  out = {};
  out.time_ns = time_ns;
  out.kind = FERRY_EVENT_LOST;
  out.from = out.to = FERRY_TO_CPU;
  out.count = lost - events.lost;
  events.lost = lost;
  return true;
}

void convert(const wire::EventRecord& record, ferry_event& out) {
  out = {};
  out.time_ns = record.time_ns;
  out.kind = record.type;
  out.trigger = record.trigger;
  out.pointer = reinterpret_cast<const void*>(record.address);
  out.bytes = record.bytes;
  out.from = record.from;
  out.to = record.to;
  out.write = record.write;
  out.error = record.error;
}

/// Whatever is there, up to `count`; the descriptor stays readable exactly if there is more.
std::size_t take(ferry_events& events, ferry_event* into, std::size_t count) {
  const linux::LockGuard lock(events.mutex);
  wire::EventRing& ring = events.ring();
  std::size_t n = 0;
  for (;;) {
    while (n < count && ring.written.load(std::memory_order_acquire) != events.read) {
      const wire::EventRecord record = ring.records[events.read % wire::event_ring_entries];
      if (take_lost(events, record.lost_before, record.time_ns, into[n])) {
        ++n;
        continue;
      }
      convert(record, into[n++]);
      ring.read.store(++events.read, std::memory_order_release);
    }
    if (n == count) return n;
    // All was read, and there is room: what was dropped since is told, and the descriptor sleeps.
    char bytes[64];
    while (::recv(events.reader.get(), bytes, sizeof bytes, MSG_DONTWAIT) > 0) {}
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (ring.written.load(std::memory_order_acquire) == events.read) break;
    // Came meanwhile: perhaps its byte is gone.
    const char byte = 1;
    [[maybe_unused]] const auto sent = ::send(events.waker.get(), &byte, sizeof byte, MSG_DONTWAIT | MSG_NOSIGNAL);
  }
  if (take_lost(events, ring.lost.load(std::memory_order_acquire), linux::monotonic_ns(), into[n])) ++n;
  return n;
}

}  // namespace

ferry_events* ferry_events_open(uint64_t mask, ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr) return nullptr;
  Answer answer;
  wire::SvmAnswer out;
  const wire::EventsOpen open{mask};
  if (!ask_svm_bytes(*session, wire::MessageType::events_open,
                     std::as_bytes(std::span<const wire::EventsOpen, 1>(&open, 1)), answer, out, "events", error)) {
    return nullptr;
  }
  const NativeMallocScope native;
  linux::Fd ring = answer.take_fd(0);
  linux::Fd reader = answer.take_fd(1);
  linux::Fd waker = answer.take_fd(2);
  auto map = ring ? linux::Mapping::map(ring.get(), 0, sizeof(wire::EventRing))
                  : Result<linux::Mapping>(Status(Code::no_memory, EMFILE));
  if (!map || !reader || !waker) {
    wire::SvmAnswer closed;
    [[maybe_unused]] const bool told = ask_svm(*session, wire::MessageType::events_close,
                                               wire::EventsRef{out.values[0], 0}, closed, "events", nullptr);
    fail(error, Status(Code::no_memory, EMFILE), "events: no memory or descriptors for them");
    return nullptr;
  }
  auto* events = new ferry_events;
  events->stream = out.values[0];
  events->map = std::move(map).value();
  events->reader = std::move(reader);
  events->waker = std::move(waker);
  // The ring is this process's reader alone: a child would take its parent's events.
  ::madvise(events->map.data(), events->map.bytes(), MADV_DONTFORK);
  return events;
}

void ferry_events_close(ferry_events* events) {
  if (events == nullptr || !may_use_session(nullptr)) return;
  if (Session* session = session_if_open()) {
    wire::SvmAnswer out;
    [[maybe_unused]] const bool told =
        ask_svm(*session, wire::MessageType::events_close, wire::EventsRef{events->stream, 0}, out, "events", nullptr);
  }
  const NativeMallocScope native;
  delete events;
}

int ferry_events_fd(ferry_events* events) { return events->reader.get(); }

// At most 64 a call: the rest stays, and the descriptor readable.
size_t ferry_events_read(ferry_events* events, ferry_event* into, size_t count, uint64_t timeout_ns) {
  if (count == 0 || !may_use_session(nullptr)) return 0;
  const std::uint64_t begin = linux::monotonic_ns();
  for (;;) {
    // Not into the caller's memory under the lock: it may be managed, and a page be long in coming.
    std::array<ferry_event, 64> batch;
    const std::size_t n = take(*events, batch.data(), std::min(count, batch.size()));
    if (n != 0) {
      std::memcpy(into, batch.data(), n * sizeof(ferry_event));
      return n;
    }
    const std::uint64_t gone = linux::monotonic_ns() - begin;
    if (timeout_ns != FERRY_FOREVER && gone >= timeout_ns) return 0;
    const std::uint64_t left_ns = timeout_ns == FERRY_FOREVER ? UINT64_MAX : timeout_ns - gone;
    pollfd p{events->reader.get(), POLLIN, 0};
    ::poll(&p, 1, static_cast<int>(std::min<std::uint64_t>(left_ns / 1'000'000 + 1, 3'600'000)));
    wait_while_stopped();
  }
}

const char* ferry_event_kind_text(uint32_t kind) {
  switch (kind) {
    case FERRY_EVENT_FAULT_START: return "fault start";
    case FERRY_EVENT_FAULT_END: return "fault end";
    case FERRY_EVENT_MIGRATE_START: return "migrate start";
    case FERRY_EVENT_MIGRATE_END: return "migrate end";
    case FERRY_EVENT_QUEUE_EVICTION: return "queue eviction";
    case FERRY_EVENT_QUEUE_RESTORE: return "queue restore";
    case FERRY_EVENT_UNMAP: return "unmap";
    case FERRY_EVENT_PREFETCH: return "prefetch";
    case FERRY_EVENT_THRASH: return "thrash";
    case FERRY_EVENT_LOST: return "lost";
    default: return "unknown";
  }
}

const char* ferry_event_trigger_text(uint32_t trigger) {
  return trigger < core::cause_count ? core::to_string(static_cast<core::Cause>(trigger)) : "unknown";
}

#include "manager/event_streams.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace ferry::manager {
namespace {

std::int32_t side(DeviceId device) { return device < max_devices ? device : -1; }

}  // namespace

std::optional<wire::EventType> event_type(core::EventKind kind) {
  using core::EventKind;
  using wire::EventType;
  switch (kind) {
    case EventKind::device_fault:
    case EventKind::cpu_fault: return EventType::fault_start;
    case EventKind::device_fault_end:
    case EventKind::cpu_fault_end: return EventType::fault_end;
    case EventKind::migrate_begin: return EventType::migrate_start;
    case EventKind::migrate_end: return EventType::migrate_end;
    case EventKind::queue_eviction: return EventType::queue_eviction;
    case EventKind::queue_restore: return EventType::queue_restore;
    case EventKind::unmap_device: return EventType::unmap;
    case EventKind::prefetch: return EventType::prefetch;
    case EventKind::contention_pin: return EventType::thrash;
    default: return std::nullopt;
  }
}

Result<EventStreams::Opened> EventStreams::open(ClientId client, const Window& window, std::uint64_t mask) {
  const auto has = std::count_if(streams_.begin(), streams_.end(), [&](const Stream& s) { return s.client == client; });
  if (has >= streams_max) return Code::no_memory;
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0)
    return Status(Code::no_memory, errno);
  Stream stream;
  stream.socket.reset(ends[0]);
  Opened opened;
  opened.reader.reset(ends[1]);
  opened.waker.reset(::fcntl(ends[0], F_DUPFD_CLOEXEC, 3));
  if (!opened.waker) return Status(Code::no_memory, errno);
  auto file = linux::make_memory_file("ferry-events", sizeof(wire::EventRing));
  if (!file) return file.status();
  auto map = linux::Mapping::map(file.value().get(), 0, sizeof(wire::EventRing));
  if (!map) return map.status();
  opened.ring = std::move(file).value();
  opened.stream = next_number_++;
  stream.map = std::move(map).value();
  stream.client = client;
  stream.number = opened.stream;
  stream.mask = mask;
  stream.window = window;
  streams_.push_back(std::move(stream));
  return opened;
}

Status EventStreams::close(ClientId client, std::uint32_t stream) {
  const auto gone = std::erase_if(streams_, [&](const Stream& s) { return s.client == client && s.number == stream; });
  return gone == 0 ? Status(Code::not_held) : Status();
}

void EventStreams::forget(ClientId client) {
  std::erase_if(streams_, [&](const Stream& s) { return s.client == client; });
}

void EventStreams::pass_on(const core::Event& event) {
  const std::optional<wire::EventType> type = event_type(event.kind);
  if (!type) return;
  for (Stream& stream : streams_) {
    if (stream.client != event.client || ((stream.mask >> static_cast<unsigned>(*type)) & 1U) == 0) continue;
    wire::EventRecord record{};
    record.time_ns = event.time_ns;
    record.type = static_cast<std::uint32_t>(*type);
    record.trigger = static_cast<std::uint32_t>(event.cause);
    if (event.pages.count_pages != 0) {
      record.address = stream.window.address_of_page(event.pages.first);
      record.bytes = event.pages.count_pages * page_bytes;
    }
    record.from = record.to = side(event.device);
    if (*type == wire::EventType::migrate_start || *type == wire::EventType::migrate_end) {
      record.from = side(event.from);
      record.to = event.to == core::Place::vram ? side(event.device) : -1;
    } else if (*type == wire::EventType::prefetch) {
      record.from = -1;
    }
    record.write = event.access == Access::write ? 1 : 0;
    record.error = static_cast<std::uint32_t>(event.status);
    write(stream, record);
  }
}

void EventStreams::write(Stream& stream, wire::EventRecord& record) {
  wire::EventRing& ring = stream.ring();
  // Whatever the reader says, at most a whole ring is unread; what cannot be true counts as that.
  const std::uint32_t unread = stream.written - ring.read.load(std::memory_order_acquire);
  if (unread >= wire::event_ring_entries) {
    ring.lost.store(++stream.lost, std::memory_order_release);
    return;
  }
  record.lost_before = stream.lost;
  ring.records[stream.written % wire::event_ring_entries] = record;
  ring.written.store(++stream.written, std::memory_order_release);
  // Either the reader's next look finds the record, or this one finds that it had read all and may sleep.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!stream.wakes && stream.written - ring.read.load(std::memory_order_relaxed) == 1) {
    stream.wakes = true;
    to_wake_.push_back(stream.number);
  }
}

void EventStreams::wake() {
  for (const std::uint32_t number : to_wake_) {
    const auto it = std::find_if(streams_.begin(), streams_.end(), [&](const Stream& s) { return s.number == number; });
    if (it == streams_.end()) continue;
    it->wakes = false;
    // Its end may be full (then it is readable) or closed (then nobody sleeps).
    const char byte = 1;
    [[maybe_unused]] const auto sent = ::send(it->socket.get(), &byte, sizeof byte, MSG_DONTWAIT | MSG_NOSIGNAL);
  }
  to_wake_.clear();
}

}  // namespace ferry::manager

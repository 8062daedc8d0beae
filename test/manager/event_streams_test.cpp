// Streams of events as a reader finds them: who is told what, what becomes of a reader that does not read or lies.
#include "manager/event_streams.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace ferry::manager {
namespace {

using core::EventKind;

constexpr std::uint64_t all = (std::uint64_t{1} << wire::event_type_count) - 1;
constexpr Window window{0x1000'0000, std::uint64_t{1} << 30};

core::Event event(EventKind kind, ClientId client = 1, Page page = 5) {
  core::Event e;
  e.time_ns = 77;
  e.kind = kind;
  e.client = client;
  e.device = 1;
  e.pages = {page, 2};
  return e;
}

/// One reader, and what is in its ring.
struct Reader {
  explicit Reader(EventStreams::Opened from) : opened(std::move(from)) {
    auto mapped = linux::Mapping::map(opened.ring.get(), 0, sizeof(wire::EventRing));
    EXPECT_TRUE(mapped.ok());
    map = std::move(mapped).value();
  }
  [[nodiscard]] wire::EventRing& ring() const { return *reinterpret_cast<wire::EventRing*>(map.data()); }
  [[nodiscard]] std::uint32_t unread() const { return ring().written.load() - ring().read.load(); }
  wire::EventRecord take() {
    const std::uint32_t at = ring().read.load();
    const wire::EventRecord record = ring().records[at % wire::event_ring_entries];
    ring().read.store(at + 1);
    return record;
  }
  [[nodiscard]] bool woken() const {
    pollfd p{opened.reader.get(), POLLIN, 0};
    return ::poll(&p, 1, 0) == 1;
  }
  void drain() const {
    char bytes[16];
    while (::recv(opened.reader.get(), bytes, sizeof bytes, MSG_DONTWAIT) > 0) {}
  }
  EventStreams::Opened opened;
  linux::Mapping map;
};

Reader open(EventStreams& streams, ClientId client = 1, std::uint64_t mask = all) {
  auto opened = streams.open(client, window, mask);
  EXPECT_TRUE(opened.ok());
  return Reader(std::move(opened).value());
}

TEST(EventStreams, NumbersOfTheWireAreThoseOfTheCore) {
  const std::pair<EventKind, wire::EventType> known[] = {
      {EventKind::device_fault, wire::EventType::fault_start},
      {EventKind::cpu_fault, wire::EventType::fault_start},
      {EventKind::device_fault_end, wire::EventType::fault_end},
      {EventKind::cpu_fault_end, wire::EventType::fault_end},
      {EventKind::migrate_begin, wire::EventType::migrate_start},
      {EventKind::migrate_end, wire::EventType::migrate_end},
      {EventKind::queue_eviction, wire::EventType::queue_eviction},
      {EventKind::queue_restore, wire::EventType::queue_restore},
      {EventKind::unmap_device, wire::EventType::unmap},
      {EventKind::prefetch, wire::EventType::prefetch},
      {EventKind::contention_pin, wire::EventType::thrash},
  };
  EventStreams streams;
  Reader reader = open(streams);
  for (const auto& [kind, type] : known) {
    streams.on_event(event(kind));
    ASSERT_EQ(reader.unread(), 1U);
    const wire::EventRecord r = reader.take();
    EXPECT_EQ(r.type, static_cast<std::uint32_t>(type));
    EXPECT_EQ(r.time_ns, 77U);
    EXPECT_EQ(r.address, window.base + 5 * page_bytes);
    EXPECT_EQ(r.bytes, 2 * page_bytes);
  }
  for (const EventKind kind : {EventKind::device_fault_merged, EventKind::alloc, EventKind::vram_level}) {
    streams.on_event(event(kind));
  }
  EXPECT_EQ(reader.unread(), 0U);
}

TEST(EventStreams, WhereFromAndTo) {
  EventStreams streams;
  Reader reader = open(streams);
  core::Event e = event(EventKind::migrate_begin);
  e.to = core::Place::vram;
  e.from = 3;
  streams.on_event(e);
  wire::EventRecord r = reader.take();
  EXPECT_EQ(r.from, 3);
  EXPECT_EQ(r.to, 1);
  e.to = core::Place::system;
  e.from = 1;
  e.kind = EventKind::migrate_end;
  e.status = Code::io_error;
  streams.on_event(e);
  r = reader.take();
  EXPECT_EQ(r.from, 1);
  EXPECT_EQ(r.to, -1);
  EXPECT_EQ(r.error, static_cast<std::uint32_t>(Code::io_error));
  e = event(EventKind::cpu_fault);
  e.device = no_device;
  e.access = Access::write;
  streams.on_event(e);
  r = reader.take();
  EXPECT_EQ(r.from, -1);
  EXPECT_EQ(r.write, 1U);
}

TEST(EventStreams, EachApplicationSeesItsOwnAndEachReaderWhatItAskedFor) {
  EventStreams streams;
  Reader mine = open(streams, 1);
  Reader faults = open(streams, 1, 1U << static_cast<unsigned>(wire::EventType::fault_start));
  Reader theirs = open(streams, 2);
  streams.on_event(event(EventKind::device_fault, 1));
  streams.on_event(event(EventKind::prefetch, 1));
  EXPECT_EQ(mine.unread(), 2U);
  EXPECT_EQ(faults.unread(), 1U);
  EXPECT_EQ(theirs.unread(), 0U);
  streams.forget(1);
  streams.on_event(event(EventKind::device_fault, 1));
  EXPECT_EQ(mine.unread(), 2U);
  EXPECT_EQ(streams.close(1, theirs.opened.stream).code, Code::not_held) << "another's stream";
  EXPECT_TRUE(streams.close(2, theirs.opened.stream).ok());
  EXPECT_EQ(streams.close(2, theirs.opened.stream).code, Code::not_held);
}

TEST(EventStreams, AReaderIsWokenOnceForAll) {
  EventStreams streams;
  Reader reader = open(streams);
  streams.on_event(event(EventKind::prefetch));
  EXPECT_FALSE(reader.woken()) << "at the end of the turn";
  streams.on_event(event(EventKind::prefetch));
  streams.wake_readers();
  EXPECT_TRUE(reader.woken());
  reader.drain();
  streams.on_event(event(EventKind::prefetch));
  streams.wake_readers();
  EXPECT_FALSE(reader.woken()) << "it has not read what it was woken for";
  while (reader.unread() != 0) reader.take();
  streams.on_event(event(EventKind::prefetch));
  streams.wake_readers();
  EXPECT_TRUE(reader.woken());
}

TEST(EventStreams, WhatFindsNoRoomIsCountedAndToldWhereItIsMissing) {
  EventStreams streams;
  Reader reader = open(streams);
  constexpr std::uint64_t lost = 100;
  for (std::uint64_t i = 0; i < wire::event_ring_entries + lost; ++i) {
    streams.on_event(event(EventKind::prefetch, 1, i));
    streams.wake_readers();
  }
  EXPECT_EQ(reader.unread(), wire::event_ring_entries);
  EXPECT_EQ(reader.ring().lost.load(), lost);
  reader.take();
  streams.on_event(event(EventKind::prefetch, 1, 999));
  EXPECT_EQ(reader.ring().lost.load(), lost);
  wire::EventRecord last{};
  for (unsigned i = 0; reader.unread() != 0; ++i) {
    last = reader.take();
    EXPECT_EQ(last.lost_before, i + 1 < wire::event_ring_entries ? 0 : lost);
  }
  EXPECT_EQ(last.address, window.base + 999 * page_bytes);
}

TEST(EventStreams, AReaderThatLiesLosesEventsAndHoldsNobodyUp) {
  EventStreams streams;
  Reader reader = open(streams);
  for (const std::uint32_t lie : {5U, 0x8000'0000U, ~0U}) {
    reader.ring().read.store(lie);
    reader.ring().written.store(lie ^ 0x5555U);  // the manager keeps its own
    for (unsigned i = 0; i < 3 * wire::event_ring_entries; ++i) streams.on_event(event(EventKind::prefetch));
    streams.wake_readers();
  }
  EXPECT_GT(reader.ring().lost.load(), 0U);
  // Its end of the socket full, blocking, closed.
  reader.opened.reader.reset();
  reader.opened.waker.reset();
  reader.ring().read.store(reader.ring().written.load());
  streams.on_event(event(EventKind::prefetch));
  streams.wake_readers();
  Reader honest = open(streams);
  streams.on_event(event(EventKind::prefetch));
  EXPECT_EQ(honest.unread(), 1U);
}

TEST(EventStreams, AFullSocketThatBlocksDoesNotHoldTheManagerUp) {
  EventStreams streams;
  Reader reader = open(streams);
  // The peer shares the flags of the manager's end.
  ::fcntl(reader.opened.waker.get(), F_SETFL, 0);
  char bytes[4096] = {};
  while (::send(reader.opened.waker.get(), bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {}
  while (::send(reader.opened.waker.get(), bytes, 1, MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {}
  streams.on_event(event(EventKind::prefetch));
  streams.wake_readers();
  EXPECT_TRUE(reader.woken());
}

TEST(EventStreams, OneApplicationHasAFewStreams) {
  EventStreams streams;
  for (unsigned i = 0; i < EventStreams::streams_max; ++i) EXPECT_TRUE(streams.open(1, window, all).ok());
  EXPECT_EQ(streams.open(1, window, all).status().code, Code::no_memory);
  EXPECT_TRUE(streams.open(2, window, all).ok());
}

}  // namespace
}  // namespace ferry::manager

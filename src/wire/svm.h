// Bodies of the messages about attributes, moves on request, pins and events; message.h has the table of who sends
// what. All are of fixed size, so that a receiver can bound everything before it believes anything.
//
// Events: each stream is a ring in a file of its own, shared by the manager, who writes records and `written`, and one
// application, who writes `read`. The manager believes `read` only as far as it can be true, never waits for it, and
// drops what finds no room. Whoever reads learns from `lost_before` how many were dropped before a record, and from
// `lost` how many altogether. With the file comes one end of a socket pair; a byte on it says that the ring is not empty
// any more; and the other end, to write that byte oneself. A socket and not an eventfd: writing to an eventfd waits where a peer that shares its flags wants it to.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace ferry::wire {

inline constexpr unsigned svm_lines_max = 64;

struct SvmLine {
  std::uint32_t type;    ///< core::AttributeType
  std::uint32_t device;  ///< of `access`; else ignored
  std::uint32_t value;
  std::uint32_t reserved0;
};

struct SvmList {
  std::uint64_t first_page;
  std::uint64_t count_pages;
  std::uint32_t count;  ///< lines, 1 to svm_lines_max
  std::uint32_t reserved0;
  SvmLine lines[svm_lines_max];
};

/// Answer to every message of this file, where it is not `done`, which says how a request ended that took time.
struct SvmAnswer {
  std::uint32_t code;  ///< ferry::Code; anything but 0: nothing happened, and text may say more
  std::int32_t sys_errno;
  std::uint32_t count;  ///< values that mean something
  std::uint32_t reserved0;
  std::uint32_t values[svm_lines_max];
  char text[232];  ///< NUL-terminated
};

struct RetryFaults {
  std::int32_t mode;  ///< 1 on, 0 off, -1 ask
  std::uint32_t reserved0;
};

struct GroupRef {
  std::uint32_t group;  ///< as the answer to group_create named it; group_assign: 0 takes pages out of their group
  std::uint32_t value;  ///< group_migration: 1 allowed, 0 not
  std::uint64_t first_page;
  std::uint64_t count_pages;
};

struct EventsOpen {
  std::uint64_t mask;  ///< bit 1 << EventType
};

struct EventsRef {
  std::uint32_t stream;
  std::uint32_t reserved0;
};

/// What an application is told. Numbers are part of the C interface.
enum class EventType : std::uint32_t {
  fault_start = 0,
  fault_end = 1,
  migrate_start = 2,
  migrate_end = 3,
  queue_eviction = 4,
  queue_restore = 5,
  unmap = 6,
  prefetch = 7,
  thrash = 8,
  lost = 9,  ///< never in a ring: made by the reader
};
inline constexpr unsigned event_type_count = 10;

struct EventRecord {
  std::uint64_t time_ns;
  std::uint32_t type;     ///< EventType
  std::uint32_t trigger;  ///< core::Cause
  std::uint64_t address;
  std::uint64_t bytes;
  std::int32_t from;  ///< device, or -1: CPU and system memory
  std::int32_t to;
  std::uint32_t write;
  std::uint32_t error;  ///< ferry::Code
  std::uint64_t lost_before;
};
static_assert(std::is_trivially_copyable_v<EventRecord> && sizeof(EventRecord) == 56);

inline constexpr std::uint32_t event_ring_entries = 4096;

struct EventRing {
  alignas(64) std::atomic<std::uint32_t> written;  ///< by the manager: records so far
  std::atomic<std::uint64_t> lost;                 ///< dropped so far
  alignas(64) std::atomic<std::uint32_t> read;     ///< by the application: records taken so far
  alignas(64) EventRecord records[event_ring_entries];
};

static_assert(std::is_trivially_copyable_v<SvmList> && sizeof(SvmList) == 1048);
static_assert(std::is_trivially_copyable_v<SvmAnswer> && sizeof(SvmAnswer) == 504);
static_assert(sizeof(GroupRef) == 24 && sizeof(RetryFaults) == 8 && sizeof(EventsOpen) == 8);
static_assert(offsetof(EventRing, records) == 128);

}  // namespace ferry::wire

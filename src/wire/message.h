// Messages on the SOCK_SEQPACKET sockets: one datagram, one message: a fixed header, then a body of fixed size, then
// (reply_text, configuration) a tail of text. Descriptors travel with SCM_RIGHTS in the order that the table names.
// Every receiver checks size, type and each field before it believes any; the sizes are asserted here.
//
// Application -> manager (socket at $FERRY_SOCKET or the private manager's socketpair):
// | type           | body          | descriptors                            | answer                                       |
// |----------------|---------------|----------------------------------------|----------------------------------------------|
// | hello          | Hello         | application's userfaultfd              | welcome or refused                           |
// | attach_device  | AttachDevice  | manager's end of the device's socket   | attached once the device said device_hello   |
// | alloc          | Span          | -                                      | done                                         |
// | free           | Span          | -                                      | done (when nothing uses the span any more)   |
// | prefetch       | Span          | -                                      | done                                         |
// | converted      | Span          | -                                      | done                                         |
// | query          | Span          | -                                      | residency                                    |
// | stats          | -             | -                                      | reply_text (JSON)                            |
// | device_control | AttachDevice  | -                                      | device_files (fresh control files after loss)|
// Buffers, fences, timelines, jobs (work.h), each answered by work_answer unless said otherwise:
// | type            | body         | ObjectRef::value | descriptors       | the answer has                            |
// |-----------------|--------------|------------------|-------------------|-------------------------------------------|
// | buffer_create   | BufferCreate |                  | -                 | id, slot, count_pages; the buffer's file  |
// | buffer_close    | ObjectRef    | -                | -                 | -                                         |
// | buffer_map      | ObjectRef    | first page       | -                 | -                                         |
// | buffer_unmap    | ObjectRef    | first page       | -                 | done, when nobody reaches it              |
// | buffer_query    | ObjectRef    | -                | -                 | buffer_state                              |
// | buffer_export   | ObjectRef    | -                | -                 | a token                                   |
// | buffer_import   | -            |                  | a token           | as buffer_create                          |
// | fence_merge     | FenceMerge   |                  | -                 | id, slot                                  |
// | fence_close     | ObjectRef    | -                | -                 | -                                         |
// | fence_hold      | ObjectRef    | -                | -                 | id, slot: held once more                  |
// | fence_deadline  | ObjectRef    | nanoseconds left | -                 | -                                         |
// | fence_export    | ObjectRef    | -                | -                 | a token that becomes readable             |
// | fence_import    | -            |                  | a token           | id, slot                                  |
// | timeline_create | -            |                  | -                 | id, slot                                  |
// | timeline_close  | ObjectRef    | -                | -                 | -                                         |
// | timeline_signal | ObjectRef    | the point        | -                 | -                                         |
// | timeline_export | ObjectRef    | -                | -                 | a token                                   |
// | timeline_import | -            |                  | a token           | id, slot                                  |
// | job_submit      | JobSubmit    |                  | -                 | id, slot of its fence; or why not, as text|
// | job_cancel      | ObjectRef    | -                | -                 | -                                         |
// Attributes, moves on request, pins, events (svm.h), each answered by svm_answer where refused, else:
// | type            | body         | answered by                                                                      |
// |-----------------|--------------|----------------------------------------------------------------------------------|
// | svm_set         | SvmList      | done, when what it asks for at once has happened                                 |
// | svm_get         | SvmList      | svm_answer: a value a line                                                       |
// | svm_reset       | Span         | done                                                                             |
// | retry_faults    | RetryFaults  | svm_answer: the mode before                                                      |
// | migrate_async   | Span         | work_answer: id, slot of its fence                                               |
// | populate        | Span         | done                                                                             |
// | svm_discard     | Span         | done                                                                             |
// | group_create    | -            | svm_answer: its number                                                           |
// | group_destroy   | GroupRef     | svm_answer                                                                       |
// | group_assign    | GroupRef     | svm_answer                                                                       |
// | group_migration | GroupRef     | svm_answer                                                                       |
// | pin             | Span         | done                                                                             |
// | unpin           | Span         | svm_answer                                                                       |
// | events_open     | EventsOpen   | svm_answer: the stream's number; descriptors: its ring, both ends of its socket  |
// | events_close    | EventsRef    | svm_answer                                                                       |
// attributes_run (Span), of a checkpoint, is answered by svm_answer: pages from the span's first one on that have the same
// attributes, 1 if those are the defaults, preferred, prefetch, granularity, flags, access.
// Tokens are sockets: docs/design/0014-buffers.md. fence_record (FenceRecord) is the one message on a fence's token.
// A fork (docs/design/0018-fork.md):
// | type       | from                     | body      | descriptors                        | answer                     |
// |------------|--------------------------|-----------|------------------------------------|----------------------------|
// | fork_begin | application, before it   | ForkBegin | manager's end of the child's socket| done: nobody writes memory |
// | fork_goes  | application: heard that  | Done      | -                                  | -                          |
// | fork_end   | application, after it    | Done      | -                                  | -                          |
// | fork_begin | child, before it forks   | ForkBegin | as above                           | done, on the child's socket|
// | fork_child | child, on its own socket | ForkBegin | its userfaultfd; both ends of a pipe, which the manager lets go of when nothing is missing any more | - |
// Administration (any connection of the same user, without hello): explain, stats, shutdown.
// Manager -> application: also device_lost (unasked), when a device process ended.
// Device -> manager (its own socketpair): device_hello{pid} with its userfaultfd. Manager -> device: buffer_file
// (BufferFile, with the file), before the first command that names it, and peer_file (PeerFile, with the VRAM of a linked
// device) likewise; end of file means that the manager or the
// application is gone, and the device ends.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/types.h"
#include "wire/adopt.h"
#include "wire/change.h"
#include "wire/control.h"
#include "wire/files.h"
#include "wire/svm.h"
#include "wire/work.h"

namespace ferry::wire {

enum class MessageType : std::uint32_t {
  hello = 1,
  welcome = 2,
  refused = 3,
  attach_device = 4,
  attached = 5,
  alloc = 6,
  free = 7,
  prefetch = 8,
  query = 9,
  residency = 10,
  stats = 11,
  reply_text = 12,
  done = 13,
  device_hello = 14,
  device_lost = 15,
  explain = 16,
  shutdown = 17,
  device_control = 18,
  device_files = 19,
  buffer_create = 32,
  buffer_close = 33,
  buffer_map = 34,
  buffer_unmap = 35,
  buffer_query = 36,
  buffer_state = 37,
  buffer_export = 38,
  buffer_import = 39,
  buffer_file = 40,
  fence_merge = 41,
  fence_close = 42,
  fence_deadline = 43,
  fence_export = 44,
  fence_import = 45,
  fence_record = 46,
  timeline_create = 47,
  timeline_close = 48,
  timeline_signal = 49,
  timeline_export = 50,
  timeline_import = 51,
  job_submit = 52,
  job_cancel = 53,
  work_answer = 54,
  fence_hold = 55,
  peer_file = 57,
  adopt_ask = 112,     ///< adopt.h
  adopt_answer = 113,  ///< adopt.h
  release = 114,       ///< adopt.h
  adopt_begin = 117,   ///< adopt.h
  adopt_settle = 118,  ///< adopt.h
  adopt_faults = 116,  ///< adopt.h
  released = 115,      ///< adopt.h
  converted = 56,      ///< a span that was allocated with span_converts is mapped from the system file now
  svm_set = 64,
  svm_get = 65,
  svm_reset = 66,
  retry_faults = 67,
  migrate_async = 68,
  populate = 69,
  svm_discard = 70,
  group_create = 71,
  group_destroy = 72,
  group_assign = 73,
  group_migration = 74,
  pin = 75,
  unpin = 76,
  events_open = 77,
  events_close = 78,
  svm_answer = 79,
  change = 80,   ///< change.h
  changed = 81,  ///< change.h
  fork_begin = 96,
  fork_end = 97,
  fork_child = 98,
  fork_goes = 99,
  file_serve = 124,   ///< files.h
  file_drop = 125,    ///< files.h
  served_file = 126,  ///< files.h
  attributes_run = 128,
};

struct MessageHead {
  std::uint32_t magic;    ///< control_magic
  std::uint32_t version;  ///< wire_version
  std::uint32_t type;
  std::uint32_t reserved0;
  std::uint64_t request;  ///< chosen by the asker, echoed in the answer
};
static_assert(sizeof(MessageHead) == 24);

struct Hello {
  std::uint64_t window_base;
  std::uint64_t window_bytes;
  std::uint32_t pid;
  std::uint32_t full_userfaultfd;  ///< 1: its descriptor serves faults inside system calls too
  char program[64];                ///< NUL-terminated, for people
};

/// Answer to hello. Descriptors: kick eventfd, system file, AppControl, then for each device: VRAM file,
/// DeviceControl, QueueControl.
struct Welcome {
  std::uint32_t client;
  std::uint32_t device_count;
  std::uint32_t cu_count;
  std::uint32_t waves_per_cu;
  std::uint32_t granularity_pages;
  std::uint32_t manager_pid;
  std::uint64_t vram_bytes;         ///< budget of each device
  std::uint8_t hives[max_devices];  ///< by device: those of one number are linked, but those of 0
};

struct Refused {
  std::uint32_t code;     ///< ferry::Code
  std::uint32_t version;  ///< the manager's wire_version
  char text[240];
};

struct AttachDevice {
  std::uint32_t device;
  std::uint32_t reserved0;
};

/// The VRAM of another device that is linked to the one that is told.
struct PeerFile {
  std::uint32_t device;
  std::uint32_t reserved0;
};

struct DeviceHello {
  std::uint32_t pid;
  std::uint32_t device;
};

inline constexpr std::uint32_t span_place_system = 1;  ///< alloc: Placement::system; cleared: automatic
/// alloc: memory with contents that becomes managed; `converted` follows, and until then nobody may be kept from it.
inline constexpr std::uint32_t span_converts = 2;
/// alloc: the pages are mapped from the system file already, with contents that the application wrote there. released: they
/// still are.
inline constexpr std::uint32_t span_has_contents = 4;
/// adopt_begin: answered at once, when the manager has begun to forget.
inline constexpr std::uint32_t span_no_wait = 8;
/// adopt_begin: nothing is forgotten that was not before; answered when that has ended.
inline constexpr std::uint32_t span_wait_only = 16;
/// alloc: the application may not write there, and devices may not either.
inline constexpr std::uint32_t span_read_only = 32;
inline constexpr std::uint32_t to_system = 0xffff'ffff;

struct Span {
  std::uint64_t first_page;
  std::uint64_t count_pages;
  std::uint32_t device;  ///< prefetch, migrate_async, populate, pin: device number, or to_system
  std::uint32_t flags;   ///< alloc, adopt_begin: span_*
  std::uint32_t pid;     ///< explain: whose address; 0 elsewhere
  std::uint32_t reserved0;
};

struct Done {
  std::uint32_t code;  ///< ferry::Code
  std::int32_t sys_errno;
};

struct ForkBegin {
  std::uint32_t thread;  ///< that forks, as the application numbers it
  std::uint32_t
      at_once;  ///< 1: the application's threads are not to be kept from its memory; the child gets all at once
};

/// Answer to query and explain, for span.first_page.
struct PageResidency {
  std::uint32_t client;
  std::uint8_t allocated;
  std::uint8_t system_current;
  std::uint8_t vram_device;  ///< no_device if none
  std::uint8_t dirty;
  std::uint8_t cpu_may_map;
  std::uint8_t moving;
  std::uint8_t contended;
  std::uint8_t cause;  ///< core::Cause of the last move
  std::uint16_t device_mapped;
  std::uint16_t device_writable;
  std::uint64_t last_move_age_ns;  ///< ~0: never moved
  std::uint16_t copies;            ///< bit d: VRAM of device d holds a copy beside vram_device and system memory
  std::uint16_t unused[3];
};

/// Largest message with its tail of text.
inline constexpr std::size_t message_bytes_max = 65536;
inline constexpr unsigned message_fds_max = 3 + 3 * max_devices;

static_assert(std::is_trivially_copyable_v<Hello> && sizeof(Hello) == 88);
static_assert(std::is_trivially_copyable_v<Welcome> && sizeof(Welcome) == 48);
static_assert(std::is_trivially_copyable_v<Refused> && sizeof(Refused) == 248);
static_assert(std::is_trivially_copyable_v<Span> && sizeof(Span) == 32);
static_assert(sizeof(PageResidency) == 32);
static_assert(message_fds_max <= 253, "SCM_MAX_FD");

}  // namespace ferry::wire

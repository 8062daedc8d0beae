// Bodies of the messages about buffers, fences, timelines and jobs; message.h has the table of who sends what.
// All are of fixed size, so that a receiver can bound everything before it believes anything. Ids are numbers of the
// whole machine; knowing one gives no access: the manager looks it up among what the sender holds.
#pragma once

#include <cstdint>
#include <type_traits>

#include "wire/control.h"

namespace ferry::wire {

inline constexpr unsigned work_list_max = 64;  ///< entries of each list of a job

/// Names an object the sender holds; `value` as the table of message.h says.
struct ObjectRef {
  std::uint64_t id;
  std::uint64_t value;
};

inline constexpr std::uint32_t buffer_no_implicit_sync = 1;  ///< BufferSpec::implicit_sync cleared
inline constexpr std::uint32_t buffer_userptr = 2;           ///< of the sender's own pages, from user_first_page on

struct BufferCreate {
  std::uint64_t count_pages;
  std::uint64_t user_first_page;
  std::uint32_t home;  ///< device number, or to_system
  std::uint32_t flags;
};

struct FenceMerge {
  std::uint32_t count;
  std::uint32_t any;  ///< 1: signals with the first of them; 0: with the last
  std::uint64_t fences[work_list_max];
};

struct JobBufferRef {
  std::uint64_t buffer;
  std::uint32_t write;  ///< 1: the job writes it, 0: it only reads
  std::uint32_t reserved0;
};

struct JobPoint {
  std::uint64_t timeline;
  std::uint64_t point;
};

struct JobSubmit {
  std::uint32_t engine;  ///< core::Engine
  std::uint32_t device;
  std::uint32_t priority;
  std::uint32_t cus_min;
  std::uint32_t cus_max;
  std::uint32_t reserved0;
  std::uint64_t timeout_ns;
  std::uint32_t buffer_count;
  std::uint32_t wait_count;
  std::uint32_t wait_point_count;
  std::uint32_t signal_point_count;
  JobBufferRef buffers[work_list_max];
  std::uint64_t waits[work_list_max];
  JobPoint wait_points[work_list_max];
  JobPoint signal_points[work_list_max];
  LaunchPacket packet;  ///< graphics: what each wave calls; copy, video: CopyArguments, VideoArguments in `captures`
};

/// Copy engine: bytes between two buffers of the job's list (the target with write).
struct CopyArguments {
  std::uint64_t source;
  std::uint64_t source_offset;
  std::uint64_t target;
  std::uint64_t target_offset;
  std::uint64_t bytes;
};

enum class VideoOp : std::uint32_t {
  nv12_to_rgba = 1,
  half = 2,
  blend = 3,
};

/// Video engine. Offsets and pitches are bytes.
struct VideoArguments {
  std::uint32_t op;      ///< VideoOp
  std::uint32_t width;   ///< of the source, pixels
  std::uint32_t height;  ///< of the source, pixels
  std::uint32_t alpha;   ///< blend: 0 to 255
  std::uint64_t source;
  std::uint64_t source_offset;
  std::uint64_t source_pitch;
  std::uint64_t chroma_offset;  ///< nv12: of the plane of U and V, in the source
  std::uint64_t target;
  std::uint64_t target_offset;
  std::uint64_t target_pitch;
};

/// Answer to every message of this file. Descriptors: as the table says.
struct WorkAnswer {
  std::uint32_t code;  ///< ferry::Code; anything but 0: nothing happened, and text may say more
  std::int32_t sys_errno;
  std::uint64_t id;
  std::uint32_t slot;  ///< of the handle: WorkPage::fences, WorkPage::timelines, or the agent's buffer number
  std::uint32_t flags;
  std::uint64_t count_pages;  ///< buffers
  char text[440];             ///< NUL-terminated
};

/// Answer to buffer_query.
struct BufferState {
  std::uint8_t where;   ///< core::BufferInfo::Where
  std::uint8_t device;  ///< where == vram
  std::uint8_t busy;
  std::uint8_t moving;
  std::uint8_t stale;
  std::uint8_t reserved0[3];
  std::uint32_t holders;
  std::uint32_t reserved1;
};

/// What the descriptor of an exported fence can be asked for without a session: the one message on it once the fence
/// has signalled, to be looked at with MSG_PEEK, so that other holders find it too.
struct FenceRecord {
  std::uint32_t code;
  std::int32_t sys_errno;
};

/// Manager -> device process, with the buffer's file: what its agent maps when a command names `slot`.
struct BufferFile {
  std::uint32_t slot;
  std::uint32_t reserved0;
};

static_assert(std::is_trivially_copyable_v<JobSubmit> && sizeof(JobSubmit) < 8192);
static_assert(sizeof(CopyArguments) <= capture_bytes_max && sizeof(VideoArguments) <= capture_bytes_max);
static_assert(std::is_trivially_copyable_v<WorkAnswer> && sizeof(WorkAnswer) == 472);
static_assert(sizeof(BufferCreate) == 24 && sizeof(ObjectRef) == 16 && sizeof(BufferState) == 16);

}  // namespace ferry::wire

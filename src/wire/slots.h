// Words of shared memory in which an application sees how its fences and timelines stand, without asking. Part of
// AppControl; written by the manager, read by the application, never read back: what an application writes here hurts
// only itself. A slot belongs to one handle of the application, from the answer that named it until it is closed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace ferry::wire {

inline constexpr unsigned fence_slots = 4096;
inline constexpr unsigned timeline_slots = 256;
inline constexpr unsigned buffer_slots = 1024;

enum class FenceState : std::uint32_t {
  submitted = 0,  ///< memory management does not know it yet: no memory may wait for it
  visible = 1,    ///< it will signal in bounded time
  signalled = 2,  ///< code and sys_errno are final
};

struct FenceSlot {
  std::atomic<std::uint32_t> state;  ///< FenceState; a futex word, stored last
  std::uint32_t code;                ///< ferry::Code
  std::int32_t sys_errno;
  std::uint32_t reserved0;
};
static_assert(sizeof(FenceSlot) == 16);

struct TimelineSlot {
  std::atomic<std::uint64_t> value;    ///< this point and all before it have signalled
  std::atomic<std::uint32_t> changes;  ///< bumped after value; a futex word
  std::uint32_t reserved0;
};
static_assert(sizeof(TimelineSlot) == 16);

struct WorkPage {
  /// Bumped after any fence slot was signalled; a futex word for those that wait for many.
  std::atomic<std::uint32_t> signals;
  /// Written by the application: somebody sleeps on `signals`. A hint: the manager spares a system call without it.
  std::atomic<std::uint32_t> signal_sleepers;
  alignas(64) TimelineSlot timelines[timeline_slots];
  FenceSlot fences[fence_slots];
};

}  // namespace ferry::wire

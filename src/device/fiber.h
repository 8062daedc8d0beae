// A wave's slot on its compute unit: a stack, an alternate stack for signals, and the context of whoever runs there.
// Owned by one Cu and used by its thread only.
//
// Every slot has an alternate signal stack of its own, because a wave parks inside its signal handler: the handler's
// frame has to stay where it is while other waves run and fault. It makes stack overflow reportable too.
#pragma once

#include <boost/context/detail/fcontext.hpp>
#include <cstddef>
#include <cstdint>

#include "device/wave.h"

namespace ferry::device {

struct DeviceQueue;

inline constexpr std::size_t wave_stack_bytes = 256 * 1024;
/// A frame larger than this may jump over the guard and hit the neighbour's stack: the price of small stacks.
inline constexpr std::size_t wave_guard_bytes = 64 * 1024;

/// Why a wave left its compute unit.
enum class Leave : std::uintptr_t {
  finished,   ///< its items are done; the context takes the next wave
  waiting,    ///< faulted; goes on when the manager has answered
  preempted,  ///< goes on at any time
  resting,    ///< waits for a word in memory; goes on after a while to look at it again
  threw,      ///< an exception left the kernel; text is in the fiber; the context takes the next wave
  crashed,    ///< never goes on; `crash` says why
  dropped,    ///< never goes on: its launch has failed already
};

enum class SlotState : std::uint8_t { free, running, waiting, ready, resting };

/// What a signal said about a crash.
struct Crash {
  int signal = 0;
  int code = 0;                   ///< siginfo's si_code
  std::uint64_t address = 0;      ///< touched address; 0 if the signal has none
  std::uint64_t instruction = 0;  ///< address of the instruction
  bool write = false;
  bool execute = false;
  std::uint32_t status = 0;   ///< ferry::Code of the manager's answer, for managed memory; else 0
  std::uint32_t refusal = 0;  ///< wire::Refusal: why the application's memory there cannot be had
};

struct Fiber {
  boost::context::detail::fcontext_t context = nullptr;  ///< where to go on; nullptr: the stack is empty
  SlotState state = SlotState::free;
  /// Rises with every fault, so that an answer to an older one is known.
  std::uint64_t generation = 0;
  std::uint32_t resume_status = 0;   ///< ferry::Code of the answer
  std::uint32_t resume_refusal = 0;  ///< wire::Refusal of the answer
  DeviceQueue* queue = nullptr;
  bool graphics = false;  ///< runs a graphics job: its fence must not wait for a page fault or for a user
  WaveInfo wave;
  Crash crash;
  char text[480];  ///< what() of an exception
  /// Text that the wave printed and that has not been sent: sent when this is full and whenever the wave leaves its
  /// compute unit, however it does that.
  std::uint32_t printed_bytes = 0;
  char printed[1024];

  std::byte* guard = nullptr;  ///< [guard, stack): no access
  std::byte* stack = nullptr;  ///< [stack, alternate)
  std::byte* alternate = nullptr;
  std::size_t alternate_bytes = 0;

  [[nodiscard]] bool on_stack(std::uint64_t address) const {
    return address >= reinterpret_cast<std::uint64_t>(stack) && address < reinterpret_cast<std::uint64_t>(alternate);
  }
  /// So little is left of the stack that a signal's frame may not have found room.
  [[nodiscard]] bool near_end(std::uint64_t address) const {
    return address >= reinterpret_cast<std::uint64_t>(guard) &&
           address < reinterpret_cast<std::uint64_t>(stack) + alternate_bytes;
  }
  [[nodiscard]] bool in_guard(std::uint64_t address) const {
    return address >= reinterpret_cast<std::uint64_t>(guard) && address < reinterpret_cast<std::uint64_t>(stack);
  }
};

/// Gives `count` fibers their stacks. False: no memory or no mappings left.
[[nodiscard]] bool make_stacks(Fiber* fibers, unsigned count);

}  // namespace ferry::device

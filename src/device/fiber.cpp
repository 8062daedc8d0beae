#include "device/fiber.h"

#include <sys/auxv.h>
#include <sys/mman.h>

#include "base/types.h"
#include "device/memory.h"

namespace ferry::device {
namespace {

// Room for the handlers' own frames, on top of what the kernel pushes.
constexpr std::size_t handler_bytes = 16 * 1024;

/// The kernel's signal frame holds all registers: 1 KiB to over 11 KiB with wide vectors and tiles.
std::size_t signal_frame_bytes() {
  const std::size_t reported = getauxval(AT_MINSIGSTKSZ);
  return reported != 0 ? reported : 16 * 1024;
}

}  // namespace

bool make_stacks(Fiber* fibers, unsigned count) {
  const std::size_t alternate_bytes =
      (signal_frame_bytes() + handler_bytes + page_bytes - 1) & ~(std::size_t{page_bytes} - 1);
  // The alternate stack lies above the wave's: its overflow would run into the wave's own stack, which is spoilt by
  // then anyway, and one mapping serves for both.
  const std::size_t slot_bytes = wave_guard_bytes + wave_stack_bytes + alternate_bytes;
  auto* base = static_cast<std::byte*>(map_own(slot_bytes * count));
  if (base == nullptr) return false;
  for (unsigned i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    fiber.guard = base + slot_bytes * i;
    fiber.stack = fiber.guard + wave_guard_bytes;
    fiber.alternate = fiber.stack + wave_stack_bytes;
    fiber.alternate_bytes = alternate_bytes;
    if (mprotect(fiber.guard, wave_guard_bytes, PROT_NONE) != 0) return false;
  }
  return true;
}

}  // namespace ferry::device

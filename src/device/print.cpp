#include "device/print.h"

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstring>
#include <utility>

#include "device/cu.h"
#include "device/process.h"
#include "linux/futex.h"
#include "wire/ring.h"

namespace ferry::device {
namespace {

constexpr std::uint64_t patience_ns = 2'000'000'000;
constexpr std::uint64_t capacity = wire::print_ring_bytes;

/// Set: the application has let a writer wait in vain and has read nothing since; others do not wait.
std::atomic<bool> stalled{false};

void wake_application(wire::QueueControl& control) {
  for (wire::Queue& queue : control.queues) {
    if (queue.app_sleeping.load(std::memory_order_seq_cst) == 0) continue;
    queue.complete_futex.fetch_add(1, std::memory_order_seq_cst);
    linux::futex_wake(queue.complete_futex, INT_MAX);
  }
}

/// The text must be the device's own memory, and the caller must not be preempted for another wave: whoever parked
/// between reserving and publishing would hold up all others.
bool try_put(wire::PrintRing& ring, const char* text, std::uint64_t bytes) {
  std::uint64_t start = ring.reserved.load(std::memory_order_relaxed);
  do {
    const std::uint64_t used = start - ring.read.load(std::memory_order_acquire);
    if (used > capacity || bytes > capacity - used) return false;
  } while (!ring.reserved.compare_exchange_weak(start, start + bytes, std::memory_order_relaxed));
  const std::uint64_t at = start % capacity;
  const std::uint64_t first = std::min(bytes, capacity - at);
  std::memcpy(ring.bytes + at, text, first);
  std::memcpy(ring.bytes, text + first, bytes - first);
  for (unsigned turn = 1; ring.written.load(std::memory_order_acquire) != start; ++turn) {
    if (turn % 64 == 0) sched_yield();
    cpu_relax();
  }
  ring.written.store(start + bytes, std::memory_order_release);
  return true;
}

bool put(wire::QueueControl& control, const char* text, std::uint64_t bytes) {
  wire::PrintRing& ring = control.print;
  std::uint64_t give_up_ns = 0;
  for (;;) {
    if (try_put(ring, text, bytes)) {
      stalled.store(false, std::memory_order_relaxed);
      const std::uint64_t used =
          ring.written.load(std::memory_order_relaxed) - ring.read.load(std::memory_order_relaxed);
      // Once for each time that the ring becomes half full.
      if (used >= capacity / 2 && used - bytes < capacity / 2) wake_application(control);
      return true;
    }
    if (stalled.load(std::memory_order_relaxed)) return false;
    const std::uint64_t now = linux::monotonic_ns();
    if (give_up_ns == 0) {
      give_up_ns = now + patience_ns;
      wake_application(control);
    } else if (now >= give_up_ns) {
      stalled.store(true, std::memory_order_relaxed);
      return false;
    }
    const timespec pause{0, 50'000};
    nanosleep(&pause, nullptr);
  }
}

}  // namespace

void flush_print(Fiber& fiber) {
  const std::uint32_t bytes = std::exchange(fiber.printed_bytes, 0);
  wire::QueueControl* control = process_queues();
  if (bytes == 0 || control == nullptr) return;
  if (!put(*control, fiber.printed, bytes)) control->print.dropped_bytes.fetch_add(bytes, std::memory_order_relaxed);
}

void print_bytes(const char* text, std::size_t bytes) {
  Cu* cu = current_cu();
  if (cu == nullptr || cu->running() == nullptr) return;
  Fiber& fiber = *cu->running();
  char piece[sizeof fiber.printed];
  for (std::size_t done = 0; done < bytes;) {
    const std::size_t count = std::min(bytes - done, sizeof piece);
    // May fault and park, and then the gathered text is sent: so not into the fiber at once.
    std::memcpy(piece, text + done, count);
    const bool was = cu->hold();
    if (fiber.printed_bytes + count > sizeof fiber.printed) flush_print(fiber);
    std::memcpy(fiber.printed + fiber.printed_bytes, piece, count);
    fiber.printed_bytes += static_cast<std::uint32_t>(count);
    cu->release(was);
    done += count;
  }
}

}  // namespace ferry::device

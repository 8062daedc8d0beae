// Layout of the shared control files. All are memfds made and sealed (size) by the manager, zero at birth.
//   AppControl     manager <-> application: the agent's port; how fences and timelines stand (slots.h)
//   DeviceControl  manager <-> one device process: a port for each compute unit and one for its agent
//   QueueControl   application <-> one device process: user-mode queues. The manager maps nothing of it, so launching a
//                  kernel costs no manager time and a hostile queue can hurt only its own application.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "wire/port.h"
#include "wire/slots.h"

namespace ferry::wire {

inline constexpr std::uint32_t control_magic = 0x59525246;  // "FRRY"
/// Changes with every change of this folder. Both sides must agree exactly.
inline constexpr std::uint32_t wire_version = 4;

inline constexpr unsigned max_cus = 64;
inline constexpr unsigned max_queues = 16;

struct ControlHead {
  std::uint32_t magic;
  std::uint32_t version;
  /// 1 while the manager sleeps or is about to: posters must then write to the kick eventfd. See wire/port.h.
  std::atomic<std::uint32_t> manager_sleeping;
  std::uint32_t reserved0;
};

struct AppControl {
  alignas(64) ControlHead head;
  alignas(64) Port agent;
  alignas(64) WorkPage work;
  /// 1 from before the manager reads of adopted memory that was unmapped until no device reaches it: adopt_settle waits.
  alignas(64) std::atomic<std::uint32_t> unmapping;
};

// --- launches --------------------------------------------------------------------------------------------------------

inline constexpr unsigned queue_entries = 64;
inline constexpr unsigned capture_bytes_max = 768;
inline constexpr unsigned kernel_name_bytes = 96;

/// Runs items [first, first + count) of a grid on the device. Lives in the program's text.
using KernelEntry = void (*)(const void* captures, std::uint64_t first, std::uint64_t count);

struct LaunchPacket {
  std::uint64_t entry;  ///< KernelEntry, as an address
  std::uint64_t items;  ///< size of the grid
  std::uint64_t items_per_wave;
  std::uint32_t capture_bytes;
  std::uint32_t reserved0;
  char name[kernel_name_bytes];  ///< NUL-terminated, for errors and the trace
  alignas(16) unsigned char captures[capture_bytes_max];
};

/// How a launch ended. Slot of launch n is n % queue_entries; valid once completed > n and until launch n +
/// queue_entries is submitted.
struct LaunchResult {
  std::uint32_t code;  ///< ferry::Code, 0 if well
  std::uint32_t reserved0;
  std::uint64_t wave;            ///< first wave that failed
  std::uint64_t address;         ///< address that it touched, 0 if none
  std::uint64_t device_time_ns;  ///< from its first wave's start to its last one's end
  char text[480];                ///< NUL-terminated
};

/// Compute units belong to the machine: each is lent to one device process at a time, for compute or for a graphics
/// job. Grants and their end come through the agent's port.
struct alignas(64) UnitControl {
  // Written by the manager before the device starts.
  std::uint32_t leave_while_faulting;  ///< 1: a unit is left at once; 0: when no wave that holds it waits for a fault
  std::uint32_t wait_in_place;         ///< 1: while a wave waits for a fault, its unit runs no other wave
  /// Written by the manager. 1: others want the units, so changes of `demand` are posted; 0: nobody asks for it.
  std::atomic<std::uint32_t> report_demand;
  /// Written by the device: compute units that it has waves for.
  alignas(64) std::atomic<std::uint32_t> demand;
};

/// A graphics job on its way to the device and back. The slot's number is the lowest of the job's compute units.
struct JobSlot {
  LaunchPacket packet;  ///< written by the manager before run_job
  LaunchResult result;  ///< written by the device before job_done
};

struct DeviceControl {
  alignas(64) ControlHead head;
  std::uint32_t cu_count;
  /// Waves of one compute unit that may wait in faults before it begins no more; 0: no limit. Advice of the manager,
  /// against waves that evict each other's granules.
  std::atomic<std::uint32_t> wave_limit;
  /// 1: touches of memory outside the window are faults as well, and adopt it; 0: they end the kernel. Written by the
  /// manager before the device starts.
  std::uint32_t adopts;
  /// Number of the application's last unmap. A fault names the number that stood when it was posted.
  std::atomic<std::uint64_t> changes;
  alignas(64) Port agent;
  Port cus[max_cus];  ///< cus[0 .. cu_count)
  alignas(64) UnitControl units;
  alignas(64) JobSlot jobs[max_cus];
};

// --- user-mode queues ------------------------------------------------------------------------------------------------

struct Queue {
  alignas(64) std::atomic<std::uint64_t> submitted;  ///< launches written by the application so far
  std::atomic<std::uint32_t> submit_futex;           ///< bumped with `submitted`
  alignas(64) std::atomic<std::uint64_t> completed;  ///< launches ended so far, in order; written by the device
  std::atomic<std::uint32_t> complete_futex;         ///< bumped with `completed`
  std::atomic<std::uint32_t> app_sleeping;           ///< waiters in the application that sleep on complete_futex
  std::atomic<std::uint64_t> waves_done;             ///< of the launch that runs, for progress
  alignas(64) LaunchPacket packets[queue_entries];
  LaunchResult results[queue_entries];
};

/// Text of ferry::print: a byte ring from device to application. Writers reserve by compare-and-swap on `reserved` and
/// publish in order through `written`; what finds no room within a bounded wait is dropped and counted.
inline constexpr std::uint32_t print_ring_bytes = 1U << 20;
struct PrintRing {
  alignas(64) std::atomic<std::uint64_t> reserved;
  std::atomic<std::uint64_t> written;
  std::atomic<std::uint64_t> dropped_bytes;
  alignas(64) std::atomic<std::uint64_t> read;  ///< written by the application
  char bytes[print_ring_bytes];
};

struct QueueControl {
  alignas(64) ControlHead head;
  /// 0 starting, 1 running, 2 gone (set by the application or manager side that noticed). Futex word.
  std::atomic<std::uint32_t> device_state;
  /// Bumped on every submit on any queue; the device's idle compute units sleep on it.
  std::atomic<std::uint32_t> doorbell;
  std::atomic<std::uint32_t> device_sleepers;  ///< compute units asleep on doorbell: a submit wakes only if not 0
  alignas(64) Queue queues[max_queues];
  PrintRing print;
};

}  // namespace ferry::wire

// The device processes of this program: attached on first use, again after one was lost. Any thread.
// Owns: each device's files and the mapping of its queues. Does not own: launches (queues.h).
#pragma once

#include <ferry/ferry.h>

#include <atomic>

#include "client/session.h"
#include "linux/fd.h"
#include "wire/control.h"

namespace ferry::client {

struct DeviceFiles {
  linux::Fd vram;
  linux::Fd control;
  linux::Fd queues;
};

/// Session: what the manager gave for the device.
void set_device_files(unsigned device, DeviceFiles files);

/// The queues of a device that runs, attaching it if need be. A mapping once given stays valid for the life of the
/// process (and says device_state 2 when its device is gone). Null, with `error` filled: device_lost, no_memory.
wire::QueueControl* attached_queues(Session& session, unsigned device, ferry_error* error);

/// The last mapping given, or null. For waiting and draining: never attaches.
wire::QueueControl* current_queues(unsigned device);

/// Reader thread: the device's process has ended. Wakes everybody who waits for it.
void device_lost(unsigned device);

/// Sends a file to a device that runs, as `serial`. Never waits. Any thread. ERRORS: device_lost, io_error.
Status send_served_file(unsigned device, std::uint32_t serial, int file);

/// Closes this process's copies of the files: in a child of the application's fork.
void abandon_devices();

inline constexpr std::uint32_t device_running = 1;
inline constexpr std::uint32_t device_gone = 2;

}  // namespace ferry::client

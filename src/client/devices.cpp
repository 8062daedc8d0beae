#include "client/devices.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>

#include "client/adopt/code_data.h"
#include "client/error.h"
#include "client/heap/process_heap.h"
#include "client/immortal.h"
#include "client/zygote.h"
#include "device/program_data.h"
#include "linux/futex.h"
#include "linux/lock.h"
#include "linux/socket.h"
#include "wire/adopt.h"
#include "wire/ring.h"

namespace ferry::client {
namespace {

constinit linux::LockClass device_lock("files of a device", linux::LockRank::device);
constinit linux::LockClass served_lock("socket for files of the program", linux::LockRank::leaf);

struct Device {
  linux::Mutex mutex{device_lock};
  DeviceFiles files;  // guarded by mutex; queues is invalid when fresh ones are needed
  std::atomic<wire::QueueControl*> queues{nullptr};
  linux::Mutex served_mutex{served_lock};
  linux::Fd served;  ///< guarded by served_mutex: to the process's agent
};
constinit Immortal<std::array<Device, max_devices>> devices;

bool fetch_fresh_files(Session& session, unsigned device, Device& d, ferry_error* error) {
  Answer answer;
  const Status asked = session.requests.ask(wire::MessageType::device_control, wire::AttachDevice{device, 0}, answer);
  if (!asked.ok() || answer.type() != wire::MessageType::device_files || answer.fd_count() < 2) {
    fail(error, asked.ok() ? Status(Code::bad_message) : asked, "the device was lost and no new one can be had");
    return false;
  }
  d.files.control = answer.take_fd(0);
  d.files.queues = answer.take_fd(1);
  return true;
}

wire::QueueControl* map_queues(Device& d, ferry_error* error) {
  void* at = ::mmap(nullptr, sizeof(wire::QueueControl), PROT_READ | PROT_WRITE, MAP_SHARED, d.files.queues.get(), 0);
  if (at == MAP_FAILED) {
    fail(error, Code::no_memory, errno, "cannot map the device's queues: %s", std::strerror(errno));
    return nullptr;
  }
  ::madvise(at, sizeof(wire::QueueControl), MADV_DONTFORK);
  auto* queues = static_cast<wire::QueueControl*>(at);
  if (wire::compatible(queues->head)) return queues;
  fail(error, Code::bad_version, 0, "the device's queue file is of another version");
  ::munmap(at, sizeof(wire::QueueControl));
  return nullptr;
}

/// No fault and no error comes of such globals: a kernel reads and writes the device's bytes. Once in a process.
void tell_of_own_globals() {
  static constinit std::atomic_flag told;
  const wire::Refusal why = device::program_parts_refusal();
  if (why == wire::Refusal::none || told.test_and_set()) return;
  char text[400];
  const int bytes =
      std::snprintf(text, sizeof text, "ferry: kernels do not see this program's globals: %s\n", to_text(why));
  // Without stdio, whose buffers may be managed memory.
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text, static_cast<std::size_t>(bytes));
}

bool start_process(Session& session, unsigned device, Device& d, ferry_error* error) {
  auto pair = linux::make_socket_pair();
  if (!pair) {
    fail(error, pair.status(), "cannot make a socket for the device");
    return false;
  }
  forget_code_data(device);
  DeviceSpawn spawn;
  spawn.device = device;
  spawn.cu_count = session.machine.cu_count;
  spawn.waves_per_cu = session.machine.waves_per_cu;
  spawn.window_base = session.window_base;
  spawn.window_bytes = session.window_bytes;
  auto files = linux::make_socket_pair();
  if (!files) {
    fail(error, files.status(), "cannot make a socket for the device");
    return false;
  }
  int fds[device_fd_count];
  fds[fd_files] = files.value().second.get();
  fds[fd_manager] = pair.value().second.get();
  fds[fd_kick] = session.kick.get();
  fds[fd_system] = session.system_file.get();
  fds[fd_vram] = d.files.vram.get();
  fds[fd_device_control] = d.files.control.get();
  fds[fd_queue_control] = d.files.queues.get();
  const auto pid = spawn_device(spawn, fds);
  if (!pid) {
    fail(error, Code::device_lost, pid.status().sys_errno,
         "no device process can be started: %s; this program must be started again to use a device",
         pid.status().sys_errno != 0 ? std::strerror(pid.status().sys_errno)
                                     : "the template process that forks them has ended");
    return false;
  }
  // Only the process itself may hold its end, or the manager would not see it close.
  pair.value().second.reset();
  files.value().second.reset();
  {
    const linux::LockGuard lock(d.served_mutex);
    d.served = std::move(files.value().first);
  }
  Answer answer;
  const int end[] = {pair.value().first.get()};
  const Status attached =
      session.requests.ask(wire::MessageType::attach_device, wire::AttachDevice{device, 0}, answer, end);
  if (attached.ok() && answer.type() == wire::MessageType::attached) {
    tell_of_own_globals();
    return true;
  }
  fail(error, attached.ok() ? Status(Code::bad_message) : attached, "the device process did not start");
  return false;
}

}  // namespace

void set_device_files(unsigned device, DeviceFiles files) { (*devices)[device].files = std::move(files); }

wire::QueueControl* current_queues(unsigned device) {
  return (*devices)[device].queues.load(std::memory_order_acquire);
}

wire::QueueControl* attached_queues(Session& session, unsigned device, ferry_error* error) {
  Device& d = (*devices)[device];
  wire::QueueControl* queues = d.queues.load(std::memory_order_acquire);
  if (queues != nullptr && queues->device_state.load(std::memory_order_acquire) != device_gone) [[likely]] {
    return queues;
  }
  const NativeMallocScope native;
  const linux::LockGuard lock(d.mutex);
  queues = d.queues.load(std::memory_order_acquire);
  if (queues != nullptr && queues->device_state.load(std::memory_order_acquire) != device_gone) return queues;
  // Files that a process has used (or failed to use) are not given to another one.
  if (!d.files.queues && !fetch_fresh_files(session, device, d, error)) return nullptr;
  wire::QueueControl* mapped = map_queues(d, error);
  if (mapped == nullptr) return nullptr;
  // Before the process starts: if it ends at once, the message about it must find this mapping.
  d.queues.store(mapped, std::memory_order_release);
  const bool started = start_process(session, device, d, error);
  d.files.queues.reset();
  d.files.control.reset();
  if (started) return mapped;
  device_lost(device);
  return nullptr;
}

void abandon_devices() {
  for (Device& d : *devices) {
    d.files = {};
    d.served.reset();
  }
}

Status send_served_file(unsigned device, std::uint32_t serial, int file) {
  if (device >= max_devices) return Code::device_lost;
  Device& d = (*devices)[device];
  const linux::LockGuard lock(d.served_mutex);
  if (!d.served) return Code::device_lost;
  const int fds[] = {file};
  constexpr int no_wait = 0;
  return linux::send_message(d.served.get(), wire::MessageType::served_file, 0, wire::ServedFile{serial, 0}, fds,
                             no_wait);
}

void device_lost(unsigned device) {
  if (device >= max_devices) return;
  wire::QueueControl* queues = (*devices)[device].queues.load(std::memory_order_acquire);
  if (queues == nullptr) return;
  queues->device_state.store(device_gone, std::memory_order_release);
  linux::futex_wake(queues->device_state, INT_MAX);
  for (auto& queue : queues->queues) {
    // Bumped, so that who is about to sleep on it does not.
    queue.complete_futex.fetch_add(1, std::memory_order_seq_cst);
    linux::futex_wake(queue.complete_futex, INT_MAX);
  }
}

}  // namespace ferry::client

#include "client/queues.h"
#include "client/adopt/settle.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <climits>
#include <cstdio>
#include <cstring>
#include <new>

#include "base/types.h"
#include "client/adopt/stopped.h"
#include "client/devices.h"
#include "client/error.h"
#include "client/heap/process_heap.h"
#include "client/output.h"
#include "client/session.h"
#include "client/zygote.h"
#include "linux/futex.h"
#include "linux/lock.h"

using ferry::Code;

namespace ferry::client {
namespace {
constinit linux::LockClass queue_set_lock("queues of a device", linux::LockRank::queue_set);
constinit linux::LockClass queue_lock("queue", linux::LockRank::queue);
}  // namespace
}  // namespace ferry::client

/// One user-mode queue. Launch numbers go on over device losses: `base` is the number of the current mapping's first.
struct ferry_queue {
  struct Failure {
    std::uint64_t number;
    ferry_error error;
  };
  static constexpr std::size_t failures_kept = 256;

  unsigned device = 0;
  unsigned index = 0;
  bool taken = false;  // guarded by the set's mutex

  ferry::linux::Mutex mutex{ferry::client::queue_lock};  // guards all below
  ferry::wire::QueueControl* control = nullptr;
  std::uint64_t base = 0;
  std::uint64_t submitted = 0;
  std::uint64_t harvested = 0;  ///< launches below this number have ended, and their errors are in `failures`
  std::uint64_t failed = 0;     ///< failures so far
  std::array<Failure, failures_kept> failures;

  [[nodiscard]] ferry::wire::Queue& shared() const { return control->queues[index]; }
};

namespace ferry::client {
namespace {

// A wave is large enough for its cost to vanish, and there are enough of them that no compute unit is idle for long.
constexpr std::uint64_t waves_per_cu_wanted = 16;
constexpr std::uint64_t items_per_wave_max = 65536;
// Who waits looks after the kernel's output this often.
constexpr std::uint64_t output_interval_ns = 20'000'000;

struct QueueSet {
  linux::Mutex mutex{queue_set_lock};
  std::array<ferry_queue*, wire::max_queues> queues{};
  // Queues of ferry_run: those that nobody uses now.
  std::array<ferry_queue*, wire::max_queues> idle{};
  unsigned idle_count = 0;
  unsigned run_queues = 0;
};
constinit std::array<QueueSet, max_devices> sets{};

// Leaves the program half of the queues however many of its threads call ferry_run.
constexpr unsigned run_queues_max = wire::max_queues / 2;

void keep_failure(ferry_queue& q, std::uint64_t number, const ferry_error& error) {
  q.failures[q.failed % ferry_queue::failures_kept] = {number, error};
  ++q.failed;
}

void name_of(const ferry_queue& q, std::uint64_t number, char (&out)[FERRY_KERNEL_NAME_BYTES]) {
  const auto& packet = q.shared().packets[(number - q.base) % wire::queue_entries];
  static_assert(sizeof packet.name == sizeof out);
  std::memcpy(out, packet.name, sizeof out);
  out[sizeof out - 1] = '\0';
  if (out[0] == '\0') std::strcpy(out, "kernel");
}

/// Takes note of what has ended. q.mutex is held.
void harvest(ferry_queue& q) {
  if (q.control == nullptr) return;
  auto& shared = q.shared();
  const std::uint64_t local = shared.completed.load(std::memory_order_acquire);
  // The device is another process: what it writes is bounded by what was asked of it.
  const std::uint64_t end = std::min(q.base + local, q.submitted);
  for (; q.harvested < end; ++q.harvested) {
    const auto& result = shared.results[(q.harvested - q.base) % wire::queue_entries];
    if (result.code == 0) continue;
    ferry_error error{};
    error.code = static_cast<ferry_code>(result.code);
    error.wave = result.wave;
    error.address = result.address;
    name_of(q, q.harvested, error.kernel);
    char text[sizeof result.text];
    std::memcpy(text, result.text, sizeof text);
    text[sizeof text - 1] = '\0';
    std::snprintf(error.text, sizeof error.text, "%s",
                  text[0] == '\0' ? to_string(static_cast<Code>(result.code)) : text);
    keep_failure(q, q.harvested, error);
  }
}

/// The device of the current mapping is gone: all that had not ended has failed. q.mutex is held.
void harvest_lost(ferry_queue& q) {
  harvest(q);
  for (; q.harvested < q.submitted; ++q.harvested) {
    ferry_error error{};
    error.code = FERRY_DEVICE_LOST;
    name_of(q, q.harvested, error.kernel);
    std::snprintf(error.text, sizeof error.text,
                  "kernel '%s': the process of device %u ended while it ran; memory is kept, and the next launch "
                  "starts a new one",
                  error.kernel, q.device);
    keep_failure(q, q.harvested, error);
  }
}

[[nodiscard]] bool is_gone(const wire::QueueControl* control) {
  return control->device_state.load(std::memory_order_acquire) == device_gone;
}

/// q.mutex is held. True once the launch has ended.
bool settle(ferry_queue& q, std::uint64_t number) {
  if (number < q.harvested) return true;
  if (q.control == nullptr) return false;
  if (is_gone(q.control)) {
    harvest_lost(q);
  } else {
    harvest(q);
  }
  return number < q.harvested;
}

/// Waits until launch `number` (which was submitted) has ended. q.mutex is not held.
void await(ferry_queue& q, std::uint64_t number) {
  linux::AdaptiveSpin spin(2'000, 100'000);
  for (;;) {
    wire::QueueControl* control = nullptr;
    std::uint64_t local = 0;
    {
      const linux::LockGuard lock(q.mutex);
      if (settle(q, number)) return;
      control = q.control;
      local = number - q.base;
    }
    auto& shared = control->queues[q.index];
    const auto ended = [&] { return shared.completed.load(std::memory_order_acquire) > local || is_gone(control); };
    if (spin.until(ended)) continue;
    shared.app_sleeping.fetch_add(1, std::memory_order_seq_cst);
    const std::uint32_t seen = shared.complete_futex.load(std::memory_order_seq_cst);
    if (!ended()) wait_on(shared.complete_futex, seen, output_interval_ns);
    shared.app_sleeping.fetch_sub(1, std::memory_order_seq_cst);
    drain_output(*control);
  }
}

ferry_code outcome(ferry_queue& q, std::uint64_t number, ferry_error* error) {
  const linux::LockGuard lock(q.mutex);
  const std::uint64_t kept = std::min<std::uint64_t>(q.failed, ferry_queue::failures_kept);
  for (std::uint64_t i = 0; i < kept; ++i) {
    const auto& failure = q.failures[i];
    if (failure.number != number) continue;
    if (error != nullptr) *error = failure.error;
    return failure.error.code;
  }
  if (q.failed > kept && number < q.failures[q.failed % ferry_queue::failures_kept].number) {
    return fail(error, Code::cancelled, 0,
                "how launch %llu ended is no longer known: %zu launches of its queue have failed since",
                static_cast<unsigned long long>(number), ferry_queue::failures_kept);
  }
  if (error != nullptr) *error = {};
  return FERRY_OK;
}

std::uint64_t choose_items_per_wave(const Session& session, std::uint64_t items) {
  const std::uint64_t waves = session.machine.cu_count * waves_per_cu_wanted;
  return std::clamp<std::uint64_t>((items + waves - 1) / waves, 1, items_per_wave_max);
}

/// Brings the queue to the device's current mapping. q.mutex is held.
bool follow_device(Session& session, ferry_queue& q, ferry_error* error) {
  wire::QueueControl* control = attached_queues(session, q.device, error);
  if (control == nullptr) return false;
  if (control == q.control) return true;
  if (q.control != nullptr) harvest_lost(q);
  q.control = control;
  // Fresh files start at 0.
  q.base = q.submitted - q.shared().submitted.load(std::memory_order_relaxed);
  return true;
}

void write_packet(wire::LaunchPacket& packet, const Launch& launch, std::uint64_t items_per_wave) {
  packet.entry = reinterpret_cast<std::uint64_t>(launch.kernel);
  packet.items = launch.items;
  packet.items_per_wave = items_per_wave;
  packet.capture_bytes = static_cast<std::uint32_t>(launch.capture_bytes);
  packet.reserved0 = 0;
  std::snprintf(packet.name, sizeof packet.name, "%s", launch.name == nullptr ? "kernel" : launch.name);
  if (launch.capture_bytes != 0) std::memcpy(packet.captures, launch.captures, launch.capture_bytes);
}

void ring_doorbell(wire::QueueControl& control) {
  control.doorbell.fetch_add(1, std::memory_order_seq_cst);
  if (control.device_sleepers.load(std::memory_order_seq_cst) != 0) linux::futex_wake(control.doorbell, INT_MAX);
}

ferry_queue* new_queue(unsigned device, QueueSet& set, ferry_error* error) {
  for (unsigned i = 0; i < wire::max_queues; ++i) {
    if (set.queues[i] == nullptr) {
      const NativeMallocScope native;
      set.queues[i] = new (std::nothrow) ferry_queue;
      if (set.queues[i] == nullptr) break;
      set.queues[i]->device = device;
      set.queues[i]->index = i;
    } else if (set.queues[i]->taken) {
      continue;
    }
    set.queues[i]->taken = true;
    return set.queues[i];
  }
  if (set.idle_count != 0) {
    // One of the library's own that nobody uses now.
    --set.run_queues;
    return set.idle[--set.idle_count];
  }
  fail(error, Code::no_memory, 0, "all %u queues of device %u are in use: destroy some", wire::max_queues, device);
  return nullptr;
}

class RunQueue {
 public:
  RunQueue(unsigned device, ferry_error* error) : set_(sets[device]) {
    const linux::LockGuard lock(set_.mutex);
    if (set_.idle_count != 0) {
      queue_ = set_.idle[--set_.idle_count];
    } else if (set_.run_queues < run_queues_max) {
      queue_ = new_queue(device, set_, error);
      if (queue_ != nullptr) ++set_.run_queues;
    }
  }
  ~RunQueue() {
    if (queue_ == nullptr) return;
    const linux::LockGuard lock(set_.mutex);
    set_.idle[set_.idle_count++] = queue_;
  }
  RunQueue(const RunQueue&) = delete;
  RunQueue& operator=(const RunQueue&) = delete;
  [[nodiscard]] ferry_queue* get() const { return queue_; }

 private:
  QueueSet& set_;
  ferry_queue* queue_ = nullptr;
};

}  // namespace

ferry_queue* create_queue(unsigned device, ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr) return nullptr;
  if (device >= session->machine.device_count) {
    fail(error, Code::bad_range, 0,
         "there is no device %u: this machine has %u (FERRY_DEVICES, or ferry run --devices)", device,
         session->machine.device_count);
    return nullptr;
  }
  QueueSet& set = sets[device];
  const linux::LockGuard lock(set.mutex);
  return new_queue(device, set, error);
}

void destroy_queue(ferry_queue* queue) {
  if (queue == nullptr || !may_use_session(nullptr)) return;
  std::uint64_t submitted = 0;
  {
    const linux::LockGuard lock(queue->mutex);
    submitted = queue->submitted;
  }
  if (submitted != 0) await(*queue, submitted - 1);
  QueueSet& set = sets[queue->device];
  const linux::LockGuard lock(set.mutex);
  queue->taken = false;
}

ferry_code submit(ferry_queue* queue, const Launch& launch, std::uint64_t* number, ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr) return error != nullptr ? error->code : FERRY_UNSUPPORTED;
  if (launch.capture_bytes > wire::capture_bytes_max) {
    return fail(error, Code::bad_range, 0,
                "%zu bytes of captures are more than the %u that a launch carries: put them into managed memory",
                launch.capture_bytes, wire::capture_bytes_max);
  }
  if (!zygote_has_code(reinterpret_cast<std::uintptr_t>(launch.kernel))) {
    return fail(error, Code::bad_range, 0,
                "kernel '%s' at %p is not code that the device has: link the library that it is in, or load it before "
                "main() (kernels of libraries that dlopen brought later cannot run)",
                launch.name == nullptr ? "kernel" : launch.name, reinterpret_cast<const void*>(launch.kernel));
  }
  // The kernel may have been given an address that was something else's a moment ago.
  if (const Status settled = settle_before_launch(*session); !settled.ok()) {
    return fail(error, settled.code, settled.sys_errno, "the manager does not answer");
  }
  ferry_queue& q = *queue;
  linux::UniqueLock lock(q.mutex);
  for (;;) {
    ferry_error attach_error{};
    if (!follow_device(*session, q, &attach_error)) {
      if (error != nullptr) *error = attach_error;
      return attach_error.code;
    }
    harvest(q);
    if (q.submitted - q.harvested < wire::queue_entries) break;
    const std::uint64_t oldest = q.harvested;
    lock.unlock();
    await(q, oldest);
    lock.lock();
  }
  auto& shared = q.shared();
  const std::uint64_t local = q.submitted - q.base;
  const std::uint64_t per_wave =
      launch.items_per_wave != 0 ? launch.items_per_wave : choose_items_per_wave(*session, launch.items);
  write_packet(shared.packets[local % wire::queue_entries], launch, per_wave);
  if (number != nullptr) *number = q.submitted;
  ++q.submitted;
  shared.submitted.store(local + 1, std::memory_order_seq_cst);
  shared.submit_futex.fetch_add(1, std::memory_order_relaxed);
  ring_doorbell(*q.control);
  return FERRY_OK;
}

ferry_code wait_for(ferry_queue* queue, std::uint64_t number, ferry_error* error) {
  if (!may_use_session(error)) return FERRY_UNSUPPORTED;
  {
    const linux::LockGuard lock(queue->mutex);
    if (number >= queue->submitted) {
      return fail(error, Code::bad_range, 0, "launch %llu was never made on this queue",
                  static_cast<unsigned long long>(number));
    }
  }
  await(*queue, number);
  if (wire::QueueControl* control = current_queues(queue->device)) drain_output(*control);
  return outcome(*queue, number, error);
}

bool has_ended(ferry_queue* queue, std::uint64_t number) {
  if (!may_use_session(nullptr)) return true;
  const linux::LockGuard lock(queue->mutex);
  return settle(*queue, number);
}

ferry_code run(const Launch& launch, ferry_error* error) {
  if (open_session(nullptr, error) == nullptr) return error != nullptr ? error->code : FERRY_UNSUPPORTED;
  const RunQueue own(0, error);
  ferry_queue* queue = own.get();
  if (queue == nullptr) {
    // All are in use by other threads: stand in line in one of them.
    const linux::LockGuard lock(sets[0].mutex);
    for (ferry_queue* q : sets[0].queues) {
      if (q != nullptr) queue = q;
    }
  }
  // Threads may share a queue, and a failure cancels what stands behind it. A cancelled launch never began, and another
  // thread's failure is none of this caller's business: it asks again. Bounded, so that an error that stays is told.
  for (unsigned turn = 0;; ++turn) {
    std::uint64_t number = 0;
    ferry_code code = submit(queue, launch, &number, error);
    if (code == FERRY_OK) code = wait_for(queue, number, error);
    if (code != FERRY_CANCELLED || turn == 1000) return code;
  }
}

bool all_idle() {
  for (QueueSet& set : sets) {
    const linux::LockGuard lock(set.mutex);
    for (ferry_queue* queue : set.queues) {
      if (queue == nullptr) continue;
      const linux::LockGuard queue_lock(queue->mutex);
      if (queue->submitted != 0 && !settle(*queue, queue->submitted - 1)) return false;
    }
  }
  return true;
}

void wait_for_all() {
  if (!may_use_session(nullptr)) return;
  for (QueueSet& set : sets) {
    for (unsigned i = 0; i < wire::max_queues; ++i) {
      ferry_queue* queue = nullptr;
      {
        const linux::LockGuard lock(set.mutex);
        queue = set.queues[i];
      }
      if (queue == nullptr) continue;
      std::uint64_t submitted = 0;
      {
        const linux::LockGuard lock(queue->mutex);
        submitted = queue->submitted;
      }
      if (submitted != 0) await(*queue, submitted - 1);
      if (wire::QueueControl* control = current_queues(queue->device)) drain_output(*control);
    }
  }
}

}  // namespace ferry::client

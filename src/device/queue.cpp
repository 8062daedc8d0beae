#include "device/queue.h"

#include <algorithm>
#include <bit>
#include <climits>
#include <cstring>
#include <string_view>

#include "base/status.h"
#include "device/text.h"
#include "linux/futex.h"
#include "wire/ring.h"

namespace ferry::device {
namespace {

constexpr unsigned wave_bits = 44;
constexpr std::uint64_t wave_mask = (std::uint64_t{1} << wave_bits) - 1;
/// Half of what the field holds: compute units that come late add a claim each past the end.
constexpr std::uint64_t waves_max = std::uint64_t{1} << (wave_bits - 1);
constexpr std::uint64_t claim_max = 32;

constexpr std::uint64_t tag_of(std::uint64_t launch) { return launch << wave_bits; }

void set_failure(wire::LaunchResult& result, Code code, std::string_view text) {
  result = {};
  result.code = static_cast<std::uint32_t>(code);
  Text(result.text, sizeof result.text) << text;
}

}  // namespace

void QueueSet::open(wire::QueueControl& control, unsigned cu_count) {
  control_ = &control;
  cu_count_ = cu_count;
  for (unsigned i = 0; i < wire::max_queues; ++i) {
    queues_[i].shared = &control.queues[i];
    queues_[i].number = i;
    queues_[i].launch = control.queues[i].completed.load(std::memory_order_relaxed);
  }
}

void QueueSet::scan(QueueObserver& observer) {
  for (DeviceQueue& queue : queues_) {
    if (queue.stage.load(std::memory_order_relaxed) != DeviceQueue::idle) continue;
    // Both words change under other threads' hands; equal means idle at some moment, and whoever changes `submitted`
    // rings the doorbell afterwards.
    if (queue.shared->submitted.load(std::memory_order_acquire) ==
        queue.shared->completed.load(std::memory_order_acquire)) {
      continue;
    }
    std::uint32_t expected = DeviceQueue::idle;
    if (queue.stage.compare_exchange_strong(expected, DeviceQueue::busy, std::memory_order_seq_cst)) {
      advance(queue, observer);
    }
  }
}

bool QueueSet::claimable(std::uint32_t except) const {
  for (std::uint32_t mask = active() & ~except; mask != 0; mask &= mask - 1) {
    const DeviceQueue& queue = queues_[std::countr_zero(mask)];
    const std::uint64_t next = queue.next_wave.load(std::memory_order_acquire);
    const std::uint64_t limit = queue.wave_limit.load(std::memory_order_relaxed);
    if ((next & ~wave_mask) == (limit & ~wave_mask) && next < limit) return true;
  }
  return false;
}

Claim QueueSet::claim(unsigned number) {
  DeviceQueue& queue = queues_[number];
  const std::uint64_t seen = queue.next_wave.load(std::memory_order_acquire);
  std::uint64_t limit = queue.wave_limit.load(std::memory_order_relaxed);
  // Look before taking: the counter must not be pushed on by every look at an empty queue.
  if ((seen & ~wave_mask) != (limit & ~wave_mask) || seen >= limit) return {};
  const std::uint64_t take = std::clamp<std::uint64_t>((limit - seen) / (std::uint64_t{4} * cu_count_), 1, claim_max);
  const std::uint64_t got = queue.next_wave.fetch_add(take, std::memory_order_acq_rel);
  // Once more: meanwhile the launch may have ended and the next one begun, whose waves these are then.
  limit = queue.wave_limit.load(std::memory_order_relaxed);
  if ((got & ~wave_mask) != (limit & ~wave_mask) || got >= limit) return {};
  return {got & wave_mask, std::min(got + take, limit) & wave_mask};
}

Claim QueueSet::claim_rest(unsigned number) {
  DeviceQueue& queue = queues_[number];
  const std::uint64_t limit = queue.wave_limit.load(std::memory_order_relaxed);
  std::uint64_t next = queue.next_wave.load(std::memory_order_acquire);
  while ((next & ~wave_mask) == (limit & ~wave_mask) && next < limit) {
    if (queue.next_wave.compare_exchange_weak(next, limit, std::memory_order_acq_rel)) {
      return {next & wave_mask, limit & wave_mask};
    }
  }
  return {};
}

void QueueSet::done(unsigned number, std::uint64_t count, QueueObserver& observer) {
  DeviceQueue& queue = queues_[number];
  const std::uint64_t waves = queue.waves;
  const std::uint64_t now = queue.waves_done.fetch_add(count, std::memory_order_acq_rel) + count;
  queue.shared->waves_done.store(now, std::memory_order_relaxed);
  if (now != waves) return;

  active_.fetch_and(~(1U << number), std::memory_order_relaxed);
  queue.stage.store(DeviceQueue::busy, std::memory_order_relaxed);
  wire::LaunchResult result{};
  if (queue.failed.load(std::memory_order_acquire) != 0) {
    result = queue.failure;
    queue.cancel_before = queue.shared->submitted.load(std::memory_order_acquire);
  }
  result.device_time_ns = linux::monotonic_ns() - queue.begin_ns;
  observer.launch_ended(queue, result.code);
  publish(queue, result);
  advance(queue, observer);
}

void QueueSet::publish(DeviceQueue& queue, const wire::LaunchResult& result) {
  wire::Queue& shared = *queue.shared;
  shared.results[queue.launch % wire::queue_entries] = result;
  ++queue.launch;
  shared.completed.store(queue.launch, std::memory_order_seq_cst);
  shared.complete_futex.fetch_add(1, std::memory_order_seq_cst);
  if (shared.app_sleeping.load(std::memory_order_seq_cst) != 0) linux::futex_wake(shared.complete_futex, INT_MAX);
}

void QueueSet::advance(DeviceQueue& queue, QueueObserver& observer) {
  for (;;) {
    const std::uint64_t submitted = queue.shared->submitted.load(std::memory_order_seq_cst);
    const std::uint64_t behind = submitted - queue.launch;
    // More than the ring holds, or less than none: the application has spoilt its own queue, which then rests.
    if (behind != 0 && behind <= wire::queue_entries) {
      if (activate(queue, observer)) return;
      continue;
    }
    queue.stage.store(DeviceQueue::idle, std::memory_order_seq_cst);
    // A submit between the look and the store found the queue busy, and others did not start it.
    if (queue.shared->submitted.load(std::memory_order_seq_cst) == submitted) return;
    std::uint32_t expected = DeviceQueue::idle;
    if (!queue.stage.compare_exchange_strong(expected, DeviceQueue::busy, std::memory_order_seq_cst)) return;
  }
}

bool QueueSet::read_packet(wire::LaunchPacket& packet, DeviceQueue& queue, wire::LaunchResult& refusal) {
  packet.name[wire::kernel_name_bytes - 1] = '\0';
  queue.name = packet.name;
  queue.entry = reinterpret_cast<wire::KernelEntry>(packet.entry);
  queue.captures = packet.captures;
  queue.items = packet.items;
  queue.items_per_wave = packet.items_per_wave == 0 ? 1 : packet.items_per_wave;
  queue.waves = queue.items / queue.items_per_wave + (queue.items % queue.items_per_wave != 0 ? 1 : 0);
  queue.begin_ns = linux::monotonic_ns();
  queue.failed.store(0, std::memory_order_relaxed);
  queue.waves_done.store(0, std::memory_order_relaxed);
  if (queue.entry == nullptr) {
    set_failure(refusal, Code::bad_range, "the launch has no kernel");
  } else if (packet.capture_bytes > wire::capture_bytes_max) {
    set_failure(refusal, Code::bad_range, "the captures are too large");
  } else if (queue.waves > waves_max) {
    set_failure(refusal, Code::bad_range, "the grid has too many waves");
  } else {
    return true;
  }
  return false;
}

/// False: the launch has ended at once, and was published.
bool QueueSet::activate(DeviceQueue& queue, QueueObserver& observer) {
  wire::LaunchResult result{};
  const bool good = read_packet(queue.shared->packets[queue.launch % wire::queue_entries], queue, result);
  queue.shared->waves_done.store(0, std::memory_order_relaxed);
  if (queue.launch < queue.cancel_before) {
    set_failure(result, Code::cancelled, "an earlier launch of the queue failed");
  } else if (!good) {
    // `result` says why.
  } else if (queue.waves != 0) {
    observer.launch_begun(queue);
    const std::uint64_t tag = tag_of(queue.launch);
    queue.wave_limit.store(tag | queue.waves, std::memory_order_relaxed);
    queue.next_wave.store(tag, std::memory_order_release);
    queue.stage.store(DeviceQueue::active, std::memory_order_relaxed);
    active_.fetch_or(1U << queue.number, std::memory_order_seq_cst);
    wake_sleepers();
    return true;
  } else {
    observer.launch_begun(queue);
    observer.launch_ended(queue, 0);
  }
  publish(queue, result);
  return false;
}

void QueueSet::wake_sleepers() {
  // Others may have looked before the launch was there and gone to sleep. Their number is raised before their last
  // look (sequentially consistent, as the store above): none is missed.
  if (control_->device_sleepers.load(std::memory_order_seq_cst) == 0) return;
  control_->doorbell.fetch_add(1, std::memory_order_seq_cst);
  linux::futex_wake(control_->doorbell, INT_MAX);
}

}  // namespace ferry::device

// User-mode queues on the device's side: which launch of each queue runs, and who takes its next waves.
// Used by all compute units at once, without locks: a queue's bookkeeping between two launches belongs to the one
// compute unit that moved `stage` to busy.
//
// One launch of a queue runs at a time, in order; queues run beside each other. When a launch fails, its waves that
// have not started are dropped, and so are the launches that stand behind it in the queue at the time when it ends
// (Code::cancelled). Launches submitted later run.
#pragma once

#include <atomic>
#include <cstdint>

#include "wire/control.h"

namespace ferry::device {

class Text;

/// Waves that a compute unit has taken and not started. They may have been dropped if the launch failed.
struct Claim {
  std::uint64_t next = 0;
  std::uint64_t end = 0;
  [[nodiscard]] bool empty() const { return next == end; }
};

struct alignas(64) DeviceQueue {
  enum Stage : std::uint32_t { idle, busy, active };

  // Both words hold the launch number's low bits above wave_bits, so that a compute unit that comes late cannot take
  // waves of another launch by mistake.
  std::atomic<std::uint64_t> next_wave{0};
  std::atomic<std::uint64_t> wave_limit{0};
  std::atomic<std::uint32_t> stage{idle};

  // Of the launch that runs: written while busy, constant while active.
  alignas(64) wire::Queue* shared = nullptr;
  unsigned number = 0;
  std::uint64_t launch = 0;
  wire::KernelEntry entry = nullptr;
  const void* captures = nullptr;
  const char* name = nullptr;
  std::uint64_t items = 0;
  std::uint64_t items_per_wave = 1;
  std::uint64_t waves = 0;
  std::uint64_t begin_ns = 0;
  std::uint64_t cancel_before = 0;  ///< launches below this number are cancelled

  alignas(64) std::atomic<std::uint64_t> waves_done{0};
  std::atomic<std::uint32_t> failed{0};  ///< 1: some wave failed, the rest is to be dropped
  wire::LaunchResult failure{};          ///< written by the one that set `failed`
};

/// What happens to launches, told to the compute unit that makes it happen.
struct QueueObserver {
  virtual void launch_begun(const DeviceQueue& queue) = 0;
  virtual void launch_ended(const DeviceQueue& queue, std::uint32_t code) = 0;

 protected:
  ~QueueObserver() = default;
};

class QueueSet {
 public:
  /// `control` must outlive this object.
  void open(wire::QueueControl& control, unsigned cu_count);

  [[nodiscard]] std::uint32_t doorbell() const { return control_->doorbell.load(std::memory_order_acquire); }
  /// Starts what was submitted to queues that rest. Read the doorbell before, and come again when it changes.
  void scan(QueueObserver& observer);

  /// Bit q: queue q has a launch that runs.
  [[nodiscard]] std::uint32_t active() const { return active_.load(std::memory_order_acquire); }
  [[nodiscard]] DeviceQueue& queue(unsigned number) { return queues_[number]; }
  /// True if some queue, other than those in the mask `except`, has waves that nobody has taken.
  [[nodiscard]] bool claimable(std::uint32_t except = 0) const;
  /// Takes some of the queue's next waves: few near the end and neighbours before, so that a compute unit streams
  /// through memory. Empty: there are none.
  [[nodiscard]] Claim claim(unsigned number);
  /// After a failure: takes all that are left.
  [[nodiscard]] Claim claim_rest(unsigned number);

  /// `count` taken waves have ended. The last one ends the launch and starts the queue's next one.
  void done(unsigned number, std::uint64_t count, QueueObserver& observer);

  /// Called for a wave that failed, before it is counted as done. True: it is the first of its launch, and the caller
  /// fills queue.failure. The launch's other waves are dropped from now on.
  [[nodiscard]] static bool fail(DeviceQueue& queue) {
    return queue.failed.exchange(1, std::memory_order_acq_rel) == 0;
  }

  /// Has all sleeping compute units look again.
  void wake_sleepers();

  /// What the packet says goes into the fields of the launch that runs. False: no launch can be made of it, and
  /// `refusal` says why.
  [[nodiscard]] static bool read_packet(wire::LaunchPacket& packet, DeviceQueue& queue, wire::LaunchResult& refusal);

  /// Sleeping compute units, for the sleep of Cu (the application wakes them through the doorbell).
  [[nodiscard]] std::atomic<std::uint32_t>& sleepers() { return control_->device_sleepers; }
  [[nodiscard]] std::atomic<std::uint32_t>& doorbell_word() { return control_->doorbell; }

 private:
  void advance(DeviceQueue& queue, QueueObserver& observer);
  bool activate(DeviceQueue& queue, QueueObserver& observer);
  void publish(DeviceQueue& queue, const wire::LaunchResult& result);

  wire::QueueControl* control_ = nullptr;
  unsigned cu_count_ = 1;
  std::atomic<std::uint32_t> active_{0};
  DeviceQueue queues_[wire::max_queues];
};

}  // namespace ferry::device

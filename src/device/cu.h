// A compute unit: one thread that runs waves, each on a fiber of its own, and never waits for one of them while it has
// another to run. Everything here belongs to that thread; the members marked so are called on a wave's stack, from its
// signal handler, which is the same thread.
//
// Waves park anywhere, so they may hold any lock of the program: nothing here allocates, takes a lock, or touches
// managed memory.
#pragma once

#include <array>
#include <csignal>
#include <cstdint>

#include "device/fiber.h"
#include "device/memory.h"
#include "device/queue.h"
#include "linux/futex.h"
#include "wire/ring.h"

namespace ferry::device {

class Cu final : public QueueObserver {
 public:
  Cu() = default;
  Cu(const Cu&) = delete;
  Cu& operator=(const Cu&) = delete;

  /// Before the thread runs. False: no memory for stacks. All references must outlive this object.
  [[nodiscard]] bool open(unsigned number, unsigned waves, wire::DeviceControl& control, QueueSet& queues,
                          const DeviceMemory& memory, int kick_fd);
  /// The thread's body.
  [[noreturn]] void run();

  // --- on a wave's stack ---

  /// The wave that this thread runs, or nullptr.
  [[nodiscard]] Fiber* running() const { return running_; }
  /// A touch of managed memory faulted: parks the wave; returns when the access is to be retried, or never.
  void fault(std::uint64_t address, bool write, bool execute, std::uint64_t instruction);
  /// The wave cannot go on.
  [[noreturn]] void crash(const Crash& crash);
  /// The clock asks whether somebody else should run. `safe`: the wave stands where it can be left.
  void tick(bool safe);
  /// Between hold and release the wave keeps the compute unit, unless it faults.
  bool hold() {
    const bool was = preemptible_;
    preemptible_ = false;
    return was;
  }
  void release(bool was) { preemptible_ = was; }
  void kick() const;

 private:
  static void fiber_main(boost::context::detail::transfer_t transfer);
  void run_kernel(Fiber& fiber);
  void leave(Leave why);

  void take_answers();
  void answer(const wire::DownRecord& record);
  [[nodiscard]] bool has_room() const;
  bool start_wave();
  [[nodiscard]] bool refill(unsigned number);
  void enter(Fiber& fiber);
  void end_wave(Fiber& fiber, bool keep_context);
  void count_done(unsigned queue, std::uint64_t waves);
  void drop_rest(DeviceQueue& queue);
  void report_crash(Fiber& fiber);
  void report_exception(Fiber& fiber);
  void wait();
  void post(const wire::UpRecord& record);
  void set_clock(unsigned period_ms);  // 0: stop

  void launch_begun(const DeviceQueue& queue) override;
  void launch_ended(const DeviceQueue& queue, std::uint32_t code) override;
  void post_trace(wire::UpKind kind, const DeviceQueue& queue, std::uint64_t value);

  // Hot: what switching between waves touches.
  boost::context::detail::fcontext_t scheduler_ = nullptr;
  Fiber* running_ = nullptr;
  Fiber* alternate_owner_ = nullptr;  ///< whose alternate stack the kernel uses for this thread; nullptr: unknown
  void* exceptions_ = nullptr;        ///< this thread's __cxa_eh_globals
  volatile bool preemptible_ = false;
  bool preempted_ = false;   ///< the last wave that was entered left for another's sake
  unsigned clock_ms_ = 0;    ///< period of the clock; 0: stopped
  unsigned wave_ms_ = 0;     ///< since the running wave was entered, by the clock
  unsigned idle_ticks_ = 0;  ///< in a row that changed nothing
  unsigned number_ = 0;
  unsigned waves_ = 0;
  wire::PeerPort port_;
  linux::AdaptiveSpin parked_spin_{5'000, 400'000};
  linux::AdaptiveSpin idle_spin_{5'000, 100'000};

  std::array<std::uint8_t, wire::max_waves_per_cu> free_{};  ///< stack of free slots: the warmest is used first
  unsigned free_count_ = 0;
  std::array<std::uint8_t, wire::max_waves_per_cu> ready_{};  ///< ring of slots that can go on
  unsigned ready_head_ = 0;
  unsigned ready_count_ = 0;
  unsigned waiting_ = 0;

  std::uint32_t doorbell_seen_ = 0;
  unsigned turn_ = 0;          ///< queue that gave the last wave
  std::uint32_t claimed_ = 0;  ///< bit q: claims_[q] is not empty
  std::array<Claim, wire::max_queues> claims_{};
  std::array<std::uint64_t, wire::max_queues> done_{};  ///< ended waves not yet told to the queue

  const wire::DeviceControl* control_ = nullptr;
  QueueSet* queues_ = nullptr;
  const DeviceMemory* memory_ = nullptr;
  int kick_fd_ = -1;
  timer_t clock_{};
  bool has_clock_ = false;
  std::array<Fiber, wire::max_waves_per_cu> fibers_;
};

/// The compute unit whose thread this is, or nullptr.
[[nodiscard]] Cu* current_cu();

}  // namespace ferry::device

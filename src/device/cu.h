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
#include "device/units.h"
#include "linux/futex.h"
#include "wire/ring.h"

namespace ferry::device {

class Cu final : public QueueObserver {
 public:
  Cu() = default;
  Cu(const Cu&) = delete;
  Cu& operator=(const Cu&) = delete;

  /// Before the thread runs. False: no memory for stacks. All references must outlive this object.
  [[nodiscard]] bool open(unsigned number, unsigned waves, wire::DeviceControl& control, QueueSet& queues, Units& units,
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
  /// Lets other waves run, and returns after a while: longer and longer until end_rest(). Not for graphics jobs.
  void rest();
  void end_rest() { rest_ns_ = 0; }

  // --- any thread, once run() has begun ---

  /// Has the wave that runs asked as if by the clock.
  void interrupt() const;

 private:
  /// How often a compute unit that runs one wave asks whether another should run. A tick costs tens of microseconds in
  /// a virtual machine: often only while it helps.
  static constexpr unsigned clock_slow_ms = 20;
  static constexpr unsigned clock_fast_ms = 2;

  static void fiber_main(boost::context::detail::transfer_t transfer);
  void run_kernel(Fiber& fiber);
  void leave(Leave why);

  void take_answers();
  void answer(const wire::DownRecord& record);
  [[nodiscard]] bool has_room() const;
  bool start_wave();
  [[nodiscard]] bool refill(unsigned number);
  void start_on(Fiber& fiber, DeviceQueue& queue, std::uint64_t index);
  void set_wave(Fiber& fiber, DeviceQueue& queue, std::uint64_t index);
  [[nodiscard]] Leave switch_to(Fiber& fiber);
  static void use_alternate(const Fiber& fiber);
  [[nodiscard]] Leave enter(Fiber& fiber);
  void run(Fiber& fiber);
  void end_wave(Fiber& fiber, bool keep_context);
  void count_done(unsigned queue, std::uint64_t waves);
  void drop_rest(DeviceQueue& queue);
  void report_crash(Fiber& fiber);
  void report_exception(Fiber& fiber);
  void wait();
  [[nodiscard]] bool awaited() const;
  void post(const wire::UpRecord& record);
  void set_clock(unsigned period_ms);  // 0: stop

  // cu_units.cpp: the unit that this thread holds, and graphics jobs
  [[nodiscard]] bool settle();
  [[nodiscard]] bool may_leave() const { return waiting_ == 0 || units_->leave_while_faulting(); }
  [[nodiscard]] bool has_work() const;
  void leave_unit();
  void want_unit(bool wanted);
  void set_hungry(bool hungry);
  bool run_job();
  void run_graphics_wave(GraphicsJob& job, std::uint64_t number);
  void wake_resting();

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
  unsigned resting_count_ = 0;
  bool in_place_ = false;  ///< while a wave waits for a fault, no other one runs

  Unit* unit_ = nullptr;        ///< that this thread holds
  bool give_turn_ = false;      ///< the unit is to be given up for another thread of this process
  bool wants_unit_ = false;     ///< counted in the demand
  bool hungry_ = false;         ///< counted by units_
  unsigned unit_ms_ = 0;        ///< since the unit was taken, by the clock
  std::uint32_t nudge_at_ = 0;  ///< place of the last `demand` in the ring
  std::uint64_t rest_ns_ = 0;   ///< how long resting waves rest now
  std::uint64_t rest_until_ns_ = 0;
  pid_t thread_ = 0;

  std::uint32_t doorbell_seen_ = 0;
  unsigned turn_ = 0;          ///< queue that gave the last wave
  std::uint32_t claimed_ = 0;  ///< bit q: claims_[q] is not empty
  std::array<Claim, wire::max_queues> claims_{};
  std::array<std::uint64_t, wire::max_queues> done_{};  ///< ended waves not yet told to the queue

  const wire::DeviceControl* control_ = nullptr;
  QueueSet* queues_ = nullptr;
  Units* units_ = nullptr;
  const DeviceMemory* memory_ = nullptr;
  int kick_fd_ = -1;
  timer_t clock_{};
  bool has_clock_ = false;
  std::array<Fiber, wire::max_waves_per_cu> fibers_;
  std::array<std::uint8_t, wire::max_waves_per_cu> resting_{};
  Fiber graphics_;  ///< for waves of graphics jobs, which run while those of compute are parked
};

/// The compute unit whose thread this is, or nullptr.
[[nodiscard]] Cu* current_cu();

}  // namespace ferry::device

// The compute units that the manager lends to this device process, and the graphics jobs that it has it run on some.
// Any compute unit's thread may run compute on any unit that is granted, so that waves which are parked on a thread go
// on whatever units are granted next; it keeps the unit while it has waves to run, or waves that wait for faults and
// may not leave.
//
//   a unit:  not ours --grant--> free --hold--> held --release--> free
//            free --take--> not ours;  held --take--> leaving --release--> not ours, which is told to the manager
//
// grant, take, start and cancel are called by the agent's thread, everything else by the threads of compute units. No
// locks; nothing here touches managed memory.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "device/queue.h"
#include "wire/control.h"

namespace ferry::device {

struct alignas(64) Unit {
  enum State : std::uint32_t { not_ours, free, held, leaving };
  std::atomic<std::uint32_t> state{not_ours};
  std::atomic<std::uint32_t> holder{0};  ///< held, leaving: number of the thread
  unsigned number = 0;

  /// The holder may go on with it.
  [[nodiscard]] bool is_kept() const { return state.load(std::memory_order_relaxed) == held; }
};

/// A graphics job: its waves are taken by the threads that join it, as many as it has units.
struct GraphicsJob {
  DeviceQueue work;  ///< the grid, and what came of it; of no queue
  wire::JobSlot* slot = nullptr;

  // Bit 31 open; bits 8..15 places that nobody has taken; bits 0..7 threads that take part.
  static constexpr std::uint32_t open = 1U << 31;
  static constexpr std::uint32_t place = 1U << 8;
  static constexpr std::uint32_t places_mask = 0x7fU << 8;
  static constexpr std::uint32_t member = 1;
  static constexpr std::uint32_t members_mask = 0xff;
  std::atomic<std::uint32_t> gate{0};
};

class Units {
 public:
  /// Both must outlive this object.
  void open(wire::DeviceControl& control, QueueSet& queues, unsigned cu_count);

  // --- compute ---

  /// A free unit for the thread, that of its number if it can be; nullptr: there is none, or others have waited longer.
  /// `waited`: it hungers.
  [[nodiscard]] Unit* hold(unsigned thread, bool waited);
  /// True: the manager has to be told that the unit was left.
  [[nodiscard]] bool release(Unit& unit);
  /// hold() would find one.
  [[nodiscard]] bool available(bool waited) const;

  /// Threads that have waves and sleep for want of a unit, until they hold one. Raised before the last look at
  /// available().
  void begin_hunger() { hungry_.fetch_add(1, std::memory_order_seq_cst); }
  void end_hunger() { hungry_.fetch_sub(1, std::memory_order_seq_cst); }
  [[nodiscard]] bool somebody_hungers() const { return hungry_.load(std::memory_order_relaxed) != 0; }

  [[nodiscard]] bool leave_while_faulting() const { return control_->units.leave_while_faulting != 0; }
  [[nodiscard]] bool wait_in_place() const { return control_->units.wait_in_place != 0; }
  /// True: the manager wants to know.
  bool change_demand(int by);

  // --- graphics jobs ---

  [[nodiscard]] bool job_waits() const { return jobs_open_.load(std::memory_order_acquire) != 0; }
  /// A place in a job; nullptr: there is none.
  [[nodiscard]] GraphicsJob* join();
  /// The number of the job's next wave. False: none is left.
  [[nodiscard]] static bool next_wave(GraphicsJob& job, std::uint64_t& number);
  /// True: it was the last one, and the job has ended: the caller tells the manager of `slot`.
  [[nodiscard]] bool part(GraphicsJob& job, unsigned& slot);

  // --- the agent's thread ---

  void grant(std::uint64_t units);
  /// Asks for units back. Those that nobody holds are left at once, and returned; bits of `holders`: threads that hold
  /// others and should be interrupted.
  [[nodiscard]] std::uint64_t take(std::uint64_t units, std::uint64_t& holders);
  /// True: it has ended already, and the caller tells the manager.
  [[nodiscard]] bool start(unsigned slot, std::uint64_t units);
  /// The job, if it still runs, takes no more waves, and those that run are dropped when they are interrupted. True: it
  /// has ended, and the caller tells the manager.
  [[nodiscard]] bool cancel(unsigned slot);

 private:
  void finish(GraphicsJob& job);

  wire::DeviceControl* control_ = nullptr;
  QueueSet* queues_ = nullptr;
  unsigned count_ = 0;
  std::atomic<std::uint32_t> hungry_{0};
  std::atomic<std::uint64_t> jobs_open_{0};  ///< bit s: the job in slot s has places left
  std::array<Unit, wire::max_cus> units_;
  std::array<GraphicsJob, wire::max_cus> jobs_;
};

}  // namespace ferry::device

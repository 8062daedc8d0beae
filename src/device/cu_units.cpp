// The part of a compute unit's thread that deals with the units of the machine: having one, giving it back, sharing it
// with the process's other threads, and graphics jobs, which go before compute.
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "device/cu.h"
#include "device/signals.h"

namespace ferry::device {
namespace {

/// How long waves rest between two looks at the word that they wait for: longer and longer while nothing happens.
constexpr std::uint64_t rest_min_ns = 2'000;
constexpr std::uint64_t rest_max_ns = 500'000;

}  // namespace

/// Called where the thread has no unit that it may just go on with. True: it has one now.
bool Cu::settle() {
  if (unit_ != nullptr) {
    // Waves whose faults are pending hold it, unless the hardware can take it from them: nothing else is begun.
    if (may_leave()) {
      leave_unit();
    } else if (unit_->is_kept()) {
      give_turn_ = false;
      return true;
    } else {
      wait();
    }
    return false;
  }
  if (run_job()) return false;
  if (const std::uint32_t doorbell = queues_->doorbell(); doorbell != doorbell_seen_) {
    doorbell_seen_ = doorbell;
    queues_->scan(*this);
  }
  const bool work = has_work();
  want_unit(work);
  if (work && (unit_ = units_->hold(number_, hungry_)) != nullptr) {
    set_hungry(false);
    unit_ms_ = 0;
    return true;
  }
  wait();
  return false;
}

/// There are waves that could run if there were a unit.
bool Cu::has_work() const {
  return ready_count_ != 0 || resting_count_ != 0 || (has_room() && (claimed_ != 0 || queues_->claimable()));
}

void Cu::leave_unit() {
  Unit& unit = *unit_;
  unit_ = nullptr;
  give_turn_ = false;
  if (!has_work()) want_unit(false);
  if (!units_->release(unit)) return;
  wire::UpRecord record{};
  record.kind = static_cast<std::uint32_t>(wire::UpKind::units_left);
  record.value = std::uint64_t{1} << unit.number;
  record.time_ns = linux::monotonic_ns();
  post(record);
}

void Cu::want_unit(bool wanted) {
  if (wants_unit_ == wanted) return;
  wants_unit_ = wanted;
  if (!wanted) set_hungry(false);
  if (!units_->change_demand(wanted ? 1 : -1)) return;
  // The manager reads the newest when it comes to the record: one in the ring is enough.
  if (nudge_at_ != 0 && !port_.taken(nudge_at_)) return;
  wire::UpRecord record{};
  record.kind = static_cast<std::uint32_t>(wire::UpKind::demand);
  record.time_ns = linux::monotonic_ns();
  post(record);
  nudge_at_ = port_.posted();
}

void Cu::set_hungry(bool hungry) {
  if (hungry_ == hungry) return;
  hungry_ = hungry;
  if (hungry) {
    units_->begin_hunger();
  } else {
    units_->end_hunger();
  }
}

void Cu::interrupt() const {
  if (thread_ != 0) syscall(SYS_tgkill, getpid(), thread_, clock_signal);
}

// --- graphics jobs ---------------------------------------------------------------------------------------------------

/// Takes part in a job, if one has a place. Its units are the job's, not this process's for compute; of threads without
/// a unit there are as many at least, since each thread holds one unit at most.
bool Cu::run_job() {
  GraphicsJob* job = units_->join();
  if (job == nullptr) return false;
  for (std::uint64_t number = 0; Units::next_wave(*job, number);) run_graphics_wave(*job, number);
  unsigned slot = 0;
  if (!units_->part(*job, slot)) return true;
  wire::UpRecord record{};
  record.kind = static_cast<std::uint32_t>(wire::UpKind::job_done);
  record.slot = static_cast<std::uint16_t>(slot);
  record.time_ns = linux::monotonic_ns();
  post(record);
  return true;
}

void Cu::run_graphics_wave(GraphicsJob& job, std::uint64_t number) {
  graphics_.wave.slot = waves_;
  start_on(graphics_, job.work, number);
  // Others' memory may wait for what a parked wave of compute is told to map.
  if (waiting_ != 0) set_clock(clock_fast_ms);
  Leave why = enter(graphics_);
  for (; why == Leave::preempted; why = enter(graphics_)) {
    if (port_.ready()) take_answers();
  }
  if (why == Leave::threw) report_exception(graphics_);
  if (why == Leave::crashed) report_crash(graphics_);
  if (why == Leave::crashed || why == Leave::dropped) {
    graphics_.context = nullptr;
    unblock_signals();
  }
  graphics_.state = SlotState::free;
  job.work.waves_done.fetch_add(1, std::memory_order_acq_rel);
}

// --- waves that wait for a word in memory -----------------------------------------------------------------------------

void Cu::rest() {
  Fiber& fiber = *running_;
  const bool was = hold();
  leave(Leave::resting);
  use_alternate(fiber);
  if (fiber.queue->failed.load(std::memory_order_relaxed) != 0) leave(Leave::dropped);
  release(was);
}

/// Those that have rested long enough look again. They rest longer and longer, until one of them has found what it
/// waited for: it does not come back here, so the next ones begin afresh.
void Cu::wake_resting() {
  const std::uint64_t now_ns = linux::monotonic_ns();
  if (now_ns < rest_until_ns_) return;
  rest_ns_ = std::clamp(rest_ns_ * 2, rest_min_ns, rest_max_ns);
  rest_until_ns_ = now_ns + rest_ns_;
  for (unsigned i = 0; i < resting_count_; ++i) {
    fibers_[resting_[i]].state = SlotState::ready;
    ready_[(ready_head_ + ready_count_++) % wire::max_waves_per_cu] = resting_[i];
  }
  resting_count_ = 0;
}

}  // namespace ferry::device

#include "device/units.h"

#include <bit>

#include "base/status.h"
#include "device/text.h"
#include "linux/futex.h"

namespace ferry::device {
namespace {

constexpr std::uint64_t bit(unsigned n) { return std::uint64_t{1} << n; }

}  // namespace

void Units::open(wire::DeviceControl& control, QueueSet& queues, unsigned cu_count) {
  control_ = &control;
  queues_ = &queues;
  count_ = cu_count;
  for (unsigned i = 0; i < count_; ++i) {
    units_[i].number = i;
    jobs_[i].slot = &control.jobs[i];
    // Of no queue.
    jobs_[i].work.number = wire::max_queues;
  }
}

// --- compute ---------------------------------------------------------------------------------------------------------

bool Units::available(bool waited) const {
  // Who comes along leaves a unit for each of those that sleep for one: else who has waves without end, and gives its
  // unit up for the others' sake, would be the first to have it again.
  std::uint32_t spoken_for = waited ? 0 : hungry_.load(std::memory_order_seq_cst);
  for (unsigned i = 0; i < count_; ++i) {
    if (units_[i].state.load(std::memory_order_seq_cst) == Unit::free && spoken_for-- == 0) return true;
  }
  return false;
}

Unit* Units::hold(unsigned thread, bool waited) {
  // In the common case every thread has the unit of its own number, and nobody hungers.
  if (somebody_hungers() && !available(waited)) return nullptr;
  for (unsigned i = 0; i < count_; ++i) {
    Unit& unit = units_[(thread + i) % count_];
    std::uint32_t expected = Unit::free;
    if (unit.state.load(std::memory_order_relaxed) != Unit::free ||
        !unit.state.compare_exchange_strong(expected, Unit::held, std::memory_order_seq_cst)) {
      continue;
    }
    unit.holder.store(thread, std::memory_order_seq_cst);
    return &unit;
  }
  return nullptr;
}

bool Units::release(Unit& unit) {
  std::uint32_t expected = Unit::held;
  if (unit.state.compare_exchange_strong(expected, Unit::free, std::memory_order_seq_cst)) {
    if (hungry_.load(std::memory_order_seq_cst) != 0) queues_->wake_sleepers();
    return false;
  }
  unit.state.store(Unit::not_ours, std::memory_order_seq_cst);
  return true;
}

bool Units::change_demand(int by) {
  wire::UnitControl& units = control_->units;
  units.demand.fetch_add(static_cast<std::uint32_t>(by), std::memory_order_seq_cst);
  return units.report_demand.load(std::memory_order_seq_cst) != 0;
}

// --- the agent's thread ----------------------------------------------------------------------------------------------

void Units::grant(std::uint64_t units) {
  for (; units != 0; units &= units - 1) {
    const auto number = static_cast<unsigned>(std::countr_zero(units));
    if (number >= count_) break;
    std::uint32_t expected = Unit::not_ours;
    units_[number].state.compare_exchange_strong(expected, Unit::free, std::memory_order_seq_cst);
  }
  queues_->wake_sleepers();
}

std::uint64_t Units::take(std::uint64_t units, std::uint64_t& holders) {
  std::uint64_t left = 0;
  for (; units != 0; units &= units - 1) {
    const auto number = static_cast<unsigned>(std::countr_zero(units));
    if (number >= count_) break;
    std::atomic<std::uint32_t>& state = units_[number].state;
    for (;;) {
      std::uint32_t now = state.load(std::memory_order_seq_cst);
      if (now == Unit::leaving) break;
      const std::uint32_t next = now == Unit::held ? Unit::leaving : Unit::not_ours;
      if (now != Unit::not_ours && !state.compare_exchange_weak(now, next, std::memory_order_seq_cst)) continue;
      if (next == Unit::leaving) {
        // Who has only just taken hold of it is not named yet; it looks at the state before it runs anything.
        holders |= bit(units_[number].holder.load(std::memory_order_seq_cst));
      } else {
        left |= bit(number);
      }
      break;
    }
  }
  // Those who hold a unit while they sleep.
  if (holders != 0) queues_->wake_sleepers();
  return left;
}

// --- graphics jobs ---------------------------------------------------------------------------------------------------

bool Units::start(unsigned slot, std::uint64_t units) {
  if (slot >= count_) return false;
  GraphicsJob& job = jobs_[slot];
  DeviceQueue& work = job.work;
  ++work.launch;
  work.failure = {};
  if (!QueueSet::read_packet(job.slot->packet, work, work.failure)) work.failed.store(1, std::memory_order_relaxed);
  work.next_wave.store(0, std::memory_order_relaxed);
  if (work.failed.load(std::memory_order_relaxed) != 0) work.waves = 0;
  if (work.waves == 0) {
    finish(job);
    return true;
  }
  const auto places = static_cast<std::uint32_t>(std::popcount(units));
  job.gate.store(GraphicsJob::open | places * GraphicsJob::place, std::memory_order_seq_cst);
  jobs_open_.fetch_or(bit(slot), std::memory_order_seq_cst);
  queues_->wake_sleepers();
  return false;
}

bool Units::cancel(unsigned slot) {
  if (slot >= count_) return false;
  GraphicsJob& job = jobs_[slot];
  // As one who takes part: the job cannot end, nor another take its place, while its failure is being written.
  std::uint32_t gate = job.gate.load(std::memory_order_seq_cst);
  do {
    if ((gate & GraphicsJob::open) == 0) return false;
  } while (!job.gate.compare_exchange_weak(gate, gate + GraphicsJob::member, std::memory_order_seq_cst));
  if (QueueSet::fail(job.work)) {
    job.work.failure = {};
    job.work.failure.code = static_cast<std::uint32_t>(Code::cancelled);
    Text(job.work.failure.text, sizeof job.work.failure.text) << "the job was cancelled";
  }
  // Its threads are still there, or come: places are never taken away. They find that it failed, and end it.
  return part(job, slot);
}

GraphicsJob* Units::join() {
  for (std::uint64_t open = jobs_open_.load(std::memory_order_acquire); open != 0; open &= open - 1) {
    const auto slot = static_cast<unsigned>(std::countr_zero(open));
    GraphicsJob& job = jobs_[slot];
    std::uint32_t gate = job.gate.load(std::memory_order_acquire);
    while ((gate & GraphicsJob::open) != 0 && (gate & GraphicsJob::places_mask) != 0) {
      const std::uint32_t joined = gate - GraphicsJob::place + GraphicsJob::member;
      if (!job.gate.compare_exchange_weak(gate, joined, std::memory_order_seq_cst)) continue;
      if ((joined & GraphicsJob::places_mask) == 0) jobs_open_.fetch_and(~bit(slot), std::memory_order_seq_cst);
      return &job;
    }
  }
  return nullptr;
}

bool Units::next_wave(GraphicsJob& job, std::uint64_t& number) {
  DeviceQueue& work = job.work;
  if (work.failed.load(std::memory_order_acquire) != 0) {
    const std::uint64_t next = work.next_wave.exchange(work.waves, std::memory_order_acq_rel);
    if (next < work.waves) work.waves_done.fetch_add(work.waves - next, std::memory_order_acq_rel);
    return false;
  }
  number = work.next_wave.load(std::memory_order_acquire);
  do {
    if (number >= work.waves) return false;
  } while (!work.next_wave.compare_exchange_weak(number, number + 1, std::memory_order_acq_rel));
  return true;
}

bool Units::part(GraphicsJob& job, unsigned& slot) {
  std::uint32_t gate = job.gate.fetch_sub(GraphicsJob::member, std::memory_order_seq_cst) - GraphicsJob::member;
  slot = static_cast<unsigned>(&job - jobs_.data());
  for (;;) {
    if ((gate & GraphicsJob::open) == 0 || (gate & GraphicsJob::members_mask) != 0) return false;
    // Whoever takes part ends its waves first: with no one there, all that were taken have ended.
    if (job.work.waves_done.load(std::memory_order_acquire) != job.work.waves) return false;
    if (job.gate.compare_exchange_weak(gate, 0, std::memory_order_seq_cst)) break;
  }
  jobs_open_.fetch_and(~bit(slot), std::memory_order_seq_cst);
  finish(job);
  return true;
}

void Units::finish(GraphicsJob& job) {
  wire::LaunchResult& result = job.slot->result;
  result = job.work.failed.load(std::memory_order_acquire) != 0 ? job.work.failure : wire::LaunchResult{};
  result.device_time_ns = linux::monotonic_ns() - job.work.begin_ns;
}

}  // namespace ferry::device

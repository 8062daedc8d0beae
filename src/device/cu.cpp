#include "device/cu.h"

#include <cxxabi.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <exception>

#include "base/status.h"
#include "device/explain.h"
#include "device/print.h"
#include "device/signals.h"
#include "device/text.h"
#include "device/type_name.h"
#include "linux/lock.h"

namespace ferry::device {
namespace {

namespace context = boost::context::detail;

/// What __cxa_get_globals points to (Itanium C++ ABI, 2.2.2). Per thread, so it has to travel with the wave.
struct ExceptionGlobals {
  void* caught;
  unsigned uncaught;
};

/// Initial-exec: signal handlers read it, and a lazily allocated one would have to be allocated there.
__attribute__((tls_model("initial-exec"))) thread_local Cu* this_cu = nullptr;

/// Fast ticks without use before the clock slows down.
constexpr unsigned idle_ticks_max = 16;
/// After so long a wave shares its compute unit with waves of its own launch that have not started.
constexpr unsigned sharing_ms = 100;
/// So long a thread keeps a unit for itself while others of the process have waves and none.
constexpr unsigned turn_ms = 20;
/// Ended waves that a compute unit keeps to itself at most, so that progress can be watched.
constexpr std::uint64_t done_unreported_max = 16;

// Trace records may use a part of the up ring that faults and answers do not need (see wire::ring_entries).
constexpr std::uint32_t trace_room = wire::ring_entries - 3 * wire::max_waves_per_cu;

}  // namespace

Cu* current_cu() { return this_cu; }

bool Cu::open(unsigned number, unsigned waves, wire::DeviceControl& control, QueueSet& queues, Units& units,
              const DeviceMemory& memory, int kick_fd) {
  number_ = number;
  waves_ = waves < wire::max_waves_per_cu ? waves : wire::max_waves_per_cu;
  if (waves_ == 0) waves_ = 1;
  port_ = wire::PeerPort(control.cus[number], control.head);
  control_ = &control;
  queues_ = &queues;
  units_ = &units;
  in_place_ = units.wait_in_place();
  graphics_.graphics = true;
  memory_ = &memory;
  kick_fd_ = kick_fd;
  // Highest slots at the bottom of the stack: slot 0 is used first.
  for (unsigned i = 0; i < waves_; ++i) free_[i] = static_cast<std::uint8_t>(waves_ - 1 - i);
  free_count_ = waves_;
  return make_stacks(fibers_.data(), waves_) && make_stacks(&graphics_, 1);
}

// Inlined where waves of compute are run: after a switch between stacks the processor predicts every return wrongly, so
// each level of calls around one costs a wave some nanoseconds.

/// For waves that start, and for those that go on after they left without a signal: a handler's return restores it.
void Cu::use_alternate(const Fiber& fiber) {
  stack_t alternate{};
  alternate.ss_sp = fiber.alternate;
  alternate.ss_size = fiber.alternate_bytes;
  sigaltstack(&alternate, nullptr);
}

/// What the fiber's next entry runs.
inline __attribute__((always_inline)) void Cu::set_wave(Fiber& fiber, DeviceQueue& queue, std::uint64_t index) {
  fiber.queue = &queue;
  WaveInfo& wave = fiber.wave;
  wave.launch = queue.launch;
  wave.wave = index;
  wave.first = index * queue.items_per_wave;
  wave.count = queue.items - wave.first < queue.items_per_wave ? queue.items - wave.first : queue.items_per_wave;
  wave.queue = queue.number;
  wave.cu = number_;
  wave.kernel = queue.name;
  if (alternate_owner_ != &fiber) use_alternate(fiber);
}

inline __attribute__((always_inline)) Leave Cu::switch_to(Fiber& fiber) {
  if (fiber.context == nullptr) {
    fiber.context = context::make_fcontext(fiber.alternate, wave_stack_bytes, &Cu::fiber_main);
  }
  fiber.state = SlotState::running;
  // Set by the caller for a wave that starts; by the handler's return for one that goes on.
  alternate_owner_ = &fiber;
  wave_ms_ = 0;
  preempted_ = false;
  if (clock_ms_ == 0) set_clock(clock_slow_ms);
  running_ = &fiber;
  const context::transfer_t back = context::jump_fcontext(fiber.context, this);
  running_ = nullptr;
  fiber.context = back.fctx;
  if (fiber.printed_bytes != 0) flush_print(fiber);
  return static_cast<Leave>(reinterpret_cast<std::uintptr_t>(back.data));
}

inline __attribute__((always_inline)) void Cu::run(Fiber& fiber) {
  switch (switch_to(fiber)) {
    case Leave::finished: end_wave(fiber, true); break;
    case Leave::waiting: ++waiting_; break;
    case Leave::preempted:
      preempted_ = true;
      fiber.state = SlotState::ready;
      ready_[(ready_head_ + ready_count_++) % wire::max_waves_per_cu] = static_cast<std::uint8_t>(fiber.wave.slot);
      break;
    case Leave::resting:
      fiber.state = SlotState::resting;
      resting_[resting_count_++] = static_cast<std::uint8_t>(fiber.wave.slot);
      break;
    case Leave::threw:
      report_exception(fiber);
      end_wave(fiber, true);
      break;
    case Leave::crashed:
      report_crash(fiber);
      end_wave(fiber, false);
      break;
    case Leave::dropped: end_wave(fiber, false); break;
  }
}

void Cu::start_on(Fiber& fiber, DeviceQueue& queue, std::uint64_t index) { set_wave(fiber, queue, index); }

Leave Cu::enter(Fiber& fiber) { return switch_to(fiber); }

void Cu::run() {
  const linux::NoLocks none("waves are left in their fault handlers, and whoever comes next may want what they hold");
  this_cu = this;
  exceptions_ = abi::__cxa_get_globals();
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = clock_signal;
  thread_ = static_cast<pid_t>(syscall(SYS_gettid));
  event._sigev_un._tid = thread_;
  has_clock_ = timer_create(CLOCK_MONOTONIC, &event, &clock_) == 0;

  bool prefer_new = false;
  for (;;) {
    if (port_.ready()) take_answers();
    // Its own unit, which nobody wants back: one load, of a line that nobody writes.
    if ((unit_ == nullptr || !unit_->is_kept() || give_turn_) && !settle()) continue;
    if (resting_count_ != 0) wake_resting();
    if (in_place_ && waiting_ != 0) {
      wait();
      continue;
    }
    if (ready_count_ != 0 && !prefer_new) {
      Fiber& fiber = fibers_[ready_[ready_head_]];
      ready_head_ = (ready_head_ + 1) % wire::max_waves_per_cu;
      --ready_count_;
      run(fiber);
      prefer_new = preempted_;
      continue;
    }
    prefer_new = false;
    if (const std::uint32_t doorbell = queues_->doorbell(); doorbell != doorbell_seen_) {
      doorbell_seen_ = doorbell;
      queues_->scan(*this);
    }
    if (start_wave()) {
      prefer_new = preempted_;
      continue;
    }
    if (ready_count_ == 0) wait();
  }
}

// --- on a wave's stack -----------------------------------------------------------------------------------------------

void Cu::fiber_main(context::transfer_t transfer) {
  auto* cu = static_cast<Cu*>(transfer.data);
  cu->scheduler_ = transfer.fctx;
  Fiber& fiber = *cu->running_;
  for (;;) {
    fiber.text[0] = '\0';
    bool threw = false;
    try {
      cu->run_kernel(fiber);
    } catch (const std::exception& e) {
      cu->preemptible_ = false;
      threw = true;
      Text(fiber.text, sizeof fiber.text) << e.what();
    } catch (...) {
      cu->preemptible_ = false;
      threw = true;
      const std::type_info* type = abi::__cxa_current_exception_type();
      Text(fiber.text, sizeof fiber.text)
          << "an exception of type " << (type != nullptr ? type_name(type->name()) : "unknown");
    }
    cu->leave(threw ? Leave::threw : Leave::finished);
  }
}

void Cu::run_kernel(Fiber& fiber) {
  const DeviceQueue& queue = *fiber.queue;
  preemptible_ = true;
  // What came before this could not interrupt the wave.
  if (unit_ != nullptr && !unit_->is_kept()) {
    tick(true);
    use_alternate(fiber);
  }
  queue.entry(queue.captures, fiber.wave.first, fiber.wave.count);
  // From here on the wave is about to switch, with the scheduler's context in its registers.
  preemptible_ = false;
}

void Cu::leave(Leave why) {
  const int saved_errno = errno;
  auto* globals = static_cast<ExceptionGlobals*>(exceptions_);
  const ExceptionGlobals saved = *globals;
  *globals = {};
  const context::transfer_t back = context::jump_fcontext(scheduler_, reinterpret_cast<void*>(why));
  scheduler_ = back.fctx;
  *globals = saved;
  errno = saved_errno;
}

void Cu::fault(std::uint64_t address, bool write, bool execute, std::uint64_t instruction) {
  const bool was = hold();
  Fiber& fiber = *running_;
  if (fiber.graphics) {
    Crash c;
    c.signal = SIGSEGV;
    c.code = SEGV_MAPERR;
    c.address = address;
    c.instruction = instruction;
    c.write = write;
    c.execute = execute;
    crash(c);
  }
  if (fiber.queue->failed.load(std::memory_order_relaxed) != 0) leave(Leave::dropped);

  ++fiber.generation;
  fiber.state = SlotState::waiting;
  wire::UpRecord record{};
  record.kind = static_cast<std::uint32_t>(wire::UpKind::fault);
  record.slot = static_cast<std::uint16_t>(fiber.wave.slot);
  record.access = execute ? wire::fault_exec : write ? wire::fault_write : wire::fault_read;
  record.unit = unit_ != nullptr ? static_cast<std::uint8_t>(unit_->number) : wire::no_unit;
  record.address = address;
  record.generation = fiber.generation;
  record.queue = fiber.wave.queue;
  record.launch = fiber.wave.launch;
  record.value = control_->changes.load(std::memory_order_acquire);
  record.time_ns = linux::monotonic_ns();
  post(record);
  leave(Leave::waiting);

  if (fiber.resume_status != 0) {
    Crash c;
    c.signal = SIGSEGV;
    c.code = SEGV_MAPERR;
    c.address = address;
    c.instruction = instruction;
    c.write = write;
    c.execute = execute;
    c.status = fiber.resume_status;
    c.refusal = fiber.resume_refusal;
    alternate_owner_ = nullptr;  // only a return from the handler would have restored it
    crash(c);
  }
  if (fiber.queue->failed.load(std::memory_order_relaxed) != 0) {
    alternate_owner_ = nullptr;
    leave(Leave::dropped);
  }
  release(was);
}

void Cu::crash(const Crash& crash) {
  preemptible_ = false;
  running_->crash = crash;
  leave(Leave::crashed);
  __builtin_unreachable();
}

void Cu::tick(bool safe) {
  Fiber& fiber = *running_;
  const bool asked = unit_ != nullptr && !unit_->is_kept();
  if (!preemptible_ || !safe) {
    // Somebody waits for the wave to come to where it can be left.
    if (asked || fiber.queue->failed.load(std::memory_order_relaxed) != 0) set_clock(clock_fast_ms);
    return;
  }
  preemptible_ = false;
  wave_ms_ += clock_ms_;
  unit_ms_ += clock_ms_;
  if (fiber.queue->failed.load(std::memory_order_relaxed) != 0) leave(Leave::dropped);
  if (fiber.graphics) {
    if (port_.ready() || fiber.printed_bytes != 0) leave(Leave::preempted);
    preemptible_ = true;
    return;
  }
  if (units_->somebody_hungers() && unit_ms_ >= turn_ms && may_leave()) give_turn_ = true;
  bool yield = asked || give_turn_ || port_.ready() || ready_count_ != 0 || queues_->doorbell() != doorbell_seen_;
  if (!yield && free_count_ != 0) {
    const std::uint32_t own = 1U << fiber.queue->number;
    // The same queue's waves are left for after this one, as long as it does not look as if it waited for them.
    yield = (claimed_ & ~own) != 0 || queues_->claimable(own) ||
            (wave_ms_ >= sharing_ms && (claimed_ != 0 || queues_->claimable()));
  }
  if (yield) {
    idle_ticks_ = 0;
    if (clock_ms_ != clock_fast_ms) set_clock(clock_fast_ms);
  } else if (clock_ms_ != clock_slow_ms && ++idle_ticks_ >= idle_ticks_max) {
    set_clock(clock_slow_ms);
  }
  if (yield || resting_count_ != 0 || fiber.printed_bytes != 0) leave(Leave::preempted);
  preemptible_ = true;
}

void Cu::kick() const {
  const int saved = errno;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t rc = ::write(kick_fd_, &one, sizeof one);  // EAGAIN: it is rung already
  errno = saved;
}

// --- scheduler -------------------------------------------------------------------------------------------------------

void Cu::take_answers() {
  wire::DownRecord record;
  while (port_.try_take(record)) answer(record);
}

void Cu::answer(const wire::DownRecord& record) {
  const auto kind = static_cast<wire::DownKind>(record.kind);
  if (kind != wire::DownKind::resume && kind != wire::DownKind::resume_map) return;
  Fiber* fiber = record.slot < waves_ ? &fibers_[record.slot] : nullptr;
  const bool current = fiber != nullptr && fiber->state == SlotState::waiting && fiber->generation == record.generation;
  int error = 0;
  if (kind == wire::DownKind::resume_map) {
    // Here and not in the handler: the thread is the same, and a failure needs no second switch.
    error = current ? memory_->map(record) : ESTALE;
    if (record.action != 0) {
      wire::UpRecord done{};
      done.kind = static_cast<std::uint32_t>(wire::UpKind::done);
      done.slot = record.slot;
      done.action = record.action;
      done.error = error;
      done.time_ns = linux::monotonic_ns();
      post(done);
    }
  }
  if (!current || error != 0) return;
  fiber->resume_status = kind == wire::DownKind::resume ? record.status : 0;
  fiber->resume_refusal = kind == wire::DownKind::resume ? record.buffer : 0;
  fiber->state = SlotState::ready;
  --waiting_;
  ready_[(ready_head_ + ready_count_++) % wire::max_waves_per_cu] = static_cast<std::uint8_t>(record.slot);
}

bool Cu::refill(unsigned number) {
  claims_[number] = queues_->claim(number);
  if (claims_[number].empty()) return false;
  claimed_ |= 1U << number;
  return true;
}

/// A wave may begin: there is a slot, and the manager does not ask to let those that wait in faults go first.
bool Cu::has_room() const {
  const std::uint32_t limit = control_->wave_limit.load(std::memory_order_relaxed);
  return free_count_ != 0 && (limit == 0 || waiting_ < limit);
}

bool Cu::start_wave() {
  if (!has_room()) return false;
  for (std::uint32_t mask = queues_->active() | claimed_; mask != 0;) {
    // The first queue after the one that had the last turn.
    const std::uint32_t after = mask & ~((2U << turn_) - 1);
    const auto number = static_cast<unsigned>(std::countr_zero(after != 0 ? after : mask));
    if (claims_[number].empty() && !refill(number)) {
      mask &= ~(1U << number);
      continue;
    }
    DeviceQueue& queue = queues_->queue(number);
    if (queue.failed.load(std::memory_order_relaxed) != 0) {
      drop_rest(queue);
      mask &= ~(1U << number);
      continue;
    }
    turn_ = number;
    const std::uint64_t index = claims_[number].next++;
    if (claims_[number].empty()) claimed_ &= ~(1U << number);

    const unsigned slot = free_[--free_count_];
    Fiber& fiber = fibers_[slot];
    fiber.wave.slot = slot;
    set_wave(fiber, queue, index);
    run(fiber);
    return true;
  }
  return false;
}

void Cu::end_wave(Fiber& fiber, bool keep_context) {
  if (!keep_context) {
    fiber.context = nullptr;
    // A wave left inside abort() and the like may have blocked signals.
    unblock_signals();
  }
  fiber.state = SlotState::free;
  free_[free_count_++] = static_cast<std::uint8_t>(fiber.wave.slot);
  count_done(fiber.wave.queue, 1);
}

void Cu::count_done(unsigned queue, std::uint64_t waves) {
  done_[queue] += waves;
  // While this compute unit holds waves that have not started, the launch cannot end: no need to tell of every one.
  if (!claims_[queue].empty() && done_[queue] < done_unreported_max) return;
  const std::uint64_t count = done_[queue];
  done_[queue] = 0;
  queues_->done(queue, count, *this);
}

void Cu::drop_rest(DeviceQueue& queue) {
  const unsigned number = queue.number;
  const Claim own = claims_[number];
  const Claim rest = queues_->claim_rest(number);
  claims_[number] = {};
  claimed_ &= ~(1U << number);
  count_done(number, (own.end - own.next) + (rest.end - rest.next));
}

void Cu::report_exception(Fiber& fiber) {
  if (!QueueSet::fail(*fiber.queue)) return;
  wire::LaunchResult& failure = fiber.queue->failure;
  failure = {};
  failure.code = static_cast<std::uint32_t>(Code::kernel_threw);
  failure.wave = fiber.wave.wave;
  Text(failure.text, sizeof failure.text) << fiber.text;
}

void Cu::report_crash(Fiber& fiber) {
  if (!QueueSet::fail(*fiber.queue)) return;
  wire::LaunchResult& failure = fiber.queue->failure;
  failure = {};
  // Answers such as no_memory are for the application to act on; an address that is not allocated, or that the device
  // may not touch, is a bug in the kernel like any other stray pointer.
  const auto status = static_cast<Code>(fiber.crash.status);
  const bool stray =
      status == Code::ok || status == Code::not_allocated || status == Code::bad_range || status == Code::not_permitted;
  failure.code = static_cast<std::uint32_t>(stray ? Code::kernel_fault : status);
  failure.wave = fiber.wave.wave;
  failure.address = fiber.crash.address;
  Text text(failure.text, sizeof failure.text);
  describe_crash(fiber, *memory_, text);
}

void Cu::wait() {
  for (unsigned q = 0; q < wire::max_queues; ++q) {
    if (done_[q] == 0) continue;
    const std::uint64_t count = done_[q];
    done_[q] = 0;
    queues_->done(q, count, *this);
  }
  // Its waves wait for something, maybe for waves of a thread that has no unit.
  if (unit_ != nullptr && (waiting_ != 0 || resting_count_ != 0) && units_->somebody_hungers() && may_leave()) {
    leave_unit();
  }
  if ((waiting_ != 0 ? parked_spin_ : idle_spin_).until([this] { return awaited(); })) return;
  set_clock(0);
  // Sleeps without a unit, so that others have it at once; but waves that wait for a fault, or look at a word now and
  // then, keep it.
  if (unit_ != nullptr && waiting_ == 0 && resting_count_ == 0) leave_unit();
  port_.sleep([this](std::atomic<std::uint32_t>& word, std::uint32_t expected) {
    queues_->sleepers().fetch_add(1, std::memory_order_seq_cst);
    const std::uint32_t rung = queues_->doorbell();
    if (unit_ == nullptr) want_unit(has_work());
    if (unit_ == nullptr) set_hungry(wants_unit_);
    if (!awaited()) {
      const std::uint64_t until_ns = resting_count_ != 0 && unit_ != nullptr ? rest_until_ns_ : 0;
      linux::futex_wait_either(word, expected, queues_->doorbell_word(), rung, until_ns);
    }
    queues_->sleepers().fetch_sub(1, std::memory_order_seq_cst);
  });
}

/// There is a reason to go round the scheduler's loop once more.
bool Cu::awaited() const {
  if (port_.ready()) return true;
  if (unit_ == nullptr) {
    return units_->job_waits() || queues_->doorbell() != doorbell_seen_ || (has_work() && units_->available(hungry_));
  }
  if (!unit_->is_kept()) return may_leave();
  if (resting_count_ != 0 && linux::monotonic_ns() >= rest_until_ns_) return true;
  if (in_place_ && waiting_ != 0) return false;
  return queues_->doorbell() != doorbell_seen_ || (has_room() && queues_->claimable());
}

void Cu::post(const wire::UpRecord& record) {
  // There is always room (see wire::ring_entries), unless the manager is broken: then nothing can go on here.
  while (!port_.post(record, [this] { kick(); })) cpu_relax();
}

void Cu::set_clock(unsigned period_ms) {
  if (clock_ms_ == period_ms) return;
  clock_ms_ = period_ms;
  if (!has_clock_) return;
  itimerspec when{};
  when.it_interval.tv_nsec = when.it_value.tv_nsec = static_cast<long>(period_ms) * 1'000'000;
  timer_settime(clock_, 0, &when, nullptr);
}

// --- trace -----------------------------------------------------------------------------------------------------------

void Cu::launch_begun(const DeviceQueue& queue) { post_trace(wire::UpKind::kernel_begin, queue, queue.waves); }

void Cu::launch_ended(const DeviceQueue& queue, std::uint32_t code) {
  post_trace(wire::UpKind::kernel_end, queue, code);
}

void Cu::post_trace(wire::UpKind kind, const DeviceQueue& queue, std::uint64_t value) {
  const std::uint32_t pending = port_.up_pending();
  if (pending >= trace_room) return;
  wire::UpRecord record{};
  record.kind = static_cast<std::uint32_t>(kind);
  record.queue = queue.number;
  record.launch = queue.launch;
  record.value = value;
  record.time_ns = linux::monotonic_ns();
  // A launch is no reason to wake the manager: it reads these when it is awake anyway, or when they pile up.
  if (pending < trace_room / 2) {
    (void)port_.post_quiet(record);
  } else {
    post(record);
  }
}

}  // namespace ferry::device

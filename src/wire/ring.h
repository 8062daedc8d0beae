// Both ends of a wire::Port: posting and taking records, and the sleeping protocol that wire/port.h states.
// Makes no system call: how to sleep and how to wake come in as callables (linux/futex.h has them).
// PeerPort belongs to the one thread of the peer that owns the port, ManagerPort to the manager's main thread.
// PeerPort trusts the manager. ManagerPort trusts nothing: it keeps its own positions, bounds what it reads, and hands
// out private copies of records, never references into shared memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "wire/control.h"
#include "wire/cpu_relax.h"
#include "wire/port.h"

namespace ferry::wire {

/// False: the file is not a control file, or one of another version.
[[nodiscard]] inline bool compatible(const ControlHead& head) {
  return head.magic == control_magic && head.version == wire_version;
}

/// The peer's end: one thread only. Copies share the port and must not be used side by side.
class PeerPort {
 public:
  PeerPort() = default;
  /// Takes up where the port stands. Both must outlive this object.
  PeerPort(Port& port, ControlHead& head)
      : port_(&port),
        head_(&head),
        up_tail_(port.up_tail.load(std::memory_order_relaxed)),
        down_head_(port.down_head.load(std::memory_order_relaxed)) {}

  /// Calls kick() if the manager sleeps; kick must write to the kick eventfd. False: the ring is full, nothing was
  /// posted (see ring_entries: faults and answers always find room; records for the trace may not).
  template <typename Kick>
  [[nodiscard]] bool post(const UpRecord& record, Kick&& kick) {
    if (up_tail_ - port_->up_head.load(std::memory_order_acquire) >= ring_entries) return false;
    port_->up[up_tail_ % ring_entries] = record;
    port_->up_tail.store(++up_tail_, std::memory_order_release);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    // Whoever clears the flag kicks: one kick a sleep, however many peers post at once.
    if (head_->manager_sleeping.load(std::memory_order_relaxed) != 0 &&
        head_->manager_sleeping.exchange(0, std::memory_order_relaxed) != 0) {
      kick();
    }
    return true;
  }

  /// The same for records that can wait until the manager polls anyway (the trace): wakes nobody.
  [[nodiscard]] bool post_quiet(const UpRecord& record) {
    if (up_pending() >= ring_entries) return false;
    port_->up[up_tail_ % ring_entries] = record;
    port_->up_tail.store(++up_tail_, std::memory_order_release);
    return true;
  }

  /// Records that the manager has not taken yet.
  [[nodiscard]] std::uint32_t up_pending() const { return up_tail_ - port_->up_head.load(std::memory_order_acquire); }

  /// Names the place behind the last record that was posted; taken() says whether the manager has come so far.
  [[nodiscard]] std::uint32_t posted() const { return up_tail_; }
  [[nodiscard]] bool taken(std::uint32_t place) const {
    return static_cast<std::int32_t>(port_->up_head.load(std::memory_order_acquire) - place) >= 0;
  }

  [[nodiscard]] bool ready() const { return port_->down_tail.load(std::memory_order_acquire) != down_head_; }

  [[nodiscard]] bool try_take(DownRecord& out) {
    if (!ready()) return false;
    out = port_->down[down_head_ % ring_entries];
    port_->down_head.store(++down_head_, std::memory_order_release);
    return true;
  }

  /// Sleeps until something may have come. `sleep(word, expected)` must return when word != expected and may return
  /// for any other reason: callers look again.
  template <typename Sleep>
  void sleep(Sleep&& sleep) {
    port_->peer_sleeping.store(1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!ready()) sleep(port_->down_tail, down_head_);
    port_->peer_sleeping.store(0, std::memory_order_relaxed);
  }

  /// Takes the next record, waiting for it: spin.until(ready) polls and says whether it came, sleep as above.
  template <typename Spin, typename Sleep>
  void take(DownRecord& out, Spin& spin, Sleep&& sleep_fn) {
    while (!try_take(out)) {
      if (!spin.until([this] { return ready(); })) sleep(sleep_fn);
    }
  }

 private:
  Port* port_ = nullptr;
  ControlHead* head_ = nullptr;
  std::uint32_t up_tail_ = 0;
  std::uint32_t down_head_ = 0;
};

/// The manager's end.
class ManagerPort {
 public:
  ManagerPort() = default;
  /// The port must be as the manager made it (zero) and outlive this object.
  explicit ManagerPort(Port& port) : port_(&port) {}

  /// True if a poll would find something (or find the peer to be broken).
  [[nodiscard]] bool ready() const { return port_->up_tail.load(std::memory_order_acquire) != up_head_; }

  /// Hands copies of at most `limit` records to fn(const UpRecord&). False: the peer wrote a tail that cannot be;
  /// drop the peer. The fields of the records are unchecked.
  template <typename Fn>
  [[nodiscard]] bool poll(std::uint32_t limit, Fn&& fn) {
    const std::uint32_t tail = port_->up_tail.load(std::memory_order_acquire);
    std::uint32_t count = tail - up_head_;
    if (count == 0) return true;
    if (count > ring_entries) return false;
    if (count > limit) count = limit;
    for (std::uint32_t i = 0; i < count; ++i) {
      UpRecord copy;
      std::memcpy(&copy, &port_->up[up_head_ % ring_entries], sizeof copy);
      // The peer may rewrite the slot now; the compiler must not read it a second time.
      asm volatile("" : "+m"(copy)::"memory");
      ++up_head_;
      // Before fn: it may take long, and the peer may use the slot again.
      port_->up_head.store(up_head_, std::memory_order_release);
      fn(static_cast<const UpRecord&>(copy));
    }
    return true;
  }

  /// Makes a record visible without waking the peer: call wake() after the last of a batch. False: no room, or a head
  /// that cannot be; a peer that keeps to ring_entries never makes this happen, so drop it.
  [[nodiscard]] bool post(const DownRecord& record) {
    if (down_tail_ - port_->down_head.load(std::memory_order_acquire) >= ring_entries) return false;
    port_->down[down_tail_ % ring_entries] = record;
    port_->down_tail.store(++down_tail_, std::memory_order_release);
    return true;
  }

  /// Calls wake(word) if the peer sleeps; wake must end a futex wait on that word.
  /// Only the peer clears its flag. Were it cleared here, a wake that comes late (the peer has found the record by
  /// itself, taken it, and is about to sleep anew) would leave it asleep with the flag cleared, and nobody would wake it.
  template <typename Wake>
  void wake(Wake&& wake) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (port_->peer_sleeping.load(std::memory_order_relaxed) != 0) wake(port_->down_tail);
  }

 private:
  Port* port_ = nullptr;
  std::uint32_t up_head_ = 0;    // the truth; the shared word is only told to the peer
  std::uint32_t down_tail_ = 0;  // likewise
};

/// The manager is about to sleep. After this, poll every port of the file once more; sleep only if all are empty.
inline void announce_manager_sleep(ControlHead& head) {
  head.manager_sleeping.store(1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}
/// The manager polls again.
inline void end_manager_sleep(ControlHead& head) { head.manager_sleeping.store(0, std::memory_order_relaxed); }

}  // namespace ferry::wire

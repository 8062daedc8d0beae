// Buffers that a program registers with an io_uring stay where they are until they are unregistered: these functions of
// liburing, as this library exports them, pin what is managed of them. A program that has liburing linked in statically,
// or makes the system call by number, does not come by; nor do buffers that are named in single requests: the program
// pins those itself (ferry_pin).
#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <utility>

#include "client/change/change.h"
#include "client/change/direct.h"
#include "client/change/libc.h"

using ferry::client::bring_for_kernel;
using ferry::client::could_move;
using ferry::client::DirectPins;
using ferry::client::Libc;

struct io_uring;

namespace {

using Register = int (*)(io_uring*, const iovec*, unsigned);
using RegisterTags = int (*)(io_uring*, const iovec*, const std::uint64_t*, unsigned);
using Update = int (*)(io_uring*, unsigned, const iovec*, const std::uint64_t*, unsigned);
constinit Libc<Register> next_register("io_uring_register_buffers");
constinit Libc<RegisterTags> next_register_tags("io_uring_register_buffers_tags");
constinit Libc<Update> next_update("io_uring_register_buffers_update_tag");
constinit Libc<int (*)(io_uring*)> next_unregister("io_uring_unregister_buffers");
constinit Libc<void (*)(io_uring*)> next_exit("io_uring_queue_exit");

/// Of rings that have managed memory registered. A ring is set up, and taken down, by one thread at a time.
struct Ring {
  std::atomic<const io_uring*> ring{nullptr};
  DirectPins pins;
};
constexpr std::size_t rings_max = 256;
std::array<Ring, rings_max> rings;

Ring* find(const io_uring* ring) {
  for (Ring& r : rings) {
    if (r.ring.load(std::memory_order_acquire) == ring) return &r;
  }
  return nullptr;
}

Ring* find_or_take(const io_uring* ring) {
  if (Ring* r = find(ring)) return r;
  for (Ring& r : rings) {
    const io_uring* none = nullptr;
    if (r.ring.compare_exchange_strong(none, ring, std::memory_order_acq_rel)) return &r;
  }
  return nullptr;
}

void let_go(const io_uring* ring) {
  Ring* const r = ring == nullptr ? nullptr : find(ring);
  if (r == nullptr) return;
  r->pins.release();
  r->ring.store(nullptr, std::memory_order_release);
}

/// Calls `go`, which hands the buffers to the kernel, with what is managed of them pinned. Errors as liburing's: negative.
template <typename Go>
int with_pins(io_uring* ring, const iovec* buffers, unsigned count, bool more, Go&& go) {
  bool some = false;
  for (unsigned i = 0; i < count; ++i) some = some || could_move(buffers[i].iov_base, buffers[i].iov_len);
  if (!some) return go();
  DirectPins pins;
  if (!pins.add(buffers, count)) return -ENOMEM;
  Ring* const r = find_or_take(ring);
  if (r == nullptr) return -ENOMEM;
  int result = go();
  bool brought = result == -EFAULT;
  for (unsigned i = 0; brought && i < count; ++i) {
    static_cast<void>(bring_for_kernel(buffers[i].iov_base, buffers[i].iov_len, true));
  }
  if (brought) result = go();
  if (result < 0) {
    if (r->pins.empty()) r->ring.store(nullptr, std::memory_order_release);
    return result;
  }
  if (more) {
    r->pins.take(std::move(pins));
  } else {
    r->pins = std::move(pins);
  }
  return result;
}

}  // namespace

FERRY_INTERPOSED int io_uring_register_buffers(io_uring* ring, const iovec* buffers, unsigned count) {
  const Register next = next_register.get();
  if (next == nullptr) return -ENOSYS;
  return with_pins(ring, buffers, count, false, [&] { return next(ring, buffers, count); });
}

FERRY_INTERPOSED int io_uring_register_buffers_tags(io_uring* ring, const iovec* buffers, const std::uint64_t* tags,
                                                    unsigned count) {
  const RegisterTags next = next_register_tags.get();
  if (next == nullptr) return -ENOSYS;
  return with_pins(ring, buffers, count, false, [&] { return next(ring, buffers, tags, count); });
}

/// What was registered in these places before stays pinned until all is unregistered: requests may be using it still.
FERRY_INTERPOSED int io_uring_register_buffers_update_tag(io_uring* ring, unsigned first, const iovec* buffers,
                                                          const std::uint64_t* tags, unsigned count) {
  const Update next = next_update.get();
  if (next == nullptr) return -ENOSYS;
  return with_pins(ring, buffers, count, true, [&] { return next(ring, first, buffers, tags, count); });
}

FERRY_INTERPOSED int io_uring_unregister_buffers(io_uring* ring) {
  const auto next = next_unregister.get();
  if (next == nullptr) return -ENOSYS;
  const int result = next(ring);
  if (result >= 0) let_go(ring);
  return result;
}

FERRY_INTERPOSED void io_uring_queue_exit(io_uring* ring) {
  if (const auto next = next_exit.get()) next(ring);
  let_go(ring);
}

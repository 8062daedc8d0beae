// Fences: the application's side. How a fence stands is a word that the manager writes into shared memory; waiting is
// sleeping on it. One thread, started on first use, turns signals into writes to eventfds.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <vector>

#include "client/adopt/stopped.h"
#include "client/agent.h"
#include "client/devices.h"
#include "client/error.h"
#include "client/output.h"
#include "client/process_state.h"
#include "client/work/objects.h"
#include "linux/event.h"
#include "linux/futex.h"

using namespace ferry;          // NOLINT(google-build-using-namespace)
using namespace ferry::client;  // NOLINT(google-build-using-namespace)

namespace {

constexpr std::uint64_t visible_patience_ns = 10'000'000'000;

ferry_fence_state state_of(const wire::FenceSlot& slot) {
  return static_cast<ferry_fence_state>(
      std::min<std::uint32_t>(slot.state.load(std::memory_order_acquire), FERRY_FENCE_SIGNALLED));
}

/// Until the fence has come to `wanted`. False: the time has passed.
bool await_state(wire::FenceSlot& slot, ferry_fence_state wanted, std::uint64_t timeout_ns) {
  if (state_of(slot) >= wanted) return true;
  if (timeout_ns == 0) return false;
  linux::AdaptiveSpin spin(2'000, 50'000);
  if (spin.until([&] { return state_of(slot) >= wanted; })) return true;
  const std::uint64_t begin = linux::monotonic_ns();
  for (;;) {
    const std::uint32_t seen = slot.state.load(std::memory_order_acquire);
    if (state_of(slot) >= wanted) return true;
    const std::uint64_t gone = linux::monotonic_ns() - begin;
    if (timeout_ns != FERRY_FOREVER && gone >= timeout_ns) return false;
    // Chunks, because 0 means for ever to the call, and what is left of a long time must fit its type.
    const std::uint64_t left = timeout_ns == FERRY_FOREVER ? UINT64_MAX : timeout_ns - gone;
    wait_on(slot.state, seen, std::min<std::uint64_t>(left, 3'600'000'000'000));
  }
}

void release(ferry_fence* fence) {
  const std::uint64_t id = fence->id;
  if (fence_table().drop(fence)) {
    const NativeMallocScope native;
    delete fence;
  }
  [[maybe_unused]] const bool closed = tell_work(wire::MessageType::fence_close, {id, 0}, "close fence", nullptr);
}

// --- eventfds --------------------------------------------------------------------------------------------------------

struct Notice {
  ferry_fence* fence;  ///< a handle of its own
  int fd;
};

constinit linux::LockClass notice_lock("eventfds of fences", linux::LockRank::notice);

struct Notices {
  linux::Mutex mutex{notice_lock};
  std::vector<Notice> list;
  bool started = false;
};

Notices& notices() {
  const NativeMallocScope native;
  static auto* made = new Notices;
  return *made;
}

/// Takes what has signalled out of the list, and tells.
void notify(Session& session) {
  std::vector<Notice> ready;
  {
    Notices& n = notices();
    const linux::LockGuard lock(n.mutex);
    const auto first = std::partition(n.list.begin(), n.list.end(), [&](const Notice& notice) {
      return state_of(slot_of(session, *notice.fence)) != FERRY_FENCE_SIGNALLED;
    });
    ready.assign(first, n.list.end());
    n.list.erase(first, n.list.end());
  }
  for (const Notice& notice : ready) {
    linux::Bell::ring_fd(notice.fd);
    ::close(notice.fd);
    release(notice.fence);
  }
}

void* notice_main(void*) {
  ::prctl(PR_SET_NAME, "ferry-fences");
  const NativeMallocScope native;
  Session& session = *session_if_open();
  wire::WorkPage& page = session.control->work;
  for (;;) {
    page.signal_sleepers.store(1, std::memory_order_seq_cst);
    const std::uint32_t seen = page.signals.load(std::memory_order_seq_cst);
    notify(session);
    linux::futex_wait(page.signals, seen);
  }
}

}  // namespace

ferry_code ferry_fence_wait(ferry_fence* fence, uint64_t timeout_ns, ferry_error* error) {
  ferry_error own{};
  Session* session = session_of_handle(&own);
  if (session == nullptr) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  wire::FenceSlot& slot = slot_of(*session, *fence);
  if (!await_state(slot, FERRY_FENCE_SIGNALLED, timeout_ns)) {
    return fail(error, Code::timed_out, 0, "fence %llu has not signalled within %llu ms",
                static_cast<unsigned long long>(fence->id), static_cast<unsigned long long>(timeout_ns / 1'000'000));
  }
  if (fence->prints) {
    if (wire::QueueControl* queues = current_queues(fence->device)) drain_output(*queues);
  }
  if (slot.code == 0) {
    if (error != nullptr) *error = {};
    return FERRY_OK;
  }
  return fail(error, static_cast<Code>(slot.code), slot.sys_errno, "the job of fence %llu failed: %s",
              static_cast<unsigned long long>(fence->id), to_string(static_cast<Code>(slot.code)));
}

ferry_fence_state ferry_fence_query(ferry_fence* fence, ferry_code* status) {
  if (status != nullptr) *status = FERRY_OK;
  Session* session = session_of_handle(nullptr);
  if (session == nullptr) return FERRY_FENCE_SUBMITTED;
  const wire::FenceSlot& slot = slot_of(*session, *fence);
  const ferry_fence_state state = state_of(slot);
  if (state == FERRY_FENCE_SIGNALLED && status != nullptr) *status = static_cast<ferry_code>(slot.code);
  return state;
}

ferry_code ferry_fence_set_deadline(ferry_fence* fence, uint64_t in_ns, ferry_error* error) {
  ferry_error own{};
  if (tell_work(wire::MessageType::fence_deadline, {fence->id, in_ns}, "set deadline", &own)) return FERRY_OK;
  if (error != nullptr) *error = own;
  return own.code;
}

ferry_fence* ferry_fence_merge(ferry_fence* const* fences, size_t count, int any, ferry_error* error) {
  Session* session = session_of_handle(error);
  if (session == nullptr) return nullptr;
  wire::FenceMerge merge{};
  if (count == 0 || count > wire::work_list_max) {
    fail(error, Code::bad_range, 0, "merge: %zu fences (1 to %u can be merged)", count, wire::work_list_max);
    return nullptr;
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (!await_state(slot_of(*session, *fences[i]), FERRY_FENCE_VISIBLE, visible_patience_ns)) {
      fail(error, Code::timed_out, 0,
           "merge: the job of fence %llu is held back (for a point that nobody has promised?), so nothing can be made "
           "to "
           "wait for it yet",
           static_cast<unsigned long long>(fences[i]->id));
      return nullptr;
    }
    merge.fences[i] = fences[i]->id;
  }
  merge.count = static_cast<std::uint32_t>(count);
  merge.any = any != 0 ? 1 : 0;
  Answer answer;
  wire::WorkAnswer out{};
  if (!ask_work(*session, wire::MessageType::fence_merge, merge, answer, out, "merge fences", error)) return nullptr;
  return make_fence(out);
}

int ferry_fence_eventfd(ferry_fence* fence, ferry_error* error) {
  Session* session = session_of_handle(error);
  if (session == nullptr) return -1;
  const NativeMallocScope native;
  linux::Fd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  linux::Fd ours(fd ? ::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3) : -1);
  if (!ours) {
    fail(error, Code::no_memory, errno, "no eventfd for a fence: %s", std::strerror(errno));
    return -1;
  }
  // A hold of its own at the manager too: its slot must not pass to another fence before this one was told.
  Answer answer;
  wire::WorkAnswer out{};
  if (!ask_work(*session, wire::MessageType::fence_hold, wire::ObjectRef{fence->id, 0}, answer, out,
                "eventfd of a fence", error)) {
    return -1;
  }
  ferry_fence* own = make_fence(out);
  {
    Notices& n = notices();
    const linux::LockGuard lock(n.mutex);
    if (!n.started) {
      const Status started = start_session_thread(notice_main);
      if (!started.ok()) {
        fail(error, started, "no thread for eventfds");
        release(own);
        return -1;
      }
      n.started = true;
    }
    n.list.push_back({own, ours.release()});
  }
  // It may have signalled before it was in the list.
  session->control->work.signals.fetch_add(1, std::memory_order_seq_cst);
  linux::futex_wake(session->control->work.signals, INT_MAX);
  return fd.release();
}

int ferry_fence_export(ferry_fence* fence, ferry_error* error) {
  return export_object(wire::MessageType::fence_export, fence->id, "export fence", error);
}

ferry_fence* ferry_fence_import(int fd, ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr || !is_descriptor(fd, "import fence", error)) return nullptr;
  Answer answer;
  wire::WorkAnswer out{};
  const int fds[] = {fd};
  if (!ask_bytes(*session, wire::MessageType::fence_import, {}, fds, answer, out, "import fence", error)) {
    return nullptr;
  }
  return make_fence(out);
}

int ferry_sync_fd_status(int fd, ferry_code* status) {
  struct {
    wire::MessageHead head;
    wire::FenceRecord record;
  } message{};
  static_assert(sizeof message == sizeof(wire::MessageHead) + sizeof(wire::FenceRecord));
  ssize_t n = 0;
  do {
    n = ::recv(fd, &message, sizeof message, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return errno == EAGAIN ? 0 : -1;
  if (n == 0) {
    // The manager has gone, or somebody has read what was there for all.
    if (status != nullptr) *status = FERRY_MANAGER_LOST;
    return 1;
  }
  if (n != static_cast<ssize_t>(sizeof message) || message.head.magic != wire::control_magic ||
      message.head.type != static_cast<std::uint32_t>(wire::MessageType::fence_record)) {
    return -1;
  }
  if (status != nullptr) *status = static_cast<ferry_code>(message.record.code);
  return 1;
}

void ferry_fence_close(ferry_fence* fence) {
  if (fence == nullptr || !may_use_session(nullptr)) return;
  release(fence);
}

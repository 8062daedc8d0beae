#include "client/fork.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <span>

#include "client/adopt/adopter.h"
#include "client/adopt/code_data.h"
#include "client/adopt/known.h"
#include "client/adopt/places.h"
#include "client/change/fork_adopted.h"
#include "client/change/fork_advice.h"
#include "client/change/fork_protection.h"
#include "client/change/kept.h"
#include "client/change/mappings.h"
#include "client/change/rules.h"
#include "client/checkpoint/restored.h"
#include "client/devices.h"
#include "client/heap/process_heap.h"
#include "client/immortal.h"
#include "client/process_state.h"
#include "client/session.h"
#include "client/zygote.h"

namespace ferry::client {
namespace {

constexpr int exit_manager_lost = 117;

/// How the fork under way gives the child its memory. By the thread that forks; others wait for the heap's locks.
enum class Way : std::uint8_t {
  none,       ///< no managed memory: it is as any fork
  on_touch,   ///< the manager fills it
  at_once,    ///< the same before anything else happens in it, and the parent waits
  from_child  ///< of a fork's child: its memory is private, what is missing the manager fills in both
};
constinit Way way = Way::none;
/// The child's connection; at_once: and a pipe whose writing end closes when the child has everything.
constinit int child_end = -1;
constinit int copied_pipe[2] = {-1, -1};
constinit pid_t forking = 0;
constinit bool adoption_suspended = false;
constinit bool child_set_up = false;
constinit struct sigaction former_segv {};

// Of a fork's child, while the manager may still have pages of it. A program may have closed them, and have something
// else under these numbers, so each is known by its inode too.
struct Watched {
  int fd = -1;
  ino_t inode = 0;
  void watch(int descriptor) {
    struct stat s {};
    fd = ::fstat(descriptor, &s) == 0 ? descriptor : -1;
    inode = s.st_ino;
  }
  [[nodiscard]] bool is_ours() const {
    struct stat s {};
    return fd >= 0 && ::fstat(fd, &s) == 0 && s.st_ino == inode;
  }
  void close() {
    if (is_ours()) ::close(fd);
    fd = -1;
  }
};
constinit Watched manager_socket;
constinit Watched manager_lives;  ///< a pipe whose other end the manager has
constinit Watched own_userfault;  ///< kept, so that a page that the manager did not bring never reads as zeros
constinit std::atomic<bool> has_memory{false};
constinit bool all_here = false;  ///< it has touched every page
constinit Immortal<linux::Incoming> fork_answer;

[[nodiscard]] Session* session_of(ProcessKind kind) {
  return process_kind.load(std::memory_order_relaxed) == kind ? session_if_open() : nullptr;
}

void say(const char* text) { [[maybe_unused]] const auto n = ::write(STDERR_FILENO, text, std::strlen(text)); }

void close_end(int& fd) {
  if (fd >= 0) ::close(fd);
  fd = -1;
}

// --- spans -----------------------------------------------------------------------------------------------------------

/// Calls fn(address, bytes) for all managed memory; neighbours that are visited one after the other together.
template <typename Fn>
void for_memory(Fn&& fn) {
  struct Run {
    Fn& fn;
    std::uintptr_t first = 0;
    std::size_t bytes = 0;
    static void add(void* context, void* span, std::size_t bytes) {
      auto& r = *static_cast<Run*>(context);
      const auto at = reinterpret_cast<std::uintptr_t>(span);
      if (r.bytes != 0 && at == r.first + r.bytes) {
        r.bytes += bytes;
      } else if (r.bytes != 0 && at + bytes == r.first) {
        r.first = at;
        r.bytes += bytes;
      } else {
        if (r.bytes != 0) r.fn(r.first, r.bytes);
        r.first = at;
        r.bytes = bytes;
      }
    }
  } run{fn};
  process_heap().visit_spans(
      [](void* context, void* span, std::size_t bytes, SpanKind) { Run::add(context, span, bytes); }, &run, true);
  visit_restored_spans(&Run::add, &run);
  if (run.bytes != 0) fn(run.first, run.bytes);
}

bool map_private(std::uintptr_t at, std::size_t bytes) {
  return ::mmap(reinterpret_cast<void*>(at), bytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

void unmap_all() {
  for_memory([](std::uintptr_t at, std::size_t bytes) {
    ::mmap(reinterpret_cast<void*>(at), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
           0);
  });
  for_left_adopted(
      [](void*, const Part& part) {
        raw_mmap(part.first, part.bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
      },
      nullptr);
}

// --- the child -------------------------------------------------------------------------------------------------------

/// The manager has gone, and with it what it had not brought yet.
void on_urgent(int) {
  const int saved_errno = errno;
  if (manager_lives.is_ours() && (::fcntl(manager_lives.fd, F_GETFL) & O_ASYNC) != 0) {
    pollfd p{manager_lives.fd, 0, 0};
    if (::poll(&p, 1, 0) == 1 && (p.revents & POLLHUP) != 0) {
      say("ferry: the manager ended before this fork's child had all its memory, so it cannot go on\n");
      ::_exit(exit_manager_lost);
    }
  }
  errno = saved_errno;
}

/// Pages that are missing come from the manager. `fresh`: the memory is to be mapped first.
bool connect_child(bool fresh) {
  bool well = child_end >= 0;
  if (fresh) {
    for_memory([&](std::uintptr_t at, std::size_t bytes) { well = well && map_private(at, bytes); });
    well = well && map_left_adopted();
  }
  linux::Userfaultfd::Options options;
  options.changes = true;
  auto userfault = linux::Userfaultfd::open(options);
  if (!well || !userfault) return false;
  for_memory([&](std::uintptr_t at, std::size_t bytes) {
    well = well && userfault.value().register_span(at, bytes, linux::track_missing) == linux::Fault::ok;
  });
  struct Watch {
    const linux::Userfaultfd& by;
    bool must;
    bool well = true;
  } watch{userfault.value(), fresh};
  for_left_adopted(
      [](void* context, const Part& part) {
        auto& w = *static_cast<Watch*>(context);
        const bool watched = w.by.register_span(part.first, part.bytes(), linux::track_missing) == linux::Fault::ok;
        // A fork's child that forks may have put other memory there.
        if (!watched && w.must) w.well = false;
      },
      &watch);
  well = well && watch.well;
  int pipe[2] = {-1, -1};
  if (!well || ::pipe2(pipe, O_CLOEXEC) != 0) return false;
  ::fcntl(pipe[0], F_SETFL, O_ASYNC);  // the manager clears it when nothing is missing any more
  wire::ForkBegin hello{};
  hello.thread = static_cast<std::uint32_t>(::getpid());
  const int own = ::fcntl(userfault.value().fd(), F_DUPFD_CLOEXEC, 0);
  const int fds[] = {userfault.value().fd(), pipe[0], pipe[1]};
  well = own >= 0 && linux::send_message(child_end, wire::MessageType::fork_child, 0, hello, fds).ok();
  ::close(pipe[1]);
  if (!well) {
    ::close(pipe[0]);
    if (own >= 0) ::close(own);
    return false;
  }
  manager_socket.watch(std::exchange(child_end, -1));
  manager_lives.watch(pipe[0]);
  own_userfault.watch(own);
  // A signal that programs ignore unless they ask for it; one that does is not told of the manager's end, and waits.
  struct sigaction now {};
  if (::sigaction(SIGURG, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) == 0 &&
      (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN || now.sa_handler == on_urgent)) {
    struct sigaction ours {};
    ours.sa_handler = on_urgent;
    ours.sa_flags = SA_RESTART;
    ::sigaction(SIGURG, &ours, nullptr);
    ::fcntl(pipe[0], F_SETSIG, SIGURG);
    ::fcntl(pipe[0], F_SETOWN, ::getpid());
    // It may have ended since it was sent to, when there was nobody to signal.
    on_urgent(SIGURG);
  }
  return true;
}

/// The manager has said that nothing is missing any more.
[[nodiscard]] bool is_complete() {
  return manager_lives.is_ours() && (::fcntl(manager_lives.fd, F_GETFL) & O_ASYNC) == 0;
}

/// Waits until the manager has brought everything.
bool wait_for_everything() {
  pollfd p{manager_socket.fd, POLLIN, 0};
  while (::poll(&p, 1, -1) < 0 && errno == EINTR) {}
  all_here = is_complete();
  return all_here;
}

/// What the parent's descriptors were for is the parent's; they would keep its session alive for the others.
void leave_session(Session& session) {
  abandon_zygote();
  abandon_devices();
  session.socket.reset();
  session.kick.reset();
  session.system_file.reset();
  session.userfault.close();
}

/// Once, in the child: by its first touch of managed memory or by the handler, whichever comes first.
void set_up_child() {
  if (child_set_up) return;
  child_set_up = true;
  bool well = true;
  if (way == Way::from_child) {
    manager_socket.close();
    manager_lives.close();
    own_userfault.close();
    if (child_end >= 0) well = connect_child(false);
  } else {
    Session* session = session_if_open();
    process_kind.store(ProcessKind::forked_child);
    well = connect_child(true) && apply_fork_advice() && apply_protections() && protect_left_adopted() &&
           (way == Way::on_touch || wait_for_everything());
    leave_session(*session);
  }
  close_end(child_end);
  close_end(copied_pipe[0]);
  close_end(copied_pipe[1]);
  has_memory.store(well);
  if (well) return;
  unmap_all();
  say("ferry: this fork's child could not be given its memory; touching it ends the process\n");
}

/// The C library itself touches what malloc gave it (streams' locks) before any handler runs in the child.
void on_segv(int number, siginfo_t* info, void* context) {
  const Session* session = session_if_open();
  if (::getpid() != forking && !child_set_up && session != nullptr &&
      (session->in_window(info->si_addr) || is_left_adopted(reinterpret_cast<std::uint64_t>(info->si_addr)))) {
    const int saved_errno = errno;
    set_up_child();
    errno = saved_errno;
    return;
  }
  // Not ours: the access is repeated with the program's own handler, or ends the process as it would have without us.
  ::sigaction(SIGSEGV, &former_segv, nullptr);
  static_cast<void>(number);
  static_cast<void>(context);
}

/// What the thread that forks has pinned of its stack is missing there when the child begins: the handler needs another.
constexpr std::size_t touch_stack_bytes = std::size_t{256} << 10;
constinit void* touch_stack = nullptr;
constinit bool on_touch_stack = false;
constinit stack_t former_stack{};

void lend_touch_stack() {
  on_touch_stack = false;
  if (!some_adopted_left()) return;
  if (touch_stack == nullptr) {
    void* const got = raw_mmap(0, touch_stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED) return;
    touch_stack = got;
    note_own_memory(got, touch_stack_bytes);
  }
  stack_t lent{};
  lent.ss_sp = touch_stack;
  lent.ss_size = touch_stack_bytes;
  // Refused to who runs on one already.
  on_touch_stack = ::sigaltstack(&lent, &former_stack) == 0;
}

void take_touch_stack_back() {
  if (on_touch_stack) ::sigaltstack(&former_stack, nullptr);
  on_touch_stack = false;
}

void watch_touches() {
  lend_touch_stack();
  struct sigaction ours {};
  ours.sa_sigaction = on_segv;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigaction(SIGSEGV, &ours, &former_segv);
}

void unwatch_touches() {
  take_touch_stack_back();
  struct sigaction now {};
  if (::sigaction(SIGSEGV, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_segv) {
    ::sigaction(SIGSEGV, &former_segv, nullptr);
  }
}

// --- before ----------------------------------------------------------------------------------------------------------

/// The pages of this thread's stack that it writes until it has forked, and needs then: from here to fork()'s caller.
Part calls_of_fork() {
  constexpr std::uint64_t frames_bytes = 2048;  // of fork() and what it calls the handlers by
  const auto here = reinterpret_cast<std::uint64_t>(__builtin_frame_address(0));
  return {here & ~(page_bytes - 1), round_up(here + frames_bytes)};
}

wire::ForkBegin begin_message() {
  wire::ForkBegin begin{};
  begin.thread = static_cast<std::uint32_t>(::syscall(SYS_gettid));
  return begin;
}

/// False: the manager does not help with this fork; the child will have no memory.
bool ask_manager(Session& session) {
  auto pair = linux::make_socket_pair();
  if (!pair) return false;
  const int fds[] = {pair.value().second.get()};
  wire::ForkBegin begin = begin_message();
  begin.at_once = way == Way::at_once ? 1 : 0;
  Answer answer;
  if (!session.requests.ask(wire::MessageType::fork_begin, begin, answer, fds).ok()) return false;
  child_end = pair.value().first.release();
  return true;
}

[[nodiscard]] bool ask_manager_of_child() {
  auto pair = linux::make_socket_pair();
  if (!pair) return false;
  const int fds[] = {pair.value().second.get()};
  if (!linux::send_message(manager_socket.fd, wire::MessageType::fork_begin, 0, begin_message(), fds).ok()) {
    return false;
  }
  if (linux::receive_message(manager_socket.fd, *fork_answer, -1) != linux::Receive::message) return false;
  wire::Done done{};
  if (fork_answer->type() != wire::MessageType::done || !fork_answer->body(done) || done.code != 0) return false;
  child_end = pair.value().first.release();
  return true;
}

/// Has the manager bring all that is missing.
void touch_span(std::uintptr_t first, std::size_t bytes) {
  const std::uintptr_t end = first + bytes;
  OwnMapping here;
  for (std::uintptr_t at = first; at < end && find_own_mapping(at, here); at = here.end) {
    const std::uintptr_t stop = std::min<std::uintptr_t>(end, here.end);
    // What it may not read itself its children may: nobody can have it from here but by a touch.
    if (!here.readable) raw_mprotect(at, stop - at, PROT_READ);
    for (std::uintptr_t page = at; page < stop; page += page_bytes) {
      if (is_absent_in_child(page)) continue;
      static_cast<void>(*reinterpret_cast<const volatile char*>(page));
    }
    if (!here.readable) raw_mprotect(at, stop - at, PROT_NONE);
  }
}

void touch_all_memory() {
  for_memory(touch_span);
  for_left_adopted([](void*, const Part& part) { touch_span(part.first, part.bytes()); }, nullptr);
}

/// A fork's child forks. What is missing is to be missing in both, or in none.
void prepare_grandchild() {
  if (all_here || is_complete() || (manager_socket.is_ours() && ask_manager_of_child())) return;
  touch_all_memory();
  all_here = true;
}

}  // namespace
void before_fork() {
  lock_restored();
  way = Way::none;
  child_set_up = false;
  forking = ::getpid();
  if (session_of(ProcessKind::forked_child) != nullptr && child_has_memory()) {
    way = Way::from_child;
    prepare_grandchild();
    return;
  }
  Session* session = session_of(ProcessKind::application);
  if (session == nullptr || !session->system_file) return;
  if (has_adopted()) {
    // The kernel's own copy-on-write covers it then, the stack that this thread runs on included.
    adoption_suspended = true;
    suspend_adoption();
    if (!freeze_adopted(*session, calls_of_fork())) {
      say("ferry: this fork's child lacks memory that is pinned: of the stack that fork() is called on, or of more "
          "than can be noted\n");
    }
  }
  freeze_fork_advice();
  freeze_protections(*session);
  // Where faults in system calls are not served, no thread may find a page missing that was there before.
  way = session->userfault.full_service() ? Way::on_touch : Way::at_once;
  const bool asked = ask_manager(*session);
  if (way == Way::at_once && ::pipe2(copied_pipe, O_CLOEXEC) != 0) copied_pipe[0] = copied_pipe[1] = -1;
  watch_touches();
  if (asked && way == Way::on_touch) session->requests.say(wire::MessageType::fork_goes, wire::Done{});
}

void after_fork_in_parent() {
  const bool gave_back = adoption_suspended;
  if (gave_back) {
    resume_adoption();
    forget_left_adopted();
  }
  adoption_suspended = false;
  unlock_restored();
  if (way == Way::none || way == Way::from_child) {
    close_end(child_end);
    return;
  }
  unwatch_touches();
  close_end(child_end);
  if (copied_pipe[0] >= 0) {
    close_end(copied_pipe[1]);
    char byte = 0;
    while (::read(copied_pipe[0], &byte, 1) < 0 && errno == EINTR) {}
    close_end(copied_pipe[0]);
  }
  session_if_open()->requests.say(wire::MessageType::fork_end, wire::Done{});
  if (gave_back) map_code_data_again(*session_if_open());
}

bool after_fork_in_child() {
  forget_kept();
  adoption_suspended = false;  // its own forks suspend nothing: the adopter is its parent's
  if (way != Way::none) set_up_child();
  unlock_restored();
  if (way == Way::none) return true;
  if (way != Way::from_child) unwatch_touches();
  return child_has_memory();
}

bool child_has_memory() { return has_memory.load(std::memory_order_relaxed); }

}  // namespace ferry::client

#include "client/fork.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "client/devices.h"
#include "client/heap/process_heap.h"
#include "client/process_state.h"
#include "client/session.h"
#include "client/zygote.h"
#include "linux/memory_file.h"

namespace ferry::client {
namespace {

std::uint64_t closed_base = 0;
std::uint64_t closed_bytes = 0;

void on_child_segv(int, siginfo_t* info, void*) {
  const auto at = reinterpret_cast<std::uint64_t>(info->si_addr);
  if (at - closed_base < closed_bytes) {
    constexpr char text[] =
        "ferry: this process was forked from a Ferry application and has no managed memory: exec a program, or use "
        "managed memory in the parent only\n";
    [[maybe_unused]] const auto n = ::write(STDERR_FILENO, text, sizeof text - 1);
  }
  // The access is repeated and ends the process as it would have without us.
  ::signal(SIGSEGV, SIG_DFL);
}

// Of a fork under way, by the thread that forks (others wait in the heap's own handlers): a pipe whose writing end closes
// when the child has copied its heap or is dead.
int copied_pipe[2] = {-1, -1};

[[nodiscard]] bool is_application_with_session() {
  return session_if_open() != nullptr && process_kind.load() == ProcessKind::application;
}

void close_pipe_end(int end) {
  if (copied_pipe[end] >= 0) ::close(copied_pipe[end]);
  copied_pipe[end] = -1;
}

void before_fork() {
  if (!heap_serves_malloc() || !is_application_with_session()) return;
  const NativeMallocScope native;
  process_heap().visit_spans(
      [](void* context, void* span, std::size_t bytes, SpanKind) {
        auto& session = *static_cast<Session*>(context);
        wire::Span home{};
        home.first_page = session.page_of(span);
        home.count_pages = bytes / page_bytes;
        home.device = wire::to_system;
        // What cannot be brought is copied as it was when it left.
        [[maybe_unused]] const Status brought = session.requests.tell(wire::MessageType::prefetch, home);
      },
      session_if_open());
  if (::pipe2(copied_pipe, O_CLOEXEC) != 0) copied_pipe[0] = copied_pipe[1] = -1;
}

void in_parent() {
  close_pipe_end(1);
  if (copied_pipe[0] < 0) return;
  char byte = 0;
  while (::read(copied_pipe[0], &byte, 1) < 0 && errno == EINTR) {}
  close_pipe_end(0);
}

bool copy_from_file(int file, std::uint64_t offset, std::byte* to, std::size_t bytes) {
  const std::uint64_t end = offset + bytes;
  for (std::uint64_t at = linux::next_data(file, offset, end); at < end;) {
    const std::uint64_t stop = linux::next_hole(file, at, end);
    while (at < stop) {
      const ssize_t n = ::pread(file, to + (at - offset), stop - at, static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      at += static_cast<std::uint64_t>(n);
    }
    at = linux::next_data(file, at, end);
  }
  return true;
}

void in_child() {
  close_pipe_end(0);
  close_pipe_end(1);
  if (!is_application_with_session()) return;
  Session* session = session_if_open();
  process_kind.store(ProcessKind::forked_child);
  // The descriptors keep the session alive for the manager and the template process: the parent's end must be seen.
  abandon_zygote();
  abandon_devices();
  session->socket.reset();
  session->kick.reset();
  session->system_file.reset();
  session->userfault.close();
  closed_base = session->window_base;
  closed_bytes = session->window_bytes;
  struct sigaction now {};
  if (::sigaction(SIGSEGV, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) == 0 && now.sa_handler == SIG_DFL) {
    struct sigaction ours {};
    ours.sa_sigaction = on_child_segv;
    ours.sa_flags = SA_SIGINFO;
    ::sigaction(SIGSEGV, &ours, nullptr);
  }
}

}  // namespace

void watch_forks() {
  static std::atomic<bool> watched{false};
  if (!watched.exchange(true)) ::pthread_atfork(before_fork, in_parent, in_child);
}

bool fork_child_span(void* span, std::size_t bytes) {
  const Session* session = session_if_open();
  const bool copy = heap_serves_malloc() && session != nullptr;
  // The mapping is not inherited; the agent may have been about to replace it, so whatever is there goes.
  void* mapped = ::mmap(span, bytes, copy ? PROT_READ | PROT_WRITE : PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (copy ? 0 : MAP_NORESERVE), -1, 0);
  if (!copy || mapped == MAP_FAILED) return false;
  return copy_from_file(session->system_file.get(), reinterpret_cast<std::uint64_t>(span) - session->window_base,
                        static_cast<std::byte*>(span), bytes);
}

}  // namespace ferry::client

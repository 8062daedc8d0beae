#include "client/fork.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "client/devices.h"
#include "client/process_state.h"
#include "client/session.h"
#include "client/zygote.h"

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

void in_child() {
  Session* session = session_if_open();
  if (session == nullptr || process_kind.load() != ProcessKind::application) return;
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
  if (!watched.exchange(true)) ::pthread_atfork(nullptr, nullptr, in_child);
}

void fork_child_span(void* span, std::size_t bytes) {
  // The mapping is not inherited; the agent may have been about to replace it, so whatever is there goes.
  ::mmap(span, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

}  // namespace ferry::client

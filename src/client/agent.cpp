#include "client/agent.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "client/adopt/places.h"
#include "client/adopt/stopped.h"
#include "client/adopt/threads.h"
#include "client/heap/process_heap.h"
#include "client/immortal.h"
#include "linux/event.h"
#include "linux/futex.h"
#include "linux/lock.h"
#include "wire/ring.h"

// Of Linux 5.18; C libraries are older than kernels.
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

namespace ferry::client {
namespace {

/// Programs lock their memory (mlockall): the plain advice refuses that, and the pages would stay reachable.
constexpr int zap_advice = MADV_DONTNEED_LOCKED;
constexpr std::size_t stack_bytes = std::size_t{256} << 10;
constexpr unsigned batch_max = 64;

// Constant-initialized; written before the thread that reads it starts.
constinit AgentStart agent;
/// Descriptors plus one, so that zero is none.
constinit std::array<std::atomic<int>, wire::buffer_slots> buffer_files{};
constinit int reader_socket = -1;
constinit ReaderCalls reader_calls;
constinit Immortal<linux::Incoming> reader_buffer;

class Agent {
 public:
  Agent() : port_(agent.control->agent, agent.control->head) {
    self_pidfd_ = static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0));
  }

  [[noreturn]] void run() {
    linux::AdaptiveSpin spin(1'000, 100'000);
    for (;;) {
      port_.take(batch_[0], spin,
                 [](std::atomic<std::uint32_t>& word, std::uint32_t expected) { linux::futex_wait(word, expected); });
      unsigned count = 1;
      while (count < batch_max && port_.try_take(batch_[count])) ++count;
      obey(count);
    }
  }

 private:
  void obey(unsigned count) {
    // Zaps first and together: each call costs one shootdown of the other threads' TLBs, however many extents it has.
    // Commands that are under way at one time never overlap, so their order is free.
    unsigned zaps = 0;
    unsigned outside = 0;
    for (unsigned i = 0; i < count; ++i) {
      errors_[i] = 0;
      const auto& c = batch_[i];
      if (!is_managed(c)) {
        errors_[i] = EINVAL;
      } else if (!in_window(c)) {
        if (c.kind == static_cast<std::uint32_t>(wire::DownKind::zap)) {
          outside_[outside++] = i;
        } else {
          errors_[i] = EINVAL;
        }
      } else if (c.kind == static_cast<std::uint32_t>(wire::DownKind::zap)) {
        zap_of_[zaps] = i;
        extents_[zaps++] = {reinterpret_cast<void*>(c.address), c.length_bytes};
      } else if (c.kind == static_cast<std::uint32_t>(wire::DownKind::map_home)) {
        errors_[i] = map(c, agent.system_fd);
      } else if (c.kind == static_cast<std::uint32_t>(wire::DownKind::map_buffer)) {
        errors_[i] = map(c, file_of(c));
      } else {
        errors_[i] = ENOSYS;
      }
    }
    zap(zaps);
    if (outside != 0) zap_adopted(outside);
    for (unsigned i = 0; i < count; ++i) {
      if (batch_[i].action != 0) answer(batch_[i], errors_[i]);
    }
  }

  /// In the window, or outside of it, where the program had memory of its own.
  [[nodiscard]] static bool is_managed(const wire::DownRecord& c) {
    const Window window{agent.window_base, agent.window_bytes};
    return c.address < user_address_end && c.address % page_bytes == 0 && c.length_bytes % page_bytes == 0 &&
           window.numbers(window.page_of_address(c.address), c.length_bytes / page_bytes);
  }

  [[nodiscard]] static bool in_window(const wire::DownRecord& c) {
    return c.address - agent.window_base < agent.window_bytes;
  }
  /// Memory outside the window may be unmapped at any time, by a C library that tells nobody, and other memory be there,
  /// which would be lost: only what is the session's file still is touched, while nobody can change that. Where some thread
  /// cannot be stopped that is as good as can be.
  void zap_adopted(unsigned count) {
    const StoppedThreads stopped(0, 0);
    for (unsigned i = 0; i < count; ++i) errors_[outside_[i]] = zap_stopped(batch_[outside_[i]]);
  }

  [[nodiscard]] static int zap_stopped(const wire::DownRecord& c) {
    const std::uint64_t end = c.address + c.length_bytes;
    for (std::uint64_t at = c.address; at < end;) {
      const Place place = place_of(at);
      const std::uint64_t stop = std::min(end, std::max(place.end, at + page_bytes));
      if (place.adopted && ::madvise(reinterpret_cast<void*>(at), stop - at, zap_advice) != 0 && errno != ENOMEM) {
        return errno;
      }
      at = stop;
    }
    return 0;
  }

  void zap(unsigned count) {
    unsigned next = 0;
    while (next < count) {
      // Before Linux 6.13 a process may not advise itself this way: one call an extent then.
      if (batched_ && count - next > 1) {
        const ssize_t done = ::syscall(SYS_process_madvise, self_pidfd_, &extents_[next], count - next, zap_advice, 0);
        if (done > 0) {
          auto bytes = static_cast<std::size_t>(done);
          while (next < count && bytes >= extents_[next].iov_len) bytes -= extents_[next++].iov_len;
          continue;
        }
        if (errno == EINTR || errno == EAGAIN) continue;
        if (errno == EINVAL || errno == EPERM || errno == ENOSYS || errno == EBADF) batched_ = false;
      }
      // ENOMEM: part of the extent is unmapped, because the program freed it; nothing is reachable there, and the rest
      // was zapped.
      if (::madvise(extents_[next].iov_base, extents_[next].iov_len, zap_advice) != 0 && errno != ENOMEM) {
        errors_[zap_of_[next]] = errno;
      }
      ++next;
    }
  }

  [[nodiscard]] static int file_of(const wire::DownRecord& c) {
    if (c.file == static_cast<std::uint8_t>(wire::File::system)) return agent.system_fd;
    return c.buffer < buffer_files.size() ? buffer_files[c.buffer].load(std::memory_order_acquire) - 1 : -1;
  }

  [[nodiscard]] static int map(const wire::DownRecord& c, int file) {
    // Whole blocks of the heap are about to be touched; a buffer may have holes, which must not be filled for nothing.
    const int populate = c.kind == static_cast<std::uint32_t>(wire::DownKind::map_home) ? MAP_POPULATE : 0;
    void* at = reinterpret_cast<void*>(c.address);
    void* got = ::mmap(at, c.length_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | populate, file,
                       static_cast<off_t>(c.file_offset));
    if (got == MAP_FAILED) return errno;
    ::madvise(at, c.length_bytes, MADV_DONTFORK);
    return 0;
  }

  void answer(const wire::DownRecord& c, int error) {
    wire::UpRecord up{};
    up.kind = static_cast<std::uint32_t>(wire::UpKind::done);
    up.action = c.action;
    up.address = c.address;
    up.error = error;
    up.time_ns = linux::monotonic_ns();
    // Full: the manager is behind. It never has more than ring_entries commands out, so this ends.
    while (!port_.post(up, [] { linux::Bell::ring_fd(agent.kick_fd); })) cpu_relax();
  }

  wire::PeerPort port_;
  int self_pidfd_ = -1;
  bool batched_ = true;
  std::array<wire::DownRecord, batch_max> batch_;
  std::array<int, batch_max> errors_;
  std::array<iovec, batch_max> extents_;
  std::array<unsigned, batch_max> zap_of_;
  std::array<unsigned, batch_max> outside_;
};

void* agent_main(void*) {
  ::prctl(PR_SET_NAME, "ferry-agent");
  const linux::NoLocks none("threads that wait for a page hold locks, and this one brings the page");
  Agent a;
  a.run();
}

void* reader_main(void*) {
  ::prctl(PR_SET_NAME, "ferry-reader");
  const linux::NoLocks none("threads that wait for an answer hold locks, and this one brings the answer");
  for (;;) {
    const linux::Receive got = linux::receive_message(reader_socket, *reader_buffer, -1);
    // Without its descriptors it is a message all the same: whoever asked for them says that they did not come.
    if (got != linux::Receive::message && got != linux::Receive::no_room) break;
    reader_calls.message(*reader_buffer);
  }
  reader_calls.closed();
  return nullptr;
}

}  // namespace

Status start_session_thread(void* (*body)(void*)) {
  // Its own stack and, by the native scope, its own thread-local memory: none of it managed.
  const NativeMallocScope native;
  void* stack = ::mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) return Status(Code::no_memory, errno);
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, &before);
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setstack(&attributes, stack, stack_bytes);
  ::pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread{};
  const auto run = [](void* session_body) -> void* {
    note_session_thread();
    return reinterpret_cast<void* (*)(void*)>(session_body)(nullptr);
  };
  const int error = ::pthread_create(&thread, &attributes, run, reinterpret_cast<void*>(body));
  ::pthread_attr_destroy(&attributes);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error == 0) note_own_memory(stack, stack_bytes);
  if (error != 0) {
    ::munmap(stack, stack_bytes);
    return Status(Code::no_memory, error);
  }
  return {};
}

Status start_agent(const AgentStart& start) {
  agent = start;
  return start_session_thread(agent_main);
}

void set_agent_buffer_file(unsigned slot, int fd) { buffer_files[slot].store(fd + 1, std::memory_order_release); }

void forget_agent_buffer_file(unsigned slot, int fd) {
  int word = fd + 1;
  buffer_files[slot].compare_exchange_strong(word, 0, std::memory_order_acq_rel);
}

Status start_reader(int socket, const ReaderCalls& calls) {
  reader_socket = socket;
  reader_calls = calls;
  return start_session_thread(reader_main);
}

}  // namespace ferry::client

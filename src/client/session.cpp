#include "client/session.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "client/adopt/adopter.h"
#include "client/agent.h"
#include "client/change/libc.h"
#include "client/connection.h"
#include "client/devices.h"
#include "client/error.h"
#include "client/heap/process_heap.h"
#include "client/immortal.h"
#include "client/process_state.h"
#include "client/spans.h"
#include "client/zygote.h"
#include "device/program_data.h"
#include "linux/lock.h"
#include "wire/ring.h"

namespace ferry::client {
namespace {

constexpr int welcome_timeout_ms = 60'000;
constexpr int exit_manager_lost = 117;

alignas(Session) std::byte session_storage[sizeof(Session)];
std::atomic<Session*> opened{nullptr};
/// `opened`, from when the program's heap is managed memory. A thread that used a device before would have it fault on
/// pages that are just being converted, and the agent drop the only copy of them.
std::atomic<Session*> complete{nullptr};
constinit linux::LockClass open_lock("session", linux::LockRank::session);
constinit linux::Mutex open_mutex(open_lock);
std::array<char, 128> opened_socket{};               // guarded by open_mutex; empty: the default
constinit Immortal<linux::Incoming> welcome_buffer;  // guarded by open_mutex

/// Writes without stdio, whose locks and buffers the program's threads may hold or have in managed memory.
void say(const char* text) { [[maybe_unused]] const auto n = ::write(STDERR_FILENO, text, std::strlen(text)); }

/// Of the reader thread, and of any that asks when the manager is gone.
void on_closed() {
  static constinit std::atomic_flag ending;
  while (ending.test_and_set()) ::pause();  // another thread is ending this program
  char text[200];
  const Session* s = opened.load(std::memory_order_acquire);
  std::snprintf(text, sizeof text,
                "ferry: the manager (pid %u) ended; managed memory is lost, so this program cannot go on\n",
                s == nullptr ? 0U : s->machine.manager_pid);
  say(text);
  ::_exit(exit_manager_lost);
}

void on_message(linux::Incoming& in) {
  Session* s = opened.load(std::memory_order_acquire);
  if (in.type() == wire::MessageType::device_lost) {
    wire::AttachDevice which{};
    if (in.body(which)) device_lost(which.device);
    return;
  }
  if (in.type() == wire::MessageType::adopt_ask) {
    wire::AdoptAsk ask{};
    if (s != nullptr && in.body(ask)) adopt_for_device(ask);
    return;
  }
  if (s != nullptr) s->requests.deliver(in);
}

void executable_name(char (&out)[64]) {
  char path[512];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof path - 1);
  path[n > 0 ? n : 0] = '\0';
  const char* slash = std::strrchr(path, '/');
  std::snprintf(out, sizeof out, "%.63s", slash == nullptr ? path : slash + 1);
}

bool check_welcome(Session& s, const char* who, ferry_error* error) {
  const auto got = linux::receive_message(s.socket.get(), *welcome_buffer, welcome_timeout_ms);
  switch (got) {
    case linux::Receive::message: break;
    case linux::Receive::version:
      fail(error, Code::bad_version, 0,
           "%s speaks version %u of the protocol and this libferry version %u: use both of one release", who,
           welcome_buffer->head.version, wire::wire_version);
      return false;
    case linux::Receive::nothing:
      fail(error, Code::timed_out, 0, "%s does not answer; it may be stopped or overloaded", who);
      return false;
    case linux::Receive::closed:
      fail(error, Code::manager_lost, 0, "%s ended while it was asked for a session; what it printed says why", who);
      return false;
    case linux::Receive::no_room:
      fail(error, Code::no_memory, EMFILE, "this process has as many descriptors as it may, and a session needs some");
      return false;
    case linux::Receive::bad:
      fail(error, Code::bad_message, 0, "what answers at %s is not a ferryd", who);
      return false;
  }
  if (welcome_buffer->type() == wire::MessageType::refused) {
    wire::Refused refused{};
    if (!welcome_buffer->body(refused)) {
      fail(error, Code::bad_message, 0, "%s refuses without a reason", who);
      return false;
    }
    refused.text[sizeof refused.text - 1] = '\0';
    const Code code = refused.code == 0 ? Code::bad_message : static_cast<Code>(refused.code);
    if (code == Code::bad_version) {
      fail(error, code, 0, "%s speaks version %u of the protocol and this libferry version %u: use both of one release",
           who, refused.version, wire::wire_version);
    } else {
      fail(error, code, 0, "%s refuses: %s", who, refused.text);
    }
    return false;
  }
  const bool well = welcome_buffer->type() == wire::MessageType::welcome && welcome_buffer->body(s.machine) &&
                    s.machine.device_count >= 1 && s.machine.device_count <= max_devices && s.machine.cu_count >= 1 &&
                    s.machine.cu_count <= wire::max_cus && welcome_buffer->fd_count == 3 + 3 * s.machine.device_count;
  if (!well) fail(error, Code::bad_message, 0, "%s answered with what no ferryd of this version sends", who);
  return well;
}

bool say_hello(Session& s, const char* who, ferry_error* error) {
  linux::Userfaultfd::Options options;
  options.protect = true;
  options.thread_ids = true;
  // For tests, and to see what a machine that gives less would do: faults inside system calls are not served.
  const char* kind = std::getenv("FERRY_USERFAULTFD");
  options.prefer_full_service = kind == nullptr || std::strcmp(kind, "user") != 0;
  auto userfault = linux::Userfaultfd::open(options);
  if (!userfault) {
    fail(error, Code::unsupported, userfault.status().sys_errno,
         "this machine gives no userfaultfd for shared memory (%s): `ferry doctor` says what to change",
         std::strerror(userfault.status().sys_errno));
    return false;
  }
  s.userfault = std::move(userfault.value());
  wire::Hello hello{};
  hello.window_base = s.window_base;
  hello.window_bytes = s.window_bytes;
  hello.pid = static_cast<std::uint32_t>(::getpid());
  hello.full_userfaultfd = s.userfault.full_service() ? 1 : 0;
  executable_name(hello.program);
  const int fds[] = {s.userfault.fd()};
  const Status sent = linux::send_message(s.socket.get(), wire::MessageType::hello, 0, hello, fds, welcome_timeout_ms);
  if (!sent.ok()) {
    fail(error, Code::manager_lost, sent.sys_errno, "%s ended before it could be asked for a session", who);
    return false;
  }
  return check_welcome(s, who, error);
}

bool take_files(Session& s, ferry_error* error) {
  s.kick = std::move(welcome_buffer->fds[0]);
  s.system_file = std::move(welcome_buffer->fds[1]);
  void* control =
      ::mmap(nullptr, sizeof(wire::AppControl), PROT_READ | PROT_WRITE, MAP_SHARED, welcome_buffer->fds[2].get(), 0);
  if (control == MAP_FAILED) {
    fail(error, Code::no_memory, errno, "cannot map the manager's control file: %s", std::strerror(errno));
    return false;
  }
  ::madvise(control, sizeof(wire::AppControl), MADV_DONTFORK);
  auto* app = static_cast<wire::AppControl*>(control);
  if (!wire::compatible(app->head)) {
    fail(error, Code::bad_version, 0, "the manager's control file is of another version");
    return false;
  }
  for (unsigned d = 0; d < s.machine.device_count; ++d) {
    linux::Fd* files = &welcome_buffer->fds[3 + 3 * d];
    set_device_files(d, {std::move(files[0]), std::move(files[1]), std::move(files[2])});
  }
  s.control = app;
  AgentStart start;
  start.control = app;
  start.kick_fd = s.kick.get();
  start.system_fd = s.system_file.get();
  start.window_base = s.window_base;
  start.window_bytes = s.window_bytes;
  find_libc_io();
  const Status agent = start_agent(start);
  if (!agent.ok()) fail(error, agent, "cannot start the session's threads");
  return agent.ok();
}

Session* open_new(const char* socket, ferry_error* error) {
  // What the session keeps must not be managed memory.
  const NativeMallocScope native;
  const ProcessWindow& window = process_window();
  if (!window.reserved) {
    fail(error, Code::unsupported, 0,
         "the addresses from 0x%zx (%zu GiB) for managed memory could not be had: a limit (ulimit -v) or another "
         "library "
         "is in the way; FERRY_WINDOW_BASE and FERRY_WINDOW_BYTES move them",
         window.base, window.bytes >> 30);
    return nullptr;
  }
  const Status zygote = start_zygote(false);
  if (!zygote.ok()) {
    fail(error, zygote, "cannot fork the template of device processes");
    return nullptr;
  }
  // Not before main where a static constructor is the first to ask, or Ferry was loaded by the running program.
  device::make_program_data_anonymous();
  auto* s = new (session_storage) Session;
  s->window_base = window.base;
  s->window_bytes = window.bytes;
  s->socket = socket != nullptr ? connect_manager(socket, error) : start_private_manager(error);
  char who[160];
  if (socket != nullptr) {
    std::snprintf(who, sizeof who, "the ferryd at %s", socket);
  } else {
    std::snprintf(who, sizeof who, "the private ferryd");
  }
  if (!s->socket || !say_hello(*s, who, error) || !take_files(*s, error)) {
    s->~Session();
    return nullptr;
  }
  s->requests.start(s->socket.get(), on_closed);
  opened.store(s, std::memory_order_release);
  Status reader = start_adopter(*s);
  if (reader.ok()) reader = start_reader(s->socket.get(), {on_message, on_closed});
  if (!reader.ok() || !begin_spans(*s)) {
    // Threads of ours hold on to the session: it cannot be taken down and tried again.
    say("ferry: the session could not be completed; managed memory cannot be used\n");
    fail(error, reader.ok() ? Status(Code::no_memory) : reader,
         reader.ok() ? "the program's heap could not be made managed memory" : "cannot start the session's threads");
    ::_exit(exit_manager_lost);
  }
  complete.store(s, std::memory_order_release);
  return s;
}

}  // namespace

bool may_use_session(ferry_error* error) {
  switch (process_kind.load(std::memory_order_relaxed)) {
    case ProcessKind::application: return true;
    case ProcessKind::forked_child:
      fail(
          error, Code::unsupported, 0,
          "this process was forked from a Ferry application: it has the memory, but no devices; exec a program, or use "
          "devices in the parent only");
      return false;
    case ProcessKind::device:
    case ProcessKind::template_process:
      fail(
          error, Code::unsupported, 0,
          "a kernel cannot do this: allocate, free, launch and prefetch on the CPU (a container that grows allocates)");
      return false;
  }
  return false;
}

Session* session_if_open() { return opened.load(std::memory_order_acquire); }

Session* open_session(const char* socket, ferry_error* error) {
  if (!may_use_session(error)) return nullptr;
  Session* s = complete.load(std::memory_order_acquire);
  if (s != nullptr && socket == nullptr) return s;
  const linux::LockGuard lock(open_mutex);
  s = complete.load(std::memory_order_acquire);
  if (s != nullptr) {
    if (socket == nullptr || std::strcmp(socket, opened_socket.data()) == 0) return s;
    fail(error, Code::not_permitted, 0, "this process has a session with %s already; there is one a process",
         opened_socket[0] == '\0' ? "a private ferryd" : opened_socket.data());
    return nullptr;
  }
  if (socket == nullptr) socket = std::getenv("FERRY_SOCKET");
  if (socket != nullptr && *socket == '\0') socket = nullptr;
  s = open_new(socket, error);
  if (s != nullptr) std::snprintf(opened_socket.data(), opened_socket.size(), "%s", socket == nullptr ? "" : socket);
  return s;
}

}  // namespace ferry::client

#include "client/zygote_loop.h"

#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "client/heap/process_heap.h"
#include "client/immortal.h"
#include "client/process_state.h"
#include "device/before_main.h"
#include "device/device.h"
#include "linux/futex.h"
#include "linux/process.h"
#include "linux/socket.h"

extern char** environ;

namespace ferry::client {
namespace {

// A private manager writes its report when the program has gone, and serves children of the program's forks for as long as
// they live: it is waited for, and looked after often at first.
constexpr std::uint64_t manager_often_ns = 10'000'000'000;
constexpr int often_ms = 100;
constexpr int seldom_ms = 2000;

struct Child {
  linux::Process process;
  bool is_manager = false;
};

int loop_socket = -1;
constinit Immortal<linux::Incoming> incoming;

/// Keeps what the program maps later from having, by chance, the address of something of the device process's own. A
/// kernel that follows a pointer into unmanaged memory must find nothing there, not a stale or foreign byte.
void part_address_spaces() {
#if !defined(__SANITIZE_THREAD__)
  // Mappings are placed from the top: below this one, so far from those of the program.
  constexpr std::size_t gap_bytes = std::size_t{1} << 40;
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* const gap = ::mmap(nullptr, gap_bytes, PROT_NONE, flags, -1, 0);
  // The kernel aligns what is large: holes above it are left, which the program's next mappings will have.
  for (std::size_t bytes = std::size_t{4} << 20; gap != MAP_FAILED && bytes >= page_bytes; bytes /= 2) {
    for (;;) {
      void* const hole = ::mmap(nullptr, bytes, PROT_NONE, flags, -1, 0);
      if (hole == MAP_FAILED || hole > gap) {
        if (hole == MAP_FAILED) break;
        continue;
      }
      ::munmap(hole, bytes);
      break;
    }
  }
#endif
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
  // The break: give back what is unused, and make malloc grow elsewhere.
  ::mallopt(M_TOP_PAD, 0);
  ::malloc_trim(0);
  const auto end = (reinterpret_cast<std::uintptr_t>(::sbrk(0)) + page_bytes - 1) & ~(page_bytes - 1);
  ::mmap(reinterpret_cast<void*>(end), page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
#endif
}

void quiet_descriptors() {
  // Descriptors that the program closes or passes on must not live on here: whoever reads from the other end of a pipe
  // would wait for this process, too. Errors stay visible.
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null >= 0) {
    ::dup2(null, 0);
    ::dup2(null, 1);
    if (::fcntl(2, F_GETFD) < 0) ::dup2(null, 2);
  }
  const int high = ::fcntl(loop_socket, F_DUPFD_CLOEXEC, 3);
  ::dup3(high, 3, O_CLOEXEC);
  loop_socket = 3;
  ::syscall(SYS_close_range, 4, ~0U, 0);
}

void default_signals() {
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

[[noreturn]] void become_device(const DeviceSpawn& spawn) {
  const pid_t parent = ::getppid();
  // A device process never outlives the template process: it is killed even when stopped.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent || parent == 1) ::_exit(0);
  ::prctl(PR_SET_NAME, "ferry-device");
  ::close(loop_socket);
  process_kind.store(ProcessKind::device);
  device::DeviceStart start;
  start.device = spawn.device;
  start.window_base = spawn.window_base;
  start.window_bytes = spawn.window_bytes;
  start.manager_socket = incoming->fds[fd_manager].release();
  start.kick_fd = incoming->fds[fd_kick].release();
  start.system_fd = incoming->fds[fd_system].release();
  start.vram_fd = incoming->fds[fd_vram].release();
  start.control_fd = incoming->fds[fd_device_control].release();
  start.queue_fd = incoming->fds[fd_queue_control].release();
  start.files_socket = incoming->fds[fd_files].release();
  start.cu_count = spawn.cu_count;
  start.waves_per_cu = spawn.waves_per_cu;
  device::run_device(start);
}

[[noreturn]] void become_manager(const ManagerSpawn& spawn, int socket) {
  std::vector<std::string> variables;
  for (char** v = environ; v != nullptr && *v != nullptr; ++v) {
    std::string text = *v;
    if (text.starts_with("FERRY_")) continue;
    // The manager's own heap is an ordinary one.
    if (text.starts_with("LD_PRELOAD=") && text.find("libferry_malloc") != std::string::npos) continue;
    variables.push_back(std::move(text));
  }
  for (std::uint32_t at = 0; at < spawn.environment_bytes;) {
    variables.emplace_back(spawn.environment + at);
    at += static_cast<std::uint32_t>(variables.back().size()) + 1;
  }
  std::vector<char*> list;
  for (auto& v : variables) list.push_back(v.data());
  list.push_back(nullptr);
  const int inherited = ::fcntl(socket, F_DUPFD, 3);
  const std::string number = std::to_string(inherited);
  const char* args[] = {spawn.path, "--private-fd", number.c_str(), nullptr};
  ::execve(spawn.path, const_cast<char**>(args), list.data());
  std::fprintf(stderr, "ferry: cannot run %s: %s\n", spawn.path, std::strerror(errno));
  ::_exit(127);
}

void serve(std::vector<Child>& children) {
  Spawned answer{};
  DeviceSpawn device{};
  static ManagerSpawn manager;
  const bool for_device = incoming->type() == spawn_device_message && incoming->body(device);
  const bool for_manager = !for_device && incoming->type() == spawn_manager_message && incoming->body(manager);
  if ((for_device && incoming->fd_count == device_fd_count) || (for_manager && incoming->fd_count == 1)) {
    manager.path[sizeof manager.path - 1] = '\0';
    const pid_t pid = ::fork();
    if (pid == 0) {
      if (for_device) become_device(device);
      become_manager(manager, incoming->fds[0].get());
    }
    answer.pid = pid;
    answer.error = pid < 0 ? errno : 0;
    if (pid > 0) {
      auto process = linux::Process::open(pid);
      if (process) children.push_back({std::move(process.value()), for_manager});
    }
  } else {
    answer.pid = -1;
    answer.error = EINVAL;
  }
  for (unsigned i = 0; i < incoming->fd_count; ++i) incoming->fds[i].reset();
  [[maybe_unused]] const Status sent = linux::send_message(loop_socket, spawned_message, 0, answer);
}

void reap(std::vector<Child>& children) {
  std::erase_if(children,
                [](const Child& c) { return c.process.ended() && ::waitpid(c.process.pid(), nullptr, WNOHANG) != 0; });
}

void end_children(std::vector<Child>& children) {
  for (const auto& c : children) {
    if (!c.is_manager) c.process.kill();
  }
  const std::uint64_t often_until_ns = linux::monotonic_ns() + manager_often_ns;
  while (!children.empty()) {
    std::vector<pollfd> polls;
    for (const auto& c : children) polls.push_back({c.process.fd(), POLLIN, 0});
    for (const auto& c : children) {
      // A manager that is stopped will write no report any more.
      int how = 0;
      if (::waitpid(c.process.pid(), &how, WNOHANG | WUNTRACED) > 0 && WIFSTOPPED(how)) c.process.kill();
    }
    ::poll(polls.data(), polls.size(), linux::monotonic_ns() < often_until_ns ? often_ms : seldom_ms);
    reap(children);
  }
}

[[noreturn]] void loop() {
  std::vector<Child> children;
  for (;;) {
    std::vector<pollfd> polls{{loop_socket, POLLIN, 0}};
    for (const auto& c : children) polls.push_back({c.process.fd(), POLLIN, 0});
    if (::poll(polls.data(), polls.size(), -1) < 0 && errno != EINTR) break;
    reap(children);
    if (polls[0].revents == 0) continue;
    const auto got = linux::receive_message(loop_socket, *incoming, 0);
    if (got == linux::Receive::nothing) continue;
    if (got != linux::Receive::message) break;
    serve(children);
  }
  end_children(children);
  ::_exit(0);
}

}  // namespace

void run_zygote(int socket, bool early, bool main_thread) {
  process_kind.store(ProcessKind::template_process);
  heap_enter_device_mode();
  loop_socket = socket;
  // Out of the terminal's process group: an interrupt from the keyboard is the program's to handle.
  ::setsid();
  ::prctl(PR_SET_NAME, "ferry-template");
  default_signals();
  quiet_descriptors();
  const ProcessWindow& window = process_window();
  if (early) part_address_spaces();
  device::leave_program_memory({window.base, window.base + window.bytes}, main_thread);
  loop();
}

}  // namespace ferry::client

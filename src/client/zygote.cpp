#include "client/zygote.h"

#include <link.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "client/immortal.h"
#include "client/process_state.h"
#include "client/zygote_loop.h"
#include "linux/lock.h"
#include "linux/socket.h"

extern char** environ;

namespace ferry::client {

constinit std::atomic<ProcessKind> process_kind{ProcessKind::application};

namespace {

struct CodeRange {
  std::uintptr_t first;
  std::uintptr_t end;
};

constinit linux::LockClass zygote_lock("talk with the zygote", linux::LockRank::zygote);

// Constant-initialized and trivially destroyed: used before constructors and after destructors have run.
struct ZygoteState {
  linux::Mutex mutex{zygote_lock};
  int socket = -1;
  std::array<CodeRange, 1024> code{};
  std::size_t code_count = 0;
};
constinit ZygoteState state;
constinit Immortal<linux::Incoming> answer_buffer;  // guarded by state.mutex

int note_code(dl_phdr_info* info, std::size_t, void*) {
  for (unsigned i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_X) == 0) continue;
    if (state.code_count == state.code.size()) return 1;
    const std::uintptr_t first = info->dlpi_addr + segment.p_vaddr;
    state.code[state.code_count++] = {first, first + segment.p_memsz};
  }
  return 0;
}

Result<pid_t> ask(wire::MessageType type, std::span<const std::byte> body, std::span<const int> fds) {
  const linux::LockGuard lock(state.mutex);
  if (state.socket < 0) return Code::device_lost;
  const Status sent = linux::send_bytes(state.socket, type, 0, body, fds);
  if (!sent.ok()) return Status(Code::device_lost, sent.sys_errno);
  if (linux::receive_message(state.socket, *answer_buffer, -1) != linux::Receive::message) return Code::device_lost;
  Spawned answer{};
  if (answer_buffer->type() != spawned_message || !answer_buffer->body(answer)) return Code::bad_message;
  if (answer.pid <= 0) return Status(Code::no_memory, answer.error);
  return pid_t{answer.pid};
}

}  // namespace

Status start_zygote(bool early) {
  const linux::LockGuard lock(state.mutex);
  if (state.socket >= 0) return {};
  auto pair = linux::make_socket_pair();
  if (!pair) return Status(Code::no_memory, pair.status().sys_errno);
  auto& [ours, theirs] = pair.value();
  state.code_count = 0;
  dl_iterate_phdr(note_code, nullptr);

  const bool main_thread = ::gettid() == ::getpid();
  const pid_t first = ::fork();
  if (first < 0) return Status(Code::no_memory, errno);
  if (first == 0) {
    const pid_t second = ::fork();
    if (second != 0) ::_exit(second < 0 ? errno : 0);
    ours.reset();
    run_zygote(theirs.release(), early, main_thread);
  }
  int how = 0;
  pid_t waited = 0;
  do {
    waited = ::waitpid(first, &how, 0);
  } while (waited < 0 && errno == EINTR);
  // A handler of the program that reaps every child may have been quicker (ECHILD); the socket tells the rest.
  if (waited == first && how != 0) return Status(Code::no_memory, WIFEXITED(how) ? WEXITSTATUS(how) : EAGAIN);
  state.socket = ours.release();
  return {};
}

void abandon_zygote() {
  // In a fork's child another thread may have held the mutex for ever.
  if (state.socket >= 0) ::close(state.socket);
  state.socket = -1;
}

bool zygote_has_code(std::uintptr_t address) {
  for (std::size_t i = 0; i < state.code_count; ++i) {
    if (address >= state.code[i].first && address < state.code[i].end) return true;
  }
  return false;
}

Result<pid_t> spawn_device(const DeviceSpawn& spawn, const int (&fds)[device_fd_count]) {
  return ask(spawn_device_message, std::as_bytes(std::span<const DeviceSpawn, 1>(&spawn, 1)), fds);
}

Result<pid_t> spawn_manager(const char* path, int socket) {
  ManagerSpawn spawn{};
  if (std::strlen(path) >= sizeof spawn.path) return Status(Code::no_memory, ENAMETOOLONG);
  std::strcpy(spawn.path, path);
  for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable) {
    if (std::strncmp(*variable, "FERRY_", 6) != 0) continue;
    const std::size_t bytes = std::strlen(*variable) + 1;
    if (bytes > sizeof spawn.environment - spawn.environment_bytes) return Status(Code::no_memory, E2BIG);
    std::memcpy(spawn.environment + spawn.environment_bytes, *variable, bytes);
    spawn.environment_bytes += static_cast<std::uint32_t>(bytes);
  }
  const int fds[] = {socket};
  return ask(spawn_manager_message, std::as_bytes(std::span<const ManagerSpawn, 1>(&spawn, 1)), fds);
}

}  // namespace ferry::client

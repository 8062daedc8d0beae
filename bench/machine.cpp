#include "machine.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <vector>

#include <fmt/format.h>

#include "floors/posix.h"

namespace ferry::bench {

namespace {

constexpr int listen_fd = 3;

std::string make_folder() {
  const char* base = std::getenv("TMPDIR");
  std::string path = std::string(base != nullptr && *base != '\0' ? base : "/tmp") + "/ferry-bench-XXXXXX";
  if (mkdtemp(path.data()) == nullptr) floors::throw_errno("mkdtemp " + path);
  return path;
}

floors::Fd listen_at(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw std::system_error(ENAMETOOLONG, std::generic_category(), path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  floors::Fd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (fd.get() < 0 || bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      listen(fd.get(), 16) != 0) {
    floors::throw_errno("socket " + path);
  }
  return fd;
}

/// Everything is said on the command line or in `file`: what it does not say, the user's FERRY_* variables would.
std::vector<std::string> command_line(const Machine& machine, const std::string& file) {
  std::vector<std::string> words = {"ferryd",
                                    "--listen-fd",
                                    std::to_string(listen_fd),
                                    "--config",
                                    file,
                                    "--vram",
                                    machine.vram,
                                    "--cus",
                                    std::to_string(machine.cus),
                                    "--granularity",
                                    machine.granularity,
                                    "--devices",
                                    std::to_string(machine.devices)};
  if (machine.devices > 1) words.insert(words.end(), {"--hive", "all"});
  if (machine.copy_threads != 0) {
    words.insert(words.end(), {"--copy-threads", std::to_string(machine.copy_threads)});
  }
  if (!machine.system.empty()) words.insert(words.end(), {"--system", machine.system});
  if (!machine.leave.empty()) words.insert(words.end(), {"--leave", machine.leave});
  return words;
}

std::string policy_file(const Machine& machine) {
  return machine.speculation < 0 ? "" : fmt::format("[policy]\nspeculation = {}\n", machine.speculation);
}

std::string beside_this_program(const std::string& name) {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / name;
}

bool ends_within(pid_t pid, int milliseconds) {
  const floors::Fd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  pollfd watched{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  return pidfd.get() >= 0 && poll(&watched, 1, milliseconds) == 1;
}

}  // namespace

unsigned usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return static_cast<unsigned>(CPU_COUNT(&set));
}

Manager::Manager(const Machine& machine) : folder_(make_folder()) {
  const std::string program = beside_this_program("ferryd");
  const std::string file = folder_ + "/machine.toml";
  std::ofstream(file) << policy_file(machine);
  const floors::Fd listener = listen_at(socket_path());
  std::vector<std::string> words = command_line(machine, file);
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) floors::throw_errno("fork");
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    // Rows leave on standard output: whatever the manager says goes to standard error.
    dup2(STDERR_FILENO, STDOUT_FILENO);
    if (listener.get() == listen_fd) {
      fcntl(listen_fd, F_SETFD, 0);
    } else {
      dup2(listener.get(), listen_fd);
    }
    execv(program.c_str(), pointers.data());
    std::fprintf(stderr, "ferry-bench: cannot start %s: %s\n", program.c_str(), std::strerror(errno));
    _exit(127);
  }
}

Manager::~Manager() {
  kill(pid_, SIGTERM);
  if (!ends_within(pid_, 10'000)) {
    std::fprintf(stderr, "ferry-bench: the manager did not end within 10 s of SIGTERM; killed\n");
    kill(pid_, SIGKILL);
  }
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {}
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

}  // namespace ferry::bench

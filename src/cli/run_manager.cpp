#include "cli/run_manager.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "cli/exit_code.h"
#include "cli/paths.h"

namespace ferry::cli {
namespace {

// Where the manager finds its listening socket: after standard input, output and error.
constexpr int listen_fd = 3;

int manager_before_exec(int listener, pid_t parent) {
  // A terminal's signals are for the program; the manager has to outlive it.
  setsid();
  if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0) return errno;
  if (getppid() != parent) return ECHILD;
  const int null = open("/dev/null", O_RDONLY);
  if (null < 0 || dup2(null, STDIN_FILENO) < 0) return errno;
  // What the manager says is never the program's output.
  if (dup2(STDERR_FILENO, STDOUT_FILENO) < 0) return errno;
  if (null > STDERR_FILENO) close(null);
  if (listener == listen_fd) return fcntl(listener, F_SETFD, 0) < 0 ? errno : 0;
  return dup2(listener, listen_fd) < 0 ? errno : 0;
}

void poll_all(pollfd* fds, nfds_t count, int timeout_ms) {
  while (poll(fds, count, timeout_ms) < 0 && errno == EINTR) {}
}

std::string join(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

}  // namespace

RunManager::~RunManager() {
  if (running()) {
    kill(child_.pid, SIGKILL);
    reap();
  }
}

void RunManager::reap() {
  [[maybe_unused]] const int status = wait_for(child_);
  state_ = State::ended;
  admin_.reset();
}

void RunManager::start_now() {
  const std::string program = sibling_program("ferryd");
  ChildSpec spec;
  spec.arguments = {program, "--listen-fd", std::to_string(listen_fd), "--title", join(options_.program)};
  const auto add = [&](const char* flag, const std::optional<std::string>& value) {
    if (value) spec.arguments.insert(spec.arguments.end(), {flag, *value});
  };
  add("--config", options_.machine.config);
  add("--vram", options_.machine.vram);
  add("--cus", options_.machine.cus);
  add("--devices", options_.machine.devices);
  add("--hive", options_.machine.hive);
  add("--granularity", options_.machine.granularity);
  add("--policy", options_.machine.policy);
  add("--hardware", options_.machine.hardware);
  add("--reserved-cus", options_.machine.reserved_cus);
  add("--system", options_.machine.system);
  add("--store", options_.machine.store);
  add("--store-memory", options_.machine.store_memory);
  add("--store-dir", options_.machine.store_directory);
  add("--store-codec", options_.machine.store_codec);
  add("--prefetch", options_.machine.prefetch);
  add("--victims", options_.machine.victims);
  add("--leave", options_.machine.leave);
  add("--store-io", options_.machine.store_io);
  add("--trace", options_.trace);
  add("--report", options_.report);
  const int listener = socket_.listener();
  const pid_t self = getpid();
  spec.before_exec = [listener, self] { return manager_before_exec(listener, self); };
  child_ = program.empty() ? Child{.pid = 0, .pidfd = {}, .error = ENOENT} : start(spec);
  // From here on the manager alone listens: its end is the end of every connection.
  socket_.close_listener();
  if (child_.error != 0) {
    state_ = State::failed;
    std::fprintf(stderr, "ferry: cannot start the manager%s%s: %s; the program gets no device\n",
                 program.empty() ? ": no ferryd beside ferry" : " ", program.c_str(), std::strerror(child_.error));
    return;
  }
  state_ = State::running;
}

void RunManager::ended_by_itself() {
  const int status = wait_for(child_);
  state_ = State::failed;
  admin_.reset();
  if (status > exit_signal) {
    std::fprintf(stderr, "ferry: the manager was ended by signal %d (%s); the program cannot use devices any more\n",
                 status - exit_signal, strsignal(status - exit_signal));
  } else {
    std::fprintf(stderr, "ferry: the manager ended with status %d; the program cannot use devices any more\n", status);
  }
}

void RunManager::notice_end(int timeout_ms) {
  if (!running()) return;
  pollfd wait{child_.pidfd.get(), POLLIN, 0};
  poll_all(&wait, 1, timeout_ms);
  if (wait.revents != 0) ended_by_itself();
}

std::optional<std::string> RunManager::stats(int timeout_ms) {
  if (!running()) return {};
  if (!admin_) {
    auto connected = Admin::connect(socket_.path());
    if (!connected) return {};
    admin_ = std::move(connected).value();
  }
  auto text = admin_->stats(timeout_ms);
  if (!text) {
    // After a late or broken answer the connection starts afresh.
    admin_.reset();
    return {};
  }
  return std::move(text).value();
}

std::optional<std::string> RunManager::finish(int timeout_ms, int stop_fd) {
  if (!running()) return {};
  if (!admin_) {
    auto connected = Admin::connect(socket_.path());
    if (connected) admin_ = std::move(connected).value();
  }
  Status status = admin_ ? admin_->request_shutdown(timeout_ms) : Status(Code::manager_lost);
  if (status.ok()) {
    // A long trace takes its time, which whoever waits may cut short.
    pollfd wait[3] = {{admin_->fd(), POLLIN, 0}, {child_.pidfd.get(), POLLIN, 0}, {stop_fd, POLLIN, 0}};
    poll_all(wait, 3, timeout_ms);
    status = wait[2].revents != 0 ? Status(Code::cancelled) : admin_->shutdown_answer(wait[0].revents != 0 ? 1000 : 1);
  }
  admin_.reset();
  if (!status.ok()) kill(child_.pid, SIGTERM);
  pollfd wait[2] = {{child_.pidfd.get(), POLLIN, 0}, {stop_fd, POLLIN, 0}};
  poll_all(wait, 2, timeout_ms);
  if (wait[0].revents == 0) kill(child_.pid, SIGKILL);
  reap();
  if (status.ok()) return {};
  return std::string(to_string(status.code)) +
         (status.sys_errno != 0 ? std::string(": ") + std::strerror(status.sys_errno) : std::string());
}

}  // namespace ferry::cli

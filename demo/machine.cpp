#include "machine.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

namespace ferry::demo {
namespace {

[[noreturn]] void throw_errno(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

std::string make_folder() {
  const char* base = std::getenv("TMPDIR");
  std::string path = std::string(base != nullptr && *base != '\0' ? base : "/tmp") + "/ferry-demo-XXXXXX";
  if (mkdtemp(path.data()) == nullptr) throw_errno("mkdtemp " + path);
  return path;
}

/// In a child: waits until no process holds the other end of `alive`, and removes `folder`.
[[noreturn]] void remove_at_the_end(const std::string& folder, int alive) {
  // What ends the whole process group or session ends the demonstration, not what cleans up after it.
  setsid();
  // Whatever else is open would stay open: other folders' pipes, what the caller reads to its end.
  dup2(alive, STDIN_FILENO);
  close_range(1, ~0U, 0);
  char byte = 0;
  while (read(STDIN_FILENO, &byte, 1) < 0 && errno == EINTR) {}
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  _exit(0);
}

/// In a child: becomes `words`, ended when this process ends.
[[noreturn]] void become(const std::vector<std::string>& words, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  std::vector<char*> pointers;
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  execv(pointers[0], pointers.data());
  std::fprintf(stderr, "ferry-demo: cannot start %s: %s\n", pointers[0], std::strerror(errno));
  _exit(127);
}

bool ends_within(int pidfd, int milliseconds) {
  pollfd watched{.fd = pidfd, .events = POLLIN, .revents = 0};
  int ready = 0;
  while ((ready = poll(&watched, 1, milliseconds)) < 0 && errno == EINTR) {}
  return ready == 1;
}

std::string self() { return std::filesystem::read_symlink("/proc/self/exe"); }

}  // namespace

Folder::Folder() {
  // A signal between the directory and its keeper would leave it. The keeper keeps them blocked.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int ends[2] = {-1, -1};
  try {
    if (pipe2(ends, O_CLOEXEC) != 0) throw_errno("pipe");
    path_ = make_folder();
    keeper_ = fork();
    if (keeper_ < 0) throw_errno("fork");
  } catch (...) {
    for (const int end : ends) {
      if (end >= 0) close(end);
    }
    if (!path_.empty()) rmdir(path_.c_str());
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  if (keeper_ == 0) remove_at_the_end(path_, ends[0]);
  close(ends[0]);
  alive_ = ends[1];
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Folder::~Folder() {
  close(alive_);
  while (waitpid(keeper_, nullptr, 0) < 0 && errno == EINTR) {}
}

void Folder::keep_for_child() const { fcntl(alive_, F_SETFD, 0); }

Manager::Manager(const std::vector<std::string>& arguments, int output, const std::string& keys)
    : socket_(folder_.path() + "/socket") {
  std::vector<std::string> words = {std::filesystem::path(self()).parent_path() / "ferryd", "--socket", socket_,
                                    "--stats", folder_.path() + "/stats.json"};
  if (!keys.empty()) {
    std::ofstream(folder_.path() + "/machine.toml") << keys;
    words.insert(words.end(), {"--config", folder_.path() + "/machine.toml"});
  }
  words.insert(words.end(), arguments.begin(), arguments.end());
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) throw_errno("fork");
  if (pid_ == 0) {
    // Its own session: an interrupt at the terminal reaches the demonstration, which ends it in good order.
    setsid();
    folder_.keep_for_child();
    for (const char* name : {"FERRY_SOCKET", "FERRY_VRAM", "FERRY_POLICY", "FERRY_HARDWARE", "FERRY_SYSTEM",
                             "FERRY_STORE", "FERRY_CUS", "FERRY_DEVICES"}) {
      unsetenv(name);
    }
    const int to = output < 0 ? STDERR_FILENO : output;
    dup2(to, STDERR_FILENO);
    dup2(to, STDOUT_FILENO);
    become(words, parent);
  }
  pidfd_ = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
  // It listens once the socket is there.
  for (int i = 0; access(socket_.c_str(), F_OK) != 0; ++i) {
    if (ends_within(pidfd_, 10) || i == 1000) {
      reap();
      throw std::runtime_error("ferryd did not start; what it said is above");
    }
  }
}

Manager::~Manager() {
  if (pid_ > 0) finish();
  if (pidfd_ >= 0) close(pidfd_);
}

bool Manager::ended() const { return pid_ > 0 && ends_within(pidfd_, 0); }

void Manager::reap() {
  kill(pid_, SIGKILL);
  while (waitpid(pid_, &status_, 0) < 0 && errno == EINTR) {}
  pid_ = -1;
}

std::string Manager::finish(int patience_ms) {
  if (pid_ <= 0) return "";
  kill(pid_, SIGTERM);
  const bool in_time = ends_within(pidfd_, patience_ms);
  reap();
  if (!in_time || !WIFEXITED(status_) || WEXITSTATUS(status_) != 0) return "";
  std::ifstream file(folder_.path() + "/stats.json");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

Role::Role(const Manager& manager, const std::vector<std::string>& arguments) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw_errno("pipe");
  std::vector<std::string> words = {self(), "role"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) throw_errno("fork");
  if (pid_ == 0) {
    setenv("FERRY_SOCKET", manager.socket_path().c_str(), 1);
    // By this its devices, which begin as copies of it, are known to be its own.
    setenv("FERRY_DEMO_APPLICATION", std::to_string(getpid()).c_str(), 1);
    dup2(ends[1], STDOUT_FILENO);
    become(words, parent);
  }
  close(ends[1]);
  output_ = ends[0];
  fcntl(output_, F_SETFL, O_NONBLOCK);
}

Role::Role(Role&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      output_(std::exchange(other.output_, -1)),
      reaped_(other.reaped_),
      partial_(std::move(other.partial_)) {}

Role& Role::operator=(Role&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(output_, other.output_);
  std::swap(reaped_, other.reaped_);
  std::swap(partial_, other.partial_);
  return *this;
}

Role::~Role() {
  if (output_ >= 0) close(output_);
  if (pid_ > 0 && !reaped_) {
    kill_now();
    wait_end();
  }
}

bool Role::read_lines(const std::function<void(const std::string&)>& line) {
  char bytes[4096];
  for (;;) {
    const ssize_t got = read(output_, bytes, sizeof bytes);
    if (got == 0) return false;
    if (got < 0) return errno == EAGAIN || errno == EINTR;
    partial_.append(bytes, static_cast<std::size_t>(got));
    for (std::size_t end = partial_.find('\n'); end != std::string::npos; end = partial_.find('\n')) {
      line(partial_.substr(0, end));
      partial_.erase(0, end + 1);
    }
  }
}

void Role::kill_now() { kill(pid_, SIGKILL); }

int Role::wait_end() {
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {}
  reaped_ = true;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

bool watch(std::vector<Role*> roles, int patience_ms,
           const std::function<void(std::size_t role, const std::string& line)>& line, const std::string& until) {
  bool said = false;
  std::vector<pollfd> fds;
  for (Role* role : roles) fds.push_back({.fd = role->output(), .events = POLLIN, .revents = 0});
  std::size_t open = roles.size();
  while (open > 0 && !said) {
    const int ready = poll(fds.data(), fds.size(), patience_ms);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return false;
    for (std::size_t i = 0; i < fds.size(); ++i) {
      if (fds[i].fd < 0 || fds[i].revents == 0) continue;
      if (!roles[i]->read_lines([&](const std::string& text) {
            line(i, text);
            said = said || (!until.empty() && text == until);
          })) {
        fds[i].fd = -1;
        --open;
      }
    }
  }
  return true;
}

}  // namespace ferry::demo

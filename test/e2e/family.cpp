#include "family.h"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <sstream>

namespace ferry::test {
namespace {

using Clock = std::chrono::steady_clock;

// Ended children, by number, until somebody asks.
std::map<pid_t, int> statuses;

int shell_status(int status) { return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status); }

/// False if there is no child at all.
bool reap() {
  for (;;) {
    int status = 0;
    const pid_t pid = waitpid(-1, &status, WNOHANG);
    if (pid == 0) return true;
    if (pid < 0) return errno != ECHILD;
    statuses[pid] = shell_status(status);
  }
}

/// Until a child has ended, or for a while.
void wait_for_child(int timeout_ms) {
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  const timespec time{timeout_ms / 1000, timeout_ms % 1000 * 1'000'000L};
  sigtimedwait(&child, nullptr, &time);
}

int left_ms(Clock::time_point end) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
  return static_cast<int>(std::max<std::int64_t>(left, 0));
}

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string of_process(pid_t pid, const char* what) { return contents("/proc/" + std::to_string(pid) + "/" + what); }

struct Process {
  pid_t pid = -1;
  pid_t parent = -1;
  char state = '?';
  std::string name;
};

bool look_at(pid_t pid, Process& out) {
  const std::string text = of_process(pid, "stat");
  const auto open = text.find('(');
  const auto close = text.rfind(')');
  if (open == std::string::npos || close == std::string::npos) return false;
  out.pid = pid;
  out.name = text.substr(open + 1, close - open - 1);
  std::istringstream rest(text.substr(close + 1));
  rest >> out.state >> out.parent;
  return static_cast<bool>(rest);
}

std::vector<Process> descendants() {
  std::map<pid_t, Process> all;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    Process p;
    if (name.find_first_not_of("0123456789") == std::string::npos && look_at(std::stoi(name), p)) all[p.pid] = p;
  }
  std::vector<Process> out;
  for (const auto& [pid, p] : all) {
    // Bounded: /proc is not read at one instant, so what it says need not be a tree.
    pid_t at = p.parent;
    for (int depth = 0; depth < 8 && at > 1 && at != getpid() && all.count(at) != 0; ++depth) at = all[at].parent;
    if (at == getpid() && p.state != 'Z') out.push_back(p);
  }
  return out;
}

std::string tell(const Process& p) {
  return std::to_string(p.pid) + " " + p.name + " state " + p.state + " parent " + std::to_string(p.parent) +
         " waits in " + of_process(p.pid, "wchan");
}

std::string tell_all() {
  std::string text;
  for (const Process& p : descendants()) text += "  " + tell(p) + "\n";
  return text;
}

/// Before main: children inherit nothing of it that App does not undo.
const bool prepared = [] {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_BLOCK, &child, nullptr);
  return true;
}();

constexpr const char* mark_name = "FERRY_E2E_MARK";

}  // namespace

const char* to_string(Role role) {
  switch (role) {
    case Role::application: return "application";
    case Role::device: return "device";
    case Role::manager: return "manager";
    case Role::zygote: return "template";
    case Role::child: return "child";
  }
  return "?";
}

// --- applications -----------------------------------------------------------------------------------------------------

App::App(std::vector<std::string> arguments, const Environment& environment, const std::function<void()>& before_exec)
    : name_(arguments[0]) {
  static unsigned made = 0;
  mark_ = std::to_string(getpid()) + "-" + std::to_string(++made);
  int in[2];
  int out[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) {
    ADD_FAILURE() << "pipe2: " << std::strerror(errno);
    return;
  }
  errors_ = memfd_create("errors", MFD_CLOEXEC);
  // Processes that write at one time must not write over each other: the kernel keeps a memory file's position unlocked.
  fcntl(errors_, F_SETFL, O_APPEND);
  std::vector<char*> words;
  for (std::string& word : arguments) words.push_back(word.data());
  words.push_back(nullptr);
  pid_ = fork();
  if (pid_ == 0) {
    // A test that dies takes it along.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    dup2(in[0], 0);
    dup2(out[1], 1);
    dup2(errors_, 2);
    for (const auto& [key, value] : environment) setenv(key.c_str(), value.c_str(), 1);
    setenv(mark_name, mark_.c_str(), 1);
    if (before_exec) before_exec();
    execv(words[0], words.data());
    _exit(199);
  }
  close(in[0]);
  close(out[1]);
  in_ = in[1];
  out_ = out[0];
  fcntl(out_, F_SETFL, O_NONBLOCK);
}

App::~App() {
  for (int rounds = 0; rounds < 10; ++rounds) {
    const auto left = relatives();
    if (left.empty()) break;
    for (const pid_t p : left) kill(p, SIGKILL);
    reap();
    wait_for_child(100);
  }
  if (in_ >= 0) close(in_);
  if (out_ >= 0) close(out_);
  close(errors_);
}

std::vector<pid_t> App::relatives() const {
  const std::string mark = std::string(mark_name) + "=" + mark_;
  std::set<pid_t> mine;
  const auto all = descendants();
  for (const Process& p : all) {
    // A device has hidden the memory in which its environment was; its parent tells.
    std::string environment = of_process(p.pid, "environ");
    environment.insert(environment.begin(), '\0');
    environment.push_back('\0');
    if (environment.find('\0' + mark + '\0') != std::string::npos) mine.insert(p.pid);
  }
  for (int depth = 0; depth < 3; ++depth) {
    for (const Process& p : all) {
      if (mine.count(p.parent) != 0) mine.insert(p.pid);
    }
  }
  return {mine.begin(), mine.end()};
}

pid_t App::find(Role role) const {
  if (role == Role::application) return pid_;
  const char* wanted = role == Role::device ? "ferry-device" : role == Role::manager ? "ferryd" : "ferry-template";
  for (const pid_t pid : relatives()) {
    Process p;
    if (!look_at(pid, p) || p.state == 'Z') continue;
    const bool is_child = p.parent == pid_ && p.name.rfind("ferry", 0) != 0;
    if (role == Role::child ? is_child : p.name == wanted) return pid;
  }
  return -1;
}

pid_t App::wait_for(Role role) const {
  pid_t found = -1;
  if (!wait_until(pid_, [&] { return (found = find(role)) > 0; })) {
    ADD_FAILURE() << name_ << " has no process for the " << to_string(role) << "; said:\n" << said_ << errors();
  }
  return found;
}

App::Read App::read_more(int timeout_ms) {
  pollfd wait{out_, POLLIN, 0};
  const int ready = poll(&wait, 1, timeout_ms);
  if (ready == 0 || (ready < 0 && errno == EINTR)) return Read::nothing;
  char buffer[4096];
  const ssize_t got = read(out_, buffer, sizeof buffer);
  if (got < 0 && errno == EAGAIN) return Read::nothing;
  if (got <= 0) return Read::end;
  said_.append(buffer, static_cast<std::size_t>(got));
  return Read::some;
}

bool App::take_line(std::string& line) {
  const auto end = said_.find('\n', taken_);
  if (end == std::string::npos) return false;
  line = said_.substr(taken_, end - taken_);
  taken_ = end + 1;
  if (line.rfind("WRONG", 0) == 0) ADD_FAILURE() << name_ << ": " << line;
  return true;
}

bool App::wait_line(const std::string& start) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(patience_ms);
  std::string line;
  for (;;) {
    while (take_line(line)) {
      if (line.rfind(start, 0) == 0) return true;
    }
    const Read got = read_more(left_ms(deadline));
    if (got == Read::end || Clock::now() > deadline) {
      const std::string last = said_.substr(said_.size() - std::min<std::size_t>(said_.size(), 400));
      ADD_FAILURE() << name_ << (got == Read::end ? " ended" : " hangs") << " before it said '" << start
                    << "'; last words:\n"
                    << last << errors() << "processes:\n"
                    << tell_all();
      return false;
    }
  }
}

bool App::wait_lines(const std::string& start, unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    if (!wait_line(start)) return false;
  }
  return true;
}

void App::drain() {
  while (read_more(0) == Read::some) {}
  std::string line;
  while (take_line(line)) {}
}

void App::close_input() {
  if (in_ >= 0) close(in_);
  in_ = -1;
}

int App::wait_end() {
  const auto deadline = Clock::now() + std::chrono::milliseconds(patience_ms);
  // Its output first: a full pipe would keep it from ending.
  Read got = Read::nothing;
  while (got != Read::end && Clock::now() < deadline) {
    got = read_more(std::min(left_ms(deadline), 100));
    reap();
    if (got == Read::nothing && statuses.count(pid_) != 0) break;
  }
  std::string line;
  while (take_line(line)) {}
  const int status = wait_child(pid_, left_ms(deadline));
  if (status < 0) ADD_FAILURE() << name_ << " does not end; last words:\n" << said_ << errors() << tell_all();
  return status;
}

void App::signal(pid_t pid, int number) {
  ASSERT_GT(pid, 1);
  ASSERT_EQ(kill(pid, number), 0) << std::strerror(errno);
  if (number != SIGSTOP) return;
  Process p;
  EXPECT_TRUE(wait_until(getpid(), [&] { return !look_at(pid, p) || p.state == 'T'; })) << pid << " does not stop";
}

std::string App::errors() const { return contents("/proc/self/fd/" + std::to_string(errors_)); }

int wait_child(pid_t pid, int timeout_ms) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  for (;;) {
    reap();
    const auto found = statuses.find(pid);
    if (found != statuses.end()) return found->second;
    if (Clock::now() > deadline) return -1;
    wait_for_child(std::min(left_ms(deadline) + 1, 1000));
  }
}

void expect_no_processes() {
  const auto deadline = Clock::now() + std::chrono::milliseconds(patience_ms);
  while (reap()) {
    if (Clock::now() > deadline) {
      ADD_FAILURE() << "these do not end:\n" << tell_all();
      for (const Process& p : descendants()) kill(p.pid, SIGKILL);
      while (reap()) wait_for_child(1000);
      return;
    }
    wait_for_child(std::min(left_ms(deadline) + 1, 1000));
  }
}

bool wait_until(pid_t process, const std::function<bool()>& condition) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(patience_ms);
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, process, 0));
  bool holds = condition();
  while (!holds && fd >= 0 && Clock::now() < deadline) {
    pollfd wait{fd, POLLIN, 0};
    const bool ended = poll(&wait, 1, 2) > 0;
    holds = condition();
    if (ended) break;
  }
  close(fd);
  return holds;
}

MemoryFiles memory_files(pid_t pid) {
  MemoryFiles files;
  const std::string folder = "/proc/" + std::to_string(pid) + "/fd";
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const auto target = std::filesystem::read_symlink(entry.path(), error).string();
    if (target.find("memfd:ferry") != std::string::npos) ++files.descriptors;
  }
  std::istringstream maps(of_process(pid, "maps"));
  std::set<std::string> inodes;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:ferry") == std::string::npos) continue;
    std::istringstream words(line);
    std::string range, rights, offset, device, inode;
    words >> range >> rights >> offset >> device >> inode;
    inodes.insert(inode);
  }
  files.mapped = inodes.size();
  return files;
}

// --- surroundings -----------------------------------------------------------------------------------------------------

Folder::Folder() {
  char name[] = "/tmp/ferry-e2e-XXXXXX";
  path_ = mkdtemp(name) != nullptr ? name : "";
  EXPECT_NE(path_, "");
}

Folder::~Folder() {
  if (path_.empty()) return;
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

std::vector<std::string> Folder::entries() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path_)) names.push_back(entry.path().filename());
  return names;
}

RestlessMachine::RestlessMachine() {
  std::ofstream(path()) << "[policy]\ncontention_threshold = 1000\ncontention_window_ms = 1\n";
}

Daemon::Daemon(const Folder& folder, const Environment& environment)
    : socket_(folder.file("socket")), app_({program("bin/ferryd"), "--socket", socket_}, environment) {
  // A socket that is there need not be listened at: one that was killed leaves its own behind.
  const bool listens = wait_until(app_.pid(), [&] {
    const int fd = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, socket_.c_str(), sizeof address.sun_path - 1);
    const bool connected = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    close(fd);
    return connected;
  });
  EXPECT_TRUE(listens) << app_.errors();
}

Daemon::~Daemon() = default;

int Daemon::end() {
  kill(pid(), SIGTERM);
  return app_.wait_end();
}

std::string program(const char* name) { return std::string(FERRY_TEST_BUILD_DIR "/") + name; }

std::uint64_t seed_of_run() {
  const char* given = std::getenv("FERRY_E2E_SEED");
  static const std::uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  return seed;
}

unsigned long number_from_environment(const char* name, unsigned long otherwise) {
  const char* given = std::getenv(name);
  return given != nullptr && *given != '\0' ? std::strtoul(given, nullptr, 10) : otherwise;
}

}  // namespace ferry::test

#include "programs_runner.h"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

extern char** environ;

namespace ferry::test {
namespace {

constexpr auto patience = std::chrono::seconds(60);
constexpr auto gone_patience = std::chrono::seconds(30);
using Clock = std::chrono::steady_clock;

void pause_a_little() { ::poll(nullptr, 0, 5); }

std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

pid_t parent_of(const std::string& folder) {
  const std::string stat = slurp(folder + "/stat");
  const std::size_t close = stat.rfind(')');
  return close == std::string::npos || close + 4 >= stat.size() ? 0 : std::atoi(stat.c_str() + close + 4);
}

bool is_zombie(const std::string& folder) {
  const std::string stat = slurp(folder + "/stat");
  const std::size_t close = stat.rfind(')');
  return close == std::string::npos || close + 2 >= stat.size() || stat[close + 2] == 'Z' || stat[close + 2] == 'X';
}

}  // namespace

std::string Ended::describe() const {
  return "exit code " + std::to_string(exit_code) + ", signal " + std::to_string(signal) + "\n--- out\n" + out +
         "\n--- err\n" + err;
}

Program::Program(const std::string& name, std::vector<std::string> environment) {
  static std::atomic<int> counter{0};
  tag_ = "FERRY_TEST_TAG=" + std::to_string(::getpid()) + "." + std::to_string(counter.fetch_add(1));
  environment.push_back(tag_);
  std::vector<std::string> variables;
  for (char** v = environ; *v != nullptr; ++v) {
    const std::string inherited = *v;
    bool replaced = false;
    for (const auto& e : environment) replaced |= inherited.starts_with(e.substr(0, e.find('=') + 1));
    if (!replaced) variables.push_back(inherited);
  }
  for (const auto& e : environment) {
    if (e.back() != '=') variables.push_back(e);
  }
  std::vector<char*> list;
  for (auto& v : variables) list.push_back(v.data());
  list.push_back(nullptr);

  int in[2];
  int out[2];
  int err[2];
  EXPECT_EQ(::pipe2(in, O_CLOEXEC) | ::pipe2(out, O_CLOEXEC) | ::pipe2(err, O_CLOEXEC), 0);
  const std::string path = std::string(FERRY_TEST_BUILD_DIR) + "/bin/test/client_programs";
  pid_ = ::fork();
  if (pid_ == 0) {
    ::dup2(in[0], 0);
    ::dup2(out[1], 1);
    ::dup2(err[1], 2);
    const char* args[] = {path.c_str(), name.c_str(), nullptr};
    ::execve(path.c_str(), const_cast<char**>(args), list.data());
    ::_exit(126);
  }
  EXPECT_GT(pid_, 0);
  ::close(in[0]);
  ::close(out[1]);
  ::close(err[1]);
  in_.reset(in[1]);
  out_.reset(out[0]);
  err_.reset(err[0]);
  ::fcntl(out_.get(), F_SETFL, O_NONBLOCK);
  ::fcntl(err_.get(), F_SETFL, O_NONBLOCK);
}

Program::~Program() {
  if (!reaped_) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  for (const pid_t p : processes()) ::kill(p, SIGKILL);
}

void Program::drain(bool until_end) {
  const auto deadline = Clock::now() + patience;
  bool out_open = true;
  bool err_open = true;
  do {
    char buffer[4096];
    for (ssize_t n; (n = ::read(out_.get(), buffer, sizeof buffer)) != -1;) {
      if (n == 0) {
        out_open = false;
        break;
      }
      out_text_.append(buffer, static_cast<std::size_t>(n));
    }
    for (ssize_t n; (n = ::read(err_.get(), buffer, sizeof buffer)) != -1;) {
      if (n == 0) {
        err_open = false;
        break;
      }
      err_text_.append(buffer, static_cast<std::size_t>(n));
    }
    if (!until_end || (!out_open && !err_open) || Clock::now() > deadline) return;
    pollfd polls[] = {{out_open ? out_.get() : -1, POLLIN, 0}, {err_open ? err_.get() : -1, POLLIN, 0}};
    ::poll(polls, 2, 100);
  } while (true);
}

std::string Program::read_line(std::chrono::milliseconds within) {
  const auto deadline = Clock::now() + within;
  for (;;) {
    const std::size_t end = out_text_.find('\n', out_read_);
    if (end != std::string::npos) {
      std::string line = out_text_.substr(out_read_, end - out_read_);
      out_read_ = end + 1;
      return line;
    }
    const std::size_t before = out_text_.size();
    pollfd p{out_.get(), POLLIN, 0};
    ::poll(&p, 1, static_cast<int>(std::min(within, std::chrono::milliseconds(1000)).count()));
    drain(false);
    if (out_text_.size() == before && ((p.revents & POLLHUP) != 0 || Clock::now() >= deadline)) return {};
  }
}

void Program::write_line(const std::string& line) {
  const std::string text = line + "\n";
  EXPECT_EQ(::write(in_.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
}

Ended Program::finish() {
  in_.reset();
  const auto deadline = Clock::now() + patience;
  while (::waitpid(pid_, &status_, WNOHANG) == 0) {
    drain(false);
    if (Clock::now() > deadline) ::kill(pid_, SIGKILL);
    pause_a_little();
  }
  reaped_ = true;
  // Its device and manager have the same standard error: its end comes when the last of them has ended.
  drain(true);
  Ended ended;
  if (WIFEXITED(status_)) ended.exit_code = WEXITSTATUS(status_);
  if (WIFSIGNALED(status_)) ended.signal = WTERMSIG(status_);
  ended.out = out_text_;
  ended.err = err_text_;
  return ended;
}

std::vector<pid_t> Program::processes(const std::string& comm) const {
  std::vector<pid_t> found;
  DIR* proc = ::opendir("/proc");
  if (proc == nullptr) return found;
  while (const dirent* entry = ::readdir(proc)) {
    const pid_t pid = std::atoi(entry->d_name);
    if (pid <= 0 || pid == ::getpid()) continue;
    const std::string folder = std::string("/proc/") + entry->d_name;
    // A device process shows no environment (it has hidden the stack that holds it), but its parent does.
    const bool ours = has_tag(pid) || has_tag(parent_of(folder));
    if (!ours || is_zombie(folder)) continue;
    if (!comm.empty() && slurp(folder + "/comm") != comm + "\n") continue;
    found.push_back(pid);
  }
  ::closedir(proc);
  return found;
}

bool Program::has_tag(pid_t pid) const {
  return pid > 1 && slurp("/proc/" + std::to_string(pid) + "/environ").find(tag_ + '\0') != std::string::npos;
}

pid_t Program::wait_for_process(const std::string& comm) const {
  for (const auto deadline = Clock::now() + patience; Clock::now() < deadline; pause_a_little()) {
    const auto found = processes(comm);
    if (!found.empty()) return found.front();
  }
  return 0;
}

bool Program::all_gone() const {
  for (const auto deadline = Clock::now() + gone_patience; Clock::now() < deadline; pause_a_little()) {
    if (processes().empty()) return true;
  }
  return false;
}

Ended run_program(const std::string& name, std::vector<std::string> environment) {
  Program program(name, std::move(environment));
  Ended ended = program.finish();
  EXPECT_TRUE(program.all_gone()) << "processes of '" << name << "' stay behind\n" << ended.describe();
  return ended;
}

}  // namespace ferry::test

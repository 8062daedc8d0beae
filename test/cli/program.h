// Runs a program to its end and keeps what it said. Bounded: what does not end is killed and the test fails.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace ferry::test {

struct Outcome {
  int status = -1;  ///< as a shell has it
  std::string out;
  std::string err;
};

struct Program {
  std::vector<std::string> arguments;
  std::vector<std::pair<std::string, std::string>> environment = {};
  std::function<void()> before_exec = {};
  /// Called once, with the process number, when standard output holds `until`.
  std::string until = {};
  std::function<void(pid_t)> then = {};
  int timeout_ms = 60'000;
};

inline std::string ferry_program() { return FERRY_TEST_BUILD_DIR "/bin/ferry"; }

inline Outcome run(const Program& program) {
  int out[2];
  int err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) {
    ADD_FAILURE() << "pipe2";
    return {};
  }
  std::vector<char*> words;
  for (const std::string& word : program.arguments) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, 0);
    dup2(out[1], 1);
    dup2(err[1], 2);
    for (const auto& [name, value] : program.environment) setenv(name.c_str(), value.c_str(), 1);
    if (program.before_exec) program.before_exec();
    execvp(words[0], words.data());
    _exit(199);
  }
  close(out[1]);
  close(err[1]);
  Outcome outcome;
  bool told = false;
  pollfd wait[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  std::string* texts[2] = {&outcome.out, &outcome.err};
  while (wait[0].fd >= 0 || wait[1].fd >= 0) {
    const int ready = poll(wait, 2, program.timeout_ms);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      ADD_FAILURE() << program.arguments[0] << " said and did nothing for " << program.timeout_ms
                    << " ms; out: " << outcome.out << "err: " << outcome.err;
      kill(pid, SIGKILL);
      break;
    }
    for (int i = 0; i < 2; ++i) {
      if (wait[i].fd < 0 || wait[i].revents == 0) continue;
      char buffer[4096];
      const ssize_t got = read(wait[i].fd, buffer, sizeof buffer);
      if (got > 0) {
        texts[i]->append(buffer, static_cast<std::size_t>(got));
      } else {
        wait[i].fd = -1;
      }
    }
    if (!told && program.then && outcome.out.find(program.until) != std::string::npos) {
      told = true;
      program.then(pid);
    }
  }
  close(out[0]);
  close(err[0]);
  int status = 0;
  waitpid(pid, &status, 0);
  outcome.status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  return outcome;
}

inline Outcome run_ferry(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), ferry_program());
  return run({.arguments = std::move(arguments)});
}

/// A directory that is gone at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    char name[] = "/tmp/ferry-test-XXXXXX";
    path_ = mkdtemp(name) != nullptr ? name : "";
    EXPECT_NE(path_, "");
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { EXPECT_EQ(run({.arguments = {"rm", "-rf", path_}}).status, 0); }
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::string contents(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void write_file(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

}  // namespace ferry::test

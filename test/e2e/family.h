// Applications as children of a test, with all that they start: found by number, waited for, never left behind.
// The test becomes the parent of every process whose own parent has gone, so "nothing is left" means "no child".
// Single-threaded.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace ferry::test {

/// Bound of every wait here: far above what a loaded machine needs.
inline constexpr int patience_ms = 120'000;

using Environment = std::vector<std::pair<std::string, std::string>>;

/// child: that the application has forked itself.
enum class Role { application, device, manager, zygote, child };
[[nodiscard]] const char* to_string(Role role);

/// A program with pipes to its standard input and output. Killed, with all that it started, if it still runs at the end.
class App {
 public:
  App(std::vector<std::string> arguments, const Environment& environment,
      const std::function<void()>& before_exec = {});
  App(const App&) = delete;
  App& operator=(const App&) = delete;
  ~App();

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// The process that has the role now, or -1. Of several devices the first.
  [[nodiscard]] pid_t find(Role role) const;
  /// The same, waiting until there is one; -1 after the test has failed.
  [[nodiscard]] pid_t wait_for(Role role) const;
  /// Everything that belongs to the program and lives.
  [[nodiscard]] std::vector<pid_t> relatives() const;

  /// Reads until a line begins with `start`. False, and the test has failed, if the output ends before or nothing comes.
  /// Fails on lines that begin with "WRONG", whatever is waited for.
  bool wait_line(const std::string& start);
  bool wait_lines(const std::string& start, unsigned count);
  /// Throws away what has been said up to now.
  void drain();
  void close_input();
  /// Waits for its end, reading on. As a shell has it; -1, and the test has failed, if it does not end.
  int wait_end();
  /// Sends the signal, and for SIGSTOP waits until it has stopped.
  static void signal(pid_t pid, int number);

  /// All that it said and that was read so far.
  [[nodiscard]] const std::string& said() const { return said_; }
  [[nodiscard]] std::string errors() const;

 private:
  enum class Read { some, end, nothing };
  Read read_more(int timeout_ms);
  bool take_line(std::string& line);

  std::string name_;
  std::string mark_;
  pid_t pid_ = -1;
  int in_ = -1;
  int out_ = -1;
  int errors_ = -1;
  std::string said_;
  std::size_t taken_ = 0;
};

/// Waits until the process numbered so, a child of this one, has ended; its status as a shell has it, -1 if it does not.
int wait_child(pid_t pid, int timeout_ms = patience_ms);

/// Waits until this process has no child left. What is left after that fails the test and is killed.
void expect_no_processes();

/// Waits until the condition holds; the process is looked after meanwhile. False if it does not or the process ends.
bool wait_until(pid_t process, const std::function<bool()>& condition);

/// Memory files of Ferry's that the process holds: descriptors, and distinct files in its mappings.
struct MemoryFiles {
  std::size_t descriptors = 0;
  std::size_t mapped = 0;
  friend bool operator==(const MemoryFiles&, const MemoryFiles&) = default;
};
MemoryFiles memory_files(pid_t pid);

/// A directory of one test. What is in it at the end, other than what was named, fails the test.
class Folder {
 public:
  Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder();
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] std::vector<std::string> entries() const;

 private:
  std::string path_;
};

/// A configuration in which pages that both sides want go on moving in place of staying where both reach them.
class RestlessMachine {
 public:
  RestlessMachine();
  [[nodiscard]] std::string path() const { return folder_.file("restless.toml"); }

 private:
  Folder folder_;
};

/// A ferryd of the test's own, listening in `folder`.
class Daemon {
 public:
  Daemon(const Folder& folder, const Environment& environment);
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;
  ~Daemon();
  [[nodiscard]] pid_t pid() const { return app_.pid(); }
  [[nodiscard]] const std::string& socket() const { return socket_; }
  /// Asks it to end and waits. Its status as a shell has it.
  int end();
  App& app() { return app_; }

 private:
  std::string socket_;
  App app_;
};

[[nodiscard]] std::string program(const char* name);

/// Numbers from one seed, which is told when a test fails: FERRY_E2E_SEED, or a new one.
std::uint64_t seed_of_run();

/// A number of the environment's, or `otherwise`.
unsigned long number_from_environment(const char* name, unsigned long otherwise);

}  // namespace ferry::test

// Starts programs of client_programs with an environment of their own, talks to them through pipes, and makes sure that
// none of their processes stays behind. Single-threaded.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "linux/fd.h"

namespace ferry::test {

struct Ended {
  int exit_code = -1;  ///< -1: by a signal
  int signal = 0;
  std::string out;
  std::string err;
  [[nodiscard]] std::string describe() const;
};

class Program {
 public:
  /// `environment`: NAME=value, replacing what is inherited; NAME= removes it.
  explicit Program(const std::string& name, std::vector<std::string> environment = {});
  /// Kills what is left.
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Waits for a line of standard output. Empty: end of file, or the time has passed.
  std::string read_line(std::chrono::milliseconds within = std::chrono::minutes(1));
  /// Writes a line to its standard input.
  void write_line(const std::string& line);
  /// Waits for its end. Kills it after a minute (then signal is SIGKILL).
  Ended finish();

  /// Processes of this program that live, by the name that /proc/PID/comm tells (empty: all); `self` included.
  [[nodiscard]] std::vector<pid_t> processes(const std::string& comm = {}) const;
  /// Waits until a process of that name is there. 0 after a minute.
  [[nodiscard]] pid_t wait_for_process(const std::string& comm) const;
  /// Waits until no process is left. False after half a minute.
  [[nodiscard]] bool all_gone() const;

 private:
  void drain(bool until_end);
  [[nodiscard]] bool has_tag(pid_t pid) const;

  std::string tag_;
  pid_t pid_ = 0;
  bool reaped_ = false;
  int status_ = 0;
  linux::Fd in_;
  linux::Fd out_;
  linux::Fd err_;
  std::string out_text_;
  std::string err_text_;
  std::size_t out_read_ = 0;
};

/// Runs to the end and expects that nothing stays behind.
Ended run_program(const std::string& name, std::vector<std::string> environment = {});

}  // namespace ferry::test

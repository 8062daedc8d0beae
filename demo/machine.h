// What a demonstration starts: a ferryd of its own, and roles (roles.h) that use it. Everything ends with the objects.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace ferry::demo {

/// A ferryd on a socket in a directory of its own.
class Manager {
 public:
  /// `arguments` come after --socket and --stats. `output`: where what it says goes, a file descriptor that stays the
  /// caller's; -1: standard error. Throws std::system_error.
  /// `keys`: a configuration file's contents.
  Manager(const std::vector<std::string>& arguments, int output, const std::string& keys = "");
  Manager(const Manager&) = delete;
  Manager& operator=(const Manager&) = delete;
  ~Manager();
  [[nodiscard]] const std::string& socket_path() const { return socket_; }
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// It has ended by itself: it crashed.
  [[nodiscard]] bool ended() const;
  /// Asks it to end and waits. Returns its counters as JSON text, or "" if it did not end well within `patience_ms`.
  std::string finish(int patience_ms = 20'000);

 private:
  void reap();
  std::string folder_;
  std::string socket_;
  pid_t pid_ = -1;
  int pidfd_ = -1;
  int status_ = 0;
};

/// A process of this program in another role. Killed and reaped with the object.
class Role {
 public:
  Role(const Manager& manager, const std::vector<std::string>& arguments);
  Role(Role&& other) noexcept;
  Role& operator=(Role&& other) noexcept;
  ~Role();
  [[nodiscard]] int output() const { return output_; }
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Takes what it has said, whole lines only. False: it has said all and closed its output.
  bool read_lines(const std::function<void(const std::string&)>& line);
  /// Ends it at once.
  void kill_now();
  /// Exit status as a shell has it. Waits.
  int wait_end();

 private:
  pid_t pid_ = -1;
  int output_ = -1;
  bool reaped_ = false;
  std::string partial_;
};

/// Reads lines of all roles until all have ended, or one has said `until` (true), or `patience_ms` passed without a line
/// of any (false: a hang).
bool watch(std::vector<Role*> roles, int patience_ms,
           const std::function<void(std::size_t role, const std::string& line)>& line, const std::string& until = "");

}  // namespace ferry::demo

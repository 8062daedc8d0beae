// What a demonstration starts: a ferryd of its own, and roles (roles.h) that use it. Everything ends with the objects.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace ferry::demo {

/// A directory of its own under $TMPDIR or /tmp. It goes with the object, and however else this process ends: another
/// process waits for that, because who is killed removes nothing.
class Folder {
 public:
  /// Throws std::system_error.
  Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder();
  [[nodiscard]] const std::string& path() const { return path_; }
  /// In a child that is about to become another program: the directory stays until that has ended, too.
  void keep_for_child() const;

 private:
  std::string path_;
  int alive_ = -1;  ///< the end of a pipe that nobody writes to: the other end closes with its last holder
  pid_t keeper_ = -1;
};

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
  Folder folder_;
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

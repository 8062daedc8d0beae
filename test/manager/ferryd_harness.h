// A real ferryd on a socket of its own, and applications and devices that the test plays itself, so that they can lie.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "linux/memory_file.h"
#include "linux/process.h"
#include "linux/socket.h"
#include "linux/userfaultfd.h"
#include "wire/control.h"
#include "wire/message.h"

namespace ferry::manager::test {

inline constexpr int patience_ms = 20'000;
inline constexpr std::uint64_t window_base = 0x1100'0000'0000;
inline constexpr std::uint64_t window_bytes = std::uint64_t{1} << 30;

/// A folder that goes with the object.
class Folder {
 public:
  Folder();
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// Runs ferryd. Killed and reaped at the latest when this goes.
class Ferryd {
 public:
  /// With --socket in a folder of its own (or at `path`), and these arguments besides. Waits until it listens.
  explicit Ferryd(std::vector<std::string> arguments = {}, const std::string& path = {});
  ~Ferryd();
  Ferryd(const Ferryd&) = delete;
  Ferryd& operator=(const Ferryd&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] const std::string& socket() const { return socket_; }
  [[nodiscard]] const Folder& folder() const { return folder_; }
  void signal(int number) const;
  /// Exit status, 128 + signal, or -1 if it does not end within the patience.
  int join();
  [[nodiscard]] bool alive() const;
  [[nodiscard]] unsigned descriptors() const;
  /// Does it serve a new application?
  [[nodiscard]] bool serves() const;

  /// Any ferryd command: exit status as join(); what it printed.
  static int run(const std::vector<std::string>& arguments, std::string& output);

 private:
  Folder folder_;
  std::string socket_;
  pid_t pid_ = 0;
};

/// One end of a connection that the test speaks on.
class Speaker {
 public:
  Speaker() = default;
  explicit Speaker(linux::Fd fd) : fd_(std::move(fd)) {}
  explicit Speaker(const Ferryd& ferryd);

  [[nodiscard]] int fd() const { return fd_.get(); }
  void close() { fd_.reset(); }
  template <typename T>
  void send(wire::MessageType type, const T& body, std::vector<int> fds = {}) {
    const Status s = linux::send_message(fd(), type, ++request_, body, fds, patience_ms);
    EXPECT_TRUE(s.ok()) << to_string(s.code);
  }
  void send_empty(wire::MessageType type) { EXPECT_TRUE(linux::send_text(fd(), type, ++request_).ok()); }
  void send_raw(const void* data, std::size_t bytes);
  /// The next message, whatever it is.
  linux::Receive receive(int timeout_ms = patience_ms) { return linux::receive_message(fd(), *in_, timeout_ms); }
  /// The next message has to be of this type.
  [[nodiscard]] ::testing::AssertionResult got(wire::MessageType type);
  /// Code of the next message, which has to be `done`.
  Code done();
  [[nodiscard]] linux::Incoming& in() { return *in_; }
  /// Says hello with a fresh userfaultfd and takes the welcome's descriptors.
  [[nodiscard]] ::testing::AssertionResult hello();
  Code ask(wire::MessageType type, std::uint64_t first_page, std::uint64_t pages,
           std::uint32_t device = wire::to_system);
  /// Everything is closed by the manager within the patience.
  [[nodiscard]] bool closed();

  wire::Welcome welcome{};
  std::vector<linux::Fd> files;  ///< of the welcome
  linux::Userfaultfd userfault;

 private:
  linux::Fd fd_;
  std::unique_ptr<linux::Incoming> in_ = std::make_unique<linux::Incoming>();
  std::uint64_t request_ = 0;
};

/// A process that plays a device: it says device_hello with a userfaultfd of its own and sleeps until killed.
class FakeDevice {
 public:
  /// `claimed_pid` stands in its hello.
  FakeDevice(int manager_end_of_pair, std::uint32_t device, std::uint32_t claimed_pid = 0);
  ~FakeDevice();
  FakeDevice(const FakeDevice&) = delete;
  FakeDevice& operator=(const FakeDevice&) = delete;
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// 128 + signal that ended it, or its status; -1 if it lives on past the patience.
  int join();

 private:
  pid_t pid_ = 0;
};

/// Attaches a fake device to the application. Null with a test failure if that does not work.
std::unique_ptr<FakeDevice> attach_device(Speaker& application, std::uint32_t device = 0);

}  // namespace ferry::manager::test

// The manager of one `ferry run`: started at the first connection to its socket, asked for counters while it runs, ended
// at the end. One thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cli/admin.h"
#include "cli/child.h"
#include "cli/private_socket.h"
#include "cli/run.h"

namespace ferry::cli {

class RunManager {
 public:
  RunManager(const RunOptions& options, PrivateSocket socket) : options_(options), socket_(std::move(socket)) {}
  ~RunManager();

  [[nodiscard]] const PrivateSocket& socket() const { return socket_; }
  [[nodiscard]] bool started() const { return state_ != State::not_started; }
  [[nodiscard]] bool running() const { return state_ == State::running; }
  /// Readable when the manager has ended; -1 while it does not run.
  [[nodiscard]] int pidfd() const { return running() ? child_.pidfd.get() : -1; }

  /// Somebody connects. On failure says so and closes the socket, so that whoever connects is refused, not left waiting.
  void start_now();
  /// pidfd() is readable before anybody asked it to end.
  void ended_by_itself();

  /// After it did not answer: it may just be ending. Waits that long to know.
  void notice_end(int timeout_ms);

  /// Counters as JSON, or nothing where the manager does not answer.
  std::optional<std::string> stats(int timeout_ms);

  /// Asks for an orderly end and waits for it, at most `timeout_ms` or until `stop_fd` is readable; then kills. Text:
  /// what of trace and report could not be written, and why.
  std::optional<std::string> finish(int timeout_ms, int stop_fd);

 private:
  enum class State { not_started, running, ended, failed };
  void reap();

  const RunOptions& options_;
  PrivateSocket socket_;
  State state_ = State::not_started;
  Child child_;
  std::optional<Admin> admin_;
};

}  // namespace ferry::cli

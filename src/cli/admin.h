// Questions to a manager over its socket, without being one of its applications: counters, shutdown, explain.
// Blocking with bounds; one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "linux/socket.h"
#include "wire/message.h"

namespace ferry::cli {

class Admin {
 public:
  /// ERRORS: io_error with errno (ENOENT, ECONNREFUSED: nobody listens there), not_permitted (the socket belongs to a
  /// user other than this one and root; `peer_uid` says whom).
  static Result<Admin> connect(const std::string& socket, uid_t* peer_uid = nullptr);

  Admin() = default;

  /// The manager's counters as JSON. ERRORS: manager_lost, timed_out, bad_message, bad_version.
  Result<std::string> stats(int timeout_ms);
  /// Asks for an orderly end. The answer makes fd() readable when the manager has written its files. ERRORS: as stats.
  Status request_shutdown(int timeout_ms);
  /// ERRORS: as stats, and no_space or io_error (sys_errno) if a file could not be written.
  Status shutdown_answer(int timeout_ms);
  [[nodiscard]] int fd() const { return socket_.get(); }
  /// One page. ERRORS: as stats; client_gone: no application of that pid; not_allocated.
  Result<wire::PageResidency> explain(std::uint32_t pid, std::uint64_t page, int timeout_ms);

 private:
  Status send(wire::MessageType type, const void* body, std::size_t size, int timeout_ms);
  /// The answer to the last request.
  Status receive(int timeout_ms);
  Status ask(wire::MessageType type, const void* body, std::size_t size, int timeout_ms);
  /// The status that a `done` or `refused` carries; bad_message for anything else.
  [[nodiscard]] Status status_of_answer() const;

  linux::Fd socket_;
  std::unique_ptr<linux::Incoming> answer_;
  std::uint64_t requests_ = 0;
};

}  // namespace ferry::cli

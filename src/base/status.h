// The one error type. A code exists only if some caller does something different because of it; the reaction is named
// beside it. Bugs are never a Status: they abort through FERRY_CHECK (base/check.h).
#pragma once

#include <cstdint>
#include <utility>

#include "base/check.h"

namespace ferry {

enum class Code : std::uint16_t {
  ok = 0,
  // Requests that were wrong: the caller reports them to its user, nothing changed.
  bad_range = 1,       ///< unaligned, empty, overflowing, or outside the window
  not_allocated = 2,   ///< the address belongs to no allocation of this client (a kernel gets an error naming it)
  overlap = 3,         ///< the span is already allocated: the client picks another
  bad_message = 4,     ///< a peer sent what the protocol does not allow: its connection is closed
  bad_version = 5,     ///< the peer speaks another version: the user is told both
  not_permitted = 6,   ///< the peer is not whom it has to be: the user is told which uid
  not_held = 7,        ///< no such buffer, fence or timeline of this client: the request is refused
  in_use = 8,          ///< an id, or a timeline's point, is taken already: the request is refused
  would_deadlock = 9,  ///< the wait would close a loop: it is refused, and the loop told
  // Resources.
  no_memory = 20,    ///< system memory or a budget: the allocation fails, nothing else
  no_mappings = 21,  ///< the mappings limit of a process: the core serves the page in place instead
  no_space = 22,     ///< a full disk
  // Peers.
  device_lost = 30,   ///< the device process is gone: its kernels fail, its pages come home
  client_gone = 31,   ///< the application is gone: whatever waited for it is dropped
  manager_lost = 32,  ///< the manager is gone: the application must not run on
  timed_out = 33,     ///< a bounded wait ended: the caller escalates (kill the device) or tells the user
  io_error = 34,      ///< a copy failed: the source copy stays the newest
  // Kernels.
  kernel_fault = 40,  ///< a kernel crashed or touched what it may not; the text says where
  kernel_threw = 41,  ///< an exception left a kernel; the text is what()
  cancelled = 42,     ///< the launch was dropped before it ran, because an earlier one of its queue failed
  unsupported = 50,   ///< this kernel (Linux) or machine lacks something; `ferry doctor` says what
};

/// Short text for a code, for messages. Never allocates.
[[nodiscard]] const char* to_string(Code code);

struct [[nodiscard]] Status {
  Code code = Code::ok;
  /// errno of the system call that failed, or 0.
  std::int32_t sys_errno = 0;

  constexpr Status() = default;
  constexpr Status(Code c, int e = 0) : code(c), sys_errno(e) {}  // NOLINT(google-explicit-constructor)
  [[nodiscard]] constexpr bool ok() const { return code == Code::ok; }
  friend constexpr bool operator==(const Status&, const Status&) = default;
};

/// A value or the Status that says why there is none. Holds no allocation of its own.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)), has_value_(true) {}  // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(status) {                        // NOLINT(google-explicit-constructor)
    FERRY_CHECK(!status.ok());
  }
  Result(Code code) : Result(Status(code)) {}  // NOLINT(google-explicit-constructor)
  [[nodiscard]] bool ok() const { return has_value_; }
  explicit operator bool() const { return has_value_; }
  [[nodiscard]] Status status() const { return has_value_ ? Status{} : status_; }
  [[nodiscard]] T& value() & {
    FERRY_CHECK(has_value_);
    return value_;
  }
  [[nodiscard]] const T& value() const& {
    FERRY_CHECK(has_value_);
    return value_;
  }
  [[nodiscard]] T&& value() && {
    FERRY_CHECK(has_value_);
    return std::move(value_);
  }

 private:
  T value_{};
  Status status_;
  bool has_value_ = false;
};

}  // namespace ferry

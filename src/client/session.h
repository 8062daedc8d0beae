// The process's one session with a manager: opens it once, keeps what the rest of libferry asks it for.
// Owns: the connection's descriptors, the userfaultfd, the state machine of opening. Does not own: devices (devices.h),
// spans (spans.h), queues (queues.h).
// Static storage, no malloc in the managed heap. Any thread.
#pragma once

#include <ferry/ferry.h>

#include <cstdint>

#include "client/requests.h"
#include "linux/fd.h"
#include "linux/userfaultfd.h"
#include "wire/message.h"

namespace ferry::client {

struct Session {
  Requests requests;
  linux::Fd socket;
  linux::Fd kick;
  linux::Fd system_file;
  /// Never closed while the process lives: when the last descriptor goes, registrations vanish and missing pages read
  /// as zeros.
  linux::Userfaultfd userfault;
  /// Of memory outside the window, from the first adoption on. Never closed, too.
  linux::Userfaultfd outside_userfault;
  wire::AppControl* control = nullptr;  ///< mapped for the life of the process
  wire::Welcome machine{};
  std::uint64_t window_base = 0;
  std::uint64_t window_bytes = 0;

  [[nodiscard]] bool in_window(const void* p) const {
    return reinterpret_cast<std::uint64_t>(p) - window_base < window_bytes;
  }
  [[nodiscard]] Window window() const { return {window_base, window_bytes}; }
  [[nodiscard]] Page page_of(const void* p) const {
    return window().page_of_address(reinterpret_cast<std::uint64_t>(p));
  }
  /// Where the page of `p` lies in the system file.
  [[nodiscard]] std::uint64_t file_offset_of(const void* p) const { return page_of(p) * page_bytes; }
};

/// Opens the session if need be: with the manager at `socket`, or (null) where the environment says, or a private one.
/// Null, with `error` filled, when it cannot be opened; a later call tries again.
Session* open_session(const char* socket, ferry_error* error);

/// The session, or null if it is not open. Never opens it.
Session* session_if_open();

/// Whether this process may use the interface at all (not a device, not a fork's child). Fills `error` if not.
bool may_use_session(ferry_error* error);

}  // namespace ferry::client

// Messages of wire/message.h over SOCK_SEQPACKET sockets, with descriptors. Stateless functions; any thread, but one
// reader and one writer a socket at a time. Nothing here allocates.
// Does not interpret bodies: that is the receiver's business, through Incoming::body<T>().
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "linux/fd.h"
#include "wire/message.h"

namespace ferry::linux {

/// One received message. 64 KiB: keep one and receive into it again.
class Incoming {
 public:
  [[nodiscard]] wire::MessageType type() const { return static_cast<wire::MessageType>(head.type); }
  /// Bytes after the head.
  [[nodiscard]] std::span<const std::byte> bytes() const {
    return {buffer.data() + sizeof(wire::MessageHead), size - sizeof(wire::MessageHead)};
  }
  /// Copies the body out. False if its size is not exactly that of T.
  template <typename T>
  [[nodiscard]] bool body(T& out) const {
    static_assert(std::is_trivially_copyable_v<T>);
    if (bytes().size() != sizeof(T)) return false;
    std::memcpy(&out, bytes().data(), sizeof(T));
    return true;
  }
  /// The whole body as text (reply_text).
  [[nodiscard]] std::string_view text() const {
    return {reinterpret_cast<const char*>(bytes().data()), bytes().size()};
  }

  wire::MessageHead head{};
  std::size_t size = 0;
  /// Who sent it, vouched for by the kernel; 0 unless this end asks for it (both ends of make_socket_pair() do).
  pid_t sender_pid = 0;
  uid_t sender_uid = 0;
  /// The process itself (a pidfd), whoever has its number by now. Only where ask_for_sender() said so.
  Fd sender;
  /// Descriptors in the order sent, close-on-exec; those not taken close with the next receive or with *this.
  /// Room for all that the kernel passes with a message: what it has no room for it would close itself, in this thread,
  /// however long that takes.
  std::array<Fd, 253> fds;  // SCM_MAX_FD
  unsigned fd_count = 0;
  alignas(8) std::array<std::byte, wire::message_bytes_max> buffer;
};

enum class Receive {
  message,  ///< `in` holds a message whose magic, version and size are well
  nothing,  ///< none came within the time
  closed,   ///< the peer has closed or died
  no_room,  ///< a message, but this process has no room for all its descriptors, or they are more than a message has
  bad,      ///< truncated or bad magic: close the connection
  version,  ///< right magic, other version (in.head is valid, nothing else is)
};

/// Waits up to timeout_ms (0: not at all, -1: for ever; signals do not shorten it) for one message.
Receive receive_message(int socket, Incoming& in, int timeout_ms);

/// Sends head + body + tail with copies of `fds`. Never raises SIGPIPE.
/// ERRORS: timed_out (`timeout_ms` passed with the peer's buffer full; 0: do not wait, -1: for ever),
/// io_error (sys_errno; EPIPE and ECONNRESET: the peer is gone), bad_message (longer than message_bytes_max).
Status send_bytes(int socket, wire::MessageType type, std::uint64_t request, std::span<const std::byte> body,
                  std::span<const int> fds = {}, std::string_view tail = {}, int timeout_ms = -1);

template <typename T>
Status send_message(int socket, wire::MessageType type, std::uint64_t request, const T& body,
                    std::span<const int> fds = {}, int timeout_ms = -1) {
  static_assert(std::is_trivially_copyable_v<T>);
  return send_bytes(socket, type, request, std::as_bytes(std::span<const T, 1>(&body, 1)), fds, {}, timeout_ms);
}
/// A message without a body, or one of text.
inline Status send_text(int socket, wire::MessageType type, std::uint64_t request, std::string_view text = {},
                        int timeout_ms = -1) {
  return send_bytes(socket, type, request, {}, {}, text, timeout_ms);
}

/// Connected SOCK_SEQPACKET pair, close-on-exec, on which every message says who sent it.
Result<std::pair<Fd, Fd>> make_socket_pair();

/// Connects to a manager's socket. ERRORS: io_error with ENOENT, ECONNREFUSED (nobody listens), EACCES, ENAMETOOLONG.
Result<Fd> connect_socket(const char* path);

/// A socket on which messages can be sent: of a pair, or connected.
bool is_message_socket(int fd);

/// Messages that this end receives say which process sent them, in Incoming::sender, too. False: the kernel is older than
/// 6.5.
bool ask_for_sender(int socket);

struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
};
/// Who was on the other end at connect (or made the pair). ERRORS: io_error.
Result<PeerCredentials> peer_credentials(int socket);

}  // namespace ferry::linux

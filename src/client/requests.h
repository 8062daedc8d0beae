// Questions to the manager and the answers that belong to them. Any thread asks; one reader thread hands answers over.
// Owns: the table of questions under way. Does not own: the socket.
// Constant-initialized and without malloc: the heap itself asks from here while it is being grown.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "base/status.h"
#include "linux/lock.h"
#include "linux/socket.h"

namespace ferry::client {

/// An answer. Lives on the stack of who asked.
class Answer {
 public:
  [[nodiscard]] wire::MessageType type() const { return type_; }
  template <typename T>
  [[nodiscard]] bool body(T& out) const {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= body_bytes_max);
    if (size_ != sizeof(T)) return false;
    std::memcpy(&out, body_.data(), sizeof(T));
    return true;
  }
  /// Descriptor number `i` of the answer, given away; invalid if there is none.
  [[nodiscard]] linux::Fd take_fd(unsigned i) { return i < fd_count_ ? std::move(fds_[i]) : linux::Fd(); }
  [[nodiscard]] unsigned fd_count() const { return fd_count_; }

 private:
  friend class Requests;
  static constexpr std::size_t body_bytes_max = 512;
  static constexpr unsigned fds_max = 8;

  wire::MessageType type_{};
  std::size_t size_ = 0;
  unsigned fd_count_ = 0;
  std::array<linux::Fd, fds_max> fds_;
  alignas(8) std::array<std::byte, body_bytes_max> body_{};
};

inline constinit linux::LockClass request_text_lock("long answer", linux::LockRank::request_text);
inline constinit linux::LockClass request_send_lock("question to the manager", linux::LockRank::request_send);

class Requests {
 public:
  constexpr Requests() = default;

  /// `gone`, if not null, is called by a thread whose question meets a closed socket, and must not return: such a thread
  /// may come before the reader thread, and the program is to end in the same way whoever notices first.
  void start(int socket, void (*gone)() = nullptr) {
    socket_ = socket;
    gone_ = gone;
  }

  /// Sends the question and waits for its answer. Text of an answer longer than an Answer holds goes to `text`, with
  /// its whole size in text_bytes.
  /// ERRORS: manager_lost (cannot be sent), bad_message (the answer says done with no reason, or is out of form).
  /// A `done` with an error becomes that error.
  Status ask(wire::MessageType type, std::span<const std::byte> body, std::span<const int> fds, Answer& answer,
             std::span<char> text = {}, std::size_t* text_bytes = nullptr);

  template <typename T>
  Status ask(wire::MessageType type, const T& body, Answer& answer, std::span<const int> fds = {}) {
    return ask(type, std::as_bytes(std::span<const T, 1>(&body, 1)), fds, answer);
  }
  /// For questions that are answered by `done` alone.
  template <typename T>
  Status tell(wire::MessageType type, const T& body) {
    Answer answer;
    return ask(type, body, answer);
  }

  /// For what is not answered. Best effort.
  template <typename T>
  void say(wire::MessageType type, const T& body) {
    const linux::LockGuard lock(send_mutex_);
    [[maybe_unused]] const Status sent = linux::send_message(socket_, type, 0, body);
  }

  /// Reader thread: hands the message to who waits for it. False: nobody does.
  bool deliver(linux::Incoming& in);

 private:
  struct Slot {
    enum : std::uint32_t { free = 0, asked = 1, answered = 2 };
    std::atomic<std::uint32_t> state{free};
    std::atomic<std::uint64_t> request{0};  ///< 0: not sent yet, no answer can belong to it
    Answer answer;
    std::size_t text_capacity = 0;
    std::size_t text_bytes = 0;
    std::array<char, wire::message_bytes_max>* text = nullptr;
  };

  Slot* take_slot();

  int socket_ = -1;
  void (*gone_)() = nullptr;
  linux::Mutex send_mutex_{request_send_lock};
  linux::Mutex text_mutex_{request_text_lock};
  std::atomic<std::uint64_t> next_request_{1};
  std::atomic<std::uint32_t> slot_freed_{0};
  std::array<Slot, 64> slots_{};
  /// Not the asker's own memory: that may be managed, and the reader thread must not wait for a page.
  std::array<char, wire::message_bytes_max> text_buffer_{};
};

}  // namespace ferry::client

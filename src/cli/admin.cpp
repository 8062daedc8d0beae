#include "cli/admin.h"

#include <unistd.h>

#include "linux/futex.h"

namespace ferry::cli {
namespace {

constexpr std::uint64_t ns_of_ms = 1'000'000;

}  // namespace

Result<Admin> Admin::connect(const std::string& socket, uid_t* peer_uid) {
  auto connected = linux::connect_socket(socket.c_str());
  if (!connected) return connected.status();
  Admin admin;
  admin.socket_ = std::move(connected).value();
  const auto peer = linux::peer_credentials(admin.socket_.get());
  if (!peer) return peer.status();
  if (peer_uid != nullptr) *peer_uid = peer.value().uid;
  if (peer.value().uid != geteuid() && peer.value().uid != 0) return Code::not_permitted;
  admin.answer_ = std::make_unique<linux::Incoming>();
  return admin;
}

Status Admin::send(wire::MessageType type, const void* body, std::size_t size, int timeout_ms) {
  if (!socket_) return Code::manager_lost;
  const Status sent = linux::send_bytes(socket_.get(), type, ++requests_, {static_cast<const std::byte*>(body), size},
                                        {}, {}, timeout_ms);
  return sent.code == Code::io_error ? Status(Code::manager_lost, sent.sys_errno) : sent;
}

Status Admin::receive(int timeout_ms) {
  if (!socket_) return Code::manager_lost;
  const std::uint64_t end = linux::monotonic_ns() + static_cast<std::uint64_t>(timeout_ms) * ns_of_ms;
  while (true) {
    const std::uint64_t now = linux::monotonic_ns();
    if (now >= end) return Code::timed_out;
    switch (linux::receive_message(socket_.get(), *answer_, static_cast<int>((end - now) / ns_of_ms) + 1)) {
      case linux::Receive::message: break;
      case linux::Receive::nothing: return Code::timed_out;
      case linux::Receive::closed: return Code::manager_lost;
      case linux::Receive::no_room:
      case linux::Receive::bad: return Code::bad_message;
      case linux::Receive::version: return Code::bad_version;
    }
    // Anything else answers a question that was given up on earlier.
    if (answer_->head.request == requests_) return {};
  }
}

Status Admin::ask(wire::MessageType type, const void* body, std::size_t size, int timeout_ms) {
  const Status sent = send(type, body, size, timeout_ms);
  return sent.ok() ? receive(timeout_ms) : sent;
}

Status Admin::status_of_answer() const {
  if (answer_->type() == wire::MessageType::done) {
    wire::Done done{};
    if (!answer_->body(done)) return Code::bad_message;
    return {static_cast<Code>(done.code), done.sys_errno};
  }
  if (answer_->type() == wire::MessageType::refused) {
    wire::Refused refused{};
    if (!answer_->body(refused) || refused.code == 0) return Code::bad_message;
    return static_cast<Code>(refused.code);
  }
  return Code::bad_message;
}

Result<std::string> Admin::stats(int timeout_ms) {
  if (const Status status = ask(wire::MessageType::stats, nullptr, 0, timeout_ms); !status.ok()) return status;
  if (answer_->type() == wire::MessageType::reply_text) return std::string(answer_->text());
  const Status status = status_of_answer();
  return status.ok() ? Status(Code::bad_message) : status;
}

Status Admin::request_shutdown(int timeout_ms) { return send(wire::MessageType::shutdown, nullptr, 0, timeout_ms); }

Status Admin::shutdown_answer(int timeout_ms) {
  const Status status = receive(timeout_ms);
  return status.ok() ? status_of_answer() : status;
}

Result<wire::PageResidency> Admin::explain(std::uint32_t pid, std::uint64_t page, int timeout_ms) {
  wire::Span span{};
  span.first_page = page;
  span.count_pages = 1;
  span.pid = pid;
  if (const Status status = ask(wire::MessageType::explain, &span, sizeof span, timeout_ms); !status.ok()) {
    return status;
  }
  wire::PageResidency residency{};
  if (answer_->type() == wire::MessageType::residency && answer_->body(residency)) return residency;
  const Status status = status_of_answer();
  return status.ok() ? Status(Code::bad_message) : status;
}

}  // namespace ferry::cli

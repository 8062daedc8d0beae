#include "client/requests.h"

#include <algorithm>
#include <cerrno>

#include "client/adopt/stopped.h"
#include "linux/futex.h"

namespace ferry::client {

Requests::Slot* Requests::take_slot() {
  for (;;) {
    const std::uint32_t seen = slot_freed_.load(std::memory_order_acquire);
    for (Slot& slot : slots_) {
      std::uint32_t expected = Slot::free;
      if (slot.state.load(std::memory_order_relaxed) == Slot::free &&
          slot.state.compare_exchange_strong(expected, Slot::asked, std::memory_order_acquire)) {
        return &slot;
      }
    }
    wait_on(slot_freed_, seen);
  }
}

Status Requests::ask(wire::MessageType type, std::span<const std::byte> body, std::span<const int> fds, Answer& answer,
                     std::span<char> text, std::size_t* text_bytes) {
  linux::UniqueLock text_lock;
  if (!text.empty()) text_lock = linux::UniqueLock(text_mutex_);
  Slot* slot = take_slot();
  Status result;
  {
    const linux::LockGuard lock(send_mutex_);
    slot->text = text.empty() ? nullptr : &text_buffer_;
    slot->text_bytes = 0;
    const std::uint64_t request = next_request_.fetch_add(1, std::memory_order_relaxed);
    slot->request.store(request, std::memory_order_release);
    result = linux::send_bytes(socket_, type, request, body, fds);
  }
  if (!result.ok()) {
    if (gone_ != nullptr && (result.sys_errno == EPIPE || result.sys_errno == ECONNRESET)) gone_();
    result = Status(Code::manager_lost, result.sys_errno);
  } else {
    linux::AdaptiveSpin spin(2'000, 50'000);
    const auto answered = [slot] { return slot->state.load(std::memory_order_acquire) == Slot::answered; };
    while (!answered()) {
      if (!spin.until(answered)) wait_on(slot->state, Slot::asked);
    }
    answer = std::move(slot->answer);
    wire::Done done{};
    if (answer.type() == wire::MessageType::done) {
      result = answer.body(done) ? Status(static_cast<Code>(done.code), done.sys_errno) : Status(Code::bad_message);
    }
    if (slot->text != nullptr) {
      const std::size_t take = std::min(slot->text_bytes, text.size());
      std::memcpy(text.data(), text_buffer_.data(), take);
      if (text_bytes != nullptr) *text_bytes = slot->text_bytes;
    }
  }
  slot->request.store(0, std::memory_order_relaxed);
  slot->state.store(Slot::free, std::memory_order_release);
  slot_freed_.fetch_add(1, std::memory_order_release);
  linux::futex_wake(slot_freed_, 1);
  return result;
}

bool Requests::deliver(linux::Incoming& in) {
  for (Slot& slot : slots_) {
    if (slot.state.load(std::memory_order_relaxed) != Slot::asked ||
        slot.request.load(std::memory_order_acquire) != in.head.request) {
      continue;
    }
    slot.answer.type_ = in.type();
    const auto bytes = in.bytes();
    slot.answer.size_ = bytes.size();
    std::memcpy(slot.answer.body_.data(), bytes.data(), std::min(bytes.size(), slot.answer.body_.size()));
    if (slot.text != nullptr) {
      slot.text_bytes = bytes.size();
      std::memcpy(slot.text->data(), bytes.data(), bytes.size());
    }
    slot.answer.fd_count_ = std::min(in.fd_count, Answer::fds_max);
    for (unsigned i = 0; i < slot.answer.fd_count_; ++i) slot.answer.fds_[i] = std::move(in.fds[i]);
    slot.state.store(Slot::answered, std::memory_order_release);
    linux::futex_wake(slot.state, 1);
    return true;
  }
  return false;
}

}  // namespace ferry::client

#include "client/change/direct.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "client/adopt/known.h"
#include "client/change/kept.h"
#include "client/change/mappings.h"
#include "client/process_state.h"
#include "client/session.h"

namespace ferry::client {
namespace {

void* take_pages(std::size_t bytes) {
  return reinterpret_cast<void*>(
      ::syscall(SYS_mmap, nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

/// May be the manager's: of the window, or adopted.
bool may_move(const Session& s, std::uint64_t first, std::uint64_t end) {
  const bool inside = first < s.window_base + s.window_bytes && end > s.window_base;
  return inside || may_be_adopted(first, end - first);
}

/// Of a span; a refusal has its own kind of answer.
bool told(wire::MessageType type, std::uint64_t first_page, std::uint64_t count_pages) {
  wire::Span body{};
  body.first_page = first_page;
  body.count_pages = count_pages;
  body.device = wire::to_system;
  Answer answer;
  wire::SvmAnswer refused{};
  if (!session_if_open()->requests.ask(type, body, answer).ok()) return false;
  return answer.type() == wire::MessageType::done || (answer.body(refused) && refused.code == 0);
}

/// Writable by the program, all of it: a write there that fails would end it, where the kernel's only says so.
bool writable(std::uint64_t at, std::uint64_t end) {
  for (OwnMapping here; at < end; at = here.end) {
    if (!find_own_mapping(at, here) || !here.writable) return false;
  }
  return true;
}

}  // namespace

DirectPins::DirectPins(DirectPins&& other) noexcept
    : spans_(std::exchange(other.spans_, nullptr)),
      count_(std::exchange(other.count_, 0)),
      room_(std::exchange(other.room_, 0)) {}

DirectPins& DirectPins::operator=(DirectPins&& other) noexcept {
  std::swap(spans_, other.spans_);
  std::swap(count_, other.count_);
  std::swap(room_, other.room_);
  return *this;
}

/// Not of malloc: this may be the program's own, in the middle of a call.
bool DirectPins::make_room() {
  if (count_ < room_) return true;
  const std::size_t room = std::max<std::size_t>(page_bytes / sizeof(Span), 2 * room_);
  void* const more = take_pages(room * sizeof(Span));
  if (more == MAP_FAILED) return false;
  if (spans_ != nullptr) {
    std::memcpy(more, spans_, count_ * sizeof(Span));
    ::syscall(SYS_munmap, spans_, room_ * sizeof(Span));
  }
  spans_ = static_cast<Span*>(more);
  room_ = room;
  return true;
}

void DirectPins::take(DirectPins&& more) {
  for (std::size_t i = 0; i < more.count_ && make_room(); ++i) spans_[count_++] = more.spans_[i];
  // What finds no room stays pinned for as long as the process lives.
  more.count_ = 0;
  more.release();
}

bool DirectPins::pin(Span span) {
  if (!make_room()) return false;
  if (!told(wire::MessageType::pin, span.first_page, span.count_pages)) {
    pins_ended();
    return false;
  }
  spans_[count_++] = span;
  return true;
}

bool DirectPins::add(const iovec* parts, std::size_t count) {
  const Session* s = session_if_open();
  if (s == nullptr) return true;
  for (std::size_t i = 0; i < count; ++i) {
    const auto at = reinterpret_cast<std::uint64_t>(parts[i].iov_base);
    const std::uint64_t first = at & ~(page_bytes - 1);
    const std::uint64_t end = (at + parts[i].iov_len + page_bytes - 1) & ~(page_bytes - 1);
    if (parts[i].iov_len == 0 || end <= first || !may_move(*s, first, end)) continue;
    if (!pin({s->page_of(reinterpret_cast<void*>(first)), (end - first) / page_bytes})) {
      release();
      return false;
    }
  }
  return true;
}

void DirectPins::release() {
  const int before = errno;
  for (std::size_t i = 0; i < count_; ++i) {
    // Freed meanwhile: kept until now.
    [[maybe_unused]] const bool gone = told(wire::MessageType::unpin, spans_[i].first_page, spans_[i].count_pages);
  }
  if (spans_ != nullptr) ::syscall(SYS_munmap, spans_, room_ * sizeof(Span));
  if (count_ != 0) pins_ended();
  spans_ = nullptr;
  count_ = room_ = 0;
  errno = before;
}

bool could_move(const void* address, std::size_t bytes) {
  const Session* s = session_if_open();
  const auto at = reinterpret_cast<std::uint64_t>(address);
  return s != nullptr && bytes != 0 && may_move(*s, at, at + bytes) &&
         process_kind.load(std::memory_order_relaxed) == ProcessKind::application;
}

bool is_direct_file(int fd) {
  if (session_if_open() == nullptr || process_kind.load(std::memory_order_relaxed) != ProcessKind::application) {
    return false;
  }
  const int before = errno;
  const int flags = ::fcntl(fd, F_GETFL);
  struct stat file {};
  // Pipes mean something else by the flag.
  const bool direct = flags >= 0 && (flags & O_DIRECT) != 0 && ::fstat(fd, &file) == 0 &&
                      (S_ISREG(file.st_mode) || S_ISBLK(file.st_mode));
  errno = before;
  return direct;
}

Bounce::Bounce(const iovec* parts, std::size_t count) : parts_(parts), count_(count) {
  for (std::size_t i = 0; i < count; ++i) bytes_ += parts[i].iov_len;
  if (bytes_ == 0) return;
  void* const base = take_pages(bytes_);
  if (base != MAP_FAILED) base_ = base;
}

Bounce::~Bounce() {
  const int before = errno;
  if (base_ != nullptr) ::syscall(SYS_munmap, base_, bytes_);
  errno = before;
}

bool Bounce::give(std::size_t bytes) const {
  const auto* from = static_cast<const char*>(base_);
  for (std::size_t i = 0; i < count_ && bytes != 0; ++i) {
    const std::size_t part = std::min(bytes, parts_[i].iov_len);
    const auto at = reinterpret_cast<std::uint64_t>(parts_[i].iov_base);
    if (!writable(at, at + part)) {
      errno = EFAULT;
      return false;
    }
    std::memcpy(parts_[i].iov_base, from, part);
    from += part;
    bytes -= part;
  }
  return true;
}

}  // namespace ferry::client

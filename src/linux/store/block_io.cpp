#include "linux/store/block_io.h"

#include <liburing.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/check.h"

namespace ferry::linux {

struct BlockIo::Request {
  bool live = false;
  bool write = false;
  std::byte* buffer = nullptr;
  std::size_t bytes = 0;
  std::uint64_t offset = 0;
};

struct BlockIo::Ring {
  io_uring ring{};
  std::array<Request, depth> requests;
  unsigned in_flight = 0;
  std::byte* registered = nullptr;
  std::size_t registered_bytes = 0;
  ~Ring() { io_uring_queue_exit(&ring); }
};

int probe_uring() {
  io_uring ring{};
  const int rc = io_uring_queue_init(1, &ring, 0);
  if (rc < 0) return -rc;
  io_uring_queue_exit(&ring);
  return 0;
}

BlockIo::BlockIo(int fd, IoKind kind, const IoFault* fault) : fd_(fd), fault_(fault) {
  if (kind == IoKind::threads || fd < 0) return;
  io_uring ring{};
  if (io_uring_queue_init(depth, &ring, 0) < 0) return;
  ring_ = std::make_unique<Ring>();
  ring_->ring = ring;
}

BlockIo::~BlockIo() {
  if (ring_ != nullptr) reap(true);
}

void BlockIo::register_buffer(std::byte* buffer, std::size_t bytes) {
  if (ring_ == nullptr) return;
  const iovec span{buffer, bytes};
  if (io_uring_register_buffers(&ring_->ring, &span, 1) != 0) return;
  ring_->registered = buffer;
  ring_->registered_bytes = bytes;
}

bool BlockIo::uses_registered_buffer() const { return ring_ != nullptr && ring_->registered != nullptr; }

void BlockIo::note(int error) {
  if (!status_.ok()) return;
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  status_ = {full ? Code::no_space : Code::io_error, error};
}

unsigned BlockIo::write(const std::byte* from, std::size_t bytes, std::uint64_t offset) {
  return begin(true, const_cast<std::byte*>(from), bytes, offset);
}
unsigned BlockIo::read(std::byte* to, std::size_t bytes, std::uint64_t offset) {
  return begin(false, to, bytes, offset);
}

unsigned BlockIo::begin(bool write, std::byte* buffer, std::size_t bytes, std::uint64_t offset) {
  if (fault_ != nullptr && *fault_) {
    if (const int error = (*fault_)(write, offset, bytes); error != 0) {
      note(error);
      return 0;
    }
  }
  if (fd_ < 0) {
    note(EBADF);
    return 0;
  }
  if (ring_ == nullptr) {
    here(write, buffer, bytes, offset);
    return 0;
  }
  if (ring_->in_flight == depth) reap(false);
  auto free = std::find_if(ring_->requests.begin(), ring_->requests.end(), [](const Request& r) { return !r.live; });
  FERRY_CHECK(free != ring_->requests.end());
  *free = {true, write, buffer, bytes, offset};
  ++ring_->in_flight;
  submit(*free);
  return static_cast<unsigned>(free - ring_->requests.begin());
}

void BlockIo::go() {
  if (ring_ != nullptr) io_uring_submit(&ring_->ring);
}

bool BlockIo::wait_for(unsigned number) {
  while (ring_ != nullptr && ring_->requests[number].live) reap(false);
  return status_.ok();
}

void BlockIo::here(bool write, std::byte* buffer, std::size_t bytes, std::uint64_t offset) {
  while (bytes > 0) {
    const ssize_t n = write ? ::pwrite(fd_, buffer, bytes, static_cast<off_t>(offset))
                            : ::pread(fd_, buffer, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    // A write of nothing is a disk that ran full; a read of nothing is a file that somebody cut.
    if (n <= 0) {
      note(n < 0 ? errno : (write ? ENOSPC : EIO));
      return;
    }
    buffer += n;
    bytes -= static_cast<std::size_t>(n);
    offset += static_cast<std::uint64_t>(n);
  }
}

void BlockIo::submit(Request& r) {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_->ring);
  if (sqe == nullptr) {
    io_uring_submit(&ring_->ring);
    sqe = io_uring_get_sqe(&ring_->ring);
  }
  FERRY_CHECK(sqe != nullptr);
  const auto bytes = static_cast<unsigned>(r.bytes);
  const bool fixed = ring_->registered != nullptr && r.buffer >= ring_->registered &&
                     r.buffer + r.bytes <= ring_->registered + ring_->registered_bytes;
  if (r.write) {
    fixed ? io_uring_prep_write_fixed(sqe, fd_, r.buffer, bytes, r.offset, 0)
          : io_uring_prep_write(sqe, fd_, r.buffer, bytes, r.offset);
  } else {
    fixed ? io_uring_prep_read_fixed(sqe, fd_, r.buffer, bytes, r.offset, 0)
          : io_uring_prep_read(sqe, fd_, r.buffer, bytes, r.offset);
  }
  io_uring_sqe_set_data(sqe, &r);
}

/// Takes completions in: all of them, or at least one.
void BlockIo::reap(bool all) {
  while (ring_->in_flight > 0) {
    const int rc = io_uring_submit_and_wait(&ring_->ring, 1);
    // Out of the kernel's own resources: what was taken is under way, the rest is tried again.
    if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY) FERRY_CHECK_EQ(rc, 0);
    io_uring_cqe* cqe = nullptr;
    bool some = false;
    while (io_uring_peek_cqe(&ring_->ring, &cqe) == 0) {
      auto& r = *static_cast<Request*>(io_uring_cqe_get_data(cqe));
      const int n = cqe->res;
      io_uring_cqe_seen(&ring_->ring, cqe);
      if (n == -EINTR || n == -EAGAIN) {
        submit(r);
        continue;
      }
      if (n > 0 && static_cast<std::size_t>(n) < r.bytes) {
        r.buffer += n;
        r.bytes -= static_cast<std::size_t>(n);
        r.offset += static_cast<std::uint64_t>(n);
        submit(r);
        continue;
      }
      if (n <= 0) note(n < 0 ? -n : (r.write ? ENOSPC : EIO));
      r.live = false;
      --ring_->in_flight;
      some = true;
    }
    if (some && !all) return;
  }
}

Status BlockIo::wait() {
  if (ring_ != nullptr) reap(true);
  const Status status = status_;
  status_ = {};
  return status;
}

}  // namespace ferry::linux

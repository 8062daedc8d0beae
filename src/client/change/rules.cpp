#include "client/change/rules.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "client/session.h"

// Of kernels that are newer than the C library.
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

namespace ferry::client {

int raw_munmap(std::uint64_t at, std::size_t bytes) { return static_cast<int>(::syscall(SYS_munmap, at, bytes)); }
int raw_mprotect(std::uint64_t at, std::size_t bytes, int prot) {
  return static_cast<int>(::syscall(SYS_mprotect, at, bytes, prot));
}
int raw_madvise(std::uint64_t at, std::size_t bytes, int advice) {
  return static_cast<int>(::syscall(SYS_madvise, at, bytes, advice));
}
void* raw_mmap(std::uint64_t at, std::size_t bytes, int prot, int flags, int fd, std::int64_t offset) {
  return reinterpret_cast<void*>(::syscall(SYS_mmap, at, bytes, prot, flags, fd, offset));
}
void* raw_mremap(std::uint64_t at, std::size_t old_bytes, std::size_t new_bytes, int flags, std::uint64_t to) {
  return reinterpret_cast<void*>(::syscall(SYS_mremap, at, old_bytes, new_bytes, flags, to));
}

AdviceRule rule_of_advice(int advice) {
  switch (advice) {
    case MADV_DONTNEED:
    case MADV_DONTNEED_LOCKED:
    case MADV_REMOVE: return AdviceRule::zero;
    case MADV_FREE: return AdviceRule::free;
    case MADV_DONTFORK:
    case MADV_DOFORK:
    case MADV_WIPEONFORK:
    case MADV_KEEPONFORK: return AdviceRule::fork;
    case MADV_NORMAL:
    case MADV_RANDOM:
    case MADV_SEQUENTIAL: return AdviceRule::hint;
    default: return AdviceRule::kernel;
  }
}

int errno_of(Status status) {
  if (status.sys_errno != 0) return status.sys_errno;
  switch (status.code) {
    case Code::not_allocated:
    case Code::no_mappings: return ENOMEM;
    case Code::in_use: return EBUSY;
    case Code::bad_range: return EINVAL;
    default: return EAGAIN;
  }
}

unsigned device_prot(int prot) {
  const unsigned bits = ((prot & PROT_READ) != 0 ? unsigned{core::span_read} : 0U) |
                        ((prot & PROT_WRITE) != 0 ? unsigned{core::span_write} : 0U) |
                        ((prot & PROT_EXEC) != 0 ? unsigned{core::span_exec} : 0U);
  return (bits & (core::span_read | core::span_write)) == (core::span_read | core::span_write)
             ? unsigned{core::span_all}
             : bits;
}

Status tell_change(Session& s, core::Change change, const Part& part, unsigned prot) {
  wire::Change body{};
  body.first_page = s.page_of(reinterpret_cast<void*>(part.first));
  body.count_pages = part.bytes() / page_bytes;
  body.change = static_cast<std::uint32_t>(change);
  body.prot = prot;
  return s.requests.tell(wire::MessageType::change, body);
}

Status tell_move(Session& s, const Part& part, std::uint64_t to) {
  wire::Change body{};
  body.first_page = s.page_of(reinterpret_cast<void*>(part.first));
  body.count_pages = part.bytes() / page_bytes;
  body.to_page = s.page_of(reinterpret_cast<void*>(to));
  body.change = static_cast<std::uint32_t>(core::Change::move);
  return s.requests.tell(wire::MessageType::change, body);
}

}  // namespace ferry::client

#include "floors/posix.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <system_error>

namespace ferry::bench::floors {

void throw_errno(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

Fd::~Fd() {
  if (fd_ >= 0) close(fd_);
}

Mapping::Mapping(int fd, std::size_t bytes) : bytes_(bytes) {
  const int flags = MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0);
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (data == MAP_FAILED) throw_errno("mmap");
  data_ = static_cast<std::byte*>(data);
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

Fd warm_memfd(const char* name, std::size_t bytes) {
  Fd fd(memfd_create(name, MFD_CLOEXEC));
  if (fd.get() < 0) throw_errno("memfd_create");
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) throw_errno("ftruncate of a memory file");
  const Mapping mapping(fd.get(), bytes);
  // A value that varies: a page of equal bytes may be merged or compressed below us.
  for (std::size_t offset = 0; offset < bytes; offset += sizeof(std::uint64_t)) {
    const std::uint64_t value = offset * 0x9e3779b97f4a7c15U;
    std::memcpy(mapping.data() + offset, &value, sizeof value);
  }
  return fd;
}

Fd register_userfaultfd(const Mapping& mapping, std::uint64_t extra_features) {
  Fd fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  if (fd.get() < 0) throw_errno("userfaultfd");
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MISSING_SHMEM | extra_features;
  if (ioctl(fd.get(), UFFDIO_API, &api) != 0) throw_errno("UFFDIO_API (minor faults on shared memory)");
  uffdio_register range{};
  range.range.start = reinterpret_cast<std::uintptr_t>(mapping.data());
  range.range.len = mapping.bytes();
  range.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
  if (ioctl(fd.get(), UFFDIO_REGISTER, &range) != 0) throw_errno("UFFDIO_REGISTER");
  return fd;
}

Child::Child(const std::function<void()>& body) {
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) throw_errno("fork");
  if (pid_ > 0) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The parent may have died before the line above took effect.
  if (getppid() != parent) _exit(1);
  try {
    body();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ferry-bench: floor process: %s\n", error.what());
    _exit(1);
  }
  _exit(0);
}

Child::~Child() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void Child::check_alive() {
  if (pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == 0) return;
  pid_ = -1;
  throw std::runtime_error("a floor's process ended early");
}

std::pair<Fd, Fd> socket_pair() {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) throw_errno("socketpair");
  return {Fd(fds[0]), Fd(fds[1])};
}

void send_fd(int socket, int fd) {
  char byte = 0;
  iovec part{.iov_base = &byte, .iov_len = 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  if (sendmsg(socket, &message, MSG_NOSIGNAL) != 1) throw_errno("sendmsg of a descriptor");
}

Fd receive_fd(int socket) {
  char byte = 0;
  iovec part{.iov_base = &byte, .iov_len = 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1)
    throw std::runtime_error("a floor's process sent no descriptor");
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS)
    throw std::runtime_error("a floor's process sent no descriptor");
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return Fd(fd);
}

void continue_page(int userfaultfd, std::uint64_t page, bool wake) {
  uffdio_continue request{};
  request.range.start = page;
  request.range.len = page_bytes;
  request.mode = wake ? 0 : UFFDIO_CONTINUE_MODE_DONTWAKE;
  if (ioctl(userfaultfd, UFFDIO_CONTINUE, &request) == 0) return;
  // Two threads may fault on one page: whoever comes second finds it mapped, which is what it wanted.
  if (errno == EEXIST) return;
  std::perror("ferry-bench: UFFDIO_CONTINUE");
  std::abort();
}

void Spin::pause() {
  constexpr unsigned turns_before_yield = 16384;
  cpu_pause();
  if (++turns_ % turns_before_yield == 0) sched_yield();
}

}  // namespace ferry::bench::floors

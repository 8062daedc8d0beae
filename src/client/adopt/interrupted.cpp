#include "client/adopt/interrupted.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "base/types.h"

namespace ferry::client {
namespace {

/// read, write and their like: of sockets with a time limit, and of inotify.
bool is_timed(unsigned long fd) {
  for (const int limit : {SO_RCVTIMEO, SO_SNDTIMEO}) {
    timeval t{};
    socklen_t bytes = sizeof t;
    if (::getsockopt(static_cast<int>(fd), SOL_SOCKET, limit, &t, &bytes) != 0) break;
    if (t.tv_sec != 0 || t.tv_usec != 0) return true;
  }
  char path[48] = "/proc/self/fd/";
  char* to = path + std::strlen(path);
  char digits[24];
  char* from = digits + sizeof digits;
  do *--from = static_cast<char>('0' + fd % 10);
  while ((fd /= 10) != 0);
  while (from != digits + sizeof digits) *to++ = *from++;
  *to = '\0';
  constexpr char inotify[] = "anon_inode:inotify";
  char link[sizeof inotify];
  return ::readlink(path, link, sizeof link) == sizeof inotify - 1 &&
         std::memcmp(link, inotify, sizeof inotify - 1) == 0;
}

bool always_ends(long call) {
  switch (call) {
#ifdef SYS_poll
    case SYS_poll:
    case SYS_select:
    case SYS_epoll_wait:
    case SYS_pause:
#endif
    case SYS_ppoll:
    case SYS_pselect6:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_nanosleep:
    case SYS_clock_nanosleep:
    case SYS_rt_sigtimedwait:
    case SYS_rt_sigsuspend:
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_msgrcv:
    case SYS_msgsnd:
    case SYS_io_getevents:
    case SYS_io_pgetevents:
    case SYS_io_uring_enter:
    case SYS_accept:
    case SYS_accept4:
    case SYS_connect:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_recvmmsg:
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_sendmmsg: return true;
    default: return false;
  }
}

#if defined(__x86_64__)

struct Instruction {
  unsigned bytes = 0;  ///< 0: none that is known here
  bool sets_rax = false;
};

/// Those with which compilers bring arguments: moves, and arithmetic on registers.
Instruction read_instruction(const unsigned char* at) {
  const unsigned char* p = at;
  const unsigned rex = (*p & 0xf0) == 0x40 ? *p++ : 0U;
  const unsigned op = *p++;
  if (op >= 0xb8 && op <= 0xbf) {  // mov register, imm32
    if ((rex & 8) != 0) return {};
    return {static_cast<unsigned>(p + 4 - at), (op & 7) == 0 && (rex & 1) == 0};
  }
  unsigned immediate = 0;
  bool into_register = false;  // the field `reg` is written, else what `rm` names
  switch (op) {
    case 0x8b:
    case 0x8d:
    case 0x63:
    case 0x33: into_register = true; break;
    case 0x89:
    case 0x31:
    case 0xf7: break;
    case 0x80:
    case 0x83:
    case 0xc1: immediate = 1; break;
    case 0x81:
    case 0xc7: immediate = 4; break;
    default: return {};
  }
  const unsigned modrm = *p++;
  const unsigned mod = modrm >> 6;
  const unsigned reg = modrm >> 3 & 7;
  const unsigned rm = modrm & 7;
  if (op == 0xf7 && reg != 2) return {};  // but for not: with an immediate, or of rax
  bool sets_rax = into_register ? reg == 0 && (rex & 4) == 0 : mod == 3 && rm == 0 && (rex & 1) == 0;
  if (mod != 3) {
    unsigned base = rm;
    if (rm == 4) base = *p++ & 7;
    if (mod == 1) ++p;
    if (mod == 2 || (mod == 0 && base == 5)) p += 4;
  }
  p += immediate;
  return {static_cast<unsigned>(p - at), sets_rax};
}

/// The number of the call that the instruction at `call` makes, by the code before it: mov $number, %eax, and what brings
/// arguments. -1: it is not known.
long number_of_call(const unsigned char* call) {
  constexpr unsigned reach = 32;
  constexpr unsigned move_bytes = 5;
  for (unsigned back = move_bytes; back <= reach; ++back) {
    const unsigned char* const begin = call - back;
    // The page of the call is there. With REX.B it is another register.
    if ((reinterpret_cast<std::uintptr_t>(begin - 1) ^ reinterpret_cast<std::uintptr_t>(call)) >= page_bytes) return -1;
    if (*begin != 0xb8 || (begin[-1] & 0xf1) == 0x41) continue;
    const unsigned char* at = begin + move_bytes;
    while (at < call) {
      const Instruction i = read_instruction(at);
      if (i.bytes == 0 || i.sets_rax) break;
      at += i.bytes;
    }
    if (at != call) continue;
    std::uint32_t number = 0;
    std::memcpy(&number, begin + 1, sizeof number);
    return static_cast<long>(number);
  }
  return -1;
}

#endif

}  // namespace

bool ends_by_signal(long call, unsigned long first_argument) {
  switch (call) {
    // Whatever it goes on with.
    case SYS_restart_syscall: return true;
    case SYS_read:
    case SYS_readv:
    case SYS_write:
    case SYS_writev: return is_timed(first_argument);
    default: return always_ends(call);
  }
}

void make_call_again([[maybe_unused]] int signal, [[maybe_unused]] ucontext_t& context) {
#if defined(__x86_64__)
  auto& registers = context.uc_mcontext.gregs;
  if (registers[REG_RAX] != -EINTR) return;
  const auto* const after = reinterpret_cast<const unsigned char*>(registers[REG_RIP]);
  // As the instruction leaves it.
  if (registers[REG_RCX] != registers[REG_RIP]) return;
  if ((reinterpret_cast<std::uintptr_t>(after) & (page_bytes - 1)) < 2 || after[-2] != 0x0f || after[-1] != 0x05)
    return;
  std::uint64_t waiting = 0;
  std::uint64_t blocked = 0;
  const std::uint64_t own = std::uint64_t{1} << (signal - 1);
  static_assert(sizeof context.uc_sigmask >= sizeof blocked);
  std::memcpy(&blocked, &context.uc_sigmask, sizeof blocked);
  if (::syscall(SYS_rt_sigpending, &waiting, sizeof waiting) != 0 || (waiting & ~blocked & ~own) != 0) return;
  const long number = number_of_call(after - 2);
  const auto operation = static_cast<unsigned long>(registers[REG_RSI]) & FUTEX_CMD_MASK;
  const bool waits = number == SYS_futex && (operation == FUTEX_WAIT || operation == FUTEX_WAIT_BITSET);
  if (!waits && !always_ends(number)) return;
  registers[REG_RAX] = number;
  registers[REG_RIP] -= 2;
#endif
}

}  // namespace ferry::client

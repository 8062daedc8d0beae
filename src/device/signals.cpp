#include "device/signals.h"

#include <link.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string_view>

#include "device/cu.h"
#include "device/text.h"

namespace ferry::device {
namespace {

const DeviceMemory* window = nullptr;
bool adopts_memory = false;

/// Code that must not be left for another wave of the same thread, because it keeps state per thread or takes locks
/// that belong to threads: the C and C++ run-time libraries.
struct CodeRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};
std::array<CodeRange, 16> runtime_code;
std::size_t runtime_code_count = 0;

int note_runtime_code(dl_phdr_info* info, std::size_t, void*) {
  const std::string_view path = info->dlpi_name != nullptr ? info->dlpi_name : "";
  const std::size_t slash = path.rfind('/');
  const std::string_view file = slash == std::string_view::npos ? path : path.substr(slash + 1);
  for (const std::string_view known :
       {"libc.so", "libc-", "ld-linux", "ld-", "libstdc++", "libgcc_s", "libpthread", "libferry"}) {
    if (!file.starts_with(known)) continue;
    for (unsigned i = 0; i < info->dlpi_phnum; ++i) {
      const auto& segment = info->dlpi_phdr[i];
      if (segment.p_type != PT_LOAD || (segment.p_flags & PF_X) == 0) continue;
      if (runtime_code_count == runtime_code.size()) return 1;
      const std::uint64_t begin = info->dlpi_addr + segment.p_vaddr;
      runtime_code[runtime_code_count++] = {begin, begin + segment.p_memsz};
    }
  }
  return 0;
}

/// What the interrupted instruction was about to do.
struct Machine {
  std::uint64_t instruction = 0;
  std::uint64_t stack = 0;
  bool write = false;
  bool execute = false;
  /// Stands before the system call futex, restarted after this handler: a wave that waits for a lock.
  bool in_futex = false;
};

#if defined(__x86_64__)
Machine machine_state(const ucontext_t& context, bool look_at_code) {
  // Page-fault error code: bit 1 a write, bit 4 an instruction fetch.
  const auto error = static_cast<std::uint64_t>(context.uc_mcontext.gregs[REG_ERR]);
  Machine m;
  m.instruction = static_cast<std::uint64_t>(context.uc_mcontext.gregs[REG_RIP]);
  m.stack = static_cast<std::uint64_t>(context.uc_mcontext.gregs[REG_RSP]);
  m.write = (error & 2) != 0;
  m.execute = (error & 16) != 0;
  if (look_at_code && context.uc_mcontext.gregs[REG_RAX] == SYS_futex) {
    const auto* code = reinterpret_cast<const unsigned char*>(m.instruction);
    m.in_futex = code[0] == 0x0f && code[1] == 0x05;  // syscall
  }
  return m;
}
#elif defined(__aarch64__)
Machine machine_state(const ucontext_t& context, bool look_at_code) {
  Machine m;
  m.instruction = context.uc_mcontext.pc;
  m.stack = context.uc_mcontext.sp;
  const auto* record = reinterpret_cast<const _aarch64_ctx*>(context.uc_mcontext.__reserved);
  while (record->magic != 0) {
    if (record->magic == ESR_MAGIC) {
      const std::uint64_t esr = reinterpret_cast<const esr_context*>(record)->esr;
      const std::uint64_t exception_class = (esr >> 26) & 0x3f;
      m.execute = exception_class == 0x20 || exception_class == 0x21;
      m.write = !m.execute && (esr & (1U << 6)) != 0;  // WnR
    }
    record = reinterpret_cast<const _aarch64_ctx*>(reinterpret_cast<const char*>(record) + record->size);
  }
  if (look_at_code && context.uc_mcontext.regs[8] == SYS_futex) {
    m.in_futex = *reinterpret_cast<const std::uint32_t*>(m.instruction) == 0xd4000001;  // svc #0
  }
  return m;
}
#else
#error "no reader of signal frames for this processor"
#endif

/// A bug of the device itself: says so and lets the default action end the process.
void die(int signal, const siginfo_t& info, const Machine& machine) {
  char buffer[160];
  Text text(buffer, sizeof buffer);
  text << "ferry: bug: device process got signal " << static_cast<std::uint64_t>(signal) << " outside of a kernel, at ";
  text.hex(machine.instruction) << ", address ";
  text.hex(reinterpret_cast<std::uint64_t>(info.si_addr)) << "\n";
  [[maybe_unused]] const ssize_t rc = ::write(STDERR_FILENO, buffer, text.size());
  ::signal(signal, SIG_DFL);  // the instruction runs again and raises it again
  if (info.si_code <= 0) ::raise(signal);
}

void on_fault(int signal, siginfo_t* info, void* raw_context) {
  const Machine machine = machine_state(*static_cast<const ucontext_t*>(raw_context), false);
  Cu* cu = current_cu();
  if (cu == nullptr || cu->running() == nullptr) {
    die(signal, *info, machine);
    return;
  }
  const auto address = reinterpret_cast<std::uint64_t>(info->si_addr);
  const bool page_fault = (signal == SIGBUS && info->si_code == BUS_ADRERR) ||
                          (signal == SIGSEGV && (info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR));
  // A call of what cannot be executed is no touch of memory.
  const bool adoptable =
      adopts_memory && !machine.execute && !cu->running()->graphics && DeviceMemory::may_adopt(address);
  if (page_fault && (window->contains(address) || adoptable)) {
    cu->fault(address, machine.write, machine.execute, machine.instruction);
    return;
  }
  Crash crash;
  crash.signal = signal;
  crash.code = info->si_code;
  crash.address = signal == SIGSEGV || signal == SIGBUS ? address : 0;
  // The kernel found no room below the stack pointer for the frame of a tick.
  const Fiber& fiber = *cu->running();
  if (signal == SIGSEGV && info->si_code == SI_KERNEL && fiber.near_end(machine.stack)) {
    crash.address = reinterpret_cast<std::uint64_t>(fiber.stack) - 1;
  }
  crash.instruction = machine.instruction;
  crash.write = page_fault && machine.write;
  crash.execute = page_fault && machine.execute;
  cu->crash(crash);
}

void on_clock(int, siginfo_t*, void* raw_context) {
  Cu* cu = current_cu();
  if (cu == nullptr || cu->running() == nullptr) return;
  const Machine machine = machine_state(*static_cast<const ucontext_t*>(raw_context), true);
  bool safe = true;
  for (std::size_t i = 0; i < runtime_code_count; ++i) {
    if (machine.instruction >= runtime_code[i].begin && machine.instruction < runtime_code[i].end) safe = false;
  }
  // A wave that sleeps for a lock may wait for a wave that is parked here: it has to be left, or neither goes on.
  cu->tick(safe || machine.in_futex);
}

}  // namespace

void install_signals(const DeviceMemory& memory, bool adopts) {
  window = &memory;
  adopts_memory = adopts;
  dl_iterate_phdr(note_runtime_code, nullptr);

  for (int signal = 1; signal < NSIG; ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP || signal == 32 || signal == 33) continue;  // 32, 33: glibc's own
    ::signal(signal, signal == SIGINT || signal == SIGPIPE ? SIG_IGN : SIG_DFL);
  }
  struct sigaction action {};
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK | SA_RESTART;
  action.sa_sigaction = on_fault;
  for (const int signal : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigaction(signal, &action, nullptr);
  action.sa_sigaction = on_clock;
  // The clock strikes anywhere, also while the scheduler runs and the kernel's idea of the alternate stack is that of a
  // wave whose frame waits there. So it uses the stack that it finds.
  action.sa_flags &= ~SA_ONSTACK;
  sigaction(clock_signal, &action, nullptr);
  unblock_signals();
}

void unblock_signals() {
  sigset_t none;
  sigemptyset(&none);
  pthread_sigmask(SIG_SETMASK, &none, nullptr);
}

}  // namespace ferry::device

// Looks into another process's memory from outside, and changes it.
//
//   e2e_peeker PID ADDRESS HOW [VALUE]     HOW: vm_read, vm_write, peek, poke, mem_read, mem_write
//
// Reads or writes one 64-bit word; what it read, or "done", goes to standard output. Exit status 0, or 1 with errno's text.
#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

bool access(pid_t pid, std::uint64_t address, const std::string& how, std::uint64_t& word) {
  iovec local{&word, sizeof word};
  iovec remote{reinterpret_cast<void*>(address), sizeof word};
  if (how == "vm_read") return process_vm_readv(pid, &local, 1, &remote, 1, 0) == sizeof word;
  if (how == "vm_write") return process_vm_writev(pid, &local, 1, &remote, 1, 0) == sizeof word;
  if (how == "mem_read" || how == "mem_write") {
    const int fd = open(("/proc/" + std::to_string(pid) + "/mem").c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) return false;
    const auto at = static_cast<off_t>(address);
    return (how == "mem_read" ? pread(fd, &word, sizeof word, at) : pwrite(fd, &word, sizeof word, at)) == sizeof word;
  }
  if (ptrace(PTRACE_SEIZE, pid, 0, 0) != 0 || ptrace(PTRACE_INTERRUPT, pid, 0, 0) != 0) return false;
  int status = 0;
  if (waitpid(pid, &status, __WALL) != pid) return false;
  errno = 0;
  if (how == "peek") word = static_cast<std::uint64_t>(ptrace(PTRACE_PEEKDATA, pid, address, 0));
  if (how == "poke") ptrace(PTRACE_POKEDATA, pid, address, word);
  const int error = errno;
  ptrace(PTRACE_DETACH, pid, 0, 0);
  errno = error;
  return error == 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  std::uint64_t word = argc > 4 ? std::strtoull(argv[4], nullptr, 0) : 0;
  if (!access(std::atoi(argv[1]), std::strtoull(argv[2], nullptr, 0), argv[3], word)) {
    std::printf("%s\n", std::strerror(errno));
    return 1;
  }
  std::printf("%" PRIu64 "\n", word);
  return 0;
}

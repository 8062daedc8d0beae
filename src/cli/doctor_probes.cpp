// The probes of ferry doctor that do what Ferry does: each makes the calls of the product and looks at what came back.
// Those that end a process when they fail run in a child.
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <thread>
#include <vector>

#include "base/size.h"
#include "base/types.h"
#include "cli/doctor.h"
#include "linux/fd.h"
#include "linux/memory_file.h"
#include "linux/userfaultfd.h"

namespace ferry::cli {
namespace {

using linux::Fd;

// Newer than the headers of Debian 12.
constexpr std::uint64_t feature_wp_unpopulated = 1 << 13;
constexpr std::uint64_t feature_poison = 1 << 14;
constexpr std::uint64_t feature_wp_async = 1 << 15;
constexpr std::uint64_t feature_move = 1 << 16;

constexpr const char* seccomp = "docker run --security-opt seccomp=unconfined ...   (a sandbox forbids the call)";

const char* mend_for(int error) { return error == EPERM || error == EACCES ? seccomp : new_kernel; }

// --- the fault path, in a child ---------------------------------------------------------------------------------------

// Steps of the child, in order; its exit status is the number of the one that failed.
enum Step {
  step_none,
  step_open,
  step_file,
  step_map,
  step_register,
  step_signal,
  step_continue,
  step_value,
  step_count
};
constexpr const char* step_names[step_count] = {"",
                                                "userfaultfd with SIGBUS and MINOR on shared memory",
                                                "a sealed memfd",
                                                "mapping it",
                                                "registering it",
                                                "SIGBUS to the faulting thread",
                                                "UFFDIO_CONTINUE from outside the mapping",
                                                "the byte behind the fault"};

std::byte* probed = nullptr;
const linux::Userfaultfd* probe_uffd = nullptr;
volatile sig_atomic_t faults_seen = 0;
volatile sig_atomic_t continue_failed = 0;

/// What a device's handler does, with the manager's half in the same place: give the page, return, retry the access.
void on_sigbus(int) {
  faults_seen = faults_seen + 1;
  std::uint64_t done = 0;
  if (faults_seen > 3 ||
      probe_uffd->map_present(reinterpret_cast<std::uint64_t>(probed), page_bytes, true, done) != linux::Fault::ok) {
    continue_failed = 1;
    _exit(faults_seen > 3 ? step_value : step_continue);
  }
}

int try_fault_path() {
  const auto uffd = linux::Userfaultfd::open({.sigbus = true, .prefer_full_service = false});
  if (!uffd) return step_open;
  const auto file = linux::make_memory_file("ferry-doctor", page_bytes);
  if (!file) return step_file;
  auto* source =
      static_cast<char*>(mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.value().get(), 0));
  auto* target =
      static_cast<char*>(mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.value().get(), 0));
  if (source == MAP_FAILED || target == MAP_FAILED) return step_map;
  source[7] = 42;
  probed = reinterpret_cast<std::byte*>(target);
  probe_uffd = &uffd.value();
  if (uffd.value().register_span(reinterpret_cast<std::uint64_t>(target), page_bytes,
                                 linux::track_missing | linux::track_minor) != linux::Fault::ok) {
    return step_register;
  }
  struct sigaction action {};
  action.sa_handler = on_sigbus;
  action.sa_flags = SA_NODEFER;
  sigaction(SIGBUS, &action, nullptr);
  const char seen = *static_cast<volatile char*>(target + 7);
  if (faults_seen == 0) return step_signal;
  return seen == 42 ? step_none : step_value;
}

}  // namespace

Check check_fault_path() {
  Check check{.name = "device faults"};
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 0);
    _exit(try_fault_path());
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) {
    return {"device faults", State::missing, "cannot start a process to try them", "nothing could be tried",
            "ulimit -u unlimited"};
  }
  const int step = WIFEXITED(status) ? WEXITSTATUS(status) : static_cast<int>(step_signal);
  if (step == step_none) {
    check.found = "unprivileged userfaultfd, SIGBUS mode, UFFDIO_CONTINUE: tried, works";
    return check;
  }
  check.state = State::missing;
  check.found = std::string("tried, fails at: ") + step_names[step < step_count ? step : static_cast<int>(step_signal)];
  check.cost = "a device cannot fault on a pointer";
  const Fd raw(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  if (!raw) check.found += std::string(" (") + std::strerror(errno) + ")";
  check.mend = raw ? new_kernel : mend_for(errno);
  return check;
}

Check check_features() {
  Check check{.name = "userfaultfd"};
  const Fd fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  uffdio_api api{};
  api.api = UFFD_API;
  if (!fd || ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    return {"userfaultfd", State::missing, std::strerror(errno), "no faults can be served", mend_for(errno)};
  }
  struct Feature {
    std::uint64_t bit;
    const char* name;
    bool needed;
  };
  static constexpr Feature features[] = {{UFFD_FEATURE_MISSING_SHMEM, "MISSING_SHMEM", true},
                                         {UFFD_FEATURE_MINOR_SHMEM, "MINOR_SHMEM", true},
                                         {UFFD_FEATURE_SIGBUS, "SIGBUS", true},
                                         {UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "WP_SHMEM", false},
                                         {UFFD_FEATURE_EXACT_ADDRESS, "EXACT_ADDRESS", false},
                                         {feature_wp_unpopulated, "WP_UNPOPULATED", false},
                                         {feature_poison, "POISON", false},
                                         {feature_wp_async, "WP_ASYNC", false},
                                         {feature_move, "MOVE", false}};
  std::string absent;
  for (const Feature& feature : features) {
    if ((api.features & feature.bit) != 0) {
      check.found.append(check.found.empty() ? "" : " ").append(feature.name);
    } else {
      absent.append(" ").append(feature.name);
      if (feature.needed) check.state = State::missing;
    }
  }
  if (!absent.empty()) check.found += "; not here:" + absent;
  if (check.state == State::missing) {
    check.cost = "faults on shared memory cannot be served";
    check.mend = new_kernel;
  }
  return check;
}

Check check_full_service() {
  Check check{.name = "faults in calls"};
  const Fd direct(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (direct) {
    check.found = "userfaultfd(2) serves faults inside system calls";
    return check;
  }
  const Fd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (device) {
    check.found = "/dev/userfaultfd serves faults inside system calls";
    return check;
  }
  check.state = State::degraded;
  check.found = "user mode only";
  check.cost = "read(2), write(2) and the like on pages that are in VRAM at that moment end with EFAULT";
  check.mend = "sudo sysctl -w vm.unprivileged_userfaultfd=1";
  if (access("/dev/userfaultfd", F_OK) == 0) check.mend += "   (or: sudo setfacl -m u:$USER:rw /dev/userfaultfd)";
  return check;
}

Check check_read_only_pages() {
  Check check{.name = "read-only pages"};
  if (linux::can_map_for_reading()) {
    check.found = "a page mapped so that a write to it is told: tried, works";
    return check;
  }
  check.state = State::degraded;
  check.found = "no UFFDIO_CONTINUE with write protection (Linux 6.4)";
  check.cost = "read-mostly memory is copied anew whenever CPU and devices take turns at it";
  check.mend = new_kernel;
  return check;
}

Check check_poison() {
  Check check{.name = "pages nobody may touch"};
  if (linux::can_poison()) {
    check.found = "a page can be made to raise SIGBUS (UFFDIO_POISON)";
    return check;
  }
  check.state = State::degraded;
  check.found = "no UFFDIO_POISON (Linux 6.6)";
  check.cost = "HOST_ACCESS cannot be cleared, and a page that a broken disk lost ends its program at once";
  check.mend = new_kernel;
  return check;
}

Check check_huge_pages() {
  Check check{.name = "huge pages"};
  const auto file = linux::make_memory_file("ferry-doctor", 2 * block_bytes);
  if (!file)
    return {"huge pages", State::missing, std::strerror(file.status().sys_errno), "no memory file", new_kernel};
  const auto mapping = linux::Mapping::map(file.value().get(), 0, block_bytes);
  if (!mapping || !linux::populate(mapping.value().data(), block_bytes).ok()) {
    return {"huge pages", State::degraded, "no memory to try with", "unknown", "free -m"};
  }
  errno = 0;
  if (linux::make_huge(mapping.value().data(), block_bytes)) {
    check.found = "MADV_COLLAPSE of a memfd: tried, works";
    return check;
  }
  check.state = State::degraded;
  check.found = std::string("MADV_COLLAPSE of a memfd: ") + std::strerror(errno);
  check.cost = "a block is mapped and revoked as 512 small pages: several times slower migration";
  check.mend = errno == EINVAL ? new_kernel : "echo 1 | sudo tee /proc/sys/vm/compact_memory";
  return check;
}

Check check_window() {
  Check check{.name = "address window"};
  const auto from_environment = [](const char* name, std::uint64_t otherwise) {
    const char* text = std::getenv(name);
    const std::uint64_t value = text != nullptr ? std::strtoull(text, nullptr, 16) : 0;
    return value != 0 ? value : otherwise;
  };
  const std::uint64_t bytes = from_environment("FERRY_WINDOW_BYTES", default_window_bytes);
  auto* const base = reinterpret_cast<void*>(from_environment("FERRY_WINDOW_BASE", default_window_base));
  void* got = mmap(base, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  const int error = errno;
  if (got != MAP_FAILED) munmap(got, bytes);
  char text[64];
  std::snprintf(text, sizeof text, "%s at %p", format_size(bytes).c_str(), base);
  check.found = text;
  const auto file = linux::make_memory_file("ferry-doctor", bytes);
  if (got == base && file.ok()) {
    check.found += ": reserved, and a memory file as large made";
    return check;
  }
  check.state = State::missing;
  check.found += std::string(": ") + std::strerror(got != base ? error : file.status().sys_errno);
  check.cost = "there is no place for managed memory";
  check.mend = "ulimit -v unlimited; ulimit -f unlimited   (or move it: FERRY_WINDOW_BASE, FERRY_WINDOW_BYTES)";
  return check;
}

Check check_wake_latency() {
  // One thread sleeps on a futex until the other has seen it asleep for a while, as after a pause between faults.
  constexpr unsigned rounds = 31;
  constexpr double well_below_us = 15;
  std::atomic<std::uint32_t> word{0};
  std::vector<double> took;
  const auto now_us = [] {
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) / 1e3;
  };
  std::atomic<double> woken_us{0};
  std::thread sleeper([&] {
    for (std::uint32_t round = 0; round < rounds; ++round) {
      while (word.load() == round) syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, round, nullptr, nullptr, 0);
      woken_us.store(now_us());
      while (woken_us.load() != 0) std::this_thread::yield();
    }
  });
  for (unsigned round = 0; round < rounds; ++round) {
    const timespec pause{0, 1'000'000};
    nanosleep(&pause, nullptr);
    const double begin = now_us();
    word.fetch_add(1);
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
    double end;
    // Giving this CPU away would let the sleeper have it, and measure no wake-up of another one.
    for (unsigned spin = 1; (end = woken_us.load()) == 0; ++spin) {
      if (spin % 65536 == 0) std::this_thread::yield();
    }
    took.push_back(end - begin);
    woken_us.store(0);
  }
  sleeper.join();
  std::nth_element(took.begin(), took.begin() + rounds / 2, took.end());
  Check check{.name = "wake-up time"};
  char text[64];
  std::snprintf(text, sizeof text, "%.0f us to wake a sleeping thread (median of %u)", took[rounds / 2], rounds);
  check.found = text;
  const Fd latency(::open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC));
  check.found += latency ? "; /dev/cpu_dma_latency may be held" : "; /dev/cpu_dma_latency may not be opened";
  if (took[rounds / 2] > well_below_us) {
    check.state = State::degraded;
    check.cost = "the first fault after a pause takes this much longer (idle states of the CPUs)";
    check.mend =
        "sudo sh -c 'exec 3>/dev/cpu_dma_latency; printf \"\\0\\0\\0\\0\" >&3; sleep infinity'   (while it runs)";
  }
  return check;
}

}  // namespace ferry::cli

#include "cli/doctor.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/size.h"
#include "base/types.h"
#include "cli/exit_code.h"
#include "linux/fd.h"

namespace ferry::cli {
namespace {

// Every extent of a mapping counts; far beyond what 2 MiB granules need, and what databases ask for too.
constexpr std::uint64_t mappings_wanted = 262'144;
constexpr std::uint64_t memory_wanted = std::uint64_t{512} << 20;
// A manager keeps about twenty descriptors an application.
constexpr std::uint64_t descriptors_wanted = 256;

std::uint64_t number_in(const char* path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  return file >> value ? value : 0;
}

Check check_kernel() {
  Check check{.name = "kernel"};
  utsname name{};
  unsigned major = 0;
  unsigned minor = 0;
  if (uname(&name) != 0 || std::sscanf(name.release, "%u.%u", &major, &minor) != 2) {
    return {"kernel", State::degraded, "unknown", "nobody tried Ferry on a kernel that does not say its version", ""};
  }
  check.found = std::string(name.sysname) + " " + name.release + " " + name.machine;
  if (major < 6 || (major == 6 && minor < 1)) {
    // What is really missing shows in the probes below.
    check.state = State::degraded;
    check.cost = "Ferry is made for 6.1 and later; what an older one lacks is told below";
    check.mend = new_kernel;
  }
  return check;
}

Check check_page_size() {
  Check check{.name = "page size"};
  const long size = sysconf(_SC_PAGESIZE);
  check.found = std::to_string(size) + " bytes";
  if (size != static_cast<long>(page_bytes)) {
    check.state = State::missing;
    check.cost = "Ferry counts in pages of 4096 bytes";
    check.mend = "boot a kernel with pages of 4 KiB";
  }
  return check;
}

Check check_cpus() {
  Check check{.name = "CPUs"};
  cpu_set_t set;
  CPU_ZERO(&set);
  const int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  check.found = std::to_string(count) + " for this process";
  if (count < 2) {
    check.state = State::degraded;
    check.cost = "application, device and manager take turns on one CPU: every fault waits for a change between them";
    check.mend = "taskset -c 0-3 ferry run ...   (or give the machine more CPUs)";
  }
  return check;
}

Check check_memory() {
  Check check{.name = "memory"};
  std::ifstream file("/proc/meminfo");
  std::string key;
  std::string unit;
  std::uint64_t value = 0;
  std::uint64_t total = 0;
  std::uint64_t available = 0;
  while (file >> key >> value && std::getline(file, unit)) {
    if (key == "MemTotal:") total = value * 1024;
    if (key == "MemAvailable:") available = value * 1024;
  }
  check.found = format_size(available) + " available of " + format_size(total);
  const std::uint64_t limit = number_in("/sys/fs/cgroup/memory.max");
  if (limit != 0 && limit < total) {
    check.found += ", the control group allows " + format_size(limit);
    available = std::min(available, limit);
  }
  if (available < memory_wanted) {
    check.state = State::degraded;
    check.cost = "system pages and VRAM both live in memory: large runs will fail with 'out of memory'";
    check.mend = "free -m; systemd-cgtop -m   (they say what holds it)";
  }
  return check;
}

Check check_mappings() {
  Check check{.name = "vm.max_map_count"};
  const std::uint64_t value = number_in("/proc/sys/vm/max_map_count");
  check.found = std::to_string(value);
  if (value < mappings_wanted) {
    check.state = State::degraded;
    check.cost = "a device can map at most " + std::to_string(value) +
                 " scattered extents; what comes after them is reached in place, slower, with granules under 2 MiB";
    check.mend = "sudo sysctl -w vm.max_map_count=1048576";
  }
  return check;
}

std::string limit_text(rlim_t limit) { return limit == RLIM_INFINITY ? "unlimited" : std::to_string(limit); }

Check check_descriptors() {
  Check check{.name = "RLIMIT_NOFILE"};
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  check.found = limit_text(limit.rlim_cur) + " (hard " + limit_text(limit.rlim_max) + ")";
  if (limit.rlim_cur < descriptors_wanted) {
    check.state = State::degraded;
    check.cost = "a shared manager serves few applications";
    check.mend = "ulimit -n 1024";
  }
  return check;
}

Check check_address_space() {
  Check check{.name = "RLIMIT_AS"};
  rlimit limit{};
  getrlimit(RLIMIT_AS, &limit);
  check.found = limit_text(limit.rlim_cur);
  if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < 2 * default_window_bytes) {
    check.state = State::missing;
    check.cost = "the window of managed addresses (" + format_size(default_window_bytes) + ") cannot be reserved";
    check.mend = "ulimit -v unlimited";
  }
  return check;
}

Check check_file_size() {
  Check check{.name = "RLIMIT_FSIZE"};
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  check.found = limit_text(limit.rlim_cur);
  if (limit.rlim_cur != RLIM_INFINITY) {
    check.state = limit.rlim_cur < Window{}.page_end() * page_bytes ? State::missing : State::ok;
    if (check.state == State::missing) {
      check.cost =
          "memory files are as large as all addresses that can be managed, sparse, and this limit counts them as "
          "written";
      check.mend = "ulimit -f unlimited";
    }
  }
  return check;
}

Check check_pidfd() {
  Check check{.name = "pidfd"};
  const linux::Fd fd(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  if (fd) {
    check.found = "pidfd_open works";
  } else {
    check.found = std::string("pidfd_open: ") + std::strerror(errno);
    check.state = State::missing;
    check.cost = "the death of an application or manager could not be told from the reuse of its number";
    check.mend = errno == EPERM ? "docker run --security-opt seccomp=unconfined ..." : new_kernel;
  }
  return check;
}

void print(const Check& check) {
  const bool colors = isatty(STDOUT_FILENO) == 1 && std::getenv("NO_COLOR") == nullptr;
  const char* color = check.state == State::ok ? "\033[32m" : check.state == State::degraded ? "\033[33m" : "\033[31m";
  std::printf("%s%-8s%s  %-17s  %s\n", colors ? color : "", to_string(check.state), colors ? "\033[0m" : "",
              check.name.c_str(), check.found.c_str());
  if (!check.cost.empty()) std::printf("%10s%-17s  costs: %s\n", "", "", check.cost.c_str());
  if (!check.mend.empty()) std::printf("%10s%-17s  mend:  %s\n", "", "", check.mend.c_str());
}

}  // namespace

const char* to_string(State state) {
  switch (state) {
    case State::ok: return "ok";
    case State::degraded: return "degraded";
    case State::missing: return "missing";
  }
  return "missing";
}

std::vector<Check> examine() {
  return {check_kernel(),       check_page_size(),    check_fault_path(),    check_features(),
          check_full_service(), check_window(),       check_pidfd(),         check_read_only_pages(),
          check_poison(),       check_huge_pages(),   check_mappings(),      check_memory(),
          check_cpus(),         check_wake_latency(), check_address_space(), check_file_size(),
          check_descriptors(),  check_store_file(),   check_io_uring(),      check_pressure()};
}

int doctor(bool json) {
  // Over the limit on file sizes a call shall fail, not end the examination.
  std::signal(SIGXFSZ, SIG_IGN);
  const std::vector<Check> checks = examine();
  unsigned degraded = 0;
  unsigned missing = 0;
  for (const Check& check : checks) {
    degraded += check.state == State::degraded;
    missing += check.state == State::missing;
  }
  if (json) {
    nlohmann::ordered_json out;
    out["can_run"] = missing == 0;
    out["checks"] = nlohmann::ordered_json::array();
    for (const Check& check : checks) {
      out["checks"].push_back({{"name", check.name},
                               {"state", to_string(check.state)},
                               {"found", check.found},
                               {"cost", check.cost},
                               {"mend", check.mend}});
    }
    std::printf("%s\n", out.dump(1).c_str());
  } else {
    for (const Check& check : checks) print(check);
    if (missing != 0) {
      std::printf("Ferry cannot run here: %u of %zu things are missing; the commands above mend them.\n", missing,
                  checks.size());
    } else if (degraded != 0) {
      std::printf("Ferry runs here; %u of %zu things could be better, as told above.\n", degraded, checks.size());
    } else {
      std::printf("Ferry runs here, and nothing is lacking.\n");
    }
  }
  return missing == 0 ? exit_ok : exit_failed;
}

}  // namespace ferry::cli

// What a budget of system memory (--system) finds on this machine: the store's file, io_uring, word of short memory.
#include <sys/statvfs.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/size.h"
#include "cli/doctor.h"
#include "linux/pressure.h"
#include "linux/store/block_io.h"
#include "linux/store/slot_file.h"
#include "manager/options.h"

namespace ferry::cli {

Check check_store_file() {
  Check check{.name = "store file"};
  manager::MachineOptions options;
  options.system_bytes = block_bytes;
  const std::string directory = options.store_config().directory;
  const auto file = linux::SlotFile::open(directory, block_bytes);
  if (!file) {
    check.state = State::degraded;
    check.found = directory + ": " + std::strerror(file.status().sys_errno);
    check.cost = "with --system, pages that do not fit the budget and the compressed memory have nowhere to go";
    check.mend = "ferry run --store-dir DIR ...   (a directory on a disk, where this user may write)";
    return check;
  }
  struct statvfs fs {};
  const bool known = statvfs(directory.c_str(), &fs) == 0;
  check.found = directory + ": " + (known ? format_size(fs.f_bavail * fs.f_frsize) + " free" : "usable");
  if (file.value().direct()) {
    check.found += ", past the page cache";
  } else {
    check.state = State::degraded;
    check.found += ", no O_DIRECT";
    check.cost = "what --system stores there fills the page cache too";
    check.mend = "ferry run --store-dir DIR ...   (ext4, xfs and btrfs have it)";
  }
  return check;
}

Check check_io_uring() {
  Check check{.name = "io_uring"};
  const int error = linux::probe_uring();
  if (error == 0) {
    check.found = "tried, works";
    return check;
  }
  int disabled = 0;
  std::ifstream("/proc/sys/kernel/io_uring_disabled") >> disabled;
  check.state = State::degraded;
  check.found = std::string("io_uring_setup: ") + std::strerror(error);
  check.cost = "the store's file is read and written one request after the other by its threads";
  check.mend = disabled != 0     ? "sudo sysctl -w kernel.io_uring_disabled=0"
               : error == ENOMEM ? "ulimit -l unlimited"
                                 : "docker run --security-opt seccomp=unconfined ...   (a sandbox forbids the call)";
  return check;
}

Check check_pressure() {
  Check check{.name = "memory pressure"};
  const linux::Pressure pressure = linux::Pressure::open();
  const bool stalls = pressure.stall_fd() >= 0;
  check.found = (stalls ? "stalls: " : "no word of stalls: ") + pressure.stall_text() + "; " +
                (pressure.has_cgroup() ? "limits: " : "no limits: ") + pressure.cgroup_text();
  if (!stalls && !pressure.has_cgroup()) {
    check.state = State::degraded;
    check.cost =
        "with --system, managed memory is given back only when the budget is used up, not when others are short";
    check.mend = "boot with psi=1";
  }
  return check;
}

}  // namespace ferry::cli

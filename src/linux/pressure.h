// What the kernel says when memory runs short: stall information (PSI) of the own cgroup or the machine, and the limits
// and counters of the own cgroup (version 2). All of it is optional; what is missing is simply never heard of.
// Owns the descriptors to poll for POLLPRI; whoever polls asks want() then. One thread.
#pragma once

#include <cstdint>
#include <string>

#include "linux/fd.h"

namespace ferry::linux {

/// Memory of a cgroup; ~0: no limit, or not known.
struct CgroupMemory {
  static constexpr std::uint64_t none = ~std::uint64_t{0};
  std::uint64_t current_bytes = none;
  std::uint64_t high_bytes = none;  ///< above it the kernel makes everybody in it slow
  std::uint64_t max_bytes = none;   ///< above it the kernel kills
  std::uint64_t high_events = 0;    ///< times that either was reached
  std::uint64_t max_events = 0;
};

/// How much to give back, from what is heard. No system calls.
class PressureGauge {
 public:
  /// Bytes to reclaim now, of `used_bytes` that can be. `stalled`: PSI said so since the last call.
  [[nodiscard]] std::uint64_t want(std::uint64_t now_ns, std::uint64_t used_bytes, bool stalled,
                                   const CgroupMemory& cgroup);

 private:
  static constexpr std::uint64_t rest_ns = 200'000'000;    ///< what was asked for takes its time
  static constexpr std::uint64_t calm_ns = 5'000'000'000;  ///< after it the next ask is a small one again
  static constexpr unsigned share_first = 32;  ///< one part in so many; each next ask within calm_ns doubles
  static constexpr unsigned share_last = 8;
  bool asked_ = false;
  std::uint64_t asked_ns_ = 0;
  unsigned share_ = share_first;
  bool heard_ = false;  ///< and not answered yet
  std::uint64_t events_ = 0;
  bool counted_ = false;
};

class Pressure {
 public:
  Pressure() = default;
  /// `proc`: where procfs is mounted; tests give another.
  static Pressure open(const std::string& proc = "/proc");

  /// To poll for POLLPRI; -1: not there.
  [[nodiscard]] int stall_fd() const { return stall_.get(); }
  [[nodiscard]] int events_fd() const { return events_.get(); }
  /// Whose stalls are told: the path of the file, or why there is none.
  [[nodiscard]] const std::string& stall_text() const { return stall_text_; }
  /// The cgroup's directory, or why there is none.
  [[nodiscard]] const std::string& cgroup_text() const { return cgroup_text_; }
  [[nodiscard]] bool has_cgroup() const { return !cgroup_.empty(); }
  [[nodiscard]] CgroupMemory read() const;

  /// Whoever polls stall_fd() has seen POLLPRI.
  void stalled() { stalled_ = true; }
  /// Bytes to give back now; to be asked after an event, and about once a second.
  [[nodiscard]] std::uint64_t want(std::uint64_t now_ns, std::uint64_t used_bytes) {
    const bool stalled = stalled_;
    stalled_ = false;
    return gauge_.want(now_ns, used_bytes, stalled, read());
  }

 private:
  Fd stall_;
  Fd events_;
  std::string stall_text_;
  std::string cgroup_text_;
  std::string cgroup_;
  bool stalled_ = false;
  PressureGauge gauge_;
};

}  // namespace ferry::linux

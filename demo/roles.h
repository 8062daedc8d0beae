// The applications that demonstrations start: each is a process of its own with a session at $FERRY_SOCKET. They tell
// what they see on standard output, a line at a time: "word value...". Exit code 0: all went as it should, or the error
// that was asked for came; 1: a wrong byte, or an error that nobody asked for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ferry::demo {

struct RoleOptions {
  std::string name;
  std::uint64_t bytes = 0;         ///< working set
  std::uint64_t buffer_bytes = 0;  ///< of the graphics side
  double seconds = 0;
  unsigned rounds = 0;
  unsigned fps = 60;
  std::uint64_t seed = 1;
  unsigned devices = 1;
  unsigned threads = 1;
  std::vector<std::string> only;     ///< of the stress test's operations; empty: all
  std::vector<std::string> without;  ///< of them
  bool no_own = false;               ///< the stress test: allocated memory alone
};

/// Kernels that touch a working set in no order, again and again, for `rounds` or `seconds`; checked at the end.
/// Says "running", then "pages N" (touched), "refused N TEXT" (launches that ended with an error), "wrong N", "done".
int compute_role(const RoleOptions& options);
/// A video job, a slow graphics job, and behind it a graphics job on a large buffer that needs two compute units; `rounds`
/// times, checked each time.
/// Says "round N", "wrong N", "error TEXT", "done".
int chain_role(const RoleOptions& options);
/// A frame each 1/fps seconds, drawn by a graphics job that must be done by the next one; for `seconds`.
/// Says "frame LATENCY_NS" for each, "late N", "failed N TEXT", "done".
int frames_role(const RoleOptions& options);
/// The largest set of buffers that one job may use, of `bytes`. Says "usable BYTES".
int usable_role(const RoleOptions& options);
/// Everything at once from a seed, on all devices, for `seconds`, checked against what the CPU knows.
/// Says "alive N" once a second at least while it gets on, "wrong N TEXT", "error TEXT", "done".
int mixed_role(const RoleOptions& options);
/// Threads and devices that change memory of their own in every way from a seed, checked against a shadow.
/// Says "skipped OPERATION REASON", "alive N" while it gets on, "did OPERATION N", "wrong N TEXT", "error TEXT", "done".
int stress_role(const RoleOptions& options);
/// Waits, for `seconds` at most, until nobody else is there and says what the manager counts: "stats JSON".
int settle_role(const RoleOptions& options);

}  // namespace ferry::demo

// What `ferry demo` shows. Each returns its exit code: 0 it went as docs/PROGRESS.md says, 1 it did not (what went wrong
// is on standard error).
#pragma once

#include <string>
#include <vector>

namespace ferry::demo {

struct DeadlockOptions {
  std::string policy = "all";
  unsigned times = 1;
  bool json = false;
};
int deadlock(const DeadlockOptions& options);

struct PoliciesOptions {
  std::string policy = "all";
  double seconds = 8;
  std::string html;  ///< write a page with the plot here
  bool json = false;
};
int policies(const PoliciesOptions& options);

struct SoakOptions {
  double seconds = 60;
  unsigned applications = 4;
  unsigned long seed = 1;
};
int soak(const SoakOptions& options);

struct StressOptions {
  double seconds = 60;
  unsigned long seed = 1;
  unsigned threads = 8;
  unsigned devices = 2;
  std::string granularity;           ///< empty: the seed draws it
  std::vector<std::string> only;     ///< operations; empty: all
  std::vector<std::string> without;  ///< operations
  bool allocated_only = false;       ///< no memory of the program's own
};
int stress(const StressOptions& options);
/// Names of what the stress test can do.
[[nodiscard]] const std::vector<std::string>& stress_operations();

/// Names of all policies, in the order of docs/PROGRESS.md.
[[nodiscard]] const std::vector<std::string>& policy_names();
/// `chosen`, or all for "all". Empty: no such policy.
[[nodiscard]] std::vector<std::string> chosen_policies(const std::string& chosen);

}  // namespace ferry::demo

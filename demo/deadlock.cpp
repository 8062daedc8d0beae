// The circle of the argument, for real: kernels on all compute units fault for memory, memory is in a buffer that a
// graphics job is to use, and the job waits for a compute unit.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "demos.h"
#include "machine.h"

namespace ferry::demo {
namespace {

constexpr int patience_ms = 120'000;

/// Memory is reclaimed when somebody waits for it, not ahead: what is kept free ahead makes the circle rarer, not
/// impossible, and this is to show it every time.
constexpr const char* no_help = "[policy]\nkeep_free = 0\n";

struct Outcome {
  bool hang = false;
  bool compute_finished = false;  ///< every pass of its kernel
  bool graphics_finished = false;
  unsigned long compute_refused = 0;
  unsigned long wrong = 0;
  unsigned long circles = 0;
  std::string error;  ///< of whoever got one first
  std::string told;   ///< the circle, in the manager's words
  double seconds = 0;
};

/// A file of no name, for what the manager says.
int quiet_file() {
  const int fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  return fd >= 0 ? fd : open("/dev/null", O_RDWR | O_CLOEXEC);
}

std::string contents(int fd) {
  std::string text;
  char bytes[4096];
  off_t at = 0;
  for (ssize_t got = 0; (got = pread(fd, bytes, sizeof bytes, at)) > 0; at += got) {
    text.append(bytes, static_cast<std::size_t>(got));
  }
  return text;
}

std::string line_with(const std::string& text, const std::string& what) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const auto at = line.find(what);
    if (at != std::string::npos) return line.substr(at + what.size());
  }
  return "";
}

Outcome run_once(const std::string& policy) {
  Outcome out;
  const auto start = std::chrono::steady_clock::now();
  const int said = quiet_file();
  {
    // Hardware that can be taken from faulting waves only where that is the policy's point.
    Manager manager(
        {"--policy", policy, "--hardware", policy == "preempt" ? "preempt" : "no-preempt", "--cus", "3",
         "--reserved-cus", "2", "--vram", "4M", "--granularity", "64K", "--system", "12M", "--store", "64M"},
        said, no_help);
    {
      const auto take_line = [&](std::size_t role, const std::string& line) {
        std::istringstream words(line);
        std::string word;
        unsigned long value = 0;
        words >> word;
        if (word == "wrong") {
          words >> value;
          out.wrong += value;
        } else if (word == "refused") {
          ++out.compute_refused;
          if (out.error.empty()) out.error = "compute: " + line.substr(line.find(' ', 8) + 1);
        } else if (word == "error") {
          if (out.error.empty()) out.error = (role == 0 ? "compute: " : "graphics: ") + line.substr(6);
        }
      };
      Role compute(manager, {"compute", "--bytes", "16M", "--seconds", "2"});
      // The other one comes when the first has filled its memory and its kernels run.
      bool ended = watch(
          {&compute}, patience_ms, [&](std::size_t role, const std::string& line) { take_line(role, line); },
          "running");
      // Most of memory; pinned lets buffers have half of it.
      Role graphics(manager, {"chain", "--buffer", policy == "pinned" ? "4M" : "9M", "--rounds", "3"});
      ended = ended && watch({&compute, &graphics}, patience_ms, take_line);
      out.hang = !ended;
      if (ended) {
        out.compute_finished = compute.wait_end() == 0 && out.compute_refused == 0;
        out.graphics_finished = graphics.wait_end() == 0;
      }
    }
    const std::string stats = manager.finish();
    if (stats.empty()) {
      out.hang = true;
      out.error = "the manager did not end in good order";
    } else {
      out.circles = nlohmann::json::parse(stats)["progress"]["circles"].get<unsigned long>();
    }
    out.told = line_with(contents(said), "deadlock: ");
    if (out.hang) std::fputs(contents(said).c_str(), stderr);
  }
  close(said);
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return out;
}

/// "": as it should be.
std::string complaint(const std::string& policy, const Outcome& out) {
  if (out.hang) return "a hang: " + out.error;
  if (out.wrong != 0) return fmt::format("{} wrong bytes", out.wrong);
  if (!out.graphics_finished) return "graphics did not finish: " + out.error;
  if (policy != "none") return out.compute_finished ? "" : "compute did not finish: " + out.error;
  if (out.circles == 0) return "no deadlock showed, although the policy allows one";
  if (out.told.empty()) return "the deadlock was not told";
  if (out.compute_refused == 0) return "nobody was told an error";
  return "";
}

}  // namespace

const std::vector<std::string>& policy_names() {
  static const std::vector<std::string> names = {"none",      "preempt", "reserve", "reserve-in-flight",
                                                 "exclusive", "query",   "track",   "pinned"};
  return names;
}

std::vector<std::string> chosen_policies(const std::string& chosen) {
  if (chosen == "all") return policy_names();
  for (const std::string& name : policy_names()) {
    if (name == chosen) return {name};
  }
  return {};
}

int deadlock(const DeadlockOptions& options) {
  const auto names = chosen_policies(options.policy);
  if (names.empty()) {
    std::fprintf(stderr, "ferry demo: no policy '%s'\n", options.policy.c_str());
    return 2;
  }
  int code = 0;
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const std::string& name : names) {
    unsigned good = 0;
    Outcome last;
    for (unsigned i = 0; i < options.times; ++i) {
      last = run_once(name);
      const std::string wrong = complaint(name, last);
      if (wrong.empty()) {
        ++good;
      } else {
        std::fprintf(stderr, "ferry demo: policy %s, run %u: %s\n", name.c_str(), i + 1, wrong.c_str());
        code = 1;
      }
    }
    if (options.json) {
      all.push_back({{"policy", name},
                     {"runs", options.times},
                     {"as_expected", good},
                     {"circles", last.circles},
                     {"told", last.told},
                     {"error", last.error},
                     {"seconds", last.seconds}});
      continue;
    }
    const char* what = last.circles != 0 ? "deadlock, told and ended" : "finished, every byte checked";
    fmt::print("{:<18} {}/{} as expected; last: {} in {:.1f} s\n", name, good, options.times, what, last.seconds);
    if (!last.told.empty()) fmt::print("  the circle:    {}\n", last.told);
    if (!last.error.empty()) fmt::print("  who was told:  {}\n", last.error);
    std::fflush(stdout);
  }
  if (options.json) fmt::print("{}\n", all.dump(1));
  return code;
}

}  // namespace ferry::demo

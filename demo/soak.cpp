// Everything at once for a long time: applications on two devices with all engines, half as much again as memory holds,
// a store beneath, and somebody killed every second. Nothing may hang, leak or be lost.
#include <dirent.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <poll.h>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "demos.h"
#include "machine.h"

namespace ferry::demo {
namespace {

using Clock = std::chrono::steady_clock;

/// An application says that it is alive once a second; one that has not for so long hangs.
constexpr auto patience = std::chrono::seconds(120);

struct Running {
  Role role;
  Clock::time_point last_word;
  bool to_die;  ///< it was killed: how it ended says nothing
  std::string last;
};

/// Processes whose session with `manager` they inherited from `application`: its devices and its zygote.
std::vector<pid_t> children_of(pid_t application) {
  std::vector<pid_t> out;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos || name == std::to_string(application)) continue;
    std::ifstream file(entry.path() / "environ", std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    if (text.str().find("FERRY_DEMO_APPLICATION=" + std::to_string(application) + '\0') != std::string::npos) {
      out.push_back(static_cast<pid_t>(std::stol(name)));
    }
  }
  return out;
}

}  // namespace

int soak(const SoakOptions& options) {
  std::mt19937_64 random(options.seed);
  Manager manager({"--policy", "preempt", "--devices", "2", "--cus", "2", "--vram", "8M", "--granularity", "64K",
                   "--system", "64M", "--store", "256M"},
                  -1);
  std::vector<Running> running;
  unsigned long started = 0;
  unsigned long killed = 0;
  unsigned long finished = 0;
  unsigned long words = 0;
  std::string failure;
  const auto start_one = [&] {
    ++started;
    // Its working set: a share of one and a half times the memory.
    const std::string bytes = fmt::format("{}K", 64UL * 1024 * 3 / 2 / options.applications);
    const double life = 2 + static_cast<double>(random() % 20);
    running.push_back({Role(manager, {"mixed", "--bytes", bytes, "--seconds", fmt::format("{}", life), "--seed",
                                      std::to_string(options.seed * 1000003 + started), "--devices", "2"}),
                       Clock::now(), false, ""});
  };
  const auto start = Clock::now();
  auto next_kill = start + std::chrono::seconds(1);
  const auto end = start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.seconds));
  for (bool ending = false; failure.empty() && !(ending && running.empty());) {
    ending = Clock::now() >= end;
    while (!ending && running.size() < options.applications) start_one();
    std::vector<pollfd> fds;
    for (Running& r : running) fds.push_back({.fd = r.role.output(), .events = POLLIN, .revents = 0});
    poll(fds.data(), fds.size(), 100);
    for (std::size_t i = running.size(); i-- > 0;) {
      Running& r = running[i];
      const bool open = r.role.read_lines([&](const std::string& line) {
        ++words;
        r.last_word = Clock::now();
        r.last = line;
        if ((line.starts_with("wrong ") && !line.starts_with("wrong 0")) || (line.starts_with("error ") && !r.to_die)) {
          failure = fmt::format("application {}: {}", r.role.pid(), line);
        }
      });
      if (!open) {
        const int status = r.role.wait_end();
        if (!r.to_die && status != 0 && failure.empty()) {
          failure = fmt::format("application {} ended with {}; it said last: {}", r.role.pid(), status, r.last);
        }
        finished += !r.to_die;
        running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));
      } else if (Clock::now() - r.last_word > patience) {
        failure = fmt::format("application {} hangs; it said last: {}", r.role.pid(), r.last);
      }
    }
    if (manager.ended()) failure = "the manager ended by itself";
    if (!ending && !running.empty() && Clock::now() >= next_kill) {
      next_kill = Clock::now() + std::chrono::milliseconds(200 + random() % 1800);
      Running& victim = running[random() % running.size()];
      if (random() % 3 == 0) {
        // Its device, or the process that makes its devices: it gets an error, which is not its fault.
        const auto children = children_of(victim.role.pid());
        if (!children.empty()) {
          victim.to_die = true;
          kill(children[random() % children.size()], SIGKILL);
        }
      } else {
        victim.to_die = true;
        victim.role.kill_now();
      }
      ++killed;
    }
  }
  const bool was_running = !manager.ended();
  running.clear();
  std::string stats;
  if (was_running) {
    Role settle(manager, {"settle", "--seconds", "60"});
    watch({&settle}, 90'000, [&](std::size_t, const std::string& line) {
      if (line.starts_with("stats ")) stats = line.substr(6);
    });
  }
  if (manager.finish(60'000).empty()) stats.clear();
  if (stats.empty() && failure.empty()) failure = was_running ? "the manager did not end in good order" : "it crashed";
  if (!stats.empty()) {
    const auto json = nlohmann::json::parse(stats);
    const auto progress = json["progress"];
    fmt::print(
        "{} applications ran, {} killed or robbed of a device, {} to their end; {} signs of life\n"
        "{} jobs done, {} failed; {} evictions; {} units taken; {} deadlocks\n",
        started, killed, finished, words, progress["jobs_done"].get<unsigned long>(),
        progress["jobs_failed"].get<unsigned long>(), json["evictions"].get<unsigned long>(),
        progress["preemptions"].get<unsigned long>(), progress["circles"].get<unsigned long>());
    if (json["vram_bytes_now"].get<unsigned long>() != 0 && failure.empty()) {
      failure = fmt::format("{} bytes of VRAM are left with nobody", json["vram_bytes_now"].get<unsigned long>());
    }
    if (json["dma_mapped_pages"] != json["dma_unmapped_pages"] && failure.empty())
      failure = "pages stay open to devices";
    for (const char* key : {"system_bytes_now", "stored_bytes_now"}) {
      if (json.contains(key) && json[key].get<unsigned long>() != 0 && failure.empty()) {
        failure = fmt::format("{}: {} with nobody left", key, json[key].get<unsigned long>());
      }
    }
    if (progress["circles"].get<unsigned long>() != 0 && failure.empty()) failure = "a deadlock under a sound policy";
  }
  if (!failure.empty()) {
    std::fprintf(stderr, "ferry demo: soak: %s\n", failure.c_str());
    return 1;
  }
  fmt::print("no hang, no leak, no wrong byte in {:.0f} s\n",
             std::chrono::duration<double>(Clock::now() - start).count());
  return 0;
}

}  // namespace ferry::demo

// `ferry demo stress`: CPU threads and devices change the same memory in every way that there is; no byte may be wrong,
// nothing may hang and nothing may be left over.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>

#include "demos.h"
#include "machine.h"

namespace ferry::demo {
namespace {

using nlohmann::literals::operator""_json_pointer;

/// The application says that it lives four times a second; one that has not for so long hangs.
constexpr int patience_ms = 120'000;

struct Machine {
  std::vector<std::string> arguments;
  std::string text;
};

/// The seed draws how memory is cut and whether system memory has a budget; VRAM is always too little.
Machine machine_of(const StressOptions& options) {
  std::mt19937_64 random(options.seed);
  static const std::vector<std::string> granules = {"4K", "16K", "64K", "256K", "2M"};
  const std::string granule = options.granularity.empty() ? granules[random() % granules.size()] : options.granularity;
  const bool budget = random() % 2 == 0;
  Machine machine;
  machine.arguments = {"--devices", std::to_string(options.devices), "--cus", "2", "--vram", "4M", "--granularity",
                       granule};
  if (budget) machine.arguments.insert(machine.arguments.end(), {"--system", "16M", "--store", "256M"});
  for (std::size_t i = 0; i < machine.arguments.size(); i += 2) {
    machine.text += fmt::format(" {} {}", machine.arguments[i], machine.arguments[i + 1]);
  }
  return machine;
}

/// What a manager that nobody uses any more may not have. Empty: nothing.
std::string left_over(const std::string& stats) {
  const auto json = nlohmann::json::parse(stats, nullptr, false);
  if (json.is_discarded()) return "the manager's counters cannot be read";
  const nlohmann::json::json_pointer counts[] = {"/vram_bytes_now"_json_pointer, "/system/bytes_now"_json_pointer,
                                                 "/store/bytes_now"_json_pointer};
  for (const auto& count : counts) {
    if (!json.contains(count)) return fmt::format("the manager does not say {}", count.to_string());
    if (json[count].get<unsigned long>() != 0) {
      return fmt::format("{} is {} with nobody left", count.to_string(), json[count].get<unsigned long>());
    }
  }
  if (json["dma_mapped_pages"] != json["dma_unmapped_pages"]) return "pages stay open to devices";
  if (json["progress"]["circles"].get<unsigned long>() != 0) return "a deadlock under a sound policy";
  return {};
}

}  // namespace

int stress(const StressOptions& options) {
  const Machine machine = machine_of(options);
  fmt::print("seed {}:{}\n", options.seed, machine.text);
  std::fflush(stdout);
  Manager manager(machine.arguments, -1);
  std::vector<std::string> arguments = {"stress",
                                        "--seconds",
                                        fmt::format("{}", options.seconds),
                                        "--seed",
                                        std::to_string(options.seed),
                                        "--devices",
                                        std::to_string(options.devices),
                                        "--threads",
                                        std::to_string(options.threads)};
  for (const std::string& name : options.only) arguments.insert(arguments.end(), {"--only", name});
  for (const std::string& name : options.without) arguments.insert(arguments.end(), {"--without", name});
  if (options.allocated_only) arguments.emplace_back("--no-own");
  std::string failure;
  const auto start = std::chrono::steady_clock::now();
  {
    Role role(manager, arguments);
    std::string last;
    const bool ended = watch({&role}, patience_ms, [&](std::size_t, const std::string& line) {
      if (line.starts_with("did ") || line.starts_with("skipped ")) fmt::print("  {}\n", line);
      if (line.starts_with("wrong 1 ")) failure = line.substr(8);
      if (line.starts_with("error ")) failure = line.substr(6);
      last = line;
    });
    if (!ended) {
      failure = "a hang: nothing was heard of the application for a long time; it said last: " + last;
      role.kill_now();
    } else if (const int status = role.wait_end(); status != 0 && failure.empty()) {
      failure = fmt::format("the application ended with {}; it said last: {}", status, last);
    }
  }
  const auto took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const bool was_running = !manager.ended();
  if (was_running) {
    Role settle(manager, {"settle", "--seconds", "60"});
    std::string stats;
    watch({&settle}, 90'000, [&](std::size_t, const std::string& line) {
      if (line.starts_with("stats ")) stats = line.substr(6);
    });
  }
  const std::string stats = manager.finish(60'000);
  if (failure.empty()) {
    failure = !was_running    ? "the manager crashed"
              : stats.empty() ? "the manager did not end in good order"
                              : left_over(stats);
  }
  if (!failure.empty()) {
    std::fprintf(stderr, "ferry demo: stress: seed %lu:%s: %s\n", options.seed, machine.text.c_str(), failure.c_str());
    return 1;
  }
  fmt::print("no wrong byte, no hang, no leak in {:.0f} s\n", took);
  return 0;
}

}  // namespace ferry::demo

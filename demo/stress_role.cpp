// The application of `ferry demo stress`: starts the threads, tells once in a while that it lives, and what it found.
#include <dirent.h>
#include <fmt/format.h>

#include <poll.h>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>

#include "roles.h"
#include "stress.h"

namespace ferry::demo {
namespace {

using stress::Common;
using stress::operations;

void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

std::size_t open_files() {
  DIR* folder = opendir("/proc/self/fd");
  if (folder == nullptr) return 0;
  std::size_t count = 0;
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

/// A run goes on until every operation has happened once, for so many looks a quarter of a second apart.
constexpr unsigned more_looks_most = 240;

/// So many that each operation has come up dozens of times. Fewer say nothing about one that has not.
constexpr std::uint64_t steps_to_meet_all = 3000;

/// An operation that has to happen and has not, or nothing.
std::string missed(const Common& common) {
  for (std::size_t o = 0; o < operations().size(); ++o) {
    if (!common.enabled[o]) continue;
    if (common.done[o] == 0) return operations()[o].name;
    if (common.own_memory && operations()[o].adopted_too && common.on_adopted[o] == 0) {
      return std::string(operations()[o].name) + " of memory of the program's own";
    }
  }
  return {};
}

/// The descriptors that the first adoption opens belong to the session.
void adopt_once() {
  auto word = std::make_unique<std::uint64_t>(0);
  ferry::parallel_for(1, [at = word.get()](std::size_t) { *at = 1; });
}

bool named(const std::vector<std::string>& names, const char* name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// Which operations run. The others are told.
void choose(const RoleOptions& options, Common& common) {
  common.enabled.assign(operations().size(), false);
  common.done = std::vector<std::atomic<std::uint64_t>>(operations().size());
  common.on_adopted = std::vector<std::atomic<std::uint64_t>>(operations().size());
  for (std::size_t o = 0; o < operations().size(); ++o) {
    const char* name = operations()[o].name;
    if (operations()[o].weight == 0 && !named(options.only, name)) continue;
    if ((!options.only.empty() && !named(options.only, name)) || named(options.without, name)) {
      say(fmt::format("skipped {} not asked for", name));
    } else if (operations()[o].own_only && !common.own_memory) {
      say(fmt::format("skipped {} is of the program's own memory", name));
    } else if (const auto reason = operations()[o].missing()) {
      say(fmt::format("skipped {} {}", name, *reason));
    } else {
      common.enabled[o] = true;
    }
  }
}

/// Counters lie a page apart, so that each moves by itself where granules are that small, and side by side elsewhere.
std::vector<void*> place_counters(Common& common) {
  std::vector<void*> blocks;
  const std::size_t half = Common::counters / 2;
  for (const placement where : {placement::automatic, placement::system}) {
    auto* words = static_cast<std::uint64_t*>(ferry::alloc_aligned(half * stress::page_size, stress::page_size, where));
    for (std::size_t i = 0; i < half; ++i) {
      common.counter[blocks.size() * half + i] = words + i * stress::page_words;
      words[i * stress::page_words] = 0;
    }
    blocks.push_back(words);
  }
  return blocks;
}

}  // namespace

const std::vector<std::string>& stress_operations() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> out;
    for (const stress::Operation& operation : operations()) out.emplace_back(operation.name);
    return out;
  }();
  return names;
}

int stress_role(const RoleOptions& options) {
  const ferry::context session;
  Common common;
  common.devices = std::min(options.devices, ferry::device_count());
  common.threads = options.threads;
  common.seed = options.seed;
  common.own_memory = !options.no_own;
  choose(options, common);
  const std::vector<void*> counters = place_counters(common);
  for (unsigned d = 0; d < common.devices; ++d) {
    ferry::queue(d)
        .parallel_for(
            1, [](std::size_t) {}, "start")
        .wait();
  }
  adopt_once();
  const std::size_t files = open_files();
  {
    std::vector<std::unique_ptr<stress::Worker>> workers;
    for (unsigned t = 0; t < common.threads; ++t) workers.push_back(std::make_unique<stress::Worker>(common, t));
    std::vector<std::thread> threads;
    for (auto& worker : workers) threads.emplace_back([&worker] { worker->run(); });
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::nanoseconds>(
                                                            std::chrono::duration<double>(options.seconds));
    unsigned more_looks = 0;
    std::uint64_t told = 0;
    while (!common.stop &&
           (std::chrono::steady_clock::now() < end || (!missed(common).empty() && more_looks++ < more_looks_most))) {
      poll(nullptr, 0, 250);
      const std::uint64_t steps = common.steps;
      if (steps != told) say(fmt::format("alive {}", steps));  // silence is what a hang is seen by
      told = steps;
    }
    common.stop = true;
    for (std::thread& thread : threads) thread.join();
    for (std::size_t i = 0; i < Common::counters && common.wrong.empty(); ++i) {
      const std::uint64_t found = std::atomic_ref<std::uint64_t>(*common.counter[i]).load();
      if (found != common.added[i]) {
        common.tell_wrong(fmt::format("counter {} is {} after {} additions", i, found, common.added[i].load()));
      }
    }
  }
  for (void* block : counters) ferry::free(block);
  if (const std::size_t now = open_files(); now > files && common.wrong.empty()) {
    common.tell_wrong(fmt::format("{} files are open, {} were at the start", now, files));
  }
  for (std::size_t o = 0; o < operations().size(); ++o) {
    if (!common.enabled[o]) continue;
    const stress::Operation& operation = operations()[o];
    const std::uint64_t done = common.done[o];
    const std::uint64_t on_adopted = common.on_adopted[o];
    say(operation.adopted_too
            ? fmt::format("did {} {}, {} of the program's own memory", operation.name, done, on_adopted)
            : fmt::format("did {} {}", operation.name, done));
  }
  if (const std::string name = missed(common); !name.empty() && common.wrong.empty()) {
    if (const std::uint64_t steps = common.steps; steps < steps_to_meet_all) {
      say(fmt::format("skipped {}: this machine came to {} steps in the time", name, steps));
    } else {
      common.tell_wrong(name + " never happened");
    }
  }
  say(common.wrong.empty() ? "wrong 0" : "wrong 1 " + common.wrong);
  say("done");
  return common.wrong.empty() ? 0 : 1;
}

}  // namespace ferry::demo

// A machine that does what it is told when it is told: actions wait in `open` until a test answers them, so that a test
// can stand at any moment of an operation.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "core/core.h"

namespace ferry::core::test {

class Machine {
 public:
  explicit Machine(const Config& config, bool open_client = true, Observer* observer = nullptr)
      : core(config, observer) {
    if (open_client) {
      core.client_open(1);
      for (DeviceId d = 0; d < config.device_count; ++d) {
        core.device_attach(1, d);
      }
    }
  }

  /// Takes what the core decided. Actions without an id go to `said` (waves woken, replies).
  void take() {
    std::vector<Action> batch;
    core.take_actions(batch);
    for (const Action& action : batch) {
      (action.id == 0 ? said : open).push_back(action);
    }
  }

  /// Answers the first open action of the verb. False: there is none.
  bool answer(Verb verb, Status status = {}) {
    take();
    const auto it = std::find_if(open.begin(), open.end(), [verb](const Action& a) { return a.verb == verb; });
    if (it == open.end()) {
      return false;
    }
    const Action action = *it;
    open.erase(it);
    if (action.verb == Verb::map_device && action.has_token && status.ok()) {
      resumed.push_back(action.token.value);
    }
    history.push_back(action.verb);
    core.action_done(++now, action.id, status);
    core.verify();
    take();
    return true;
  }

  /// Answers everything well until nothing is left, and lets walks that rest go on.
  void settle() {
    for (take(); !open.empty() || go_on(); take()) {
      if (!open.empty()) {
        answer(open.front().verb);
      }
    }
    core.verify();
  }
  /// Something rests, and goes on with this tick. False: nothing does.
  bool go_on() {
    if (core.next_tick_ns() > now || core.quiescent()) {
      return false;
    }
    core.tick(now);
    take();
    return true;
  }

  void fault(Page page, Access access = Access::read, std::uint64_t token = 0, DeviceId device = 0,
             ClientId client = 1) {
    core.device_fault(++now, client, device, page, access, FaultToken{token == 0 ? ++last_token : token});
    take();
  }
  void cpu(Page page, Access access = Access::write, ClientId client = 1) {
    core.cpu_fault(++now, client, page, access);
    take();
  }
  [[nodiscard]] Residency at(Page page, ClientId client = 1) const { return core.query(client, page); }

  [[nodiscard]] std::size_t open_count(Verb verb) const {
    return static_cast<std::size_t>(
        std::count_if(open.begin(), open.end(), [verb](const Action& a) { return a.verb == verb; }));
  }
  /// Status that the wave was woken with; nothing if it was not, or if it went on after mapping.
  [[nodiscard]] std::optional<Status> woken(std::uint64_t token) const {
    for (const Action& action : said) {
      if (action.verb == Verb::wake_wave && action.token.value == token) {
        return action.status;
      }
    }
    return std::nullopt;
  }
  [[nodiscard]] bool went_on(std::uint64_t token) const {
    const auto status = woken(token);
    return (status && status->ok()) || std::find(resumed.begin(), resumed.end(), token) != resumed.end();
  }
  [[nodiscard]] std::optional<Status> replied(std::uint64_t cookie) const {
    for (const Action& action : said) {
      if (action.verb == Verb::reply && action.cookie.value == cookie) {
        return action.status;
      }
    }
    return std::nullopt;
  }

  Core core;
  std::vector<Action> open;
  std::vector<Action> said;
  std::vector<Verb> history;
  std::vector<std::uint64_t> resumed;
  std::uint64_t now = 1;
  std::uint64_t last_token = 1000;
};

/// Four chunks of VRAM, whole blocks, no speculation, no contention: what a test does not ask for does not happen.
inline Config plain_config() {
  Config config;
  config.vram_pages = 4 * block_pages;
  config.speculation_granules = 0;
  config.contention_threshold = 0;
  return config;
}

}  // namespace ferry::core::test

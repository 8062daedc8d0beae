// What tests of jobs and units share: a Machine that submits and looks at both.
#pragma once

#include "machine.h"

namespace ferry::core::test {

class WorkMachine : public Machine {
 public:
  explicit WorkMachine(const Config& config, Observer* observer = nullptr) : Machine(config, true, observer) {}

  /// The cookie is the fence's number.
  Status submit(JobSpec spec, ClientId client = 1) {
    const Status status = core.job_submit(++now, client, spec, Cookie{spec.fence});
    take();
    core.verify();
    return status;
  }
  void demand(unsigned cus, ClientId client = 1, DeviceId device = 0) {
    core.compute_demand(++now, client, device, cus);
    take();
    core.verify();
  }
  void fault_on(unsigned cu, Page page, std::uint64_t token, ClientId client = 1) {
    core.device_fault(++now, client, 0, page, Access::read, FaultToken{token}, cu);
    take();
    core.verify();
  }
  void tick_at(std::uint64_t at_ns) {
    now = std::max(now, at_ns);
    core.tick(now);
    take();
    core.verify();
  }
  void open_second_client() {
    core.client_open(2);
    core.device_attach(2, 0);
  }

  /// Answers the run_job of this fence. False: it does not run.
  bool finish(FenceId fence, Status status = {}) {
    return answer_if([fence](const Action& a) { return a.verb == Verb::run_job && a.fence == fence; }, status);
  }
  /// Answers all revoke_cus of the client. False: none is open.
  bool leave(ClientId client = 1) {
    bool any = false;
    while (answer_if([client](const Action& a) { return a.verb == Verb::revoke_cus && a.client == client; }, {})) {
      any = true;
    }
    return any;
  }
  [[nodiscard]] bool runs(FenceId fence) const { return open_of(Verb::run_job, fence) != nullptr; }
  [[nodiscard]] const Action* open_of(Verb verb, FenceId fence) const {
    const auto it =
        std::find_if(open.begin(), open.end(), [&](const Action& a) { return a.verb == verb && a.fence == fence; });
    return it == open.end() ? nullptr : &*it;
  }
  /// Units of all revoke_cus of the client that are open.
  [[nodiscard]] std::uint64_t asked_back(ClientId client = 1) const {
    std::uint64_t mask = 0;
    for (const Action& a : open) {
      mask |= a.verb == Verb::revoke_cus && a.client == client ? a.cu_mask : 0;
    }
    return mask;
  }
  [[nodiscard]] std::uint64_t units(ClientId client = 1) const { return core.compute_units(client, 0); }
  [[nodiscard]] std::size_t said_count(Verb verb, FenceId fence = 0) const {
    return static_cast<std::size_t>(std::count_if(
        said.begin(), said.end(), [&](const Action& a) { return a.verb == verb && (fence == 0 || a.fence == fence); }));
  }
  /// With which status the fence was told to have signalled; nothing if it was not.
  [[nodiscard]] std::optional<Status> signalled(FenceId fence) const {
    for (const Action& a : said) {
      if (a.verb == Verb::signal_fence && a.fence == fence) {
        return a.status;
      }
    }
    return std::nullopt;
  }
  [[nodiscard]] bool visible(FenceId fence) const { return core.fence_info(fence).visible; }

 private:
  template <typename Wanted>
  bool answer_if(Wanted&& wanted, Status status) {
    take();
    const auto it = std::find_if(open.begin(), open.end(), wanted);
    if (it == open.end()) {
      return false;
    }
    const Action action = *it;
    open.erase(it);
    core.action_done(++now, action.id, status);
    core.verify();
    take();
    return true;
  }
};

inline JobSpec copy_job(FenceId fence) {
  JobSpec spec;
  spec.fence = fence;
  spec.engine = Engine::copy;
  return spec;
}

inline JobSpec graphics_job(FenceId fence, unsigned cus_min = 1, unsigned cus_max = 1) {
  JobSpec spec;
  spec.fence = fence;
  spec.engine = Engine::graphics;
  spec.cus_min = cus_min;
  spec.cus_max = cus_max;
  return spec;
}

/// One device; minimum run 1 ms, slice 5 ms.
inline Config work_config(Policy policy = Policy::preempt, unsigned cus = 4, bool preempts_while_faulting = true) {
  Config config = plain_config();
  DeviceModel model;
  model.policy = policy;
  model.cu_count = cus;
  model.preempts_while_faulting = preempts_while_faulting;
  config.models = {model};
  return config;
}

inline constexpr std::uint64_t ms = 1'000'000;

}  // namespace ferry::core::test

// Everything at once, in any order: jobs, fences, buffers, compute, faults, cancellations, deaths, late answers. After
// each event all invariants hold; when the machine then answers everything and time passes, nothing is left under way.
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <iostream>
#include <set>

#include "base/random.h"
#include "work_machine.h"

namespace ferry::core::test {
namespace {

struct Setup {
  Policy policy;
  bool preempts_while_faulting;
  unsigned cus;
  std::uint64_t budget;
  bool retry_faults = true;
};

void PrintTo(const Setup& s, std::ostream* out) {
  *out << to_string(s.policy) << (s.preempts_while_faulting ? "_v9_" : "_v10_") << s.cus << "_" << s.budget;
}

/// Hardware that leaves units when it can, and applications that do what they like.
class World : public WorkMachine {
 public:
  static constexpr unsigned client_count = 3;
  static constexpr std::uint64_t span_pages = 4 * block_pages;

  World(const Config& config, std::uint64_t seed)
      : WorkMachine(config), models(config.models), random_(seed), devices_(config.device_count) {
    for (ClientId c = 2; c <= client_count; ++c) {
      core.client_open(c);
      for (DeviceId d = 0; d < devices_; ++d) {
        core.device_attach(c, d);
      }
    }
    for (ClientId c = 1; c <= client_count; ++c) {
      set_up(c);
    }
  }

  void step() {
    now += random_.below(400'000);
    switch (random_.below(16)) {
      case 0:
      case 1: submit_any(); break;
      case 2: core.compute_demand(now, any_client(), any_device(), static_cast<unsigned>(random_.below(6))); break;
      case 3:
      case 4: fault_any(); break;
      case 5: core.job_cancel(now, any_client(), any_fence()); break;
      case 6: (void)core.fence_deadline(now, any_fence(), now + random_.below(20 * ms)); break;
      case 7: core.cpu_fault(now, any_client(), random_.below(span_pages), Access::write); break;
      case 8:
        core.tick(std::max(now, std::min(core.next_tick_ns(), now + 10 * ms)));
        now = std::max(now, std::min(core.next_tick_ns(), now + 10 * ms));
        break;
      case 9:
        if (random_.below(40) == 0) {
          device_dies(any_client(), any_device());
        }
        break;
      case 10:
        if (random_.below(60) == 0) {
          client_dies(any_client());
        }
        break;
      case 11: array_any(); break;
      case 12: (void)core.timeline_signal(now, any_client(), {1, ++cpu_point_}); break;
      default: answer_any(); break;
    }
    collect();
    core.verify();
  }

  /// Everybody stops asking; the machine answers all. False: something never ends.
  bool settles() {
    for (ClientId c = 1; c <= client_count; ++c) {
      for (DeviceId d = 0; d < devices_; ++d) {
        core.compute_demand(now, c, d, 0);
      }
      // Held jobs may wait for points that nobody will ever make.
      for (const FenceId fence : held_) {
        if (!core.fence_info(fence).visible) {
          core.job_cancel(now, c, fence);
        }
      }
    }
    for (unsigned round = 0; round < 4000; ++round) {
      collect();
      while (answer_any()) {
        collect();
        core.verify();
      }
      if (core.quiescent() && gone_.empty()) {
        return true;
      }
      now += ms;
      core.tick(now);
    }
    for (const Action& a : open) {
      std::cerr << "open: " << to_string(a.verb) << " client " << a.client << " fence " << a.fence << "\n";
    }
    for (FenceId id = 1; id <= last_fence_; ++id) {
      const FenceInfo info = core.fence_info(id);
      if (info.known && !info.signalled) {
        std::cerr << "fence " << id << (info.visible ? " visible" : " not visible") << "\n";
      }
    }
    for (const ClientId c : gone_) {
      std::cerr << "client " << c << " does not end\n";
    }
    return false;
  }

  std::vector<DeviceModel> models;
  std::set<FenceId> submitted;  ///< replied to as visible

 private:
  void set_up(ClientId c) {
    (void)core.alloc(now, c, {0, span_pages}, Placement::automatic);
    (void)core.alloc(now, c, {span_pages, block_pages}, Placement::system);
    for (unsigned i = 0; i < 2; ++i) {
      BufferSpec spec;
      spec.count_pages = 64 + random_.below(200);
      spec.home = random_.below(2) == 0 ? no_device : any_device();
      spec.implicit_sync = random_.below(4) != 0;
      const BufferId id = ++last_buffer_;
      if (core.buffer_create(now, c, id, spec).ok()) {
        buffers_.push_back(id);
        for (ClientId other = 1; other <= client_count; ++other) {
          if (other != c) {
            (void)core.buffer_open(now, other, id);
          }
        }
        (void)core.buffer_map(now, c, id, (std::uint64_t{10} + i) * span_pages);
      }
    }
    (void)core.timeline_create(now, c, 1);
    (void)core.timeline_open(now, c, 1);
  }
  ClientId any_client() { return 1 + static_cast<ClientId>(random_.below(client_count)); }
  DeviceId any_device() { return static_cast<DeviceId>(random_.below(devices_)); }
  FenceId any_fence() { return last_fence_ == 0 ? 0 : last_fence_ - random_.below(std::min<FenceId>(last_fence_, 12)); }

  void submit_any() {
    JobSpec spec;
    spec.fence = ++last_fence_;
    spec.engine = std::array{Engine::graphics, Engine::graphics, Engine::copy, Engine::video}[random_.below(4)];
    spec.device = any_device();
    spec.priority = static_cast<unsigned>(random_.below(job_priorities));
    spec.cus_min = 1 + static_cast<unsigned>(random_.below(models[0].cu_count));
    spec.cus_max = spec.cus_min + static_cast<unsigned>(random_.below(models[0].cu_count - spec.cus_min + 1));
    if (models[0].policy == Policy::reserve) {
      spec.cus_min = 1;
    }
    spec.timeout_ns = ms + random_.below(50 * ms);
    for (std::uint64_t n = random_.below(3); n > 0 && !buffers_.empty(); --n) {
      spec.buffers.push_back(
          {buffers_[random_.below(buffers_.size())], random_.below(2) == 0 ? Access::read : Access::write});
    }
    for (std::uint64_t n = random_.below(3); n > 0; --n) {
      spec.waits.push_back(any_fence());
    }
    if (random_.below(6) == 0) {
      spec.wait_points.push_back({1, cpu_point_ + random_.below(3)});
      held_.push_back(spec.fence);
    }
    if (random_.below(6) == 0) {
      spec.signal_points.push_back({1, ++cpu_point_});
    }
    (void)core.job_submit(now, any_client(), spec, Cookie{spec.fence});
    if (random_.below(3) == 0) {
      core.fence_forget(any_fence());
    }
  }
  void array_any() {
    (void)core.fence_array(now, any_client(), ++last_fence_, {any_fence(), any_fence()}, random_.below(2) == 0);
  }
  void fault_any() {
    const ClientId c = any_client();
    const DeviceId d = any_device();
    const std::uint64_t units = core.compute_units(c, d);
    if (units == 0) {
      return;
    }
    unsigned cu = AllocContext::no_cu;
    if (random_.below(4) != 0) {
      do {
        cu = static_cast<unsigned>(random_.below(models[0].cu_count));
      } while ((units >> cu & 1) == 0);
    }
    const Page page = random_.below(8) == 0 ? 10 * span_pages + random_.below(64) : random_.below(span_pages + 100);
    const std::uint64_t token = ++last_token;
    faults_.push_back({c, d, token, cu});
    core.device_fault(now, c, d, page, random_.below(2) == 0 ? Access::read : Access::write, FaultToken{token}, cu);
  }
  void device_dies(ClientId c, DeviceId d) {
    core.device_gone(now, c, d);
    std::erase_if(faults_, [&](const Fault& f) { return f.client == c && f.device == d; });
    collect();
    core.device_attach(c, d);
  }
  void client_dies(ClientId c) {
    if (gone_.contains(c)) {
      return;
    }
    gone_.insert(c);
    for (DeviceId d = 0; d < devices_; ++d) {
      core.device_gone(now, c, d);
    }
    std::erase_if(faults_, [&](const Fault& f) { return f.client == c; });
    core.client_gone(now, c, Cookie{(std::uint64_t{1} << 50) + c});
  }
  /// A client that is gone for good comes again.
  void collect() {
    std::vector<Action> batch;
    core.take_actions(batch);
    for (const Action& a : batch) {
      if (a.id != 0) {
        open.push_back(a);
        continue;
      }
      switch (a.verb) {
        case Verb::wake_wave: std::erase_if(faults_, [&](const Fault& f) { return f.token == a.token.value; }); break;
        case Verb::reply:
          if (a.cookie.value >= std::uint64_t{1} << 50) {
            const auto c = static_cast<ClientId>(a.cookie.value - (std::uint64_t{1} << 50));
            gone_.erase(c);
            core.client_open(c);
            for (DeviceId d = 0; d < devices_; ++d) {
              core.device_attach(c, d);
            }
            set_up(c);
          } else if (a.status.ok()) {
            EXPECT_TRUE(submitted.insert(a.cookie.value).second);
          }
          break;
        case Verb::signal_fence: signals.insert(a.fence); break;
        case Verb::reset_device: resets_.push_back({a.client, a.device}); break;
        default: break;
      }
    }
    for (; !resets_.empty();) {
      const auto [c, d] = resets_.back();
      resets_.pop_back();
      if (!gone_.contains(c)) {
        device_dies(c, d);
      }
    }
  }

 public:
  std::multiset<FenceId> signals;

 private:
  [[nodiscard]] bool can_leave(const Action& revoke) const {
    const DeviceModel& model = models[revoke.device];
    if (model.preempts_while_faulting && model.policy == Policy::preempt) {
      return true;
    }
    return std::none_of(faults_.begin(), faults_.end(), [&](const Fault& f) {
      return f.client == revoke.client && f.device == revoke.device &&
             (f.cu == AllocContext::no_cu || (revoke.cu_mask >> f.cu & 1) != 0);
    });
  }
  bool answer_any() {
    if (open.empty()) {
      return false;
    }
    const std::size_t start = random_.below(open.size());
    for (std::size_t i = 0; i < open.size(); ++i) {
      const std::size_t at = (start + i) % open.size();
      if (open[at].verb == Verb::revoke_cus && !can_leave(open[at])) {
        continue;
      }
      const Action action = open[at];
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
      Status status;
      if (action.verb == Verb::run_job && random_.below(8) == 0) {
        status = Code::kernel_fault;
      }
      if (action.verb == Verb::map_device && action.has_token) {
        std::erase_if(faults_, [&](const Fault& f) { return f.token == action.token.value; });
      }
      core.action_done(now, action.id, status);
      return true;
    }
    return false;
  }

  struct Fault {
    ClientId client;
    DeviceId device;
    std::uint64_t token;
    unsigned cu;
  };
  Random random_;
  unsigned devices_;
  std::vector<Fault> faults_;
  std::vector<BufferId> buffers_;
  std::set<ClientId> gone_;
  std::vector<FenceId> held_;
  std::vector<std::pair<ClientId, DeviceId>> resets_;
  BufferId last_buffer_ = 0;
  FenceId last_fence_ = 0;
  std::uint64_t cpu_point_ = 0;
};

/// FERRY_TEST_SEEDS asks for more.
std::uint64_t seeds() {
  const char* more = std::getenv("FERRY_TEST_SEEDS");
  return more != nullptr ? std::strtoull(more, nullptr, 10) : 8;
}

class WorkRandom : public ::testing::TestWithParam<Setup> {};

TEST_P(WorkRandom, EverythingEnds) {
  for (std::uint64_t seed = 1; seed <= seeds(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Config config = work_config(GetParam().policy, GetParam().cus, GetParam().preempts_while_faulting);
    config.models[0].retry_faults = GetParam().retry_faults;
    config.device_count = seed % 3 == 0 ? 2 : 1;
    config.models.resize(config.device_count, config.models[0]);
    config.vram_pages = 2 * block_pages;
    config.granularity_pages = 64;
    config.system_pages = GetParam().budget;
    config.store_pages = GetParam().budget == 0 ? 0 : 100 * block_pages;
    World world(config, seed);
    for (unsigned i = 0; i < 1500; ++i) {
      world.step();
    }
    ASSERT_TRUE(world.settles()) << world.core.waits() << world.core.deadlock();
    EXPECT_EQ(world.core.deadlock(), "");
    for (const FenceId fence : world.submitted) {
      EXPECT_EQ(world.signals.count(fence), 1U) << fence;
    }
    const bool sound = GetParam().policy != Policy::none &&
                       (GetParam().policy != Policy::preempt || GetParam().preempts_while_faulting);
    if (sound) {
      EXPECT_EQ(world.core.stats().circles, 0U);
      EXPECT_EQ(world.core.take_reports(), std::vector<std::string>());
    }
    EXPECT_GT(world.core.stats().jobs_done, 0U);
  }
}

INSTANTIATE_TEST_SUITE_P(All, WorkRandom,
                         ::testing::Values(Setup{Policy::none, false, 2, 0}, Setup{Policy::none, false, 2, 1500},
                                           Setup{Policy::preempt, true, 1, 1500}, Setup{Policy::preempt, true, 4, 0},
                                           Setup{Policy::preempt, false, 2, 1500},
                                           Setup{Policy::reserve, false, 2, 1500}, Setup{Policy::reserve, true, 4, 0},
                                           Setup{Policy::reserve_in_flight, false, 1, 1500},
                                           Setup{Policy::reserve_in_flight, false, 4, 1500},
                                           Setup{Policy::exclusive, false, 1, 1500},
                                           Setup{Policy::exclusive, true, 4, 0}, Setup{Policy::query, false, 1, 1500},
                                           Setup{Policy::query, false, 4, 1500}, Setup{Policy::track, false, 2, 1500},
                                           Setup{Policy::track, false, 4, 3000}, Setup{Policy::pinned, false, 2, 3000},
                                           Setup{Policy::preempt, true, 2, 0, false},
                                           Setup{Policy::reserve_in_flight, false, 2, 6000, false}),
                         [](const auto& info) { return std::to_string(info.index); });

}  // namespace
}  // namespace ferry::core::test

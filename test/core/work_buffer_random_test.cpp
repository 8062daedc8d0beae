// Buffers, jobs and applications in any order, on a machine that answers late, in any order, and with errors. The model
// beside the core knows what is mapped and which jobs run, and nothing of the core's bookkeeping.
#include <gtest/gtest.h>

#include <iostream>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>

#include "base/check.h"
#include "base/random.h"
#include "buffer_machine.h"

namespace ferry::core::test {
namespace {

struct Terms {
  std::uint64_t budget;
  std::uint64_t store;
  Policy policy;
  unsigned granularity;
};

void PrintTo(const Terms& s, std::ostream* out) {
  *out << "budget_" << s.budget << "_store_" << s.store << "_" << to_string(s.policy) << "_" << s.granularity;
}

constexpr unsigned clients = 3;
constexpr unsigned device_count = 2;
constexpr Page buffers_at = 100'000;
constexpr std::uint64_t managed_pages = 128;
constexpr std::uint64_t buffer_pages = 24;

class World : public BufferMachine {
 public:
  World(const Config& config, std::uint64_t seed) : BufferMachine(config), random_(seed) {
    for (ClientId c = 2; c <= clients; ++c) {
      open_client(c, device_count);
    }
    for (ClientId c = 1; c <= clients; ++c) {
      alive_[c] = {true, true};
      begin_client(c);
    }
  }

  void step() {
    now += random_.below(300'000);
    switch (random_.below(20)) {
      case 0: make_buffer(); break;
      case 1: note(core.buffer_open(now, client(), buffer())); break;
      case 2: note(core.buffer_close(now, client(), buffer())); break;
      case 3: note(core.buffer_map(now, client(), buffer(), buffers_at + random_.below(8) * 32)); break;
      case 4: {
        const ClientId c = client();
        if (core.buffer_unmap(now, c, buffers_at + random_.below(8) * 32, Cookie{++cookie_}).ok()) {
          owed_[cookie_] = c;
        }
        break;
      }
      case 5:
      case 6:
      case 7: wave(); break;
      case 8: core.cpu_fault(now, client(), page(), Access::write); break;
      case 9:
      case 10: job(); break;
      case 11: {
        const ClientId c = client();
        const PageSpan span{random_.below(managed_pages), 1 + random_.below(16)};
        core.userptr_invalidate(now, c, span);
        changed(c, span);
        break;
      }
      case 12: free_some(); break;
      case 13: core.pressure(now, random_.below(64)); break;
      case 14: core.tick(now); break;
      case 15:
        if (random_.below(12) == 0) {
          lose_device();
        }
        break;
      case 16:
        if (random_.below(20) == 0) {
          lose_client();
        }
        break;
      case 17: core.job_cancel(now, client(), random_.below(fence_ + 1)); break;
      default: answer_any(true); break;
    }
    look();
  }

  [[nodiscard]] const std::string& problem() const { return problem_; }

  /// The machine answers everything well and time passes: nothing may be left.
  void finish() {
    settle_until([&] { return open.empty() && core.quiescent(); });
    look();
    expect(core.quiescent(), [&] { return "something is under way for ever: " + core.waits() + state(); });
    expect(owed_.empty(), [&] { return std::to_string(owed_.size()) + " requests were never answered" + state(); });
    expect(waiting_.empty(), [&] { return std::to_string(waiting_.size()) + " waves were never woken" + state(); });
    if (!problem_.empty()) {
      return;
    }
    for (ClientId c = 1; c <= clients; ++c) {
      end_client(c);
    }
    while (answer_any(false)) {
      look();
    }
    look();
    expect(core.quiescent(), [&] { return "something is left when nobody is: " + core.waits() + state(); });
    for (BufferId b = 1; b <= buffer_; ++b) {
      expect(!core.buffer_info(b).known, [&] { return "buffer " + std::to_string(b) + " is left"; });
    }
    const Stats& stats = core.stats();
    expect(stats.vram_pages == 0 && stats.system_pages == 0 && stats.stored_pages == 0,
           [] { return std::string("memory is left when nobody is"); });
  }

 private:
  [[nodiscard]] ClientId client() { return static_cast<ClientId>(1 + random_.below(clients)); }
  [[nodiscard]] DeviceId device() { return static_cast<DeviceId>(random_.below(device_count)); }
  [[nodiscard]] BufferId buffer() { return buffer_ - std::min(buffer_, random_.below(6)); }
  [[nodiscard]] Page page() {
    return random_.below(3) == 0 ? random_.below(managed_pages) : buffers_at + random_.below(8 * 32);
  }
  static void note(Status) {}  // refusals are part of it

  /// The machine answers, or else time passes; past every time-out at most.
  template <typename Done>
  void settle_until(Done&& done) {
    look();
    for (unsigned idle = 0; !done() && idle < 300; look()) {
      if (!answer_any(false)) {
        ++idle;
        now += 100'000'000;
        core.tick(now);
      }
    }
  }

  void begin_client(ClientId c) {
    expect(core.alloc(now, c, {0, managed_pages}, Placement::automatic).ok(),
           [] { return std::string("a new client cannot allocate"); });
  }

  void make_buffer() {
    BufferSpec spec;
    spec.count_pages = 1 + random_.below(buffer_pages);
    spec.home = random_.below(2) == 0 ? device() : no_device;
    spec.implicit_sync = random_.below(4) != 0;
    spec.userptr = random_.below(3) == 0;
    if (spec.userptr) {
      spec.user_pages = {random_.below(managed_pages - spec.count_pages), spec.count_pages};
    }
    const ClientId c = client();
    if (core.buffer_create(now, c, buffer_ + 1, spec).ok()) {
      specs_[++buffer_] = {c, spec};
    }
  }

  void wave() {
    const ClientId c = client();
    const DeviceId d = device();
    if (!alive_[c][d]) {
      return;
    }
    waiting_[++token_] = {c, d};
    core.device_fault(now, c, d, page(), Access::write, FaultToken{token_});
  }

  void job() {
    JobSpec spec;
    spec.fence = fence_ + 1;
    spec.engine = random_.below(3) == 0 ? Engine::graphics : Engine::copy;
    spec.device = device();
    for (std::uint64_t i = random_.below(4); i > 0; --i) {
      spec.buffers.push_back({buffer(), random_.below(2) == 0 ? Access::read : Access::write});
    }
    if (fence_ != 0 && random_.below(3) == 0) {
      spec.waits.push_back(fence_);
    }
    // Mostly somebody who may: a refusal is soon tested.
    const bool may = random_.below(8) != 0 && !spec.buffers.empty() && specs_.contains(spec.buffers[0].buffer);
    const ClientId c = may ? specs_.at(spec.buffers[0].buffer).first : client();
    if (may) {
      std::erase_if(spec.buffers,
                    [&](const JobBuffer& b) { return !specs_.contains(b.buffer) || specs_.at(b.buffer).first != c; });
    }
    if (core.job_submit(now, c, spec, Cookie{++cookie_}).ok()) {
      ++fence_;
      owed_[cookie_] = c;
      jobs_[spec.fence] = spec;
      job_of_[cookie_] = spec.fence;
    }
  }

  void free_some() {
    const ClientId c = client();
    const PageSpan span{random_.below(managed_pages / 16) * 16, 16};
    if (random_.below(4) == 0 && core.free(now, c, span, Cookie{++cookie_}).ok()) {
      owed_[cookie_] = c;
      changed(c, span);
    } else {
      note(core.alloc(now, c, span, Placement::automatic));
    }
  }

  void lose_device() {
    const ClientId c = client();
    const DeviceId d = device();
    core.device_gone(now, c, d);
    std::erase_if(waiting_, [&](const auto& w) { return w.second == std::pair{c, d}; });
    std::erase_if(mapped_, [&](const auto& key) { return std::get<1>(key) == c && std::get<2>(key) == d; });
    ++process_[{c, d}];
    core.device_attach(c, d);
  }

  void lose_client() {
    const ClientId c = client();
    end_client(c);
    look();
    settle_until([&] { return replied(gone_cookie_).has_value(); });
    if (!replied(gone_cookie_).has_value()) {
      expect(false, [&] { return "client " + std::to_string(c) + " never ends: " + core.waits() + state(); });
      return;
    }
    open_client(c, device_count);
    alive_[c] = {true, true};
    begin_client(c);
  }

  void end_client(ClientId c) {
    look();
    gone_cookie_ = ++cookie_;
    const bool application_first = random_.below(2) == 0;
    const auto devices_end = [&] {
      for (DeviceId d = 0; d < device_count; ++d) {
        look();  // what was asked of it before it died
        core.device_gone(now, c, d);
        ++process_[{c, d}];
        alive_[c][d] = false;
      }
      std::erase_if(mapped_, [&](const auto& key) { return std::get<1>(key) == c && std::get<2>(key) != no_device; });
    };
    if (!application_first) {
      devices_end();
      look();
    }
    std::erase_if(owed_, [&](const auto& o) { return o.second == c; });
    owed_[gone_cookie_] = c;
    core.client_gone(now, c, Cookie{gone_cookie_});
    ++process_[{c, no_device}];
    std::erase_if(mapped_, [&](const auto& key) { return std::get<1>(key) == c && std::get<2>(key) == no_device; });
    if (application_first) {
      look();
      devices_end();
    }
    std::erase_if(waiting_, [&](const auto& w) { return w.second.first == c; });
  }

  // --- the machine ---------------------------------------------------------------------------------------------------

  using Key = std::tuple<BufferId, ClientId, DeviceId, Page>;

  bool answer_any(bool may_fail) {
    look();
    if (open.empty()) {
      return false;
    }
    const std::size_t at = random_.below(open.size());
    const Action a = open[at];
    open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
    Status status;
    const bool lost = asked_of_[a.id] != process_[{a.client, a.device}] &&
                      (a.verb == Verb::map_buffer || a.verb == Verb::revoke_buffer || a.verb == Verb::map_device ||
                       a.verb == Verb::revoke_device || a.verb == Verb::map_cpu || a.verb == Verb::revoke_cpu) &&
                      !(a.verb == Verb::map_buffer && specs_.at(a.buffer).second.userptr && a.device == no_device);
    if (lost) {
      status = a.device == no_device ? Code::client_gone : Code::device_lost;
    } else if (may_fail && random_.below(8) == 0) {
      switch (a.verb) {
        case Verb::move_buffer: status = a.to == Place::store ? Code::no_space : Code::io_error; break;
        case Verb::map_buffer: status = Code::no_mappings; break;
        case Verb::copy:
        case Verb::load:
        case Verb::store:
        case Verb::run_job: status = Code::io_error; break;
        default: break;
      }
    }
    if (status.ok() && a.verb == Verb::map_buffer && !specs_.at(a.buffer).second.userptr) {
      mapped_.insert(Key{a.buffer, a.client, a.device, a.pages.first});
    }
    if (a.verb == Verb::revoke_buffer) {
      mapped_.erase(Key{a.buffer, a.client, a.device, a.pages.first});
    }
    if (a.verb == Verb::map_device && a.has_token && status.ok()) {
      end_wave(a.token.value);
    }
    core.action_done(++now, a.id, status);
    return true;
  }

  void end_wave(std::uint64_t token) {
    expect(waiting_.erase(token) == 1,
           [&] { return "wave " + std::to_string(token) + " is woken, and does not wait"; });
  }

  /// Takes what the core decided, and checks it against what the machine knows.
  void look() {
    std::vector<Action> batch;
    core.take_actions(batch);
    for (const Action& a : batch) {
      if (a.id != 0) {
        asked_of_[a.id] = process_[{a.client, a.device}];
        open.push_back(a);
      } else {
        said.push_back(a);
      }
      switch (a.verb) {
        case Verb::wake_wave: end_wave(a.token.value); break;
        case Verb::reply:
          expect(owed_.erase(a.cookie.value) == 1, [&] {
            return "request " + std::to_string(a.cookie.value) + " is answered, and nobody asked" + state();
          });
          if (const auto job = job_of_.find(a.cookie.value); job != job_of_.end() && a.status.ok()) {
            published(jobs_.at(job->second));
          }
          break;
        case Verb::move_buffer: expect_still(a.buffer); break;
        case Verb::release_buffer:
          if (core.buffer_info(a.buffer).where != BufferInfo::Where::nowhere) {
            expect_still(a.buffer);
          }
          break;
        case Verb::signal_fence:
          expect(told_.insert(a.fence).second, [&] { return "fence " + std::to_string(a.fence) + " signals twice"; });
          break;
        case Verb::run_job: runs(jobs_.at(a.fence)); break;
        case Verb::map_buffer:
          if (specs_.at(a.buffer).second.userptr) {
            looked_up_[a.buffer] = changes_[a.buffer];
          }
          break;
        case Verb::copy:
          if (a.place == Place::system) {
            expect_unused(a.client, a.pages, "is copied to VRAM");
          }
          break;
        case Verb::store: expect_unused(a.client, a.pages, "is stored"); break;
        case Verb::discard_system: expect_unused(a.client, a.pages, "is discarded"); break;
        default: break;
      }
    }
    core.verify();
  }

  /// What has not ended, for messages.
  [[nodiscard]] std::string state() const {
    std::string text = "\nunder way:";
    for (const Action& a : open) {
      text += std::string(" ") + to_string(a.verb) + " of client " + std::to_string(a.client);
    }
    for (const auto& [id, job] : jobs_) {
      if (!told_.contains(id) && core.fence_info(id).known) {
        text += "\nfence " + std::to_string(id) + (core.fence_info(id).visible ? " visible" : " not visible");
      }
    }
    for (const auto& [id, made] : specs_) {
      const BufferInfo info = core.buffer_info(id);
      if (info.known) {
        text += "\nbuffer " + std::to_string(id) + " of client " + std::to_string(made.first) +
                (made.second.userptr ? " userptr" : "") + (info.busy ? " busy" : "") + (info.moving ? " moving" : "") +
                " held by " + std::to_string(info.holders);
      }
    }
    return text;
  }

  /// Nobody reaches it, and no job that runs uses it.
  void expect_still(BufferId id) {
    for (const Key& key : mapped_) {
      expect(std::get<0>(key) != id, [&] {
        return "buffer " + std::to_string(id) + " moves while client " + std::to_string(std::get<1>(key)) +
               " reaches it";
      });
    }
    for_running([&](const JobSpec& job) {
      for (const JobBuffer& used : job.buffers) {
        expect(used.buffer != id, [&] {
          return "buffer " + std::to_string(id) + " moves while job " + std::to_string(job.fence) + " uses it";
        });
      }
    });
  }
  void expect_unused(ClientId c, PageSpan span, const char* what) {
    for_running([&](const JobSpec& job) {
      for (const JobBuffer& used : job.buffers) {
        const auto& [maker, spec] = specs_.at(used.buffer);
        expect(maker != c || !spec.userptr || !spec.user_pages.overlaps(span),
               [&] { return "a page of job " + std::to_string(job.fence) + " " + what; });
      }
    });
  }
  /// The pages that the job will use are those of after the last change.
  void published(const JobSpec& job) {
    for (const JobBuffer& used : job.buffers) {
      expect(!specs_.at(used.buffer).second.userptr || looked_up_[used.buffer] == changes_[used.buffer],
             [&] { return "job " + std::to_string(job.fence) + " is visible with pages of before"; });
    }
  }
  /// Writers run alone, where the buffer says so.
  void runs(const JobSpec& job) {
    for_running([&](const JobSpec& other) {
      for (const JobBuffer& used : job.buffers) {
        for (const JobBuffer& also : other.buffers) {
          const bool both_read = used.access == Access::read && also.access == Access::read;
          expect(used.buffer != also.buffer || both_read || !specs_.at(used.buffer).second.implicit_sync, [&] {
            return "job " + std::to_string(job.fence) + " runs beside job " + std::to_string(other.fence) +
                   ", one writes";
          });
        }
      }
    });
    ran_.insert(job.fence);
  }
  void changed(ClientId c, PageSpan span) {
    for (const auto& [id, made] : specs_) {
      changes_[id] += made.first == c && made.second.userptr && made.second.user_pages.overlaps(span) ? 1 : 0;
    }
  }
  /// The first problem is the one to look at.
  template <typename Text>
  void expect(bool holds, Text&& text) {
    if (!holds && problem_.empty()) {
      problem_ = text();
    }
  }
  template <typename Fn>
  void for_running(Fn&& fn) {
    for (const FenceId f : ran_) {
      if (!told_.contains(f)) {
        fn(jobs_.at(f));
      }
    }
  }

  Random random_;
  BufferId buffer_ = 0;
  FenceId fence_ = 0;
  std::uint64_t token_ = 0;
  std::uint64_t cookie_ = 0;
  std::uint64_t gone_cookie_ = 0;
  std::map<ClientId, std::array<bool, device_count>> alive_;
  std::map<BufferId, std::pair<ClientId, BufferSpec>> specs_;
  std::map<FenceId, JobSpec> jobs_;
  std::map<std::uint64_t, FenceId> job_of_;  ///< by cookie
  std::map<BufferId, unsigned> changes_;
  std::map<BufferId, unsigned> looked_up_;  ///< changes when its pages were looked up last
  std::set<FenceId> ran_;
  std::set<FenceId> told_;
  std::map<std::uint64_t, ClientId> owed_;
  std::map<std::uint64_t, std::pair<ClientId, DeviceId>> waiting_;
  std::map<std::pair<ClientId, DeviceId>, unsigned> process_;
  std::map<ActionId, unsigned> asked_of_;
  std::set<Key> mapped_;
  std::string problem_;
};

[[noreturn]] void throw_check(const char* message) { throw std::runtime_error(message); }

/// What went wrong; empty: nothing.
std::string run(const Terms& terms, PlantedBug bug, std::uint64_t seed) {
  Config config = buffer_config(terms.budget, terms.store);
  config.vram_pages = 2 * block_pages;
  config.granularity_pages = terms.granularity;
  config.models[0].policy = terms.policy;
  config.models[1].policy = terms.policy;
  config.bug = bug;
  set_check_catcher(throw_check);
  std::string problem;
  try {
    World world(config, seed);
    for (unsigned i = 0; i < 300 && world.problem().empty(); ++i) {
      world.step();
    }
    if (world.problem().empty()) {
      world.finish();
    }
    problem = world.problem();
  } catch (const std::runtime_error& failed) {
    problem = failed.what();
  }
  set_check_catcher(nullptr);
  return problem;
}

class BufferRandom : public ::testing::TestWithParam<Terms> {};

TEST_P(BufferRandom, nothing_is_lost_and_nothing_waits_for_ever) {
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    ASSERT_EQ(run(GetParam(), PlantedBug::none, seed), "") << "seed " << seed;
  }
}

class BufferRandomBug : public ::testing::TestWithParam<PlantedBug> {};

TEST_P(BufferRandomBug, is_found) {
  std::string found;
  for (std::uint64_t seed = 1; seed <= 40 && found.empty(); ++seed) {
    found = run({96, 4096, Policy::preempt, 16}, GetParam(), seed);
  }
  EXPECT_NE(found, "");
}

INSTANTIATE_TEST_SUITE_P(All, BufferRandomBug,
                         ::testing::Values(PlantedBug::forget_fence_waiter, PlantedBug::skip_shared_fence,
                                           PlantedBug::evict_busy_buffer, PlantedBug::userptr_keeps_old,
                                           PlantedBug::signal_before_done),
                         [](const auto& info) { return std::string(to_string(info.param)); });

INSTANTIATE_TEST_SUITE_P(All, BufferRandom,
                         ::testing::Values(Terms{0, 0, Policy::preempt, 512}, Terms{0, 0, Policy::preempt, 8},
                                           Terms{96, 4096, Policy::preempt, 8}, Terms{96, 64, Policy::none, 8},
                                           Terms{64, 0, Policy::preempt, 8}, Terms{96, 4096, Policy::query, 8},
                                           Terms{96, 4096, Policy::track, 8}, Terms{128, 4096, Policy::pinned, 8}),
                         [](const auto& info) { return "setup_" + std::to_string(info.index); });

}  // namespace
}  // namespace ferry::core::test

// Explorers go on from only one of two states with equal digests: so whatever happens next must have the same outcome in
// both. Random walks meet the same states by many ways; each event's outcome there is remembered and compared.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <unordered_map>
#include <vector>

#include "base/random.h"
#include "core/core.h"
#include "core/digest.h"

namespace ferry::core {
namespace {

constexpr Page pages = 2 * block_pages;

std::uint64_t digest_of(const Action& a) {
  Digest d;
  d.add(a.id != 0 ? 1 : 0).add(static_cast<std::uint64_t>(a.verb)).add(static_cast<std::uint64_t>(a.place));
  d.add(static_cast<std::uint64_t>(a.prot)).add(static_cast<std::uint64_t>(a.cause)).add(a.device).add(a.client);
  d.add(a.pages).add(a.vram_first).add(a.has_token ? 1 + a.token.value : 0).add(a.cookie.value).add(a.status);
  return d.value();
}

/// A core and its machine; what may happen next is numbered by what it is, not by when it was asked for.
class Walker {
 public:
  explicit Walker(const Config& config) : core_(config), granules_(pages / config.granularity_pages) {
    granule_pages_ = config.granularity_pages;
    core_.client_open(1);
    core_.device_attach(1, 0);
    EXPECT_TRUE(core_.alloc(now_, 1, {0, block_pages}, Placement::automatic).ok());
    EXPECT_TRUE(core_.alloc(now_, 1, {block_pages, block_pages}, Placement::automatic).ok());
    allocated_ = {true, true};
    take();
  }

  [[nodiscard]] std::uint64_t state() const {
    Digest d;
    d.add(core_.digest());
    SetDigest answers;
    for (const Action& a : open_) {
      answers.add(digest_of(a));
    }
    d.add(answers.value());
    for (const std::uint64_t token : parked_) {
      d.add(token);
    }
    return d.add(allocated_[0] ? 1 : 0).add(allocated_[1] ? 1 : 0).add(freeing_ ? 1 : 0).value();
  }

  /// Events: answers, well or badly, in the order of their contents; then faults of each granule; then requests.
  [[nodiscard]] std::uint64_t event_count() const { return 2 * open_.size() + 3 * granules_ + 4; }

  /// What the core did. `event` below event_count().
  std::uint64_t happen(std::uint64_t event) {
    if (event < 2 * open_.size()) {
      answer(event / 2, event % 2 == 1);
    } else if ((event -= 2 * open_.size()) < 3 * granules_) {
      touch(event / 3, event % 3);
    } else {
      request(event - 3 * granules_);
    }
    return take();
  }

 private:
  /// The core's time moves only when it is called.
  std::uint64_t later() { return now_ += 1000; }

  void answer(std::uint64_t which, bool badly) {
    const Action a = open_[which];
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(which));
    const bool can_fail = a.verb == Verb::copy || a.verb == Verb::store || a.verb == Verb::load;
    const Status status = badly && can_fail ? Status(Code::io_error) : Status();
    if (a.verb == Verb::map_device && a.has_token) {
      parked_.erase(a.token.value);
    }
    core_.action_done(later(), a.id, status);
  }

  void touch(std::uint64_t granule, std::uint64_t how) {
    const Page page = granule * granule_pages_ + 1;
    if (how == 2) {
      core_.cpu_fault(later(), 1, page, Access::write);
    } else if (const std::uint64_t token = granule * 2 + how; parked_.insert(token).second) {
      core_.device_fault(later(), 1, 0, page, how == 1 ? Access::write : Access::read, FaultToken{token});
    }
  }

  void request(std::uint64_t which) {
    const PageSpan span{(which % 2) * block_pages, block_pages};
    if (which >= 2) {
      core_.pressure(later(), which == 2 ? granule_pages_ : 0);
      core_.tick(now_);
    } else if (!allocated_[which]) {
      allocated_[which] = core_.alloc(later(), 1, span, Placement::automatic).ok();
    } else if (!freeing_) {
      freeing_ = core_.free(later(), 1, span, Cookie{which}).ok();
    }
  }

  std::uint64_t take() {
    SetDigest did;
    core_.take_actions(taken_);
    for (const Action& a : taken_) {
      did.add(digest_of(a));
      if (a.id != 0) {
        open_.push_back(a);
      } else if (a.verb == Verb::wake_wave) {
        parked_.erase(a.token.value);
      } else if (a.verb == Verb::reply) {
        allocated_[a.cookie.value] = false;
        freeing_ = false;
      }
    }
    std::sort(open_.begin(), open_.end(), [](const Action& a, const Action& b) { return digest_of(a) < digest_of(b); });
    return did.value();
  }

  Core core_;
  std::uint64_t granules_;
  unsigned granule_pages_ = 0;
  std::uint64_t now_ = 1;
  std::vector<Action> open_;
  std::vector<Action> taken_;
  std::set<std::uint64_t> parked_;
  std::vector<bool> allocated_;
  bool freeing_ = false;
};

struct Case {
  const char* name;
  std::uint64_t system_pages;
  unsigned contention;
  unsigned speculation;
};

class DigestWalkTest : public ::testing::TestWithParam<Case> {};

TEST_P(DigestWalkTest, equal_states_have_equal_futures) {
  Config config;
  config.granularity_pages = block_pages / 2;
  config.vram_pages = block_pages;
  config.system_pages = GetParam().system_pages;
  config.store_pages = 3 * block_pages / 2;
  config.contention_threshold = GetParam().contention;
  config.contention_window_ns = 20'000;
  config.contention_hold_ns = 30'000;
  config.speculation_granules = GetParam().speculation;
  config.copy_retries = 1;

  struct Outcome {
    std::uint64_t did;
    std::uint64_t state;
  };
  std::unordered_map<std::uint64_t, Outcome> known;
  std::uint64_t met_again = 0;
  Random random(7);
  for (unsigned walk = 0; walk < 4000; ++walk) {
    Walker walker(config);
    std::uint64_t state = walker.state();
    for (unsigned step = 0; step < 40; ++step) {
      // Mostly good answers, so that walks get somewhere.
      std::uint64_t event = random.below(walker.event_count());
      if (random.chance(600) && walker.event_count() > 3 * 4 + 4) {
        event = 2 * random.below((walker.event_count() - 3 * 4 - 4) / 2);
      }
      const std::uint64_t key = Digest().add(state).add(event).value();
      const std::uint64_t did = walker.happen(event);
      state = walker.state();
      const auto [it, is_new] = known.emplace(key, Outcome{did, state});
      if (!is_new) {
        ++met_again;
        ASSERT_EQ(it->second.did, did) << "walk " << walk << " step " << step << " event " << event;
        ASSERT_EQ(it->second.state, state) << "walk " << walk << " step " << step << " event " << event;
      }
    }
  }
  EXPECT_GT(met_again, 10'000U) << "states must be met by more than one way";
}

INSTANTIATE_TEST_SUITE_P(All, DigestWalkTest,
                         ::testing::Values(Case{"plain", 0, 0, 0}, Case{"policies", 0, 2, 2},
                                           Case{"budget", block_pages, 0, 0},
                                           Case{"budget_and_policies", block_pages + 100, 2, 2}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace ferry::core

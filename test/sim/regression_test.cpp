// Bugs of the core that the simulator found, each as the shortest story that shows it: unlike a seed, it stays the same
// story when the simulator draws other numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "core/core.h"

namespace ferry::core {
namespace {

constexpr ClientId client = 1;
constexpr DeviceId device = 0;
constexpr Page first = 5 * block_pages;

class RegressionTest : public ::testing::Test {
 protected:
  explicit RegressionTest(std::uint64_t vram_pages = 2 * block_pages) {
    Config config;
    config.vram_pages = vram_pages;
    config.granularity_pages = 16;
    config.speculation_granules = 0;
    config.copy_retries = 0;
    core = std::make_unique<Core>(config);
    core->client_open(client);
    core->device_attach(client, device);
  }

  /// Takes what the core asks for now; actions that want an answer wait in `open`.
  void take() {
    std::vector<Action> taken;
    core->take_actions(taken);
    for (const Action& a : taken) (a.id != 0 ? open : told).push_back(a);
  }
  /// Answers the only open action with the verb.
  Action answer(Verb verb, Status status = {}) {
    take();
    const auto it = std::find_if(open.begin(), open.end(), [&](const Action& a) { return a.verb == verb; });
    if (it == open.end()) {
      ADD_FAILURE() << "the core did not ask for " << to_string(verb);
      return {};
    }
    const Action a = *it;
    open.erase(it);
    core->action_done(++now, a.id, status);
    take();
    return a;
  }
  void answer_all() {
    take();
    while (!open.empty()) {
      const Action a = open.front();
      open.erase(open.begin());
      core->action_done(++now, a.id, {});
      take();
    }
  }
  void fault(Page page, std::uint64_t token, Access access = Access::read) {
    core->device_fault(++now, client, device, page, access, {token});
    take();
  }
  /// The wake of a token, or null.
  const Action* wake_of(std::uint64_t token) const {
    const auto it = std::find_if(told.begin(), told.end(),
                                 [&](const Action& a) { return a.verb == Verb::wake_wave && a.token.value == token; });
    return it == told.end() ? nullptr : &*it;
  }
  bool replied(std::uint64_t cookie) const {
    return std::any_of(told.begin(), told.end(),
                       [&](const Action& a) { return a.verb == Verb::reply && a.cookie.value == cookie; });
  }
  bool asks_for(Verb verb) const {
    return std::any_of(open.begin(), open.end(), [&](const Action& a) { return a.verb == verb; });
  }

  std::unique_ptr<Core> core;
  std::uint64_t now = 1;
  std::vector<Action> open;
  std::vector<Action> told;
};

class NoVramTest : public RegressionTest {
 protected:
  NoVramTest() : RegressionTest(0) {}
};

TEST_F(NoVramTest, FailedInPlaceMapIsTriedAgainByTheNextFault) {
  ASSERT_TRUE(core->alloc(now, client, {first, 16}, Placement::automatic).ok());
  fault(first, 1);
  answer(Verb::map_device, Code::no_memory);
  answer(Verb::revoke_device);
  ASSERT_NE(wake_of(1), nullptr);
  EXPECT_EQ(wake_of(1)->status.code, Code::no_memory);
  // The page is not mapped, so a wake would only bring the same fault back.
  fault(first, 2);
  EXPECT_EQ(wake_of(2), nullptr);
  EXPECT_TRUE(asks_for(Verb::map_device));
  answer_all();
  EXPECT_TRUE(core->quiescent());
}

TEST_F(RegressionTest, PagesFreedBeforeTheirBlockWasMadeCanBeUsedAgain) {
  const PageSpan freed{first, 4};
  ASSERT_TRUE(core->alloc(now, client, freed, Placement::automatic).ok());
  ASSERT_TRUE(core->alloc(now, client, {first + 8, 4}, Placement::automatic).ok());
  ASSERT_TRUE(core->free(now, client, freed, {7}).ok());
  take();
  fault(first + 8, 1);  // makes the block while the free waits for its discard
  answer(Verb::discard_system);
  answer_all();
  ASSERT_TRUE(replied(7));
  ASSERT_TRUE(core->alloc(now, client, freed, Placement::automatic).ok());
  fault(first + 1, 2);
  if (const Action* wake = wake_of(2)) {
    EXPECT_TRUE(wake->status.ok()) << to_string(wake->status.code);
  }
  answer_all();
  core->verify();
}

TEST_F(RegressionTest, StateHoldsWhileADeadClientsChunksAreReleased) {
  ASSERT_TRUE(core->alloc(now, client, {first, 16}, Placement::automatic).ok());
  fault(first, 1, Access::write);
  answer_all();
  core->device_gone(++now, client, device);
  core->client_gone(++now, client, {9});
  take();
  ASSERT_TRUE(asks_for(Verb::release_chunk));
  core->verify();
  EXPECT_FALSE(replied(9));
  answer(Verb::release_chunk);
  EXPECT_TRUE(replied(9));
  EXPECT_TRUE(core->quiescent());
}

TEST_F(RegressionTest, CpuWaitersOfADeadClientAreNotMissed) {
  ASSERT_TRUE(core->alloc(now, client, {first, 16}, Placement::automatic).ok());
  fault(first, 1);
  core->cpu_fault(++now, client, first, Access::read);  // waits for the migration
  core->client_gone(++now, client, {9});                // its device has not been reported yet
  answer_all();
  core->verify();
  core->device_gone(++now, client, device);
  answer_all();
  EXPECT_TRUE(replied(9));
}

TEST_F(RegressionTest, WavesOfANewDeviceProcessOutliveAnswersOfTheFormer) {
  ASSERT_TRUE(core->alloc(now, client, {first, 16}, Placement::automatic).ok());
  fault(first, 1);
  answer(Verb::revoke_cpu);
  answer(Verb::copy);
  ASSERT_TRUE(asks_for(Verb::map_device));
  core->device_gone(++now, client, device);
  core->device_attach(client, device);
  fault(first, 2);  // joins the operation that still waits for the former process
  answer(Verb::map_device, Code::device_lost);
  const bool carried = std::any_of(open.begin(), open.end(), [](const Action& a) {
    return a.verb == Verb::map_device && a.has_token && a.token.value == 2;
  });
  EXPECT_TRUE(carried || wake_of(2) != nullptr);
  EXPECT_EQ(wake_of(1), nullptr);
  answer_all();
  EXPECT_TRUE(core->quiescent());
}

TEST_F(RegressionTest, PagesPlacedInSystemMemoryStayThereWhenANeighbourFaults) {
  ASSERT_TRUE(core->alloc(now, client, {first, 4}, Placement::system).ok());
  ASSERT_TRUE(core->alloc(now, client, {first + 4, 12}, Placement::automatic).ok());
  fault(first + 4, 1);
  answer_all();
  EXPECT_EQ(core->query(client, first).vram_device, no_device);
}

TEST_F(RegressionTest, ClientsStatisticsCountFailures) {
  ASSERT_TRUE(core->alloc(now, client, {first, 16}, Placement::automatic).ok());
  fault(first + 100, 1);  // not allocated
  fault(first, 2);
  answer(Verb::revoke_cpu);
  answer(Verb::copy, Code::io_error);
  answer_all();
  EXPECT_EQ(core->client_stats(client).faults_failed, 1U);
  EXPECT_EQ(core->client_stats(client).copy_errors, 1U);
}

/// Loads into a granule that has got VRAM fail; meanwhile its chunk is being emptied for another client.
class EmptySlotTest : public RegressionTest {
 protected:
  static constexpr ClientId other = 2;
  void story(PlantedBug bug) {
    Config config;
    config.vram_pages = block_pages;
    config.granularity_pages = block_pages / 2;
    config.system_pages = 8 * block_pages;
    config.store_pages = 8 * block_pages;
    config.speculation_granules = 0;
    config.copy_retries = 0;
    config.bug = bug;
    core = std::make_unique<Core>(config);
    for (const ClientId id : {client, other}) {
      core->client_open(id);
      core->device_attach(id, device);
      ASSERT_TRUE(core->alloc(now, id, {first, block_pages}, Placement::automatic).ok());
    }
    core->cpu_fault(++now, client, first, Access::write);
    answer_all();
    core->pressure(++now, block_pages);
    answer_all();
    ASSERT_TRUE(core->query(client, first).stored);
    fault(first + block_pages / 2, 3);
    answer_all();
    fault(first, 1);
    ASSERT_TRUE(asks_for(Verb::load));
    core->device_fault(++now, other, device, first, Access::read, {2});
    take();
    ASSERT_TRUE(asks_for(Verb::revoke_device)) << "the chunk is being emptied";
    answer(Verb::load, Code::io_error);
    ASSERT_NE(wake_of(1), nullptr);
    EXPECT_EQ(wake_of(1)->status.code, Code::io_error);
  }
};

TEST_F(EmptySlotTest, VramThatNothingCameIntoIsGivenBackToWhoeverWaits) {
  story(PlantedBug::none);
  core->verify();
  answer_all();
  EXPECT_TRUE(core->quiescent());
  EXPECT_EQ(core->query(other, first).vram_device, device);
}

TEST_F(EmptySlotTest, ASlotThatIsKeptForNothingIsFound) {
  story(PlantedBug::keep_empty_slot);
  EXPECT_DEATH(core->verify(), "verify.cpp");
}

}  // namespace
}  // namespace ferry::core

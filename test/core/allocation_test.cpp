// The way of a fault allocates nothing once everything has its size: with and without a budget of system memory, while
// VRAM is full, and while each fault has to wait for another granule to leave. A program of its own, since it counts
// what the whole program allocates.
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>
#include <vector>

#include "core/core.h"

namespace {
std::uint64_t allocations = 0;
}  // namespace

// Not inlined, or the compiler sees malloc() paired with delete and complains.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes)) {
    return p;
  }
  std::abort();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace ferry::core {
namespace {

constexpr unsigned blocks = 12;

/// Faults of a wave and of a CPU thread in turn, over three times what fits; everything is answered at once.
class Program {
 public:
  explicit Program(const Config& config) : core_(config) {
    core_.client_open(1);
    core_.device_attach(1, 0);
    EXPECT_TRUE(core_.alloc(1, 1, {0, blocks * block_pages}, Placement::automatic).ok());
    actions_.reserve(4096);
    queue_.reserve(4096);
  }

  void round() {
    for (unsigned b = 0; b < blocks; ++b) {
      const Page page = Page{b} * block_pages + 3;
      core_.device_fault(++now_, 1, 0, page, Access::write, FaultToken{++token_});
      core_.device_fault(++now_, 1, 0, (page + 2 * block_pages) % (blocks * block_pages), Access::read,
                         FaultToken{++token_});
      core_.cpu_fault(++now_, 1, (page + 5 * block_pages) % (blocks * block_pages), Access::write);
      settle();
    }
  }
  [[nodiscard]] const Stats& stats() const { return core_.stats(); }

 private:
  void settle() {
    for (;;) {
      core_.take_actions(actions_);
      for (const Action& action : actions_) {
        if (action.id != 0) {
          queue_.push_back(action.id);
        }
      }
      if (queue_.empty()) {
        return;
      }
      const ActionId id = queue_.back();
      queue_.pop_back();
      core_.action_done(++now_, id, {});
    }
  }

  Core core_;
  std::vector<Action> actions_;
  std::vector<ActionId> queue_;
  std::uint64_t now_ = 1;
  std::uint64_t token_ = 0;
};

class AllocationTest : public ::testing::TestWithParam<std::uint64_t> {};

TEST_P(AllocationTest, faults_allocate_nothing_in_the_long_run) {
  Config config;
  config.vram_pages = 4 * block_pages;
  config.contention_threshold = 0;
  config.leave = LeaveKind::never;  // it is evictions that are to be seen
  config.system_pages = GetParam() * block_pages;
  config.store_pages = 1000 * block_pages;
  Program program(config);
  for (unsigned i = 0; i < 100; ++i) {
    program.round();
  }
  const std::uint64_t stored = program.stats().pages_to_store;
  const std::uint64_t before = allocations;
  for (unsigned i = 0; i < 20; ++i) {
    program.round();
  }
  EXPECT_EQ(allocations - before, 0U);
  EXPECT_GT(program.stats().evictions, 100U) << "or nothing was tried";
  EXPECT_EQ(program.stats().pages_to_store > stored, GetParam() != 0);
}

INSTANTIATE_TEST_SUITE_P(Budgets, AllocationTest, ::testing::Values(0, 3, 6),
                         [](const auto& info) { return std::to_string(info.param) + "_blocks"; });

}  // namespace
}  // namespace ferry::core

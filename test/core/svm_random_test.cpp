// Attributes of every kind at once, and bugs that break what must hold.
#include "base/random.h"
#include "svm_machine.h"

namespace ferry::core::test {
namespace {

// --- what the checks are worth ---------------------------------------------------------------------------------------

/// Each breaks an invariant that verify() looks at, in a story that any other core survives.
class SvmBug : public testing::TestWithParam<PlantedBug> {};

TEST_P(SvmBug, is_found_by_verify) {
  const auto story = [](PlantedBug bug) {
    Config config = Asked::config(1, block_pages);
    config.bug = bug;
    Machine m(config);
    (void)m.core.alloc(1, 1, {0, 16}, Placement::automatic);
    unsigned wrong = 0;
    (void)m.core.svm_set(2, 1, {0, 4}, {flags(svm_gpu_ro)}, Cookie{1}, wrong);
    m.fault(8, Access::write);
    m.settle();
    (void)m.core.svm_set(3, 1, {8, 4}, {access_of(0, DeviceAccess::none)}, Cookie{2}, wrong);
    m.settle();
    (void)m.core.free(4, 1, {0, 16}, Cookie{3});
    m.settle();
  };
  story(PlantedBug::none);
  EXPECT_DEATH(story(GetParam()), "verify");
}

INSTANTIATE_TEST_SUITE_P(All, SvmBug,
                         testing::Values(PlantedBug::keep_lost_access, PlantedBug::write_map_read_only,
                                         PlantedBug::leak_attributes),
                         [](const auto& info) { return to_string(info.param); });

// --- everything at once ----------------------------------------------------------------------------------------------

/// Random attributes on random pages while devices and the CPU touch them and memory comes and goes: what a device maps
/// is what it may, whenever nothing is under way (verify() looks after each answer), and everybody is answered.
TEST(SvmAttribute, random_requests_and_touches) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Random random(seed);
    Asked m(3, seed % 2 == 0 ? 64 : block_pages);
    std::uint64_t asked = 0;
    std::vector<std::uint64_t> cookies;
    std::vector<std::uint64_t> tokens;
    for (unsigned step = 0; step < 400; ++step) {
      const Page page = random.below(all.count_pages);
      const PageSpan span{page, 1 + random.below(std::min<std::uint64_t>(300, all.count_pages - page))};
      const auto device = static_cast<DeviceId>(random.below(3));
      switch (random.below(6)) {
        case 0:
        case 1: {
          std::vector<Attribute> changes;
          for (unsigned i = 0; i < 1 + random.below(3); ++i) {
            switch (random.below(6)) {
              case 0: changes.push_back(preferred(random.chance(500) ? device : loc_undefined)); break;
              case 1: changes.push_back(prefetched(random.chance(700) ? device : loc_system)); break;
              case 2: changes.push_back(access_of(device, static_cast<DeviceAccess>(random.below(3)))); break;
              case 3: changes.push_back(flags(static_cast<std::uint32_t>(random.below(256)))); break;
              case 4: changes.push_back(no_flags(static_cast<std::uint32_t>(random.below(256)))); break;
              default: changes.push_back(window(static_cast<std::uint32_t>(random.below(11)))); break;
            }
          }
          if (m.ask(span, changes, ++asked).ok()) {
            cookies.push_back(asked);
          }
          break;
        }
        case 2:
          m.fault(page, random.chance(500) ? Access::write : Access::read, ++m.last_token, device);
          tokens.push_back(m.last_token);
          break;
        case 3: m.cpu(page); break;
        case 4:
          if (random.chance(200)) {
            if (m.core.free(++m.now, 1, span, Cookie{++asked}).ok()) {
              cookies.push_back(asked);
            }
            m.take();
          } else if (random.chance(200)) {
            (void)m.core.alloc(++m.now, 1, span, Placement::automatic);
          }
          break;
        default:
          for (unsigned i = 0; i < random.below(20) && !m.open.empty(); ++i) {
            m.answer(m.open[random.below(m.open.size())].verb);
          }
      }
      m.core.verify();
    }
    m.settle();
    EXPECT_TRUE(m.core.quiescent()) << "seed " << seed;
    for (const std::uint64_t cookie : cookies) {
      EXPECT_TRUE(m.replied(cookie)) << "seed " << seed << ", request " << cookie;
    }
    for (const std::uint64_t token : tokens) {
      EXPECT_TRUE(m.went_on(token) || m.woken(token)) << "seed " << seed << ", wave " << token;
    }
  }
}

}  // namespace
}  // namespace ferry::core::test

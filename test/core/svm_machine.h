// What tests of attributes share: a Machine that sets and reads them, and the lines of a SET.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>

#include "machine.h"

namespace ferry::core::test {

inline constexpr PageSpan all{0, 4 * block_pages};
using Type = AttributeType;

inline Attribute access_of(DeviceId device, DeviceAccess access) {
  return {Type::access, device, static_cast<std::uint32_t>(access)};
}
inline Attribute preferred(std::uint32_t location) { return {Type::preferred_loc, no_device, location}; }
inline Attribute prefetched(std::uint32_t location) { return {Type::prefetch_loc, no_device, location}; }
inline Attribute flags(std::uint32_t set) { return {Type::set_flags, no_device, set}; }
inline Attribute no_flags(std::uint32_t cleared) { return {Type::clr_flags, no_device, cleared}; }
inline Attribute window(std::uint32_t log2) { return {Type::granularity, no_device, log2}; }

class Asked : public Machine {
 public:
  explicit Asked(unsigned devices = 2, unsigned granule = block_pages) : Machine(config(devices, granule)) {
    EXPECT_TRUE(core.alloc(1, 1, all, Placement::automatic).ok());
  }
  explicit Asked(const Config& config) : Machine(config) {
    EXPECT_TRUE(core.alloc(1, 1, all, Placement::automatic).ok());
  }
  static Config config(unsigned devices, unsigned granule) {
    Config config = plain_config();
    config.device_count = devices;
    config.granularity_pages = granule;
    return config;
  }
  /// Asks, and does not answer what follows.
  Status ask(PageSpan span, const std::vector<Attribute>& changes, std::uint64_t cookie = 7) {
    const Status status = core.svm_set(++now, 1, span, changes, Cookie{cookie}, wrong);
    take();
    return status;
  }
  void set(PageSpan span, const std::vector<Attribute>& changes) {
    const std::uint64_t cookie = ++last_cookie;
    ASSERT_TRUE(ask(span, changes, cookie).ok()) << "line " << wrong;
    settle();
    ASSERT_EQ(replied(cookie), Status());
  }
  std::uint32_t get(PageSpan span, Type type, DeviceId device = no_device) {
    std::vector<Attribute> queries{{type, device, 0}};
    EXPECT_TRUE(core.svm_get(1, span, queries, wrong).ok());
    return queries[0].value;
  }
  /// A touch that is served or fails. Its status.
  Status touch(Page page, Access access = Access::read, DeviceId device = 0) {
    const std::uint64_t token = ++last_token;
    fault(page, access, token, device);
    settle();
    EXPECT_TRUE(went_on(token) || woken(token));
    return went_on(token) ? Status() : woken(token).value_or(Code::timed_out);
  }
  /// What the CPU thread was told: ok too if it was mapped.
  Status cpu_touch(Page page) {
    said.clear();
    cpu(page);
    settle();
    for (const Action& action : said) {
      if (action.verb == Verb::wake_cpu && action.pages.contains(page)) {
        return action.status;
      }
    }
    EXPECT_TRUE(at(page).cpu_may_map);
    return {};
  }
  /// The mapping action of the page that is open, answered later.
  [[nodiscard]] const Action* mapping(Page page) const {
    const auto it = std::find_if(open.begin(), open.end(), [page](const Action& a) {
      return a.verb == Verb::map_device && a.pages.contains(page);
    });
    return it == open.end() ? nullptr : &*it;
  }
  unsigned wrong = 0;
  std::uint64_t last_cookie = 100'000;
};

}  // namespace ferry::core::test

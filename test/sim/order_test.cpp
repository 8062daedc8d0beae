// Which pairs of actions may be in flight together (I-18).
#include "sim/order.h"

#include <gtest/gtest.h>

namespace ferry::sim {
namespace {
using core::Action;
using core::Place;
using core::Verb;

Action make(Verb verb, PageSpan pages, DeviceId device = 0, Place place = Place::system, VramPage vram_first = 0) {
  Action a;
  a.id = 1;
  a.verb = verb;
  a.pages = pages;
  a.device = device;
  a.place = place;
  a.vram_first = vram_first;
  return a;
}

constexpr PageSpan here{100, 10};
constexpr PageSpan there{110, 10};

void expect_pair(bool matters, const Action& a, const Action& b) {
  EXPECT_EQ(order_matters(a, b), matters) << core::to_string(a.verb) << ", " << core::to_string(b.verb);
  EXPECT_EQ(order_matters(b, a), matters) << core::to_string(b.verb) << ", " << core::to_string(a.verb);
}

TEST(OrderTest, SameTableSamePages) {
  expect_pair(true, make(Verb::revoke_cpu, here), make(Verb::map_cpu, here));
  expect_pair(true, make(Verb::revoke_device, here), make(Verb::map_device, here));
  expect_pair(true, make(Verb::map_device, here), make(Verb::map_device, here));
}

TEST(OrderTest, OtherPagesOrOtherTables) {
  expect_pair(false, make(Verb::revoke_cpu, here), make(Verb::map_cpu, there));
  expect_pair(false, make(Verb::revoke_device, here, 0), make(Verb::map_device, here, 1));
  expect_pair(false, make(Verb::revoke_cpu, here), make(Verb::revoke_device, here));
}

TEST(OrderTest, OverlapByOnePageIsEnough) {
  expect_pair(true, make(Verb::revoke_cpu, here), make(Verb::map_cpu, {109, 1}));
  expect_pair(false, make(Verb::revoke_cpu, here), make(Verb::map_cpu, {110, 1}));
}

TEST(OrderTest, CopyAgainstRevokeOfItsSource) {
  expect_pair(true, make(Verb::copy, here, 0, Place::system), make(Verb::revoke_cpu, here));
  expect_pair(true, make(Verb::copy, here, 0, Place::vram), make(Verb::revoke_device, here, 0));
  expect_pair(true, make(Verb::copy, here, 0, Place::vram), make(Verb::revoke_device, here, 1));  // over a link
  expect_pair(false, make(Verb::copy, here, 0, Place::vram), make(Verb::revoke_device, there, 0));
  expect_pair(false, make(Verb::copy, here, 0, Place::system), make(Verb::revoke_device, here, 1));
}

TEST(OrderTest, DirectCopyAgainstUseOfItsTarget) {
  auto direct = make(Verb::copy, here, 0, Place::vram);
  direct.to = Place::vram;
  direct.to_device = 1;
  direct.vram_to = 0;
  expect_pair(true, direct, make(Verb::map_device, here, 1, Place::vram));
  expect_pair(true, direct, make(Verb::copy, there, 1, Place::system));
  expect_pair(false, direct, make(Verb::map_device, here, 2, Place::vram));
  auto linked = make(Verb::map_device, here, 2, Place::vram);
  linked.owner = 1;
  expect_pair(true, direct, linked);
  expect_pair(true, direct, make(Verb::release_chunk, here, 1));
  expect_pair(false, direct, make(Verb::release_chunk, here, 2));
}

TEST(OrderTest, CopyAgainstMapOfItsTarget) {
  expect_pair(true, make(Verb::copy, here, 0, Place::system), make(Verb::map_device, here, 0, Place::vram));
  expect_pair(true, make(Verb::copy, here, 0, Place::vram), make(Verb::map_cpu, here));
  expect_pair(true, make(Verb::copy, here, 0, Place::vram), make(Verb::map_device, here, 1, Place::system));
}

TEST(OrderTest, StoreAgainstWhatChangesItsSource) {
  expect_pair(true, make(Verb::store, here), make(Verb::revoke_cpu, here));
  expect_pair(true, make(Verb::store, here), make(Verb::map_cpu, here));
  expect_pair(true, make(Verb::store, here), make(Verb::revoke_device, here, 1));
  expect_pair(true, make(Verb::store, here), make(Verb::map_device, here, 1, Place::system));
  expect_pair(true, make(Verb::store, here), make(Verb::discard_system, here));
  expect_pair(false, make(Verb::store, here), make(Verb::map_device, here, 1, Place::vram));
  expect_pair(false, make(Verb::store, here), make(Verb::discard_system, there));
}

TEST(OrderTest, LoadAgainstWhatUsesItsTarget) {
  expect_pair(true, make(Verb::load, here), make(Verb::map_cpu, here));
  expect_pair(true, make(Verb::load, here), make(Verb::copy, here, 0, Place::system));
  expect_pair(true, make(Verb::load, here), make(Verb::discard_store, here));
  expect_pair(true, make(Verb::store, here), make(Verb::load, here));
  expect_pair(false, make(Verb::discard_store, here), make(Verb::map_cpu, here));
}

TEST(OrderTest, TwoCopiesOfOneVramPage) {
  expect_pair(true, make(Verb::copy, here, 0, Place::vram, 50), make(Verb::copy, there, 0, Place::system, 59));
  expect_pair(false, make(Verb::copy, here, 0, Place::vram, 50), make(Verb::copy, there, 0, Place::system, 60));
  expect_pair(false, make(Verb::copy, here, 0, Place::vram, 50), make(Verb::copy, there, 1, Place::system, 50));
}

TEST(OrderTest, ReleaseAgainstUse) {
  const Action release = make(Verb::release_chunk, {}, 0, Place::vram, block_pages);
  expect_pair(true, release, make(Verb::copy, here, 0, Place::vram, 2 * block_pages - 1));
  expect_pair(true, release, make(Verb::map_device, here, 0, Place::vram, block_pages));
  expect_pair(false, release, make(Verb::copy, here, 0, Place::vram, 2 * block_pages));
  expect_pair(false, release, make(Verb::copy, here, 1, Place::vram, block_pages));
  expect_pair(true, release, release);
}

TEST(OrderTest, DiscardAgainstUseOfSystemPages) {
  const Action discard = make(Verb::discard_system, here, no_device);
  expect_pair(true, discard, make(Verb::map_cpu, here));
  expect_pair(true, discard, make(Verb::copy, here, 0, Place::system));
  expect_pair(true, discard, make(Verb::copy, here, 0, Place::vram));
  expect_pair(true, discard, make(Verb::map_device, here, 0, Place::system));
  expect_pair(false, discard, make(Verb::map_device, here, 0, Place::vram));
  expect_pair(false, discard, make(Verb::copy, there, 0, Place::vram));
}

}  // namespace
}  // namespace ferry::sim

#include "manager/trace.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "base/random.h"
#include "program.h"

namespace ferry::manager {
namespace {

using core::Cause;
using core::Event;
using core::EventKind;
using core::Place;
using Json = nlohmann::json;

Event event(std::uint64_t time_ns, EventKind kind, Page page = 0, std::uint64_t count = 1, Place to = Place::vram,
            Cause cause = Cause::device_fault) {
  return {.time_ns = time_ns,
          .kind = kind,
          .cause = cause,
          .to = to,
          .access = Access::write,
          .device = 0,
          .client = 1,
          .pages = {page, count}};
}

std::vector<Json> with_phase(const Trace& trace, std::uint64_t now, const std::string& phase) {
  std::vector<Json> out;
  const Json document = Json::parse(trace.text(now));
  for (const Json& e : document["traceEvents"]) {
    if (e["ph"] == phase) out.push_back(e);
  }
  return out;
}

void expect_accepted(const Trace& trace, std::uint64_t now) {
  const test::TemporaryFolder folder;
  const std::string path = folder.file("trace.json");
  ASSERT_TRUE(trace.write(path, now).ok());
  const auto checked =
      test::run({.arguments = {FERRY_TEST_PYTHON, FERRY_TEST_SOURCE_DIR "/scripts/check_trace.py", path}});
  EXPECT_EQ(checked.status, 0) << checked.err;
}

TEST(Trace, AnEmptyOneIsATrace) { expect_accepted(Trace(0), 10); }

TEST(Trace, AMigrationIsOneSliceWithItsCause) {
  Trace trace(1000);
  trace.name_client(1, "t", 1, {0x1000000000, default_window_bytes});
  trace.on_event(event(2000, EventKind::migrate_begin, 512, 512, Place::vram, Cause::prefetch));
  trace.on_event(event(5000, EventKind::migrate_end, 512, 512, Place::vram, Cause::prefetch));
  const auto slices = with_phase(trace, 9000, "X");
  ASSERT_EQ(slices.size(), 1U);
  EXPECT_EQ(slices[0]["ts"], 1.0);
  EXPECT_EQ(slices[0]["dur"], 3.0);
  EXPECT_EQ(slices[0]["args"]["cause"], "prefetch");
  EXPECT_EQ(slices[0]["args"]["direction"], "to VRAM");
  EXPECT_EQ(slices[0]["args"]["pages"], 512);
  EXPECT_EQ(slices[0]["args"]["address"], "0x1000200000");
  EXPECT_FALSE(slices[0]["args"].contains("unfinished"));
  expect_accepted(trace, 9000);
}

TEST(Trace, MigrationsAtOnceGetLanesOfTheirOwn) {
  Trace trace(0);
  for (Page page = 0; page < 5; ++page) trace.on_event(event(10 + page, EventKind::migrate_begin, page * 512, 512));
  for (Page page = 0; page < 4; ++page) trace.on_event(event(100 + page, EventKind::migrate_end, page * 512, 512));
  trace.on_event(event(200, EventKind::migrate_begin, 0, 512));
  trace.on_event(event(300, EventKind::migrate_end, 0, 512));
  const auto slices = with_phase(trace, 1000, "X");
  ASSERT_EQ(slices.size(), 6U);
  std::set<int> lanes;
  for (const Json& slice : slices) lanes.insert(slice["tid"].get<int>());
  EXPECT_EQ(lanes.size(), 5U) << "the sixth takes a lane that is free again";
  EXPECT_TRUE(slices[5]["args"]["unfinished"].get<bool>());
  expect_accepted(trace, 1000);
}

TEST(Trace, SvmEventsSayWhatAUserIsTold) {
  Trace trace(0);
  auto end = event(3, EventKind::device_fault_end, 7);
  end.status = Code::kernel_fault;
  trace.on_event(end);
  trace.on_event(event(4, EventKind::cpu_fault_end, 7));
  trace.on_event(event(5, EventKind::queue_eviction, 0, 0, Place::vram, Cause::preempted));
  trace.on_event(event(6, EventKind::queue_restore, 0, 0));
  trace.on_event(event(7, EventKind::unmap_device, 512, 512, Place::vram, Cause::evict));
  trace.on_event(event(8, EventKind::prefetch, 512, 512, Place::vram, Cause::prefetch));
  auto begin = event(9, EventKind::migrate_begin, 512, 512, Place::vram, Cause::prefetch);
  begin.from = 1;
  trace.on_event(begin);
  begin.kind = EventKind::migrate_end;
  begin.status = Code::io_error;
  trace.on_event(begin);
  const auto seen = with_phase(trace, 20, "i");
  ASSERT_EQ(seen.size(), 6U);
  EXPECT_EQ(seen[0]["name"], "fault end");
  EXPECT_EQ(seen[0]["args"]["error"], to_string(Code::kernel_fault));
  EXPECT_FALSE(seen[1]["args"].contains("error"));
  EXPECT_EQ(seen[2]["name"], "queue eviction");
  EXPECT_EQ(seen[2]["args"]["cause"], "preemption");
  EXPECT_EQ(seen[3]["name"], "queue restore");
  EXPECT_EQ(seen[4]["name"], "unmap");
  EXPECT_EQ(seen[4]["args"]["pages"], 512);
  EXPECT_EQ(seen[5]["name"], "prefetch");
  EXPECT_EQ(seen[5]["args"]["device"], 0);
  const auto moves = with_phase(trace, 20, "X");
  ASSERT_EQ(moves.size(), 1U);
  EXPECT_EQ(moves[0]["args"]["from_device"], 1);
  EXPECT_EQ(moves[0]["args"]["error"], to_string(Code::io_error));
}

TEST(Trace, TracksAreNamedAndApart) {
  Trace trace(0);
  trace.name_client(1, "graph\"\n", 4711);
  trace.on_event(event(1, EventKind::device_fault));
  trace.on_event(event(2, EventKind::cpu_fault));
  trace.on_event(event(3, EventKind::evict));
  trace.on_event(event(4, EventKind::alloc));
  trace.on_event(event(5, EventKind::vram_level, 0, 512));
  trace.kernel_begin(
      {.now_ns = 6, .time_ns = 6, .client = 1, .device = 0, .queue = 2, .launch = 0, .value = 9, .name = "k"});
  trace.kernel_end(
      {.now_ns = 8, .time_ns = 8, .client = 1, .device = 0, .queue = 2, .launch = 0, .value = 40, .name = {}});
  std::set<std::string> names;
  std::set<std::tuple<int, int>> named;
  std::set<std::tuple<int, int>> used;
  const Json document = Json::parse(trace.text(10));
  for (const Json& e : document["traceEvents"]) {
    if (e["ph"] != "M") used.emplace(e["pid"].get<int>(), e["tid"].get<int>());
    if (e["name"] == "thread_name") named.emplace(e["pid"].get<int>(), e["tid"].get<int>());
    if (e["name"] == "thread_name" || e["name"] == "process_name") names.insert(e["args"]["name"].get<std::string>());
  }
  for (const char* name : {"graph\"? (pid 4711)", "manager", "device 0 faults", "CPU faults", "evictions",
                           "device 0 kernels, queue 2", "memory: allocations, prefetches, pins, failures"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
  for (const auto& track : used) {
    // Counters have no thread.
    if (std::get<1>(track) != 0) {
      EXPECT_TRUE(named.contains(track)) << std::get<1>(track);
    }
  }
  const auto kernels = with_phase(trace, 10, "X");
  ASSERT_EQ(kernels.size(), 1U);
  EXPECT_EQ(kernels[0]["args"]["result"], "kernel fault");
  EXPECT_EQ(kernels[0]["args"]["waves"], 9);
  const auto counters = with_phase(trace, 10, "C");
  ASSERT_EQ(counters.size(), 1U);
  EXPECT_EQ(counters[0]["args"]["MiB"], 2.0);
  expect_accepted(trace, 10);
}

TEST(Trace, TheRingKeepsTheNewestAndCountsTheRest) {
  Trace trace(0, 100);
  for (std::uint64_t i = 0; i < 250; ++i) trace.on_event(event(i * 1000, EventKind::device_fault, i));
  EXPECT_EQ(trace.dropped(), 150U);
  const auto faults = with_phase(trace, 250'000, "i");
  ASSERT_EQ(faults.size(), 100U);
  EXPECT_EQ(faults.front()["ts"], 150.0);
  EXPECT_EQ(faults.back()["ts"], 249.0);
  EXPECT_EQ(Json::parse(trace.text(0))["otherData"]["dropped"], 150);
}

TEST(Trace, WhateverComesTheFileIsATrace) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Random random(seed);
    Trace trace(1'000'000, 2000);
    std::uint64_t now = 1'000'000;
    for (int i = 0; i < 5000; ++i) {
      now += random.below(3000);
      Event e = event(now, static_cast<EventKind>(random.below(15)), random.below(20) * 16, 16,
                      random.chance(500) ? Place::vram : Place::system, static_cast<Cause>(random.below(10)));
      e.client = static_cast<ClientId>(1 + random.below(3));
      e.device = random.chance(100) ? no_device : static_cast<DeviceId>(random.below(3));
      trace.on_event(e);
      // A device that lies about everything.
      KernelEvent k{.now_ns = now,
                    .time_ns = random.chance(300) ? random.next() : now - random.below(5000),
                    .client = e.client,
                    .device = static_cast<DeviceId>(random.below(256)),
                    .queue = static_cast<std::uint32_t>(random.below(20)),
                    .launch = random.below(4),
                    .value = random.chance(500) ? 0 : random.next(),
                    .name = random.chance(500) ? "k\"\\\x01\xff" : ""};
      if (random.chance(300)) trace.kernel_begin(k);
      if (random.chance(300)) trace.kernel_end(k);
      if (random.chance(10)) trace.device_gone(now, e.client, static_cast<DeviceId>(random.below(3)));
    }
    expect_accepted(trace, now);
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST(Trace, AFileThatCannotBeWrittenIsTold) {
  Trace trace(0);
  trace.on_event(event(1, EventKind::device_fault));
  EXPECT_EQ(trace.write("/nonexistent/trace.json", 10), Status(Code::io_error, ENOENT));
  EXPECT_EQ(trace.write("/dev/full", 10), Status(Code::no_space, ENOSPC));
}

}  // namespace
}  // namespace ferry::manager

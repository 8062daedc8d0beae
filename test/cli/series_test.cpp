#include "manager/series.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace ferry::manager {
namespace {

using core::Event;
using core::EventKind;

Event level(std::uint64_t time_ns, DeviceId device, std::uint64_t pages) {
  return {.time_ns = time_ns,
          .kind = EventKind::vram_level,
          .cause = {},
          .to = {},
          .access = {},
          .device = device,
          .client = 1,
          .pages = {0, pages}};
}

Event plain(std::uint64_t time_ns, EventKind kind, std::uint64_t pages = 1, DeviceId device = 0) {
  Event event = level(time_ns, device, pages);
  event.kind = kind;
  return event;
}

TEST(Series, StaysWithinItsBoundAndKeepsThePeak) {
  core::Stats stats;
  Series series(0, 64, 100);
  series.watch(&stats);
  Random random(1);
  std::uint64_t now = 0;
  std::uint64_t peak = 0;
  for (int i = 0; i < 100'000; ++i) {
    now += random.below(200);
    ++stats.device_faults;
    const std::uint64_t pages = random.below(10'000);
    peak = std::max(peak, pages);
    series.on_event(level(now, 0, pages));
  }
  const auto samples = series.samples(now);
  ASSERT_LE(samples.size(), 66U);
  ASSERT_GE(samples.size(), 30U);
  std::uint64_t seen_peak = 0;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    seen_peak = std::max(seen_peak, samples[i].vram_pages);
    if (i == 0) continue;
    ASSERT_GE(samples[i].time_ns, samples[i - 1].time_ns);
    ASSERT_GE(samples[i].device_faults, samples[i - 1].device_faults);
  }
  EXPECT_EQ(seen_peak, peak) << "halving the resolution must not lose the highest level";
  EXPECT_EQ(samples.back().device_faults, 100'000U);
  EXPECT_EQ(samples.back().time_ns, now);
}

TEST(Series, AQuietTimeIsDrawnFlat) {
  Series series(0, 64, 100);
  series.on_event(level(10, 0, 5));
  series.on_event(level(100'000, 0, 9));
  const auto samples = series.samples(100'001);
  bool flat = false;
  for (std::size_t i = 1; i < samples.size(); ++i) {
    flat = flat || (samples[i].vram_pages == 5 && samples[i - 1].vram_pages == 5 && samples[i].time_ns == 100'000);
  }
  EXPECT_TRUE(flat);
}

TEST(Series, AddsUpDevices) {
  Series series(0, 64, 100);
  series.on_event(level(10, 0, 5));
  series.on_event(level(20, 3, 7));
  series.on_event(level(30, 0, 1));
  EXPECT_EQ(series.samples(40).back().vram_pages, 12U) << "the most since the last sample";
  series.on_event(level(500, 3, 0));
  series.on_event(level(900, 3, 0));
  EXPECT_EQ(series.samples(950).back().vram_pages, 1U);
  series.on_event(level(960, no_device, 77));
  EXPECT_EQ(series.samples(961).back().vram_pages, 1U) << "no such device";
}

TEST(Series, CountsManagedMemory) {
  Series series(0, 64, 100);
  series.on_event(plain(1, EventKind::alloc, 100));
  series.on_event(plain(2, EventKind::free, 40));
  EXPECT_EQ(series.samples(3).back().allocated_pages, 60U);
  series.on_event(plain(4, EventKind::free, 400));
  EXPECT_EQ(series.samples(5).back().allocated_pages, 0U);
}

KernelEvent kernel(std::uint64_t now, std::uint64_t launch, std::uint64_t value, std::string_view name = "k") {
  return {.now_ns = now,
          .time_ns = now,
          .client = 1,
          .device = 0,
          .queue = 0,
          .launch = launch,
          .value = value,
          .name = name};
}

TEST(Series, TimesKernelsAndMigrations) {
  Series series(1000, 64, 100);
  series.kernel_begin(kernel(2000, 0, 8));
  KernelEvent other = kernel(2500, 0, 4, "other");
  other.queue = 1;
  series.kernel_begin(other);
  series.on_event(plain(2600, EventKind::device_fault));
  series.on_event(plain(2600, EventKind::migrate_begin));
  series.kernel_end(kernel(3000, 0, 0));
  other.now_ns = other.time_ns = 4000;
  other.value = 41;
  series.kernel_end(other);
  series.on_event(plain(4100, EventKind::migrate_end));
  TimeSplit split;
  series.times(6000, split);
  EXPECT_EQ(split.wall_ns, 5000U);
  EXPECT_EQ(split.kernels_ns, 2000U) << "where they overlap, time counts once";
  EXPECT_EQ(split.moving_ns, 1500U);
  ASSERT_EQ(series.kernels().size(), 2U);
  EXPECT_EQ(series.kernels()[0].name, "k");
  EXPECT_EQ(series.kernels()[0].total_ns, 1000U);
  EXPECT_EQ(series.kernels()[0].failed, 0U);
  EXPECT_EQ(series.kernels()[0].waves, 8U);
  EXPECT_EQ(series.kernels()[0].device_faults, 1U);
  EXPECT_EQ(series.kernels()[1].failed, 1U);
}

TEST(Series, BeginsAndEndsComeByDifferentPortsInAnyOrder) {
  Series series(0, 64, 100);
  KernelEvent second = kernel(400, 1, 4);
  series.kernel_begin(second);
  KernelEvent second_end = kernel(500, 1, 0);
  series.kernel_end(second_end);
  series.kernel_end(kernel(300, 0, 0));
  KernelEvent first = kernel(600, 0, 4);
  first.time_ns = 100;
  series.kernel_begin(first);
  ASSERT_EQ(series.kernels().size(), 1U);
  EXPECT_EQ(series.kernels()[0].launches, 2U);
  EXPECT_EQ(series.kernels()[0].failed, 0U);
  EXPECT_EQ(series.kernels()[0].total_ns, 300U);
}

TEST(Series, KernelsOfALostDeviceEnd) {
  Series series(0, 64, 100);
  series.kernel_begin(kernel(100, 0, 8));
  series.device_gone(300, 1, 0);
  series.kernel_end(kernel(900, 0, 0));
  TimeSplit split;
  series.times(1000, split);
  EXPECT_EQ(split.kernels_ns, 200U);
  EXPECT_EQ(series.kernels()[0].failed, 1U);
}

TEST(Series, ADeviceMayLie) {
  Series series(1'000'000, 64, 100);
  KernelEvent early = kernel(2'000'000, 0, 1);
  early.time_ns = 3;
  series.kernel_begin(early);
  KernelEvent late = kernel(2'000'500, 0, 0);
  late.time_ns = ~std::uint64_t{0};
  series.kernel_end(late);
  EXPECT_EQ(series.kernels()[0].total_ns, 500U);
  KernelEvent nowhere = kernel(2'000'600, 1, 0);
  nowhere.device = 200;
  series.kernel_begin(nowhere);
  nowhere.device = 0;
  nowhere.queue = 1000;
  series.kernel_begin(nowhere);
  series.kernel_end(kernel(2'000'700, 99, 0));
  EXPECT_EQ(series.kernels()[0].launches, 1U);
  // Ten thousand beginnings without an end, on one queue: one is open.
  for (std::uint64_t i = 0; i < 10'000; ++i) series.kernel_begin(kernel(3'000'000 + i, i, 0));
  TimeSplit split;
  series.times(3'010'000, split);
  EXPECT_LE(split.kernels_ns, split.wall_ns);
  // Names without end: the table does not grow with them.
  for (int i = 0; i < 2000; ++i) series.kernel_begin(kernel(4'000'000, 0, 0, "n" + std::to_string(i)));
  EXPECT_LE(series.kernels().size(), Series::kernel_names_max + 1);
}

}  // namespace
}  // namespace ferry::manager

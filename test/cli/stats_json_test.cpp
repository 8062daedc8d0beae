#include "manager/stats_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "wire/message.h"

namespace ferry::manager {
namespace {

using Json = nlohmann::json;

StatsDocument filled() {
  StatsDocument d;
  std::uint64_t value = 1;
  for (std::uint64_t* field : {&d.stats.device_faults,      &d.stats.device_faults_merged,
                               &d.stats.cpu_faults,         &d.stats.cpu_faults_merged,
                               &d.stats.faults_failed,      &d.stats.pages_to_vram,
                               &d.stats.pages_to_system,    &d.stats.pages_dropped_clean,
                               &d.stats.migrations_to_vram, &d.stats.migrations_to_system,
                               &d.stats.evictions,          &d.stats.evicted_pages,
                               &d.stats.refaults,           &d.stats.in_place_maps,
                               &d.stats.contention_pins,    &d.stats.speculated_pages,
                               &d.stats.copy_errors,        &d.stats.dma_mapped_pages,
                               &d.stats.dma_unmapped_pages, &d.stats.vram_peak_pages,
                               &d.stats.vram_pages,         &d.stats.contention_waits}) {
    *field = value++;
  }
  d.machine.vram_bytes = std::uint64_t{64} << 20;
  d.machine.cus = 3;
  d.time.wall_ns = 100;
  d.time.manager_poll_ns = 7;
  d.clients = 2;
  return d;
}

TEST(StatsJson, HasEveryFieldInBytesWhereItSaysBytes) {
  const Json json = Json::parse(to_json(filled()));
  EXPECT_EQ(json["device_faults"], 1);
  EXPECT_EQ(json["device_faults_merged"], 2);
  EXPECT_EQ(json["cpu_faults"], 3);
  EXPECT_EQ(json["cpu_faults_merged"], 4);
  EXPECT_EQ(json["merged"], 6);
  EXPECT_EQ(json["faults_failed"], 5);
  EXPECT_EQ(json["bytes_to_vram"], 6 * 4096);
  EXPECT_EQ(json["bytes_to_system"], 7 * 4096);
  EXPECT_EQ(json["bytes_dropped_clean"], 8 * 4096);
  EXPECT_EQ(json["migrations_to_vram"], 9);
  EXPECT_EQ(json["migrations_to_system"], 10);
  EXPECT_EQ(json["evictions"], 11);
  EXPECT_EQ(json["evicted_bytes"], 12 * 4096);
  EXPECT_EQ(json["refaults"], 13);
  EXPECT_EQ(json["in_place_maps"], 14);
  EXPECT_EQ(json["contention_pins"], 15);
  EXPECT_EQ(json["contention_waits"], 22);
  EXPECT_EQ(json["speculated_bytes"], 16 * 4096);
  EXPECT_EQ(json["copy_errors"], 17);
  EXPECT_EQ(json["dma_mapped_pages"], 18);
  EXPECT_EQ(json["dma_unmapped_pages"], 19);
  EXPECT_EQ(json["peak_vram_bytes"], 20 * 4096);
  EXPECT_EQ(json["vram_bytes_now"], 21 * 4096);
  EXPECT_EQ(json["machine"]["vram_bytes"], 64 << 20);
  EXPECT_EQ(json["machine"]["cus"], 3);
  EXPECT_EQ(json["time"]["wall_ns"], 100);
  EXPECT_EQ(json["time"]["manager_poll_ns"], 7);
  EXPECT_EQ(json["clients"], 2);
  EXPECT_EQ(json["kernels"], Json::array());
}

TEST(StatsJson, FitsAMessageWhateverTheKernelsAreCalled) {
  StatsDocument d = filled();
  for (int i = 0; i < 1000; ++i) {
    KernelRow row;
    row.name = std::string(95, i % 2 == 0 ? '"' : '\\') + "\xff\n";
    row.launches = row.waves = row.total_ns = row.longest_ns = row.device_faults =
        ~std::uint64_t{0} - 1000 + static_cast<std::uint64_t>(i);
    d.kernels.push_back(row);
  }
  const std::string text = to_json(d);
  EXPECT_LE(text.size() + sizeof(wire::MessageHead), wire::message_bytes_max);
  const Json json = Json::parse(text);
  EXPECT_EQ(json["kernels"].size(), 64U);
  EXPECT_EQ(json["kernels_not_listed"], 936);
  EXPECT_EQ(json["kernels"][0]["total_ns"], ~std::uint64_t{0} - 1) << "those with most time come first";
}

TEST(StatsJson, CleansNames) {
  EXPECT_EQ(clean_text("ok name", 96), "ok name");
  EXPECT_EQ(clean_text("a\x1b[31m\x80\xff\n", 96), "a?[31m???");
  const char unterminated[4] = {'a', 'b', 'c', 'd'};
  EXPECT_EQ(clean_text(unterminated, 4), "abcd");
}

}  // namespace
}  // namespace ferry::manager

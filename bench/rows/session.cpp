#include "rows/session.h"

#include <stdexcept>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "machine.h"

namespace ferry::bench {

Counters counters() {
  const auto json = nlohmann::json::parse(stats());
  const auto number = [&](const char* name) { return json.at(name).get<std::uint64_t>(); };
  return {.device_faults = number("device_faults") - number("device_faults_merged"),
          .cpu_faults = number("cpu_faults") - number("cpu_faults_merged"),
          .bytes_to_vram = number("bytes_to_vram"),
          .bytes_to_system = number("bytes_to_system"),
          .in_place_maps = number("in_place_maps"),
          .evictions = number("evictions"),
          .bytes_readdressed_in_place = number("bytes_readdressed_in_place")};
}

RunningThreads::RunningThreads(unsigned count) {
  for (unsigned index = 0; index < count; ++index) {
    threads_.emplace_back([](const std::stop_token& stop) {
      volatile std::uint64_t value = 1;
      while (!stop.stop_requested()) value = value * 6364136223846793005U + 1;
    });
  }
}

void require_in_vram(const void* p, const char* what) {
  if (query(p).vram_device == 0) return;
  throw std::runtime_error(fmt::format("{} should lie in VRAM: {}", what, explain(p)));
}

void require_in_place(const void* p, const char* what) {
  const page_info info = query(p);
  if (info.system_current != 0 && info.vram_device < 0 && (info.device_mapped & 1U) != 0) return;
  throw std::runtime_error(fmt::format("{} should be mapped in place: {}", what, explain(p)));
}

unsigned bench_cus() { return usable_cpus() > 1 ? usable_cpus() - 1 : 1; }

}  // namespace ferry::bench

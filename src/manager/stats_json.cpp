#include "manager/stats_json.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

namespace ferry::manager {

std::string clean_text(const char* text, std::size_t size_max) {
  std::string out(text, strnlen(text, size_max));
  for (char& c : out) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return out;
}

std::string to_json(const StatsDocument& d, std::size_t kernels_max) {
  using Json = nlohmann::ordered_json;
  const core::Stats& s = d.stats;
  const auto bytes = [](std::uint64_t pages) { return pages * page_bytes; };
  Json json;
  json["format"] = 1;
  json["machine"] = {
      {"devices", d.machine.devices},
      {"vram_bytes", d.machine.vram_bytes},
      {"cus", d.machine.cu_count()},
      {"waves_per_cu", d.machine.waves_per_cu},
      {"granularity_bytes", d.machine.granule_bytes()},
      {"hives", d.machine.hives()},
  };
  json["clients"] = d.clients;
  json["device_faults"] = s.device_faults;
  json["cpu_faults"] = s.cpu_faults;
  json["merged"] = s.device_faults_merged + s.cpu_faults_merged;
  json["device_faults_merged"] = s.device_faults_merged;
  json["cpu_faults_merged"] = s.cpu_faults_merged;
  json["faults_failed"] = s.faults_failed;
  json["bytes_to_vram"] = bytes(s.pages_to_vram);
  json["bytes_to_system"] = bytes(s.pages_to_system);
  json["bytes_readdressed_in_place"] = bytes(s.pages_carried);
  json["bytes_readdressed_in_vram"] = bytes(s.pages_copied_in_vram);
  json["bytes_readdressed_in_system"] = bytes(s.pages_copied_in_system);
  json["bytes_dropped_clean"] = bytes(s.pages_dropped_clean);
  json["migrations_to_vram"] = s.migrations_to_vram;
  json["migrations_to_system"] = s.migrations_to_system;
  json["evictions"] = s.evictions;
  json["evicted_bytes"] = bytes(s.evicted_pages);
  json["refaults"] = s.refaults;
  json["peak_vram_bytes"] = bytes(s.vram_peak_pages);
  json["vram_bytes_now"] = bytes(s.vram_pages);
  json["in_place_maps"] = s.in_place_maps;
  json["contention_pins"] = s.contention_pins;
  json["contention_waits"] = s.contention_waits;
  json["duplicated_bytes"] = bytes(s.pages_duplicated);
  json["collapsed_bytes"] = bytes(s.pages_collapsed);
  json["speculated_bytes"] = bytes(s.speculated_pages);
  json["copy_errors"] = s.copy_errors;
  json["system"] = {
      {"budget_bytes", d.machine.system_bytes},     {"bytes_now", bytes(s.system_pages)},
      {"peak_bytes", bytes(s.system_peak_pages)},   {"over_budget_bytes", bytes(s.over_budget_pages)},
      {"pressure_events", d.store.pressure_events}, {"pressure_bytes", bytes(d.store.pressure_pages)},
  };
  const linux::StoreStats& store = d.store.stats;
  json["store"] = {
      {"room_bytes", d.machine.store_room_bytes()},
      {"codec", linux::to_string(d.machine.store_codec)},
      {"io", store.file_bytes_max == 0 ? "none"
             : store.uring             ? "uring"
                                       : "threads"},
      {"bytes_now", bytes(s.stored_pages)},
      {"bytes_in", bytes(s.pages_to_store)},
      {"bytes_out", bytes(s.pages_from_store)},
      {"errors", s.store_errors},
      {"same_filled_bytes", bytes(store.fill_pages)},
      {"uncompressed_bytes", bytes(store.file_pages)},
      {"compressed_bytes", store.payload_bytes},
      {"memory_bytes", store.memory_bytes},
      {"memory_bytes_most", store.memory_bytes_max},
      {"file_bytes", store.file_bytes},
      {"file_bytes_written", store.written_bytes},
      {"file_bytes_read", store.read_bytes},
      {"file_errors", store.failed},
      {"store_ns", d.store.store_ns},
      {"load_ns", d.store.load_ns},
  };
  json["progress"] = {
      {"jobs_done", s.jobs_done},
      {"jobs_failed", s.jobs_failed},
      {"preemptions", s.preemptions},
      {"mode_switches", s.mode_switches},
      {"buffer_moves", s.buffer_moves},
      {"fence_waits_in_reclaim", s.fence_waits_in_reclaim},
      {"fence_waits_refused", s.fence_waits_refused},
      {"reserve_repairs", s.reserve_repairs},
      {"circles", s.circles},
  };
  json["dma_mapped_pages"] = s.dma_mapped_pages;
  json["dma_unmapped_pages"] = s.dma_unmapped_pages;
  json["time"] = {
      {"wall_ns", d.time.wall_ns},
      {"kernels_ns", d.time.kernels_ns},
      {"moving_ns", d.time.moving_ns},
      {"copy_to_vram_ns", d.time.copy_to_vram_ns},
      {"copy_to_system_ns", d.time.copy_to_system_ns},
      {"manager_busy_ns", d.time.manager_busy_ns},
      {"manager_poll_ns", d.time.manager_poll_ns},
      {"manager_sleep_ns", d.time.manager_sleep_ns},
  };
  std::vector<const KernelRow*> rows;
  for (const KernelRow& row : d.kernels) rows.push_back(&row);
  std::stable_sort(rows.begin(), rows.end(), [](auto* a, auto* b) { return a->total_ns > b->total_ns; });
  json["kernels_not_listed"] = rows.size() > kernels_max ? rows.size() - kernels_max : 0;
  if (rows.size() > kernels_max) rows.resize(kernels_max);
  json["kernels"] = Json::array();
  for (const KernelRow* row : rows) {
    json["kernels"].push_back({
        {"name", clean_text(row->name.data(), row->name.size())},
        {"launches", row->launches},
        {"failed", row->failed},
        {"waves", row->waves},
        {"total_ns", row->total_ns},
        {"longest_ns", row->longest_ns},
        {"device_faults", row->device_faults},
    });
  }
  return json.dump(1) + "\n";
}

}  // namespace ferry::manager

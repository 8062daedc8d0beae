#include "cli/summary.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/size.h"
#include "manager/plot.h"

namespace ferry::cli {
namespace {

using manager::format_count;
using manager::format_duration;
using Json = nlohmann::json;

std::uint64_t field(const Json& json, const char* name) {
  const auto found = json.find(name);
  return found != json.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : 0;
}

Json object(const Json& json, const char* name) {
  const auto found = json.find(name);
  return found != json.end() && found->is_object() ? *found : Json::object();
}

std::string share(std::uint64_t part, std::uint64_t whole) {
  if (whole == 0) return format_duration(part);
  char text[32];
  std::snprintf(text, sizeof text, " (%.0f %%)", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
  return format_duration(part) + text;
}

std::uint64_t per_second(std::uint64_t now, std::uint64_t before, std::uint64_t since_ns) {
  if (now <= before || since_ns == 0) return 0;
  return static_cast<std::uint64_t>(static_cast<double>(now - before) * 1e9 / static_cast<double>(since_ns));
}

std::string counted(std::uint64_t count, const char* one, const char* many) {
  return format_count(count) + " " + (count == 1 ? one : many);
}

}  // namespace

Counters read_counters(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  Counters c;
  if (!json.is_object()) return c;
  c.valid = true;
  c.device_faults = field(json, "device_faults");
  c.device_merged = field(json, "device_faults_merged");
  c.cpu_faults = field(json, "cpu_faults");
  c.cpu_merged = field(json, "cpu_faults_merged");
  c.failed = field(json, "faults_failed");
  c.to_vram_bytes = field(json, "bytes_to_vram");
  c.to_system_bytes = field(json, "bytes_to_system");
  c.dropped_bytes = field(json, "bytes_dropped_clean");
  c.to_vram_moves = field(json, "migrations_to_vram");
  c.to_system_moves = field(json, "migrations_to_system");
  c.evictions = field(json, "evictions");
  c.evicted_bytes = field(json, "evicted_bytes");
  c.refaults = field(json, "refaults");
  c.in_place = field(json, "in_place_maps");
  c.pins = field(json, "contention_pins");
  c.copy_errors = field(json, "copy_errors");
  c.peak_vram_bytes = field(json, "peak_vram_bytes");
  c.vram_bytes_now = field(json, "vram_bytes_now");
  const Json machine = object(json, "machine");
  c.vram_bytes = field(machine, "vram_bytes");
  c.devices = field(machine, "devices");
  const Json system = object(json, "system");
  c.budget_bytes = field(system, "budget_bytes");
  c.system_peak_bytes = field(system, "peak_bytes");
  c.over_budget_bytes = field(system, "over_budget_bytes");
  const Json store = object(json, "store");
  c.stored_bytes = field(store, "bytes_in");
  c.restored_bytes = field(store, "bytes_out");
  c.store_errors = field(store, "errors");
  const Json time = object(json, "time");
  c.wall_ns = field(time, "wall_ns");
  c.kernels_ns = field(time, "kernels_ns");
  c.moving_ns = field(time, "moving_ns");
  c.copy_ns = field(time, "copy_to_vram_ns") + field(time, "copy_to_system_ns");
  c.busy_ns = field(time, "manager_busy_ns");
  c.poll_ns = field(time, "manager_poll_ns");
  c.sleep_ns = field(time, "manager_sleep_ns");
  const auto kernels = json.find("kernels");
  if (kernels != json.end() && kernels->is_array()) {
    for (const Json& row : *kernels) {
      if (row.is_object()) c.kernels += field(row, "launches");
    }
  }
  return c;
}

bool device_work(const Counters& now, const Counters& before) {
  return now.kernels_ns != before.kernels_ns || now.device_faults != before.device_faults ||
         now.cpu_faults != before.cpu_faults || now.to_vram_bytes != before.to_vram_bytes ||
         now.to_system_bytes != before.to_system_bytes;
}

std::string summary(const Counters& c, const std::string& program, std::uint64_t run_ns) {
  const std::uint64_t whole = run_ns;
  std::string out = "ferry: " + program + " took " + format_duration(run_ns) + ", " +
                    counted(c.kernels, "kernel", "kernels") + " on " + counted(c.devices, "device", "devices") +
                    " of " + format_size(c.vram_bytes) + " VRAM\n";
  out += "ferry:   faults    device " + format_count(c.device_faults) + " (" + format_count(c.device_merged) +
         " merged), CPU " + format_count(c.cpu_faults) + " (" + format_count(c.cpu_merged) + " merged)";
  if (c.failed != 0) out += ", failed " + format_count(c.failed);
  out += "\nferry:   moved     to VRAM " + format_size(c.to_vram_bytes) + " in " + format_count(c.to_vram_moves) +
         ", to system memory " + format_size(c.to_system_bytes) + " in " + format_count(c.to_system_moves) +
         ", dropped clean " + format_size(c.dropped_bytes) + "\n";
  out += "ferry:   pressure  " + counted(c.evictions, "eviction", "evictions") + " (" + format_size(c.evicted_bytes) +
         "), " + counted(c.refaults, "refault", "refaults") + ", peak VRAM " + format_size(c.peak_vram_bytes) + " of " +
         format_size(c.vram_bytes) + "\n";
  if (c.budget_bytes != 0) {
    out += "ferry:   system    peak " + format_size(c.system_peak_bytes) + " of " + format_size(c.budget_bytes) + ", " +
           format_size(c.stored_bytes) + " to the store, " + format_size(c.restored_bytes) + " back";
    if (c.over_budget_bytes != 0) out += ", " + format_size(c.over_budget_bytes) + " given over the budget";
    if (c.store_errors != 0) out += ", " + counted(c.store_errors, "store error", "store errors");
    out += "\n";
  }
  if (c.in_place != 0 || c.pins != 0 || c.copy_errors != 0) {
    out += "ferry:   in place  " + counted(c.in_place, "mapping", "mappings") + ", " +
           counted(c.pins, "contention pin", "contention pins");
    if (c.copy_errors != 0) out += ", " + counted(c.copy_errors, "failed copy", "failed copies");
    out += "\n";
  }
  out += "ferry:   time      kernels " + share(c.kernels_ns, whole) + ", migrations under way " +
         share(c.moving_ns, whole) + ", copying " + format_duration(c.copy_ns) + "; manager worked " +
         format_duration(c.busy_ns) + ", polled " + format_duration(c.poll_ns) + ", slept " +
         format_duration(c.sleep_ns) + "\n";
  return out;
}

std::string progress_line(const Counters& now, const Counters& before, std::uint64_t since_ns, std::uint64_t run_ns,
                          unsigned columns) {
  std::string out = "ferry: " + format_duration(run_ns) + "  VRAM " + format_size(now.vram_bytes_now) + " of " +
                    format_size(now.vram_bytes * now.devices) + "  faults " +
                    format_count(per_second(now.device_faults, before.device_faults, since_ns)) + "/s device " +
                    format_count(per_second(now.cpu_faults, before.cpu_faults, since_ns)) + "/s CPU  to VRAM " +
                    format_size(per_second(now.to_vram_bytes, before.to_vram_bytes, since_ns)) + "/s  home " +
                    format_size(per_second(now.to_system_bytes, before.to_system_bytes, since_ns)) + "/s  evictions " +
                    format_count(now.evictions);
  if (columns != 0 && out.size() >= columns) out.resize(columns - 1);
  return out;
}

}  // namespace ferry::cli

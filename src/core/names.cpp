// Words for people: traces, `ferry explain`, messages.
#include "core/action.h"
#include "core/config.h"
#include "core/observer.h"

namespace ferry::core {

const char* to_string(Cause cause) {
  switch (cause) {
    case Cause::none: return "none";
    case Cause::device_fault: return "device fault";
    case Cause::cpu_fault: return "CPU fault";
    case Cause::prefetch: return "prefetch";
    case Cause::speculation: return "speculation";
    case Cause::evict: return "eviction";
    case Cause::contention: return "contention";
    case Cause::freed: return "freed";
    case Cause::client_gone: return "application gone";
    case Cause::device_gone: return "device gone";
  }
  return "unknown";
}

const char* to_string(Verb verb) {
  switch (verb) {
    case Verb::revoke_cpu: return "revoke_cpu";
    case Verb::map_cpu: return "map_cpu";
    case Verb::wake_cpu: return "wake_cpu";
    case Verb::revoke_device: return "revoke_device";
    case Verb::map_device: return "map_device";
    case Verb::copy: return "copy";
    case Verb::wake_wave: return "wake_wave";
    case Verb::release_chunk: return "release_chunk";
    case Verb::discard_system: return "discard_system";
    case Verb::reply: return "reply";
  }
  return "unknown";
}

const char* to_string(EventKind kind) {
  switch (kind) {
    case EventKind::device_fault: return "device_fault";
    case EventKind::device_fault_merged: return "device_fault_merged";
    case EventKind::cpu_fault: return "cpu_fault";
    case EventKind::cpu_fault_merged: return "cpu_fault_merged";
    case EventKind::migrate_begin: return "migrate_begin";
    case EventKind::migrate_end: return "migrate_end";
    case EventKind::evict: return "evict";
    case EventKind::drop_clean: return "drop_clean";
    case EventKind::refault: return "refault";
    case EventKind::map_in_place: return "map_in_place";
    case EventKind::contention_pin: return "contention_pin";
    case EventKind::fault_failed: return "fault_failed";
    case EventKind::alloc: return "alloc";
    case EventKind::free: return "free";
    case EventKind::vram_level: return "vram_level";
  }
  return "unknown";
}

const char* to_string(PlantedBug bug) {
  switch (bug) {
    case PlantedBug::none: return "none";
    case PlantedBug::skip_cpu_revoke: return "skip_cpu_revoke";
    case PlantedBug::skip_device_revoke: return "skip_device_revoke";
    case PlantedBug::drop_wake: return "drop_wake";
    case PlantedBug::lose_dirty: return "lose_dirty";
    case PlantedBug::free_before_revoke: return "free_before_revoke";
    case PlantedBug::free_before_copy: return "free_before_copy";
    case PlantedBug::stale_map: return "stale_map";
    case PlantedBug::write_map_on_read: return "write_map_on_read";
    case PlantedBug::over_budget: return "over_budget";
    case PlantedBug::ignore_copy_error: return "ignore_copy_error";
    case PlantedBug::wrong_vram_page: return "wrong_vram_page";
    case PlantedBug::forget_free_waiter: return "forget_free_waiter";
    case PlantedBug::leak_chunk: return "leak_chunk";
    case PlantedBug::keep_chunk_contents: return "keep_chunk_contents";
    case PlantedBug::map_both_writable: return "map_both_writable";
  }
  return "unknown";
}

}  // namespace ferry::core

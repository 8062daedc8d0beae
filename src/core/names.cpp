// Words for people: traces, `ferry explain`, messages.
#include "core/action.h"
#include "core/config.h"
#include "core/observer.h"
#include "core/svm/types.h"

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
    case Cause::pressure: return "memory pressure";
    case Cause::change: return "address space changed";
    case Cause::preempted: return "preemption";
    case Cause::invalidated: return "invalidation";
  }
  return "unknown";
}

const char* to_string(PrefetchKind kind) {
  switch (kind) {
    case PrefetchKind::none: return "none";
    case PrefetchKind::sequential: return "sequential";
    case PrefetchKind::stride: return "stride";
    case PrefetchKind::density: return "density";
    case PrefetchKind::both: return "both";
  }
  return "unknown";
}

const char* to_string(VictimKind kind) {
  switch (kind) {
    case VictimKind::probe: return "probe";
    case VictimKind::lru: return "lru";
    case VictimKind::fifo: return "fifo";
    case VictimKind::random: return "random";
  }
  return "unknown";
}

const char* to_string(LeaveKind kind) {
  switch (kind) {
    case LeaveKind::never: return "never";
    case LeaveKind::thrash: return "thrash";
    case LeaveKind::cost: return "cost";
  }
  return "unknown";
}

const char* to_string(Change change) {
  switch (change) {
    case Change::unmap: return "unmap";
    case Change::move: return "move";
    case Change::protect: return "protect";
    case Change::discard: return "discard";
    case Change::lazy_free: return "lazy free";
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
    case Verb::store: return "store";
    case Verb::load: return "load";
    case Verb::discard_store: return "discard_store";
    case Verb::move_buffer: return "move_buffer";
    case Verb::map_buffer: return "map_buffer";
    case Verb::revoke_buffer: return "revoke_buffer";
    case Verb::release_buffer: return "release_buffer";
    case Verb::run_job: return "run_job";
    case Verb::cancel_job: return "cancel_job";
    case Verb::grant_cus: return "grant_cus";
    case Verb::revoke_cus: return "revoke_cus";
    case Verb::signal_fence: return "signal_fence";
    case Verb::reset_device: return "reset_device";
    case Verb::protect_cpu: return "protect_cpu";
    case Verb::copy_client: return "copy_client";
    case Verb::copy_system: return "copy_system";
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
    case EventKind::device_fault_end: return "device_fault_end";
    case EventKind::cpu_fault_end: return "cpu_fault_end";
    case EventKind::queue_eviction: return "queue_eviction";
    case EventKind::queue_restore: return "queue_restore";
    case EventKind::unmap_device: return "unmap_device";
    case EventKind::prefetch: return "prefetch";
    case EventKind::duplicate: return "duplicate";
    case EventKind::collapse: return "collapse";
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
    case PlantedBug::signal_before_done: return "signal_before_done";
    case PlantedBug::forget_fence_waiter: return "forget_fence_waiter";
    case PlantedBug::skip_shared_fence: return "skip_shared_fence";
    case PlantedBug::evict_busy_buffer: return "evict_busy_buffer";
    case PlantedBug::claim_before_gate: return "claim_before_gate";
    case PlantedBug::publish_before_gate: return "publish_before_gate";
    case PlantedBug::leak_cu: return "leak_cu";
    case PlantedBug::grant_reserved_cu: return "grant_reserved_cu";
    case PlantedBug::switch_while_visible: return "switch_while_visible";
    case PlantedBug::query_says_no: return "query_says_no";
    case PlantedBug::track_forgets_unit: return "track_forgets_unit";
    case PlantedBug::refill_nothing: return "refill_nothing";
    case PlantedBug::userptr_keeps_old: return "userptr_keeps_old";
    case PlantedBug::drop_before_stored: return "drop_before_stored";
    case PlantedBug::ignore_store_error: return "ignore_store_error";
    case PlantedBug::stale_store: return "stale_store";
    case PlantedBug::leak_system_charge: return "leak_system_charge";
    case PlantedBug::forget_memory_waiter: return "forget_memory_waiter";
    case PlantedBug::keep_lost_access: return "keep_lost_access";
    case PlantedBug::write_map_read_only: return "write_map_read_only";
    case PlantedBug::leak_attributes: return "leak_attributes";
    case PlantedBug::move_pinned: return "move_pinned";
    case PlantedBug::keep_refusal: return "keep_refusal";
    case PlantedBug::discard_shows_others: return "discard_shows_others";
    case PlantedBug::keep_peer_mapping: return "keep_peer_mapping";
    case PlantedBug::keep_discarded: return "keep_discarded";
    case PlantedBug::keep_protected_mapping: return "keep_protected_mapping";
    case PlantedBug::serve_old_fault: return "serve_old_fault";
    case PlantedBug::forget_turn: return "forget_turn";
    case PlantedBug::keep_empty_slot: return "keep_empty_slot";
    case PlantedBug::keep_fork_mapping: return "keep_fork_mapping";
    case PlantedBug::free_before_child: return "free_before_child";
    case PlantedBug::forget_protection: return "forget_protection";
    case PlantedBug::keep_copy: return "keep_copy";
    case PlantedBug::write_back_copy: return "write_back_copy";
    case PlantedBug::drop_last_copy: return "drop_last_copy";
    case PlantedBug::map_copied_writable: return "map_copied_writable";
    case PlantedBug::keep_moved_mapping: return "keep_moved_mapping";
    case PlantedBug::lose_moved: return "lose_moved";
    case PlantedBug::keep_freed_mapping: return "keep_freed_mapping";
    case PlantedBug::keep_protection: return "keep_protection";
    case PlantedBug::forget_set_waiter: return "forget_set_waiter";
    case PlantedBug::forget_moves_fence: return "forget_moves_fence";
    case PlantedBug::forget_to_look_again: return "forget_to_look_again";
  }
  return "unknown";
}

const char* to_string(Engine engine) {
  switch (engine) {
    case Engine::compute: return "compute";
    case Engine::graphics: return "graphics";
    case Engine::copy: return "copy";
    case Engine::video: return "video";
  }
  return "unknown";
}

const char* to_string(Policy policy) {
  switch (policy) {
    case Policy::none: return "none";
    case Policy::preempt: return "preempt";
    case Policy::reserve: return "reserve";
    case Policy::reserve_in_flight: return "reserve-in-flight";
    case Policy::exclusive: return "exclusive";
    case Policy::query: return "query";
    case Policy::track: return "track";
    case Policy::pinned: return "pinned";
  }
  return "unknown";
}

}  // namespace ferry::core

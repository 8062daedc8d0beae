// What an action touches, and whether two of them may be in flight together (I-18): the executor performs them in any
// order, so a pair whose result depends on it is a bug of the core even where the run was lucky.
#pragma once

#include "core/action.h"

namespace ferry::sim {

[[nodiscard]] inline bool touches_cpu_table(core::Verb v) {
  return v == core::Verb::revoke_cpu || v == core::Verb::protect_cpu || v == core::Verb::map_cpu;
}
[[nodiscard]] inline bool touches_device_table(core::Verb v) {
  return v == core::Verb::revoke_device || v == core::Verb::map_device;
}
[[nodiscard]] inline bool is_answered(core::Verb v) {
  return v != core::Verb::wake_cpu && v != core::Verb::wake_wave && v != core::Verb::reply &&
         v != core::Verb::signal_fence;
}
[[nodiscard]] inline bool uses_vram(const core::Action& a) {
  return a.verb == core::Verb::copy || (a.verb == core::Verb::map_device && a.place == core::Place::vram);
}
[[nodiscard]] inline core::Place target_of(const core::Action& copy) {
  return copy.place == core::Place::system || copy.to == core::Place::vram ? core::Place::vram : core::Place::system;
}
/// From one device's VRAM to another's.
[[nodiscard]] inline bool is_direct(const core::Action& a) {
  return a.verb == core::Verb::copy && a.place == core::Place::vram && a.to == core::Place::vram;
}
/// For another address: from one place in a device's VRAM to another.
[[nodiscard]] inline bool is_inside_vram(const core::Action& a) { return is_direct(a) && a.device == a.to_device; }
/// Whose VRAM `vram_first` is of.
[[nodiscard]] inline DeviceId vram_owner(const core::Action& a) {
  return a.verb == core::Verb::map_device && a.owner != no_device ? a.owner : a.device;
}
/// Bytes move: where to.
[[nodiscard]] inline bool moves(core::Verb v) {
  return v == core::Verb::copy || v == core::Verb::store || v == core::Verb::load;
}
[[nodiscard]] inline core::Place goes_to(const core::Action& a) {
  return a.verb == core::Verb::store  ? core::Place::store
         : a.verb == core::Verb::load ? core::Place::system
                                      : target_of(a);
}
[[nodiscard]] inline bool touches_store(core::Verb v) {
  return v == core::Verb::store || v == core::Verb::load || v == core::Verb::discard_store;
}

/// Whether the result depends on which of the two is performed first. REQUIRES: both are answered (have an id) and
/// belong to one client.
[[nodiscard]] bool order_matters(const core::Action& a, const core::Action& b);

}  // namespace ferry::sim

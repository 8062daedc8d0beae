#include "sim/order.h"

namespace ferry::sim {
namespace {
using core::Action;
using core::Place;
using core::Verb;

bool in_one_chunk(VramPage a, std::uint64_t count, VramPage chunk_first) {
  return a < chunk_first + block_pages && chunk_first < a + count;
}
bool writes_system(const Action& a) {
  return a.verb == Verb::discard_system || a.verb == Verb::load ||
         (a.verb == Verb::copy && target_of(a) == Place::system);
}
bool uses_system(const Action& a) {
  return a.verb == Verb::map_cpu || a.verb == Verb::store || (a.verb == Verb::map_device && a.place == Place::system) ||
         (a.verb == Verb::copy && target_of(a) == Place::vram);
}

}  // namespace

bool order_matters(const Action& a, const Action& b) {
  const bool same_device = a.device == b.device;
  if (a.verb == Verb::release_chunk || b.verb == Verb::release_chunk) {
    const Action& release = a.verb == Verb::release_chunk ? a : b;
    const Action& other = a.verb == Verb::release_chunk ? b : a;
    if (!same_device) return false;
    if (other.verb == Verb::release_chunk) return other.vram_first == release.vram_first;
    return uses_vram(other) && in_one_chunk(other.vram_first, other.pages.count_pages, release.vram_first);
  }
  if (a.verb == Verb::copy && b.verb == Verb::copy && same_device) {
    const std::uint64_t a_end = a.vram_first + a.pages.count_pages;
    const std::uint64_t b_end = b.vram_first + b.pages.count_pages;
    const bool share_vram = a.vram_first < b_end && b.vram_first < a_end;
    if (share_vram && (target_of(a) == Place::vram || target_of(b) == Place::vram)) return true;
  }
  if (!a.pages.overlaps(b.pages)) return false;
  if (touches_cpu_table(a.verb) && touches_cpu_table(b.verb)) return true;
  if (touches_device_table(a.verb) && touches_device_table(b.verb) && same_device) return true;
  if (writes_system(a) && (uses_system(b) || writes_system(b))) return true;
  if (writes_system(b) && uses_system(a)) return true;
  if (touches_store(a.verb) && touches_store(b.verb)) return true;
  // What is stored must be quiet from before until after.
  const auto stores_and_maps = [](const Action& x, const Action& y) {
    return x.verb == Verb::store && (touches_cpu_table(y.verb) || y.verb == Verb::revoke_device ||
                                     (y.verb == Verb::map_device && y.place == Place::system));
  };
  if (stores_and_maps(a, b) || stores_and_maps(b, a)) return true;
  const auto fills_and_maps = [&](const Action& x, const Action& y) {
    return x.verb == Verb::copy && target_of(x) == Place::vram && y.verb == Verb::map_device &&
           y.place == Place::vram && same_device;
  };
  if (fills_and_maps(a, b) || fills_and_maps(b, a)) return true;
  // A copy's source must be quiet before it starts, and its target unreachable until it is done.
  const auto copies_and_hides = [&](const Action& x, const Action& y) {
    return x.verb == Verb::copy && (y.verb == Verb::revoke_cpu ||
                                    (y.verb == Verb::revoke_device && target_of(x) == Place::system && same_device));
  };
  return copies_and_hides(a, b) || copies_and_hides(b, a);
}

}  // namespace ferry::sim

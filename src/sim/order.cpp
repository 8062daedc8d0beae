#include "sim/order.h"

namespace ferry::sim {
namespace {
using core::Action;
using core::Place;
using core::Verb;

bool in_one_chunk(VramPage a, std::uint64_t count, VramPage chunk_first) {
  return a < chunk_first + block_pages && chunk_first < a + count;
}
/// Uses of VRAM of one device: a direct copy has two.
struct VramUse {
  DeviceId device = no_device;
  VramPage first = 0;
  bool fills = false;
};
bool shares_vram(const Action& a, const Action& b, bool filled_only) {
  const auto use = [](const Action& x, bool second) {
    if (second) return is_direct(x) ? VramUse{x.to_device, x.vram_to, true} : VramUse{};
    return VramUse{vram_owner(x), x.vram_first, x.verb == Verb::copy && x.place == Place::system};
  };
  for (unsigned i = 0; i < 4; ++i) {
    const VramUse u = use(a, (i & 1U) != 0);
    const VramUse v = use(b, (i & 2U) != 0);
    if (u.device == no_device || u.device != v.device || (filled_only && !u.fills && !v.fills)) continue;
    if (u.first < v.first + b.pages.count_pages && v.first < u.first + a.pages.count_pages) return true;
  }
  return false;
}
bool writes_system(const Action& a) {
  return a.verb == Verb::discard_system || a.verb == Verb::load || a.verb == Verb::copy_system ||
         (a.verb == Verb::copy && target_of(a) == Place::system);
}
bool uses_system(const Action& a) {
  return a.verb == Verb::map_cpu || a.verb == Verb::store || (a.verb == Verb::map_device && a.place == Place::system) ||
         (a.verb == Verb::copy && a.place == Place::system);
}

}  // namespace

bool order_matters(const Action& a, const Action& b) {
  const bool same_device = a.device == b.device;
  if (a.verb == Verb::release_chunk || b.verb == Verb::release_chunk) {
    const Action& release = a.verb == Verb::release_chunk ? a : b;
    const Action& other = a.verb == Verb::release_chunk ? b : a;
    if (is_direct(other) && other.to_device == release.device &&
        in_one_chunk(other.vram_to, other.pages.count_pages, release.vram_first)) {
      return true;
    }
    if (vram_owner(other) != release.device) return false;
    if (other.verb == Verb::release_chunk) return other.vram_first == release.vram_first;
    return uses_vram(other) && in_one_chunk(other.vram_first, other.pages.count_pages, release.vram_first);
  }
  if (a.verb == Verb::copy && b.verb == Verb::copy && shares_vram(a, b, true)) return true;
  // The source of a copy to another address is quiet, and as it is.
  const auto copies_from = [](const Action& x, const Action& y) {
    return x.verb == Verb::copy_system && y.pages.overlaps({x.from_page, x.pages.count_pages}) &&
           (writes_system(y) || touches_cpu_table(y.verb) || y.verb == Verb::revoke_device ||
            (y.verb == Verb::map_device && y.place == Place::system));
  };
  if (copies_from(a, b) || copies_from(b, a)) return true;
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
           y.place == Place::vram && shares_vram(x, y, true);
  };
  if (fills_and_maps(a, b) || fills_and_maps(b, a)) return true;
  // A copy's source must be quiet before it starts, and its target unreachable until it is done.
  const auto copies_and_hides = [&](const Action& x, const Action& y) {
    return (x.verb == Verb::copy || x.verb == Verb::copy_system) &&
           (y.verb == Verb::revoke_cpu || y.verb == Verb::protect_cpu ||
            (y.verb == Verb::revoke_device && x.place == Place::vram));
  };
  return copies_and_hides(a, b) || copies_and_hides(b, a);
}

}  // namespace ferry::sim

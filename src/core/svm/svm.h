// What one client asked for its memory, and the requests that wait for it. Apart from residency: eviction and migration
// read it and never write it.
//   attribute_map.*  page -> what was said       attributes.cpp  set, get, reset, groups; what a SET does at once
//   route.cpp        who serves a touch          retry.cpp       memory that is mapped before it is touched
#pragma once

#include <array>
#include <set>

#include "base/bitmap.h"
#include "core/action.h"
#include "core/svm/attribute_map.h"

namespace ferry::core {

struct Client;

struct Svm {
  AttributeMap map;               ///< only of pages that are allocated and not being freed
  PageMap<std::uint32_t> groups;  ///< 0: in none. Likewise
  std::set<std::uint32_t> fixed;  ///< groups whose migration is prevented
  bool retry_faults = true;       ///< cleared: what its compute may touch is mapped before it runs
  /// Cleared: no page is svm_always_mapped. Set: some may be.
  bool always_mapped = false;
};

/// A SET that is answered when what it asked for at once has happened, one after the other:
/// mappings that allow too much are gone; pages are home (ext_coherent); a prefetch is done; what must be mapped is.
struct SvmRequest {
  Client* client = nullptr;
  PageSpan span;
  Cookie cookie;
  std::uint64_t remaining = 0;  ///< operations that it waits for, and one while it starts some
  bool in_use = false;
  bool home = false;
  bool unite = false;  ///< pages that have copies are to have one
  Location prefetch = loc_undefined;
  bool map = false;
  bool mapping = false;  ///< svm_map() runs and will look again
  bool rests = false;    ///< svm_map() goes on with the next tick
  Page cursor = 0;       ///< of mapping
  unsigned tries = 0;    ///< operations for the granule at the cursor
};

/// Pages of one operation by what a device's mapping of them allows.
struct Rights {
  PageMask pages;
  bool writable = false;
  bool exec = false;
};
using RightsList = std::array<Rights, 4>;

}  // namespace ferry::core

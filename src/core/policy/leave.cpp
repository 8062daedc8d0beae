// Leave it where it is: moving a granule costs its copy, the copy of what leaves for it, and two shootdowns; what it
// gains grows with the touches while it is there. The manager sees no touches but faults, so a granule that has to prove
// its use is served in place by parts: each part costs one fault when it is first touched, and parts touched are counted.
// Whoever touches enough of them gets the granule. Each return from an eviction doubles what is enough: granules that
// keep coming and going stay at last, mapped where they are, and never fault again.
#include "core/impl.h"

namespace ferry::core {
namespace {

/// Parts that a granule is served in; a granule of fewer pages has a part a page.
constexpr unsigned parts_most = 32;
/// Share of the parts that pays for a move, when a granule did not come back before.
constexpr unsigned worth_share = 8;

}  // namespace

/// A device faults on a granule that no VRAM holds. True: it is served in place, the pages of `part` of it.
bool Core::Impl::leave_in_place(const Client& client, Granule& state, Page page, DeviceId device, PageMask& part) {
  if (config.leave == LeaveKind::never || state.slot != none_index) {
    return false;
  }
  const bool returns = state.returns >= config.leave_returns;
  if (!returns && config.leave != LeaveKind::cost) {
    return false;
  }
  if (has_free_slot(client, device)) {
    state.touches = 0;  // nobody has to leave for it
    return false;
  }
  const unsigned parts = std::min(parts_most, config.granularity_pages);
  const unsigned doubled = config.leave == LeaveKind::cost ? state.returns : state.returns - config.leave_returns;
  const unsigned enough = std::max(parts / worth_share, 1U) << std::min(doubled, 8U);
  if (state.touches + 1U >= enough && enough <= parts) {
    state.touches = 0;
    return false;
  }
  state.touches = static_cast<std::uint8_t>(std::min(state.touches + 1U, parts_most));
  const unsigned pages = config.granularity_pages / parts;
  part = PageMask::range(static_cast<unsigned>(page & (block_pages - 1)) / pages * pages, pages);
  return true;
}

/// A granule gets VRAM, `distance` evictions after it was evicted.
void Core::Impl::note_return(Granule& state, std::uint64_t distance, const Device& device) {
  constexpr std::uint64_t turnovers = 16;  // longer away than that says nothing
  if (distance <= turnovers * device.chunk_total * slots_per_chunk() && state.returns < 15) {
    ++state.returns;
  }
}

/// A granule leaves VRAM after `age` evictions of others.
void Core::Impl::note_stay(Granule& state, std::uint64_t age, const Device& device) {
  if (age > 2 * device.chunk_total * slots_per_chunk()) {
    state.returns = 0;  // it has earned its place
  }
}

}  // namespace ferry::core

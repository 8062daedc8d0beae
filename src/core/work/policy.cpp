// Policies: what may wait for what.
#include "core/impl.h"

namespace ferry::core {

bool Work::may_wait(const AllocContext&, FenceId, graph::NodeId) { return true; }
bool Work::may_deadlock(FenceId) const { return {}; }
std::uint64_t Work::repair_reserve_pages() const { return {}; }

}  // namespace ferry::core

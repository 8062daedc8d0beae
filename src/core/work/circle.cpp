// Faults and units in the wait graph; circles that stand, and their end.
#include "core/impl.h"

namespace ferry::core {

void Work::fault_begins(ClientId, DeviceId, unsigned, std::uint64_t) {}
void Work::fault_ends(ClientId, DeviceId, std::uint64_t) {}
graph::NodeId Work::fault_node(ClientId, DeviceId, std::uint64_t) const { return graph::no_node; }
void Work::circle_found(const graph::Circle&) {}
graph::Circle Work::find_circle() const { return {}; }

}  // namespace ferry::core

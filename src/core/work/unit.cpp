// Compute units: who holds them.
#include "core/impl.h"

namespace ferry::core {

void Work::compute_demand(ClientId, DeviceId, unsigned) {}
std::uint64_t Work::compute_units(ClientId, DeviceId) const { return {}; }
void Work::unit_pump(DeviceId) {}
bool Work::gate(Job&) { return true; }
void Work::gate_leave(Job&) {}
bool Work::stop_compute(ClientId, DeviceId, std::uint32_t, std::uint64_t) { return true; }

}  // namespace ferry::core

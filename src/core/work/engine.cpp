// Engines: whose turn it is.
#include "core/impl.h"

namespace ferry::core {

void Work::engine_enqueue(Job&) {}
void Work::engine_pump(DeviceId) {}
void Work::engine_timeouts() {}

}  // namespace ferry::core

// Every bench there is. A function a file of this folder.
#pragma once

#include <vector>

#include "harness.h"

namespace ferry::bench {

/// The core alone: faults and migrations decided a second on one thread, nothing performed.
[[nodiscard]] Bench core_decisions();

}  // namespace ferry::bench

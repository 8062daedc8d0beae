// The file behind a mapping of this process. No malloc.
#pragma once

#include <cstdint>

#include "device/explain.h"
#include "linux/fd.h"

namespace ferry::client {

/// Opens it anew, for reading or for both; or gives a copy of a descriptor of the program's for the same file. Invalid:
/// it cannot be had. The kernel opens it by its mapping for who has CAP_CHECKPOINT_RESTORE; else it must have a name that
/// leads to it still, or be open in the process.
[[nodiscard]] linux::Fd open_mapped(const device::MappingInfo& mapping, bool write);

}  // namespace ferry::client

// Memory that was adopted and has been unmapped, by a C library that asks nobody: its address may be somebody else's by the
// time the manager hears of it, and a device reaches the old pages until the manager has taken them from it.
#pragma once

#include "base/status.h"

namespace ferry::client {

struct Session;

/// When it returns no device reaches pages of adopted memory whose munmap (or other change of mappings) was begun before the
/// call: what is mapped at those addresses now is what devices get. Nothing was adopted: one load. Else one system call,
/// and a question to the manager if something was unmapped just now. Any thread that may wait for the manager.
/// ERRORS: manager_lost.
Status settle_unmaps(Session& session);
/// As settle_unmaps, for who is about to start a kernel: also waits for an adoption that is at a step where it may cover
/// what others have unmapped. Not from the adopter.
Status settle_before_launch(Session& session);

}  // namespace ferry::client

// Managed memory that was unmapped or freed while some of it was pinned: nobody can touch it any more, and what it holds and
// its addresses stay until the last unpin. Nobody waits for that: who unmaps may be who is to unpin.
#pragma once

#include <cstddef>

#include "base/status.h"
#include "client/change/rules.h"

namespace ferry::client {

/// Part of an allocation. ok: the manager has let go of it, or does when it is unpinned. The heap has the addresses.
Status unmap_or_keep(Session& s, const Part& part);

/// A span of the heap's, for its release hook. False: its addresses stay taken; pins_ended() gives them back.
[[nodiscard]] bool free_or_keep(Session& s, const Part& span);

/// Something was unpinned, or a pin was not had. One load where nothing is kept. Takes the heap's locks if something is.
void pins_ended();

/// In a fork's child: what is kept is the parent's.
void forget_kept();

}  // namespace ferry::client

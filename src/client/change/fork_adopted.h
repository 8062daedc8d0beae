// Adopted memory that could not be given back for a fork, as it is pinned: the child gets it from the manager, as it gets
// the memory of the window (docs/design/0018-fork.md). Noted before the fork, when nothing is adopted or given back any more,
// and read by the child, which has nothing but its own stack then: no malloc, no locks.
#pragma once

#include <cstdint>

#include "client/change/rules.h"

namespace ferry::client {

/// By the thread that forks. False: there is no memory to note it all, or pages of `calls` are left: this thread goes on
/// writing there until it has forked, and nobody can copy them as they are then, so the child does not have them.
bool freeze_adopted(const Session& session, const Part& calls);
/// Nothing is left of any.
void forget_left_adopted();

[[nodiscard]] bool some_adopted_left();
[[nodiscard]] bool is_left_adopted(std::uint64_t address);

/// In the child, where nothing is mapped of it: private memory, with nothing in it. What the program said the child is
/// not to have stays away, or is zeros. Memory that came to lie there meanwhile stays what it is.
[[nodiscard]] bool map_left_adopted();
/// Calls fn(part) for what the manager is to fill.
void for_left_adopted(void (*fn)(void* context, const Part& part), void* context);
/// What the parent's threads might do there the child's may, and no more.
[[nodiscard]] bool protect_left_adopted();

}  // namespace ferry::client

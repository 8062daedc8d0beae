// What a fork's child is not to have of the window's memory: MADV_DONTFORK and MADV_WIPEONFORK. The kernel cannot keep it, as
// every managed span is kept from children and given to them by the manager. A run of pages each, in a table of limited size.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "client/change/rules.h"

namespace ferry::client {

enum class ForkAdvice : std::uint8_t {
  none,
  absent,  ///< MADV_DONTFORK: the child has nothing there
  wiped,   ///< MADV_WIPEONFORK: zeros
};

/// Any thread; allocates nothing. ERRORS: no_memory (the table is full): nothing has changed.
Status set_fork_advice(const Part& part, ForkAdvice advice);
/// The memory is gone.
void forget_fork_advice(const Part& part);
/// The memory of `from` is at the address `to` now.
Status move_fork_advice(const Part& from, std::uint64_t to);

/// What this process's next child is to have is as it is now. By the thread that forks.
void freeze_fork_advice();
/// In the child: what it is not to have goes. False: the kernel refused.
bool apply_fork_advice();
/// In a child: nothing may be touched there.
[[nodiscard]] bool is_absent_in_child(std::uint64_t address);
/// In a child: the next part of `rest`, which loses it, where something may be touched; empty: there is none.
[[nodiscard]] Part take_present_in_child(Part& rest);

/// Calls fn(part) for what the child is to have of a part.
template <typename Fn>
void for_present_in_child(Part rest, Fn&& fn) {
  for (Part part = take_present_in_child(rest); !part.empty(); part = take_present_in_child(rest)) fn(part);
}

}  // namespace ferry::client

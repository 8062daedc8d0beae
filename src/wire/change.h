// What the application tells the manager of changes of its address space.
// | message | body   | when                                                    | answer                                  |
// |---------|--------|---------------------------------------------------------|-----------------------------------------|
// | change  | Change | before the system call; for unmap, also after it, where | done, when no processor reaches the     |
// |         |        | nobody can map the addresses meanwhile                  | pages as they were                      |
// | changed | Span   | after a system call that mapped something else over     | done: what threads wrote there between  |
// |         |        | pages that were unmapped                                | the two is gone                         |
#pragma once

#include <cstdint>
#include <type_traits>

namespace ferry::wire {

struct Change {
  std::uint64_t first_page;
  std::uint64_t count_pages;
  std::uint64_t to_page;  ///< move: where the pages go (first_page: nowhere, only whether they may is asked); 0
  std::uint32_t change;   ///< core::Change
  std::uint32_t prot;     ///< protect: core::SpanProt bits
};
static_assert(std::is_trivially_copyable_v<Change> && sizeof(Change) == 32);

}  // namespace ferry::wire

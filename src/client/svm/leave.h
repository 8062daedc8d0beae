// Which pages of the heap something was said about (attributes, a range group): the heap gives pages to one allocation
// after another without the manager's knowledge, and what was said of the one must not hold for the next.
#pragma once

#include <cstdint>

namespace ferry::client {

/// Something is about to be said about these pages. Any thread.
void note_said(std::uint64_t first_page, std::uint64_t count_pages);

}  // namespace ferry::client

// Where a page is, as the interface tells it: the manager's answer as numbers and as a sentence. Any thread.
#pragma once

#include <ferry/ferry.h>

#include "client/session.h"

namespace ferry::client {

ferry_code query_page(Session& session, const void* pointer, ferry_page_info& info, ferry_error* error);

/// Returns the length of the whole text; writes what fits, NUL-terminated.
std::size_t explain_page(const void* pointer, const ferry_page_info& info, char* buffer, std::size_t bytes);

}  // namespace ferry::client

// Where a page is, as the interface tells it: the manager's answer as numbers and as a sentence. Any thread.
#pragma once

#include <ferry/svm.h>

#include "client/session.h"

namespace ferry::client {

ferry_code query_page(Session& session, const void* pointer, ferry_page_info& info, ferry_error* error);

/// As ferry_query_copies.
ferry_code query_copies(Session& session, const void* pointer, std::uint32_t& copies, ferry_error* error);

/// Returns the length of the whole text, 0 on error; writes what fits, NUL-terminated.
std::size_t explain_page(Session& session, const void* pointer, char* buffer, std::size_t bytes, ferry_error* error);

}  // namespace ferry::client

// Fills a caller's ferry_error. Pure; any thread. Nothing here allocates or throws.
#pragma once

#include <ferry/ferry.h>

#include "base/status.h"

namespace ferry::client {

/// Writes code, errno and text into `out` (which may be null) and clears the kernel's fields. Returns the code.
ferry_code fail(ferry_error* out, Code code, int sys_errno, const char* format, ...)
    __attribute__((format(printf, 4, 5)));

/// "no room": what was attempted, then why, then errno in words.
ferry_code fail(ferry_error* out, Status status, const char* what);

}  // namespace ferry::client

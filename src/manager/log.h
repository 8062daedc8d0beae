// One line on standard error. Main thread.
#pragma once

namespace ferry::manager {

/// printf-like; "ferryd: " goes before, a newline after.
__attribute__((format(printf, 1, 2))) void log(const char* format, ...);

}  // namespace ferry::manager

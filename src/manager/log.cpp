#include "manager/log.h"

#include <cstdarg>
#include <cstdio>

namespace ferry::manager {

void log(const char* format, ...) {
  char text[4096];  // a deadlock is told in as many sentences as it has waits
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "ferryd: %s\n", text);
}

}  // namespace ferry::manager

#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace ferry {
namespace {
thread_local const char* context_line = nullptr;
CheckHook check_hook = nullptr;
thread_local CheckHook check_catcher = nullptr;

[[noreturn]] void die(const char* message) {
  if (check_catcher != nullptr) {
    check_catcher(message);
  }
  std::fputs(message, stderr);
  if (context_line != nullptr) {
    std::fprintf(stderr, "  again with: %s\n", context_line);
  }
  std::fflush(stderr);
  if (check_hook != nullptr) {
    check_hook(message);
  }
  std::abort();
}
}  // namespace

void set_check_context(const char* line) { context_line = line; }
void set_check_hook(CheckHook hook) { check_hook = hook; }
void set_check_catcher(CheckHook catcher) { check_catcher = catcher; }

namespace detail {
void check_failed(const char* file, int line, const char* expression) {
  char text[512];
  std::snprintf(text, sizeof text, "ferry: bug: %s:%d: %s does not hold\n", file, line, expression);
  die(text);
}

void check_failed_values(const char* file, int line, const char* expression, long long left, long long right) {
  char text[512];
  std::snprintf(text, sizeof text, "ferry: bug: %s:%d: %s does not hold: %lld against %lld\n", file, line, expression,
                left, right);
  die(text);
}
}  // namespace detail
}  // namespace ferry

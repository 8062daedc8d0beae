#include "client/error.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace ferry::client {

static_assert(FERRY_BAD_RANGE == static_cast<int>(Code::bad_range));
static_assert(FERRY_NOT_ALLOCATED == static_cast<int>(Code::not_allocated));
static_assert(FERRY_OVERLAP == static_cast<int>(Code::overlap));
static_assert(FERRY_BAD_MESSAGE == static_cast<int>(Code::bad_message));
static_assert(FERRY_BAD_VERSION == static_cast<int>(Code::bad_version));
static_assert(FERRY_NOT_PERMITTED == static_cast<int>(Code::not_permitted));
static_assert(FERRY_NO_MEMORY == static_cast<int>(Code::no_memory));
static_assert(FERRY_NO_MAPPINGS == static_cast<int>(Code::no_mappings));
static_assert(FERRY_NO_SPACE == static_cast<int>(Code::no_space));
static_assert(FERRY_DEVICE_LOST == static_cast<int>(Code::device_lost));
static_assert(FERRY_CLIENT_GONE == static_cast<int>(Code::client_gone));
static_assert(FERRY_MANAGER_LOST == static_cast<int>(Code::manager_lost));
static_assert(FERRY_TIMED_OUT == static_cast<int>(Code::timed_out));
static_assert(FERRY_IO_ERROR == static_cast<int>(Code::io_error));
static_assert(FERRY_KERNEL_FAULT == static_cast<int>(Code::kernel_fault));
static_assert(FERRY_KERNEL_THREW == static_cast<int>(Code::kernel_threw));
static_assert(FERRY_CANCELLED == static_cast<int>(Code::cancelled));
static_assert(FERRY_UNSUPPORTED == static_cast<int>(Code::unsupported));

ferry_code fail(ferry_error* out, Code code, int sys_errno, const char* format, ...) {
  if (out != nullptr) {
    *out = {};
    out->code = static_cast<ferry_code>(code);
    out->sys_errno = sys_errno;
    va_list args;
    va_start(args, format);
    std::vsnprintf(out->text, sizeof out->text, format, args);
    va_end(args);
  }
  return static_cast<ferry_code>(code);
}

ferry_code fail(ferry_error* out, Status status, const char* what) {
  if (status.sys_errno == 0) return fail(out, status.code, 0, "%s: %s", what, to_string(status.code));
  char buffer[128];
  return fail(out, status.code, status.sys_errno, "%s: %s (%s)", what, to_string(status.code),
              strerror_r(status.sys_errno, buffer, sizeof buffer));
}

}  // namespace ferry::client

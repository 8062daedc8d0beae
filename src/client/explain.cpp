#include "client/explain.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "client/change/adopted.h"
#include "client/error.h"
#include "core/action.h"

namespace ferry::client {
namespace {

/// Appends without ever passing the end; `used` counts the whole text.
class Sentence {
 public:
  Sentence(char* buffer, std::size_t bytes) : buffer_(buffer), bytes_(bytes) {
    if (bytes_ != 0) buffer_[0] = '\0';
  }
  __attribute__((format(printf, 2, 3))) void add(const char* format, ...) {
    const std::size_t room = used_ < bytes_ ? bytes_ - used_ : 0;
    va_list args;
    va_start(args, format);
    const int n = std::vsnprintf(room != 0 ? buffer_ + used_ : nullptr, room, format, args);
    va_end(args);
    if (n > 0) used_ += static_cast<std::size_t>(n);
  }
  [[nodiscard]] std::size_t used() const { return used_; }

 private:
  char* buffer_;
  std::size_t bytes_;
  std::size_t used_ = 0;
};

/// `r.allocated` cleared: not managed memory.
ferry_code ask_residency(Session& session, const void* pointer, wire::PageResidency& r, ferry_error* error) {
  r = {};
  if (!session.in_window(pointer) && !touches_adopted(pointer, 1)) return FERRY_OK;
  wire::Span span{};
  span.first_page = session.page_of(pointer);
  span.count_pages = 1;
  Answer answer;
  const Status asked = session.requests.ask(wire::MessageType::query, span, answer);
  if (asked.code == Code::not_allocated) return FERRY_OK;
  if (!asked.ok()) return fail(error, asked, "query");
  if (answer.type() != wire::MessageType::residency || !answer.body(r)) {
    return fail(error, Code::bad_message, 0, "query: the manager answered with something else");
  }
  return FERRY_OK;
}

void fill(const wire::PageResidency& r, ferry_page_info& info) {
  info = {};
  info.vram_device = -1;
  info.last_move_age_ns = UINT64_MAX;
  if (r.allocated == 0) return;
  info.managed = 1;
  info.system_current = r.system_current != 0 ? 1 : 0;
  info.vram_device = r.vram_device == no_device ? -1 : r.vram_device;
  info.dirty = r.dirty != 0 ? 1 : 0;
  info.cpu_may_map = r.cpu_may_map != 0 ? 1 : 0;
  info.device_mapped = r.device_mapped;
  info.device_writable = r.device_writable;
  info.moving = r.moving != 0 ? 1 : 0;
  info.contended = r.contended != 0 ? 1 : 0;
  const auto cause = r.cause < core::cause_count ? static_cast<core::Cause>(r.cause) : core::Cause::none;
  std::snprintf(info.cause, sizeof info.cause, "%s", core::to_string(cause));
  info.last_move_age_ns = r.last_move_age_ns;
}

std::uint32_t copies_in(const wire::PageResidency& r) {
  if (r.allocated == 0) return 0;
  std::uint32_t copies = r.copies & ((1U << max_devices) - 1);
  if (r.vram_device < max_devices) copies |= 1U << r.vram_device;
  if (r.system_current != 0) copies |= FERRY_COPY_SYSTEM;
  return copies;
}

std::size_t tell_page(const void* pointer, const ferry_page_info& info, std::uint32_t copies, char* buffer,
                      std::size_t bytes) {
  Sentence s(buffer, bytes);
  if (info.managed == 0) {
    s.add("%p is not managed memory", pointer);
    return s.used();
  }
  s.add("%p: the newest copy is in ", pointer);
  if (info.vram_device < 0) {
    s.add("system memory");
  } else if (info.system_current != 0) {
    s.add("VRAM of device %d and in system memory (unchanged since it was copied)", info.vram_device);
  } else {
    s.add("VRAM of device %d", info.vram_device);
  }
  for (unsigned d = 0; d < max_devices; ++d) {
    if ((copies >> d & 1U) != 0 && static_cast<int>(d) != info.vram_device) s.add(", with a copy on device %u", d);
  }
  if (info.moving != 0) s.add(", being moved now");
  s.add("; the CPU %s", info.cpu_may_map != 0 ? "maps it" : "faults when it touches it");
  for (unsigned d = 0; d < max_devices; ++d) {
    if ((info.device_mapped >> d & 1U) == 0) continue;
    s.add(", device %u maps it%s", d, (info.device_writable >> d & 1U) != 0 ? "" : " read-only");
  }
  if (info.contended != 0) s.add("; it stays in system memory because CPU and device both want it");
  if (info.last_move_age_ns == UINT64_MAX) {
    s.add("; it has never moved");
  } else {
    s.add("; last moved %.3f ms ago because of %s", static_cast<double>(info.last_move_age_ns) / 1e6, info.cause);
  }
  return s.used();
}

}  // namespace

ferry_code query_page(Session& session, const void* pointer, ferry_page_info& info, ferry_error* error) {
  wire::PageResidency r{};
  const ferry_code code = ask_residency(session, pointer, r, error);
  fill(r, info);
  return code;
}

ferry_code query_copies(Session& session, const void* pointer, std::uint32_t& copies, ferry_error* error) {
  wire::PageResidency r{};
  const ferry_code code = ask_residency(session, pointer, r, error);
  copies = copies_in(r);
  return code;
}

std::size_t explain_page(Session& session, const void* pointer, char* buffer, std::size_t bytes, ferry_error* error) {
  wire::PageResidency r{};
  if (ask_residency(session, pointer, r, error) != FERRY_OK) return 0;
  ferry_page_info info;
  fill(r, info);
  return tell_page(pointer, info, copies_in(r), buffer, bytes);
}

}  // namespace ferry::client

#include "client/svm/ask.h"

#include "base/types.h"
#include "client/devices.h"
#include "client/error.h"

namespace ferry::client {
namespace {

constexpr std::uint64_t address_end = std::uint64_t{1} << address_bits;

}  // namespace

const char* advice(wire::MessageType type, Code code) {
  using wire::MessageType;
  switch (code) {
    case Code::not_allocated:
      return "no page of the span is managed memory: ferry_alloc gives it, ferry_adopt makes memory that the program "
             "already has managed";
    case Code::in_use: return "pages of the span are pinned: ferry_unpin first";
    case Code::not_held:
      return type == MessageType::unpin ? "not all pages of the span are pinned"
                                        : "no such range group of this process";
    case Code::no_memory:
      return type == MessageType::pin ? "the limit of pinned pages is reached, or there is no room for them" : nullptr;
    default: return nullptr;
  }
}

SvmSpan svm_span_of(const void* pointer, std::size_t bytes, const char* what, ferry_error* error) {
  const auto first = reinterpret_cast<std::uint64_t>(pointer);
  if (bytes == 0) {
    fail(error, Code::bad_range, 0, "%s: a span of 0 bytes", what);
    return {};
  }
  if (first % page_bytes != 0 || bytes % page_bytes != 0) {
    fail(error, Code::bad_range, 0, "%s: %p and %zu bytes are not both multiples of %llu", what, pointer, bytes,
         static_cast<unsigned long long>(page_bytes));
    return {};
  }
  if (first >= address_end || bytes > address_end - first) {
    fail(error, Code::bad_range, 0, "%s: %p and %zu bytes end outside the address space", what, pointer, bytes);
    return {};
  }
  Session* session = open_session(nullptr, error);
  if (session == nullptr) return {};
  const Window window{session->window_base, session->window_bytes};
  const std::uint64_t last = first + bytes - page_bytes;
  const std::uint64_t first_page = window.page_of_address(first);
  const std::uint64_t count_pages = bytes / page_bytes;
  if (window.contains(first) != window.contains(last) || window.page_of_address(last) != first_page + count_pages - 1) {
    fail(error, Code::bad_range, 0, "%s: %p and %zu bytes reach over an end of managed memory", what, pointer, bytes);
    return {};
  }
  return {session, first_page, count_pages};
}

bool ask_svm_bytes(Session& session, wire::MessageType type, std::span<const std::byte> body, Answer& answer,
                   wire::SvmAnswer& out, const char* what, ferry_error* error) {
  Status status = session.requests.ask(type, body, {}, answer);
  out = {};
  if (status.ok() && answer.type() == wire::MessageType::done) return true;
  if (status.ok() && (answer.type() != wire::MessageType::svm_answer || !answer.body(out))) status = Code::bad_message;
  if (!status.ok()) {
    fail(error, status, what);
    return false;
  }
  if (out.code == 0) return true;
  out.text[sizeof out.text - 1] = '\0';
  const auto code = static_cast<Code>(out.code);
  if (out.text[0] != '\0') {
    fail(error, code, out.sys_errno, "%s: %s", what, out.text);
  } else if (const char* words = advice(type, code)) {
    fail(error, code, out.sys_errno, "%s: %s", what, words);
  } else {
    fail(error, Status(code, out.sys_errno), what);
  }
  return false;
}

bool svm_place(Session& session, int device, std::uint32_t& out, const char* what, ferry_error* error) {
  if (device == FERRY_TO_CPU) {
    out = wire::to_system;
    return true;
  }
  if (device < 0 || static_cast<unsigned>(device) >= session.machine.device_count) {
    fail(error, Code::bad_range, 0, "%s: there is no device %d: this machine has %u", what, device,
         session.machine.device_count);
    return false;
  }
  out = static_cast<std::uint32_t>(device);
  return attached_queues(session, out, error) != nullptr;
}

}  // namespace ferry::client

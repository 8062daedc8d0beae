// Moves on request, range groups, pins: a span and a place, and the manager's answer.
#include "client/change/kept.h"
#include "client/error.h"
#include "client/heap/process_heap.h"
#include "client/svm/ask.h"
#include "client/svm/leave.h"
#include "client/work/objects.h"

using namespace ferry;          // NOLINT(google-build-using-namespace)
using namespace ferry::client;  // NOLINT(google-build-using-namespace)

struct ferry_range_group {
  std::uint32_t number = 0;
};

namespace {

ferry_code give(ferry_error* error, const ferry_error& own) {
  if (error != nullptr) *error = own;
  return own.code;
}

wire::Span body_of(const SvmSpan& span, std::uint32_t place) {
  wire::Span body{};
  body.first_page = span.first_page;
  body.count_pages = span.count_pages;
  body.device = place;
  return body;
}

/// The whole of a call that says a span, perhaps a place, and is answered by whether it went well.
ferry_code tell_span(wire::MessageType type, const void* pointer, std::size_t bytes, int device, const char* what,
                     ferry_error* error) {
  ferry_error own{};
  const SvmSpan span = svm_span_of(pointer, bytes, what, &own);
  std::uint32_t place = wire::to_system;
  wire::SvmAnswer answer;
  if (!span || !svm_place(*span.session, device, place, what, &own) ||
      !ask_svm(*span.session, type, body_of(span, place), answer, what, &own)) {
    return give(error, own);
  }
  return FERRY_OK;
}

}  // namespace

ferry_code ferry_migrate_async(const void* pointer, size_t bytes, int device, ferry_fence** fence, ferry_error* error) {
  ferry_error own{};
  if (fence == nullptr) return fail(error, Code::bad_range, 0, "migrate_async: there is nowhere to put the fence");
  *fence = nullptr;
  const SvmSpan span = svm_span_of(pointer, bytes, "migrate_async", &own);
  std::uint32_t place = wire::to_system;
  if (!span || !svm_place(*span.session, device, place, "migrate_async", &own)) return give(error, own);
  Answer answer;
  wire::SvmAnswer refused;
  const wire::Span body = body_of(span, place);
  const Status asked = span.session->requests.ask(wire::MessageType::migrate_async, body, answer);
  wire::WorkAnswer made{};
  if (asked.ok() && answer.type() == wire::MessageType::work_answer && answer.body(made) && made.code == 0) {
    *fence = make_fence(made);
    return FERRY_OK;
  }
  if (asked.ok() && answer.type() == wire::MessageType::svm_answer && answer.body(refused) && refused.code != 0) {
    refused.text[sizeof refused.text - 1] = '\0';
    if (refused.text[0] != '\0') {
      return fail(error, static_cast<Code>(refused.code), refused.sys_errno, "migrate_async: %s", refused.text);
    }
    const auto code = static_cast<Code>(refused.code);
    if (const char* words = advice(wire::MessageType::migrate_async, code)) {
      return fail(error, code, refused.sys_errno, "migrate_async: %s", words);
    }
    return fail(error, Status(code, refused.sys_errno), "migrate_async");
  }
  return fail(error, asked.ok() ? Status(Code::bad_message) : asked, "migrate_async");
}

ferry_code ferry_populate(void* pointer, size_t bytes, int device, ferry_error* error) {
  return tell_span(wire::MessageType::populate, pointer, bytes, device, "populate", error);
}

ferry_code ferry_discard(void* pointer, size_t bytes, ferry_error* error) {
  return tell_span(wire::MessageType::svm_discard, pointer, bytes, FERRY_TO_CPU, "discard", error);
}

ferry_code ferry_pin(const void* pointer, size_t bytes, int device, ferry_error* error) {
  const ferry_code code = tell_span(wire::MessageType::pin, pointer, bytes, device, "pin", error);
  if (code != FERRY_OK) pins_ended();
  return code;
}

ferry_code ferry_unpin(const void* pointer, size_t bytes, ferry_error* error) {
  const ferry_code code = tell_span(wire::MessageType::unpin, pointer, bytes, FERRY_TO_CPU, "unpin", error);
  if (code == FERRY_OK) pins_ended();
  return code;
}

// --- range groups ----------------------------------------------------------------------------------------------------

ferry_range_group* ferry_range_group_create(ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr) return nullptr;
  Answer answer;
  wire::SvmAnswer out;
  if (!ask_svm_bytes(*session, wire::MessageType::group_create, {}, answer, out, "range group", error)) return nullptr;
  const NativeMallocScope native;
  return new ferry_range_group{out.values[0]};
}

void ferry_range_group_destroy(ferry_range_group* group) {
  if (group == nullptr || !may_use_session(nullptr)) return;
  if (Session* session = session_if_open()) {
    wire::SvmAnswer out;
    [[maybe_unused]] const bool told = ask_svm(*session, wire::MessageType::group_destroy,
                                               wire::GroupRef{group->number, 0, 0, 0}, out, "range group", nullptr);
  }
  const NativeMallocScope native;
  delete group;
}

ferry_code ferry_range_group_assign(ferry_range_group* group, void* pointer, size_t bytes, ferry_error* error) {
  ferry_error own{};
  const SvmSpan span = svm_span_of(pointer, bytes, "range group", &own);
  wire::SvmAnswer out;
  if (span && group != nullptr) note_said(span.first_page, span.count_pages);
  if (!span || !ask_svm(*span.session, wire::MessageType::group_assign,
                        wire::GroupRef{group == nullptr ? 0 : group->number, 0, span.first_page, span.count_pages}, out,
                        "range group", &own)) {
    return give(error, own);
  }
  return FERRY_OK;
}

ferry_code ferry_range_group_migration(ferry_range_group* group, int allowed, ferry_error* error) {
  ferry_error own{};
  if (group == nullptr) return fail(error, Code::not_held, 0, "range group: there is none");
  Session* session = session_of_handle(&own);
  wire::SvmAnswer out;
  if (session == nullptr ||
      !ask_svm(*session, wire::MessageType::group_migration,
               wire::GroupRef{group->number, allowed != 0 ? 1U : 0U, 0, 0}, out, "range group", &own)) {
    return give(error, own);
  }
  return FERRY_OK;
}

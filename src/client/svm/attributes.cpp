// Attributes: lists of lines to the manager and back.
#include <sched.h>

#include "client/devices.h"
#include "client/error.h"
#include "client/queues.h"
#include "client/svm/ask.h"
#include "client/svm/leave.h"
#include "linux/futex.h"

using namespace ferry;          // NOLINT(google-build-using-namespace)
using namespace ferry::client;  // NOLINT(google-build-using-namespace)

static_assert(FERRY_SVM_ATTRIBUTES_MAX == wire::svm_lines_max);

namespace {

/// A device lowers what it wants a little after the end of a launch was told.
constexpr std::uint64_t idle_patience_ns = 2'000'000'000;

ferry_code give(ferry_error* error, const ferry_error& own) {
  if (error != nullptr) *error = own;
  return own.code;
}

/// False, with `error` filled: such a list cannot be.
bool list_of(const SvmSpan& span, const ferry_svm_attribute* lines, std::size_t count, wire::SvmList& out,
             const char* what, ferry_error* error) {
  if (lines == nullptr || count == 0 || count > FERRY_SVM_ATTRIBUTES_MAX) {
    fail(error, Code::bad_range, 0, "%s: %zu attributes (1 to %d are allowed)", what, count, FERRY_SVM_ATTRIBUTES_MAX);
    return false;
  }
  out.first_page = span.first_page;
  out.count_pages = span.count_pages;
  out.count = static_cast<std::uint32_t>(count);
  for (std::size_t i = 0; i < count; ++i) {
    if (lines[i].reserved != 0) {
      fail(error, Code::bad_range, 0, "%s: line %zu: reserved is %u, and must be 0", what, i, lines[i].reserved);
      return false;
    }
    out.lines[i] = {lines[i].type, lines[i].device, lines[i].value, 0};
  }
  return true;
}

}  // namespace

ferry_code ferry_svm_set(void* pointer, size_t bytes, const ferry_svm_attribute* attributes, size_t count,
                         ferry_error* error) {
  ferry_error own{};
  const SvmSpan span = svm_span_of(pointer, bytes, "svm_set", &own);
  wire::SvmList list{};
  if (!span || !list_of(span, attributes, count, list, "svm_set", &own)) return give(error, own);
  for (std::size_t i = 0; i < count; ++i) {
    // A device that does not run yet has no memory to bring pages to.
    if (attributes[i].type == FERRY_SVM_PREFETCH_LOC && attributes[i].value < span.session->machine.device_count &&
        attached_queues(*span.session, attributes[i].value, &own) == nullptr) {
      return give(error, own);
    }
  }
  note_said(span.first_page, span.count_pages);
  wire::SvmAnswer answer;
  if (!ask_svm(*span.session, wire::MessageType::svm_set, list, answer, "svm_set", &own)) return give(error, own);
  return FERRY_OK;
}

ferry_code ferry_svm_get(const void* pointer, size_t bytes, ferry_svm_attribute* attributes, size_t count,
                         ferry_error* error) {
  ferry_error own{};
  const SvmSpan span = svm_span_of(pointer, bytes, "svm_get", &own);
  wire::SvmList list{};
  wire::SvmAnswer answer;
  if (!span || !list_of(span, attributes, count, list, "svm_get", &own) ||
      !ask_svm(*span.session, wire::MessageType::svm_get, list, answer, "svm_get", &own)) {
    return give(error, own);
  }
  if (answer.count != count) return fail(error, Code::bad_message, 0, "svm_get: %u values", answer.count);
  for (std::size_t i = 0; i < count; ++i) attributes[i].value = answer.values[i];
  return FERRY_OK;
}

ferry_code ferry_svm_reset(void* pointer, size_t bytes, ferry_error* error) {
  ferry_error own{};
  const SvmSpan span = svm_span_of(pointer, bytes, "svm_reset", &own);
  wire::SvmAnswer answer;
  if (!span) return give(error, own);
  wire::Span body{};
  body.first_page = span.first_page;
  body.count_pages = span.count_pages;
  body.device = wire::to_system;
  return ask_svm(*span.session, wire::MessageType::svm_reset, body, answer, "svm_reset", &own) ? FERRY_OK
                                                                                               : give(error, own);
}

ferry_code ferry_svm_retry_faults(int mode, int* was, ferry_error* error) {
  ferry_error own{};
  Session* session = open_session(nullptr, &own);
  if (session == nullptr) return give(error, own);
  const std::uint64_t begin = linux::monotonic_ns();
  for (;;) {
    wire::SvmAnswer answer;
    if (ask_svm(*session, wire::MessageType::retry_faults, wire::RetryFaults{mode, 0}, answer, "svm_retry_faults",
                &own)) {
      if (was != nullptr) *was = static_cast<int>(answer.values[0]);
      return FERRY_OK;
    }
    if (own.code != FERRY_IN_USE || !all_idle() || linux::monotonic_ns() - begin > idle_patience_ns) {
      return give(error, own);
    }
    ::sched_yield();
  }
}

// What the calls of <ferry/svm.h> share: spans checked, questions asked, answers turned into errors that say what was
// asked for. No lock is held while the manager is asked.
#pragma once

#include <ferry/svm.h>

#include <cstdint>

#include "client/requests.h"
#include "client/session.h"
#include "wire/message.h"

namespace ferry::client {

/// A span of whole pages and the session it belongs to. Null session: `error` is filled.
struct SvmSpan {
  Session* session = nullptr;
  std::uint64_t first_page = 0;
  std::uint64_t count_pages = 0;
  explicit operator bool() const { return session != nullptr; }
};
/// What the code of a refusal alone does not tell about this request; null: nothing more is known.
const char* advice(wire::MessageType type, Code code);

/// Opens the session if need be. `what` begins the error's text.
SvmSpan svm_span_of(const void* pointer, std::size_t bytes, const char* what, ferry_error* error);

/// Asks, and fills `out` from an svm_answer; `done` counts as one without values. False, with `error` filled, if it was
/// refused. Descriptors stay in `answer`.
bool ask_svm_bytes(Session& session, wire::MessageType type, std::span<const std::byte> body, Answer& answer,
                   wire::SvmAnswer& out, const char* what, ferry_error* error);
template <typename T>
bool ask_svm(Session& session, wire::MessageType type, const T& body, wire::SvmAnswer& out, const char* what,
             ferry_error* error) {
  Answer answer;
  return ask_svm_bytes(session, type, std::as_bytes(std::span<const T, 1>(&body, 1)), answer, out, what, error);
}

/// Device number or FERRY_TO_CPU, as messages have it. A device that does not run yet is started: it has no memory before.
/// False, with `error` filled.
bool svm_place(Session& session, int device, std::uint32_t& out, const char* what, ferry_error* error);

}  // namespace ferry::client

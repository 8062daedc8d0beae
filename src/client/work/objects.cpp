#include "client/work/objects.h"

#include <fcntl.h>

#include <cerrno>
#include <cstring>

#include "client/error.h"

namespace ferry::client {
namespace {

template <typename T>
ObjectTable<T>& table() {
  const NativeMallocScope native;
  static auto* made = new ObjectTable<T>;
  return *made;
}

}  // namespace

ObjectTable<ferry_buffer>& buffer_table() { return table<ferry_buffer>(); }
ObjectTable<ferry_fence>& fence_table() { return table<ferry_fence>(); }
ObjectTable<ferry_timeline>& timeline_table() { return table<ferry_timeline>(); }

bool is_descriptor(int fd, const char* what, ferry_error* error) {
  if (fd >= 0 && ::fcntl(fd, F_GETFD) >= 0) return true;
  fail(error, Code::not_held, EBADF, "%s: %d is no descriptor", what, fd);
  return false;
}

bool ask_bytes(Session& session, wire::MessageType type, std::span<const std::byte> body, std::span<const int> fds,
               Answer& answer, wire::WorkAnswer& out, const char* what, ferry_error* error) {
  Status status = session.requests.ask(type, body, fds, answer);
  if (status.ok() && (answer.type() != wire::MessageType::work_answer || !answer.body(out))) status = Code::bad_message;
  if (!status.ok()) {
    fail(error, status, what);
    return false;
  }
  if (out.code == 0) return true;
  out.text[sizeof out.text - 1] = '\0';
  const auto code = static_cast<Code>(out.code);
  if (out.text[0] != '\0') {
    fail(error, code, out.sys_errno, "%s: %s", what, out.text);
  } else {
    fail(error, Status(code, out.sys_errno), what);
  }
  return false;
}

bool tell_work(wire::MessageType type, const wire::ObjectRef& body, const char* what, ferry_error* error) {
  Session* session = session_of_handle(error);
  if (session == nullptr) return false;
  Answer answer;
  wire::WorkAnswer out{};
  return ask_work(*session, type, body, answer, out, what, error);
}

int export_object(wire::MessageType type, std::uint64_t id, const char* what, ferry_error* error) {
  Session* session = session_of_handle(error);
  if (session == nullptr) return -1;
  Answer answer;
  wire::WorkAnswer out{};
  if (!ask_work(*session, type, wire::ObjectRef{id, 0}, answer, out, what, error)) return -1;
  linux::Fd token = answer.take_fd(0);
  if (!token) {
    fail(error, Code::no_memory, EMFILE, "%s: this process has as many descriptors as it may", what);
    return -1;
  }
  return token.release();
}

Session* session_of_handle(ferry_error* error) {
  if (!may_use_session(error)) return nullptr;
  return open_session(nullptr, error);
}

ferry_fence* make_fence(const wire::WorkAnswer& answer) {
  const NativeMallocScope native;
  auto* fence = new ferry_fence;
  fence->id = answer.id;
  fence->slot = answer.slot % wire::fence_slots;
  return fence_table().add(fence);
}

wire::FenceSlot& slot_of(const Session& session, const ferry_fence& fence) {
  return session.control->work.fences[fence.slot];
}

}  // namespace ferry::client

// Buffers: the application's side. The manager decides where the bytes are; here is only the address that shows them.
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "client/agent.h"
#include "client/error.h"
#include "client/svm/ask.h"
#include "client/work/objects.h"
#include "core/work/types.h"

using namespace ferry;          // NOLINT(google-build-using-namespace)
using namespace ferry::client;  // NOLINT(google-build-using-namespace)

namespace {

constexpr std::uint64_t bytes_max = std::uint64_t{1} << 46;

std::size_t range_bytes(const ferry_buffer& buffer) {
  return (buffer.bytes + block_bytes - 1) / block_bytes * block_bytes;
}

/// A handle from the manager's answer to create and import.
ferry_buffer* adopt(Answer& answer, const wire::WorkAnswer& out, void* memory, ferry_error* error) {
  const NativeMallocScope native;
  auto* buffer = new ferry_buffer;
  buffer->id = out.id;
  buffer->bytes = out.count_pages * page_bytes;
  buffer->slot = out.slot % wire::buffer_slots;
  buffer->memory = memory;
  buffer->file = answer.take_fd(0);
  if (memory == nullptr && !buffer->file) {
    [[maybe_unused]] const bool closed =
        tell_work(wire::MessageType::buffer_close, {buffer->id, 0}, "close buffer", nullptr);
    delete buffer;
    fail(error, Code::no_memory, EMFILE, "buffer: this process has as many descriptors as it may");
    return nullptr;
  }
  ferry_buffer* kept = buffer_table().add(buffer);
  // Of another thread's handle too, which may be just about to: the address may be touched as soon as this returns.
  if (memory == nullptr) set_agent_buffer_file(kept->slot, kept->file.get());
  return kept;
}

bool unmap(ferry_buffer& buffer, ferry_error* error) {
  Session* session = session_of_handle(error);
  if (session == nullptr || buffer.at == nullptr) return session != nullptr;
  const Status done =
      session->requests.tell(wire::MessageType::buffer_unmap, wire::ObjectRef{buffer.id, session->page_of(buffer.at)});
  if (!done.ok()) {
    // The address stays taken: the agent may still be told to map there.
    fail(error, done, "unmap buffer");
    return false;
  }
  give_window_range(buffer.at, range_bytes(buffer));
  buffer.at = nullptr;
  return true;
}

}  // namespace

ferry_buffer* ferry_buffer_create(size_t bytes, int home, unsigned flags, ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr) return nullptr;
  if (bytes == 0 || bytes > bytes_max) {
    fail(error, Code::bad_range, 0, "a buffer of %zu bytes", bytes);
    return nullptr;
  }
  if (home != FERRY_IN_SYSTEM && (home < 0 || static_cast<unsigned>(home) >= session->machine.device_count)) {
    fail(error, Code::bad_range, 0, "a buffer in VRAM of device %d: this machine has %u", home,
         session->machine.device_count);
    return nullptr;
  }
  if ((flags & ~static_cast<unsigned>(FERRY_BUFFER_NO_IMPLICIT_SYNC)) != 0) {
    fail(error, Code::bad_range, 0, "0x%x are no flags of a buffer", flags);
    return nullptr;
  }
  wire::BufferCreate create{};
  create.count_pages = (bytes + page_bytes - 1) / page_bytes;
  create.home = home == FERRY_IN_SYSTEM ? wire::to_system : static_cast<std::uint32_t>(home);
  create.flags = (flags & FERRY_BUFFER_NO_IMPLICIT_SYNC) != 0 ? wire::buffer_no_implicit_sync : 0;
  Answer answer;
  wire::WorkAnswer out{};
  if (!ask_work(*session, wire::MessageType::buffer_create, create, answer, out, "create buffer", error)) {
    return nullptr;
  }
  return adopt(answer, out, nullptr, error);
}

ferry_buffer* ferry_buffer_from_memory(void* pointer, size_t bytes, unsigned flags, ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr) return nullptr;
  const SvmSpan span = svm_span_of(pointer, bytes, "buffer of memory", error);
  if (!span) return nullptr;
  if ((flags & ~static_cast<unsigned>(FERRY_BUFFER_NO_IMPLICIT_SYNC)) != 0) {
    fail(error, Code::bad_range, 0, "0x%x are no flags of a buffer", flags);
    return nullptr;
  }
  wire::BufferCreate create{};
  create.count_pages = span.count_pages;
  create.user_first_page = span.first_page;
  create.home = wire::to_system;
  create.flags = wire::buffer_userptr;
  if ((flags & FERRY_BUFFER_NO_IMPLICIT_SYNC) != 0) create.flags |= wire::buffer_no_implicit_sync;
  Answer answer;
  wire::WorkAnswer out{};
  if (!ask_work(*session, wire::MessageType::buffer_create, create, answer, out, "buffer of memory", error)) {
    return nullptr;
  }
  return adopt(answer, out, pointer, error);
}

ferry_code ferry_buffer_close(ferry_buffer* buffer, ferry_error* error) {
  if (buffer == nullptr) return FERRY_OK;
  ferry_error own{};
  if (session_of_handle(&own) == nullptr) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  const std::uint64_t id = buffer->id;
  bool well = true;
  if (buffer_table().drop(buffer)) {
    well = unmap(*buffer, &own);
    if (buffer->memory == nullptr) forget_agent_buffer_file(buffer->slot, buffer->file.get());
    const NativeMallocScope native;
    delete buffer;
  }
  ferry_error closing{};
  if (!tell_work(wire::MessageType::buffer_close, {id, 0}, "close buffer", &closing) && well) {
    own = closing;
    well = false;
  }
  if (error != nullptr) *error = own;
  return well ? FERRY_OK : own.code;
}

void* ferry_buffer_map(ferry_buffer* buffer, ferry_error* error) {
  Session* session = session_of_handle(error);
  if (session == nullptr) return nullptr;
  if (buffer->memory != nullptr) return buffer->memory;
  const linux::LockGuard lock(buffer->map_mutex);
  if (buffer->at != nullptr) return buffer->at;
  void* at = take_window_range(range_bytes(*buffer));
  if (at == nullptr) {
    fail(error, Code::no_memory, 0, "map buffer: no %zu bytes of the window are left", range_bytes(*buffer));
    return nullptr;
  }
  // Mapped before the manager knows of it, which registers what it finds with the userfaultfd.
  if (::mmap(at, buffer->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, buffer->file.get(),
             0) == MAP_FAILED) {
    fail(error, errno == ENOMEM ? Code::no_mappings : Code::no_memory, errno, "map buffer: %s", std::strerror(errno));
    give_window_range(at, range_bytes(*buffer));
    return nullptr;
  }
  ::madvise(at, buffer->bytes, MADV_DONTFORK);
  Answer answer;
  wire::WorkAnswer out{};
  if (!ask_work(*session, wire::MessageType::buffer_map, wire::ObjectRef{buffer->id, session->page_of(at)}, answer, out,
                "map buffer", error)) {
    give_window_range(at, range_bytes(*buffer));
    return nullptr;
  }
  buffer->at = static_cast<std::byte*>(at);
  return at;
}

size_t ferry_buffer_bytes(const ferry_buffer* buffer) { return buffer->bytes; }

uint64_t ferry_buffer_id(const ferry_buffer* buffer) { return buffer->id; }

ferry_code ferry_buffer_query(ferry_buffer* buffer, ferry_buffer_state* state, ferry_error* error) {
  ferry_error own{};
  Session* session = session_of_handle(&own);
  if (session == nullptr) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  Answer answer;
  const Status asked = session->requests.ask(wire::MessageType::buffer_query, wire::ObjectRef{buffer->id, 0}, answer);
  if (!asked.ok()) return fail(error, asked, "query buffer");
  wire::BufferState body{};
  wire::WorkAnswer refused{};
  if (answer.type() == wire::MessageType::work_answer && answer.body(refused)) {
    return fail(error, Status(static_cast<Code>(refused.code)), "query buffer");
  }
  if (answer.type() != wire::MessageType::buffer_state || !answer.body(body)) {
    return fail(error, Status(Code::bad_message), "query buffer");
  }
  using Where = core::BufferInfo::Where;
  *state = {};
  state->in_system = body.where == static_cast<std::uint8_t>(Where::system) ? 1 : 0;
  state->in_vram = body.where == static_cast<std::uint8_t>(Where::vram) ? 1 : 0;
  state->stored = body.where == static_cast<std::uint8_t>(Where::store) ? 1 : 0;
  state->device = state->in_vram != 0 ? body.device : -1;
  state->busy = body.busy;
  state->moving = body.moving;
  state->stale = body.stale;
  state->holders = body.holders;
  return FERRY_OK;
}

int ferry_buffer_export(ferry_buffer* buffer, ferry_error* error) {
  if (buffer->memory != nullptr) {
    fail(error, Code::unsupported, 0, "a buffer of this process's own memory cannot be exported");
    return -1;
  }
  return export_object(wire::MessageType::buffer_export, buffer->id, "export buffer", error);
}

ferry_buffer* ferry_buffer_import(int fd, ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr) return nullptr;
  if (!is_descriptor(fd, "import buffer", error)) return nullptr;
  Answer answer;
  wire::WorkAnswer out{};
  const int fds[] = {fd};
  if (!ask_bytes(*session, wire::MessageType::buffer_import, {}, fds, answer, out, "import buffer", error)) {
    return nullptr;
  }
  return adopt(answer, out, nullptr, error);
}

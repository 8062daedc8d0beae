// The C interface, <ferry/ferry.h>: checks arguments, finds the session, and hands over to the part that does the work.
#include <ferry/ferry.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include <ferry/svm.h>

#include "base/types.h"
#include "client/adopt/adopter.h"
#include "client/adopt/file_notes.h"
#include "client/adopt/known.h"
#include "client/change/adopted.h"
#include "client/checkpoint/restored.h"
#include "client/devices.h"
#include "client/error.h"
#include "client/explain.h"
#include "client/fork.h"
#include "client/heap/process_heap.h"
#include "client/output.h"
#include "client/process_state.h"
#include "client/queues.h"
#include "client/session.h"
#include "client/spans.h"
#include "client/user_fence.h"
#include "device/print.h"

using namespace ferry;          // NOLINT(google-build-using-namespace)
using namespace ferry::client;  // NOLINT(google-build-using-namespace)

namespace {

/// Above every size that the heap serves from shared slabs: the allocation is a span of its own, which has a placement.
constexpr std::size_t own_span_bytes = block_bytes;

ferry_code code_of(const ferry_error& error) { return error.code; }

bool in_child_with_memory() {
  return process_kind.load(std::memory_order_relaxed) == ProcessKind::forked_child && child_has_memory();
}

bool is_device() { return process_kind.load(std::memory_order_relaxed) == ProcessKind::device; }

/// [pointer, pointer + bytes) as pages. False, with `error` filled, when it is empty or not managed.
bool span_of(const Session& s, const void* pointer, std::size_t bytes, wire::Span& out, ferry_error* error) {
  const auto first = reinterpret_cast<std::uint64_t>(pointer);
  if (bytes == 0) {
    fail(error, Code::bad_range, 0, "a range of 0 bytes");
    return false;
  }
  const bool adopted = !s.in_window(pointer) && touches_adopted(pointer, bytes);
  if (!adopted && !s.in_window(pointer)) {
    fail(error, Code::not_allocated, 0,
         "%p is not managed memory (ferry::alloc and ferry::allocator give it, ferry_adopt makes memory that the "
         "program has managed)",
         pointer);
    return false;
  }
  out = {};
  out.first_page = s.page_of(pointer);
  out.count_pages = ((first % page_bytes) + bytes + page_bytes - 1) / page_bytes;
  const bool fits =
      adopted ? s.window().numbers(out.first_page, out.count_pages) : bytes <= s.window_base + s.window_bytes - first;
  if (fits) return true;
  fail(error, Code::bad_range, 0, "%p and %zu bytes reach over an end of managed memory", pointer, bytes);
  return false;
}

ferry_code explain_bad_free(const void* pointer, const HeapObject& object, ferry_error* error) {
  if (object.state == HeapObject::State::outside) {
    return fail(error, Code::bad_range, 0, "free(%p): not managed memory", pointer);
  }
  if (object.state == HeapObject::State::live && object.start != pointer) {
    return fail(error, Code::not_allocated, 0, "free(%p): points %zu bytes into an allocation of %zu bytes at %p",
                pointer,
                static_cast<std::size_t>(static_cast<const char*>(pointer) - static_cast<const char*>(object.start)),
                object.bytes, object.start);
  }
  return fail(error, Code::not_allocated, 0, "free(%p): freed before, or never allocated", pointer);
}

/// Outside the window, of one piece. False, with `error` filled.
bool may_adopt_span(const Session& s, const void* pointer, std::size_t bytes, ferry_error* error) {
  const auto first = reinterpret_cast<std::uint64_t>(pointer);
  if (bytes == 0) {
    fail(error, Code::bad_range, 0, "a range of 0 bytes");
    return false;
  }
  const std::uint64_t begin = first & ~(page_bytes - 1);
  if (first >= user_address_end || bytes > user_address_end - first || first < page_bytes ||
      !s.window().numbers(s.window().page_of_address(begin), (first - begin + bytes + page_bytes - 1) / page_bytes)) {
    fail(error, Code::bad_range, 0, "%p and %zu bytes from there are no memory that a program can have", pointer,
         bytes);
    return false;
  }
  if (s.in_window(pointer)) {
    fail(error, Code::bad_range, 0, "%p is managed memory as it is", pointer);
    return false;
  }
  return true;
}

}  // namespace

const char* ferry_strerror(ferry_code code) { return to_string(static_cast<Code>(code)); }

ferry_code ferry_open(const char* socket, ferry_error* error) {
  ferry_error own{};
  if (open_session(socket, &own) != nullptr) return FERRY_OK;
  if (error != nullptr) *error = own;
  return code_of(own);
}

ferry_code ferry_close(ferry_error* error) {
  if (!may_use_session(error)) return FERRY_UNSUPPORTED;
  if (session_if_open() != nullptr) wait_for_all();
  return FERRY_OK;
}

ferry_code ferry_machine(ferry_machine_info* info, ferry_error* error) {
  ferry_error own{};
  const Session* s = open_session(nullptr, &own);
  if (s == nullptr) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  *info = {};
  info->devices = s->machine.device_count;
  info->cus = s->machine.cu_count;
  info->waves_per_cu = s->machine.waves_per_cu;
  info->manager_pid = s->machine.manager_pid;
  info->vram_bytes = s->machine.vram_bytes;
  info->granularity_bytes = s->machine.granularity_pages * page_bytes;
  info->window_base = s->window_base;
  info->window_bytes = s->window_bytes;
  return FERRY_OK;
}

int ferry_device_linked(unsigned a, unsigned b, ferry_error* error) {
  const Session* s = open_session(nullptr, error);
  if (s == nullptr) return -1;
  for (const unsigned device : {a, b}) {
    if (device < s->machine.device_count) continue;
    fail(error, Code::bad_range, 0, "there is no device %u: this machine has %u", device, s->machine.device_count);
    return -1;
  }
  return a != b && s->machine.hives[a] != 0 && s->machine.hives[a] == s->machine.hives[b] ? 1 : 0;
}

size_t ferry_stats(char* buffer, size_t bytes, ferry_error* error) {
  Session* s = open_session(nullptr, error);
  if (s == nullptr) return 0;
  if (bytes == 0) {
    fail(error, Code::bad_range, 0, "a buffer of 0 bytes");
    return 0;
  }
  Answer answer;
  std::size_t whole = 0;
  const Status asked = s->requests.ask(wire::MessageType::stats, {}, {}, answer, std::span(buffer, bytes - 1), &whole);
  if (!asked.ok() || answer.type() != wire::MessageType::reply_text || whole == 0) {
    fail(error, asked.ok() ? Status(Code::bad_message) : asked, "the manager gives no statistics");
    return 0;
  }
  buffer[std::min(whole, bytes - 1)] = '\0';
  return whole;
}

void* ferry_alloc(size_t bytes, ferry_placement placement, ferry_error* error) {
  return ferry_alloc_aligned(bytes, 16, placement, error);
}

void* ferry_alloc_aligned(size_t bytes, size_t alignment, ferry_placement placement, ferry_error* error) {
  // In a fork's child memory is private, and all the same allocated here, so that containers go on.
  if (!in_child_with_memory() && open_session(nullptr, error) == nullptr) return nullptr;
  if (bytes == 0) {
    fail(error, Code::bad_range, 0, "alloc: the size is 0");
    return nullptr;
  }
  if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > block_bytes) {
    fail(error, Code::bad_range, 0, "alloc: %zu is not an alignment (a power of two, at most 2 MiB)", alignment);
    return nullptr;
  }
  const SpanFlagsScope flags(placement == FERRY_SYSTEM ? wire::span_place_system : 0);
  if (placement == FERRY_SYSTEM) bytes = std::max(bytes, own_span_bytes + 1);
  clear_last_span_status();
  void* p = process_heap().allocate(bytes, std::max<std::size_t>(alignment, 16));
  if (p == nullptr) {
    const Status why = last_span_status();
    char what[96];
    std::snprintf(what, sizeof what, "alloc of %zu bytes", bytes);
    fail(error, why.ok() ? Status(Code::no_memory) : why, what);
  }
  return p;
}

ferry_code ferry_free(void* pointer, ferry_error* error) {
  if (pointer == nullptr) return FERRY_OK;
  if (!in_child_with_memory()) {
    // Destructors run in a fork's child that exits: there is nothing to free where it got no memory.
    if (process_kind.load(std::memory_order_relaxed) == ProcessKind::forked_child) return FERRY_OK;
    if (!may_use_session(error)) return FERRY_UNSUPPORTED;
  }
  Heap& heap = process_heap();
  if (heap.usable_size(pointer) == 0 && free_restored(pointer)) return FERRY_OK;
  if (heap.usable_size(pointer) == 0) return explain_bad_free(pointer, heap.lookup(pointer), error);
  tell_before_free(heap, pointer);
  if (heap.free(pointer) == FreeResult::freed) return FERRY_OK;
  return explain_bad_free(pointer, heap.lookup(pointer), error);
}

ferry_code ferry_prefetch(const void* pointer, size_t bytes, int device, ferry_error* error) {
  ferry_error own{};
  Session* s = open_session(nullptr, &own);
  wire::Span span{};
  if (s == nullptr || !span_of(*s, pointer, bytes, span, &own)) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  if (device != FERRY_TO_CPU && (device < 0 || static_cast<unsigned>(device) >= s->machine.device_count)) {
    return fail(error, Code::bad_range, 0, "prefetch: there is no device %d: this machine has %u", device,
                s->machine.device_count);
  }
  // A device that does not run yet has no memory to bring pages to.
  if (device != FERRY_TO_CPU && attached_queues(*s, static_cast<unsigned>(device), &own) == nullptr) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  span.device = device == FERRY_TO_CPU ? wire::to_system : static_cast<std::uint32_t>(device);
  const Status done = s->requests.tell(wire::MessageType::prefetch, span);
  return done.ok() ? FERRY_OK : fail(error, done, "prefetch");
}

ferry_code ferry_query(const void* pointer, ferry_page_info* info, ferry_error* error) {
  ferry_error own{};
  Session* s = open_session(nullptr, &own);
  if (s == nullptr) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  return query_page(*s, pointer, *info, error);
}

ferry_code ferry_query_copies(const void* pointer, uint32_t* copies, ferry_error* error) {
  *copies = 0;
  ferry_error own{};
  Session* s = open_session(nullptr, &own);
  if (s == nullptr) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  return query_copies(*s, pointer, *copies, error);
}

size_t ferry_explain(const void* pointer, char* buffer, size_t bytes, ferry_error* error) {
  ferry_error own{};
  Session* s = open_session(nullptr, &own);
  if (s == nullptr) {
    if (error != nullptr) *error = own;
    return 0;
  }
  return explain_page(*s, pointer, buffer, bytes, error);
}

ferry_queue* ferry_queue_create(unsigned device, ferry_error* error) { return create_queue(device, error); }

void ferry_queue_destroy(ferry_queue* queue) { destroy_queue(queue); }

ferry_code ferry_launch(ferry_queue* queue, ferry_kernel kernel, const void* captures, size_t capture_bytes,
                        uint64_t items, uint64_t items_per_wave, const char* name, uint64_t* launch,
                        ferry_error* error) {
  return submit(queue, {kernel, captures, capture_bytes, items, items_per_wave, name}, launch, error);
}

ferry_code ferry_wait(ferry_queue* queue, uint64_t launch, ferry_error* error) {
  return wait_for(queue, launch, error);
}

int ferry_done(ferry_queue* queue, uint64_t launch) { return has_ended(queue, launch) ? 1 : 0; }

ferry_code ferry_run(ferry_kernel kernel, const void* captures, size_t capture_bytes, uint64_t items,
                     uint64_t items_per_wave, const char* name, ferry_error* error) {
  return run({kernel, captures, capture_bytes, items, items_per_wave, name}, error);
}

ferry_code ferry_wait_until(const uint64_t* word, uint64_t value, uint64_t timeout_ns, ferry_error* error) {
  return ferry::client::wait_until(word, value, timeout_ns, error);
}

ferry_code ferry_signal(uint64_t* word, uint64_t value, ferry_error* error) {
  return ferry::client::signal(word, value, error);
}

int ferry_in_device(void) { return is_device() ? 1 : 0; }

namespace {

void output(const char* text, std::size_t bytes) {
  if (is_device()) {
    device::print_bytes(text, bytes);
  } else {
    std::fwrite(text, 1, bytes, stdout);
  }
}

}  // namespace

void ferry_print(const char* text) { output(text, std::strlen(text)); }

void ferry_print_format(const char* format, size_t format_bytes, const ferry_print_arg* args, size_t count) {
  char text[print_bytes_max];
  const std::size_t bytes = format_output(text, {format, format_bytes}, {args, count});
  output(text, bytes);
}

ferry_code ferry_adopt(void* pointer, size_t bytes, ferry_error* error) {
  ferry_error own{};
  const Session* s = open_session(nullptr, &own);
  if (s == nullptr) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  if (!may_adopt_span(*s, pointer, bytes, error)) return FERRY_BAD_RANGE;
  const AdoptResult result = adopt(reinterpret_cast<std::uint64_t>(pointer), bytes);
  if (result.status.ok()) return FERRY_OK;
  if (result.refusal == wire::Refusal::none) return fail(error, result.status, "cannot adopt memory");
  const char* system = result.status.sys_errno != 0 ? strerrordesc_np(result.status.sys_errno) : nullptr;
  return fail(error, result.status.code, result.status.sys_errno, "0x%llx cannot be adopted: %s%s%s",
              static_cast<unsigned long long>(result.address), wire::to_text(result.refusal),
              system != nullptr ? ": " : "", system != nullptr ? system : "");
}

ferry_code ferry_release(void* pointer, size_t bytes, ferry_error* error) {
  ferry_error own{};
  const Session* s = open_session(nullptr, &own);
  if (s == nullptr) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  if (!may_adopt_span(*s, pointer, bytes, error)) return FERRY_BAD_RANGE;
  if (!has_adopted() && !has_served_files()) return FERRY_OK;
  const AdoptResult result = give_back(reinterpret_cast<std::uint64_t>(pointer), bytes);
  if (result.status.code == Code::in_use) {
    return fail(error, result.status.code, 0,
                "cannot give adopted memory back: pages of it are pinned: ferry_unpin first");
  }
  return result.status.ok() ? FERRY_OK : fail(error, result.status, "cannot give adopted memory back");
}

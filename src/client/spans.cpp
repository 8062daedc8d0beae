#include "client/spans.h"

#include <sys/mman.h>

#include <atomic>
#include <cerrno>

#include "client/change/kept.h"
#include "client/convert.h"
#include "client/fork.h"
#include "client/heap/process_heap.h"

namespace ferry::client {
namespace {

thread_local std::uint32_t span_flags = 0;
thread_local Status span_status;

Status map_span(Session& session, void* span, std::size_t bytes) {
  const auto offset = static_cast<off_t>(session.file_offset_of(span));
  if (::mmap(span, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, session.system_file.get(), offset) ==
      MAP_FAILED) {
    return Status(errno == ENOMEM ? Code::no_mappings : Code::no_memory, errno);
  }
  // A fork's child must not share memory that moves under it. See fork.h for what it gets.
  ::madvise(span, bytes, MADV_DONTFORK);
  return {};
}

void unmap_span(void* span, std::size_t bytes) {
  ::mmap(span, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

wire::Span wire_span(const Session& session, const void* span, std::size_t bytes) {
  wire::Span s{};
  s.first_page = session.page_of(span);
  s.count_pages = bytes / page_bytes;
  s.device = wire::to_system;
  s.flags = span_flags;
  return s;
}

bool acquire(void* context, void* span, std::size_t bytes) noexcept {
  auto& session = *static_cast<Session*>(context);
  // Mapped before the manager knows of it: from its answer on it may register the pages with the userfaultfd, and
  // mapping them anew would drop that without a word.
  span_status = map_span(session, span, bytes);
  if (span_status.ok()) span_status = session.requests.tell(wire::MessageType::alloc, wire_span(session, span, bytes));
  if (span_status.ok()) return true;
  unmap_span(span, bytes);
  return false;
}

bool release(void* context, void* span, std::size_t bytes) noexcept {
  auto& session = *static_cast<Session*>(context);
  // First, so that no CPU thread reaches the pages when the manager drops them.
  unmap_span(span, bytes);
  return free_or_keep(session, part_of(span, bytes));
  // The heap unmaps once more, now that no command of the manager can map it again.
}

bool convert(void* context, void* span, std::size_t bytes) noexcept {
  auto& session = *static_cast<Session*>(context);
  wire::Span message = wire_span(session, span, bytes);
  message.flags |= wire::span_converts;
  span_status = session.requests.tell(wire::MessageType::alloc, message);
  if (!span_status.ok()) return false;
  span_status =
      convert_to_shared(span, bytes, session.system_file.get(), session.file_offset_of(span), PROT_READ | PROT_WRITE);
  if (span_status.ok()) span_status = session.requests.tell(wire::MessageType::converted, message);
  return span_status.ok();
}

void fork_begins(void*) noexcept { before_fork(); }
void forked(void*) noexcept { after_fork_in_parent(); }
bool fork_child(void*) noexcept { return after_fork_in_child(); }

}  // namespace

bool begin_spans(Session& session) {
  ManagedSpanHooks hooks;
  hooks.context = &session;
  hooks.convert = convert;
  hooks.acquire = acquire;
  hooks.release = release;
  hooks.before_fork = fork_begins;
  hooks.after_fork = forked;
  hooks.fork_child = fork_child;
  return begin_managed(hooks);
}

SpanFlagsScope::SpanFlagsScope(std::uint32_t flags) { span_flags = flags; }
SpanFlagsScope::~SpanFlagsScope() { span_flags = 0; }

Status last_span_status() { return span_status; }
void clear_last_span_status() { span_status = {}; }

}  // namespace ferry::client

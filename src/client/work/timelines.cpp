// Timelines: the application's side. Where one stands is a word that the manager writes into shared memory.
#include <algorithm>

#include "client/adopt/stopped.h"
#include "client/error.h"
#include "client/process_state.h"
#include "client/work/objects.h"
#include "linux/futex.h"

using namespace ferry;          // NOLINT(google-build-using-namespace)
using namespace ferry::client;  // NOLINT(google-build-using-namespace)

namespace {

ferry_timeline* make_timeline(const wire::WorkAnswer& out) {
  const NativeMallocScope native;
  auto* timeline = new ferry_timeline;
  timeline->id = out.id;
  timeline->slot = out.slot % wire::timeline_slots;
  return timeline_table().add(timeline);
}

wire::TimelineSlot& slot_of(const Session& session, const ferry_timeline& timeline) {
  return session.control->work.timelines[timeline.slot];
}

}  // namespace

ferry_timeline* ferry_timeline_create(ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr) return nullptr;
  Answer answer;
  wire::WorkAnswer out{};
  if (!ask_bytes(*session, wire::MessageType::timeline_create, {}, {}, answer, out, "create timeline", error)) {
    return nullptr;
  }
  return make_timeline(out);
}

void ferry_timeline_close(ferry_timeline* timeline) {
  if (timeline == nullptr || !may_use_session(nullptr)) return;
  const std::uint64_t id = timeline->id;
  if (timeline_table().drop(timeline)) {
    const NativeMallocScope native;
    delete timeline;
  }
  [[maybe_unused]] const bool closed = tell_work(wire::MessageType::timeline_close, {id, 0}, "close timeline", nullptr);
}

ferry_code ferry_timeline_signal(ferry_timeline* timeline, uint64_t point, ferry_error* error) {
  ferry_error own{};
  if (tell_work(wire::MessageType::timeline_signal, {timeline->id, point}, "signal timeline", &own)) return FERRY_OK;
  if (error != nullptr) *error = own;
  return own.code;
}

ferry_code ferry_timeline_wait(ferry_timeline* timeline, uint64_t point, uint64_t timeout_ns, ferry_error* error) {
  ferry_error own{};
  Session* session = session_of_handle(&own);
  if (session == nullptr) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  wire::TimelineSlot& slot = slot_of(*session, *timeline);
  const auto reached = [&] { return slot.value.load(std::memory_order_acquire) >= point; };
  linux::AdaptiveSpin spin(2'000, 50'000);
  if (reached() || (timeout_ns != 0 && spin.until(reached))) return FERRY_OK;
  const std::uint64_t begin = linux::monotonic_ns();
  for (;;) {
    const std::uint32_t seen = slot.changes.load(std::memory_order_acquire);
    if (reached()) return FERRY_OK;
    const std::uint64_t gone = linux::monotonic_ns() - begin;
    if (timeout_ns != FERRY_FOREVER && gone >= timeout_ns) {
      return fail(error, Code::timed_out, 0, "timeline %llu stands at %llu and has not reached %llu within %llu ms",
                  static_cast<unsigned long long>(timeline->id),
                  static_cast<unsigned long long>(slot.value.load(std::memory_order_acquire)),
                  static_cast<unsigned long long>(point), static_cast<unsigned long long>(timeout_ns / 1'000'000));
    }
    const std::uint64_t left = timeout_ns == FERRY_FOREVER ? UINT64_MAX : timeout_ns - gone;
    wait_on(slot.changes, seen, std::min<std::uint64_t>(left, 3'600'000'000'000));
  }
}

uint64_t ferry_timeline_value(ferry_timeline* timeline) {
  Session* session = session_of_handle(nullptr);
  return session == nullptr ? 0 : slot_of(*session, *timeline).value.load(std::memory_order_acquire);
}

int ferry_timeline_export(ferry_timeline* timeline, ferry_error* error) {
  return export_object(wire::MessageType::timeline_export, timeline->id, "export timeline", error);
}

ferry_timeline* ferry_timeline_import(int fd, ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr || !is_descriptor(fd, "import timeline", error)) return nullptr;
  Answer answer;
  wire::WorkAnswer out{};
  const int fds[] = {fd};
  if (!ask_bytes(*session, wire::MessageType::timeline_import, {}, fds, answer, out, "import timeline", error)) {
    return nullptr;
  }
  return make_timeline(out);
}

// Timelines: points that get their fences in order.
#include "core/impl.h"

namespace ferry::core {

Status Work::timeline_create(ClientId, TimelineId) { return Code::unsupported; }
Status Work::timeline_open(ClientId, TimelineId) { return Code::unsupported; }
Status Work::timeline_close(ClientId, TimelineId) { return Code::unsupported; }
Status Work::timeline_signal(ClientId, TimelinePoint) { return Code::unsupported; }
std::uint64_t Work::timeline_value(TimelineId) const { return {}; }
Status Work::timeline_check(const Job&) { return Code::unsupported; }
void Work::timeline_promise(Job&) {}
void Work::timeline_publish(Job&) {}
void Work::timeline_break(Job&, Status) {}
void Work::timeline_fence_done(TimelineId, FenceId, Status) {}

}  // namespace ferry::core

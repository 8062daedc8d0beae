// The entry points of attributes, moves on request, pins, changes of the address space.
#include "core/impl.h"

namespace ferry::core {

Status Core::migrate(std::uint64_t, ClientId, PageSpan, DeviceId, FenceId) { return Code::unsupported; }
Status Core::populate(std::uint64_t, ClientId, PageSpan, DeviceId, Cookie) { return Code::unsupported; }
Status Core::pin(std::uint64_t, ClientId, PageSpan, DeviceId, Cookie) { return Code::unsupported; }
Status Core::unpin(std::uint64_t, ClientId, PageSpan) { return Code::unsupported; }
Status Core::change(std::uint64_t, ClientId, Change, PageSpan, Page, std::uint8_t, Cookie) { return Code::unsupported; }

}  // namespace ferry::core

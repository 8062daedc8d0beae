// The entry points of attributes, moves on request, pins, changes of the address space.
#include "core/impl.h"

namespace ferry::core {

Status Core::svm_set(std::uint64_t, ClientId, PageSpan, const std::vector<Attribute>&, Cookie, unsigned&) {
  return Code::unsupported;
}
Status Core::svm_get(ClientId, PageSpan, std::vector<Attribute>&, unsigned&) const { return Code::unsupported; }
Status Core::svm_reset(std::uint64_t, ClientId, PageSpan, Cookie) { return Code::unsupported; }
Attributes Core::attributes(ClientId, Page) const { return {}; }
Status Core::set_retry_faults(std::uint64_t, ClientId, bool) { return Code::unsupported; }
bool Core::retry_faults(ClientId, DeviceId) const { return true; }
Status Core::group_assign(std::uint64_t, ClientId, PageSpan, std::uint32_t) { return Code::unsupported; }
Status Core::group_migration(std::uint64_t, ClientId, std::uint32_t, bool) { return Code::unsupported; }
Status Core::migrate(std::uint64_t, ClientId, PageSpan, DeviceId, FenceId) { return Code::unsupported; }
Status Core::populate(std::uint64_t, ClientId, PageSpan, DeviceId, Cookie) { return Code::unsupported; }
Status Core::pin(std::uint64_t, ClientId, PageSpan, DeviceId, Cookie) { return Code::unsupported; }
Status Core::unpin(std::uint64_t, ClientId, PageSpan) { return Code::unsupported; }
Status Core::change(std::uint64_t, ClientId, Change, PageSpan, Page, std::uint8_t, Cookie) { return Code::unsupported; }

}  // namespace ferry::core

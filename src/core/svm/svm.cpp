// The entry points of attributes, moves on request, pins, changes of the address space.
#include "core/impl.h"

namespace ferry::core {

Status Core::migrate(std::uint64_t now_ns, ClientId client, PageSpan span, DeviceId device, FenceId fence) {
  impl_->now_ns = now_ns;
  return impl_->migrate(client, span, device, fence);
}
Status Core::populate(std::uint64_t now_ns, ClientId client, PageSpan span, DeviceId device, Cookie cookie) {
  impl_->now_ns = now_ns;
  return impl_->populate(client, span, device, cookie);
}
Status Core::pin(std::uint64_t now_ns, ClientId client, PageSpan span, DeviceId device, Cookie cookie) {
  impl_->now_ns = now_ns;
  return impl_->pin(client, span, device, cookie);
}
Status Core::unpin(std::uint64_t now_ns, ClientId client, PageSpan span) {
  impl_->now_ns = now_ns;
  return impl_->unpin(client, span);
}

}  // namespace ferry::core

// Fences: who waits for whom, and telling them.
#include "core/impl.h"

namespace ferry::core {

Status Work::fence_array(ClientId, FenceId, const std::vector<FenceId>&, bool) { return Code::unsupported; }
Status Work::fence_deadline(FenceId, std::uint64_t) { return Code::unsupported; }
FenceInfo Work::fence_info(FenceId) const { return {}; }
void Work::fence_forget(FenceId) {}
Fence& Work::fence_make(FenceId, ClientId) { return fences[0]; }
void Work::fence_publish(FenceId) {}
void Work::fence_signal(FenceId, Status) {}
bool Work::fence_wait(FenceId, FenceWaiter) { return {}; }
void Work::fence_unwait(FenceId, FenceWaiter) {}
void Work::notify(const FenceWaiter&, FenceId, Status) {}

}  // namespace ferry::core

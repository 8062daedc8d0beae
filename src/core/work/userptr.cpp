// userptr: buffers over a client's own memory.
#include "core/impl.h"

namespace ferry::core {

void Work::userptr_invalidate(ClientId, PageSpan) {}
FenceId Work::userptr_fence(ClientId, PageSpan) const { return {}; }
bool Work::userptr_in_use(ClientId, PageSpan) const { return false; }

}  // namespace ferry::core

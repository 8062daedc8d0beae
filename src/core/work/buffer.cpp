// Buffers: who holds them, where they lie, who reaches them.
#include "core/impl.h"

namespace ferry::core {

Status Work::buffer_create(ClientId, BufferId, const BufferSpec&) { return Code::unsupported; }
Status Work::buffer_open(ClientId, BufferId) { return Code::unsupported; }
Status Work::buffer_close(ClientId, BufferId) { return Code::unsupported; }
Status Work::buffer_map(ClientId, BufferId, Page) { return Code::unsupported; }
Status Work::buffer_unmap(ClientId, Page, Cookie) { return Code::unsupported; }
BufferInfo Work::buffer_info(BufferId) const { return {}; }
bool Work::holds(ClientId, BufferId) const { return {}; }
bool Work::busy(const Buffer&) const { return {}; }
bool Work::is_buffer_page(ClientId, Page) const { return {}; }
bool Work::overlaps_buffer(ClientId, PageSpan) const { return {}; }
void Work::device_fault(ClientId, DeviceId, Page, Access, FaultToken, unsigned) {}
void Work::cpu_fault(ClientId, Page, Access) {}
bool Work::claim_buffers(Job&) { return {}; }
void Work::unclaim_buffers(Job&) {}
std::vector<FenceId> Work::implicit_fences(const Job&) const { return {}; }
void Work::install_fence(const Job&) {}
void Work::buffer_fence_done(BufferId) {}
Work::Reclaimable Work::reclaim_buffer(BufferId) { return {}; }
void Work::buffer_memory_granted(BufferId, Status) {}
void Work::buffer_action_done(const WorkRef&, Status) {}
void Work::buffers_device_gone(ClientId, DeviceId) {}
void Work::buffers_client_gone(ClientId) {}
bool Work::buffers_client_idle(ClientId) const { return true; }
bool Work::buffers_quiescent() const { return true; }
void Work::verify_buffers() const {}
std::uint64_t Work::digest_buffers() const { return 0; }

}  // namespace ferry::core

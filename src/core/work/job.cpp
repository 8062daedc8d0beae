// Jobs: from submission to signal.
#include "core/impl.h"

namespace ferry::core {

Status Work::job_submit(ClientId, const JobSpec&, Cookie) { return Code::unsupported; }
void Work::job_cancel(ClientId, FenceId) {}
void Work::job_points_ready(FenceId) {}
void Work::job_memory_ready(FenceId) {}
void Work::job_memory_failed(FenceId, Status) {}
void Work::job_gate_open(FenceId) {}
void Work::job_fence_done(FenceId, FenceId, Status) {}
void Work::job_done(FenceId, Status) {}
void Work::advance_line() {}
void Work::job_deadline(FenceId) {}

}  // namespace ferry::core

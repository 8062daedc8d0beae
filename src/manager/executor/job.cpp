// Jobs: the copy and video engines run here, graphics on the device process (unit.cpp).
#include "manager/executor/executor.h"

namespace ferry::manager {

void Executor::run_job(Client*, const core::Action& action) { done(action.id, Code::unsupported); }
void Executor::cancel_job(Client*, const core::Action&) {}
void Executor::signal_fence(const core::Action&) {}

}  // namespace ferry::manager

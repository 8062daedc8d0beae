// Compute units: which of them a device process may use, and graphics jobs on them.
#include "manager/executor/executor.h"

namespace ferry::manager {

void Executor::grant_units(Client&, const core::Action&) {}
void Executor::revoke_units(Client&, const core::Action& action) { done(action.id, {}); }
void Executor::run_graphics(Client&, const core::Action& action, const JobPayload&) {
  done(action.id, Code::unsupported);
}
void Executor::cancel_graphics(Client&, const core::Action&) {}
void Executor::reset_device(Client&, const core::Action&) {}

}  // namespace ferry::manager

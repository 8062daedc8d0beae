// Pages to the store beneath system memory and back.
#include "manager/executor/executor.h"

namespace ferry::manager {

void Executor::store(Client&, const core::Action& action) { done(action.id, Code::no_space); }
void Executor::load(Client&, const core::Action& action) { done(action.id, Code::io_error); }
void Executor::discard_store(Client&, const core::Action& action) { done(action.id, {}); }

}  // namespace ferry::manager

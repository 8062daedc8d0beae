// Buffers: their memory, and who reaches it.
#include "manager/executor/executor.h"

namespace ferry::manager {

void Executor::move_buffer(const core::Action& action) { done(action.id, Code::no_memory); }
void Executor::map_buffer(Client*, const core::Action& action) { done(action.id, Code::no_memory); }
void Executor::revoke_buffer(Client*, const core::Action& action) { done(action.id, {}); }
void Executor::release_buffer(const core::Action& action) { done(action.id, {}); }

}  // namespace ferry::manager

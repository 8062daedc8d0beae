// What an operation does when an action of it has failed: once more, elsewhere, or an end in which whoever waits is told.
#include "core/impl.h"

namespace ferry::core {

/// Something of the last stage failed. Decides how the operation goes on; false: it ends as it is.
bool Core::Impl::stage_failed(Op& op) {
  const Status failure = op.failure;
  op.failure = {};
  if (op.goal == Goal::duplicate) {
    return duplicate_failed(op, failure);
  }
  if (op.goal == Goal::move_in && op.retry.any()) {
    move_failed(op);
    return true;
  }
  if (op.retry.any()) {
    op.retry = {};
    op.move_status = Code::io_error;
    const bool up = op.stage == Stage::map_vram;
    if (op.stage == Stage::switch_home) {
      if (++op.copy_failures <= config.copy_retries) {
        op.stage = Stage::copy_direct;
      } else {
        redirect(op, Goal::in_place);
      }
      return true;
    }
    if (++op.copy_failures <= config.copy_retries) {
      op.stage = up ? Stage::copy_up : Stage::copy_home;  // what arrived is marked current and is not copied again
      return true;
    }
    if (up) {
      redirect(op, Goal::in_place);
      return true;
    }
    // The only copy stays in VRAM. Waves that wanted it elsewhere are told; CPU threads cannot be told, so they wait
    // and the copy is tried again for as long as they do.
    if (op.goal == Goal::in_place || op.goal == Goal::vram) {
      fail_waiters(op, Code::io_error);
    }
    if (granule_state(op).slot != none_index) {
      Device& owner = devices[granule_state(op).owner];
      owner.victims.spare(granule_state(op).slot, owner.evictions);
    }
    return false;
  }
  if ((op.goal == Goal::vram || op.goal == Goal::peer) && failure.code != Code::device_lost) {
    // No room for the mapping: small runs in place need none.
    redirect(op, Goal::in_place);
    return true;
  }
  if (op.goal == Goal::vram || op.goal == Goal::in_place || op.goal == Goal::peer) {
    if (failure.code == Code::device_lost) {
      return false;
    }
    fail_waiters(op, failure);
    // What the device reaches now is unknown, so it reaches nothing: a page that counts as mapped and is not would
    // have its next fault woken for ever.
    revoke_device(op, op.device, op.pages);
    op.stage = Stage::finished;
    return true;
  }
  return false;
}

/// The pages go elsewhere than they were going. Nobody who waits: then home, where they disturb nobody.
void Core::Impl::redirect(Op& op, Goal goal) {
  drop_target(op);
  granule_state(op).op_failed = true;
  op.goal = op.waiters.empty() ? Goal::system : goal;
  op.stage = Stage::begin;
  op.redirected = true;
  op.copy_failures = 0;
  if (op.block->extras != nullptr) {
    redirect_around_pins(op);
  }
}

/// Those of the operation's own device.
void Core::Impl::fail_waiters(Op& op, Status status) {
  std::erase_if(op.waiters, [&](const Waiter& waiter) {
    if (waiter.device != op.device) {
      return false;  // looked at again when the operation ends
    }
    if (op.block->client->devices[waiter.device].attached) {
      wake(*op.block->client, waiter, status);
    }
    return true;
  });
}

}  // namespace ferry::core

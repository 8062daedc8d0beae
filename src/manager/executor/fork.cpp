// Forks: the application's pages are taken from everybody; children come and go. docs/design/0018-fork.md.
#include <algorithm>
#include <utility>

#include "manager/executor/executor.h"
#include "manager/log.h"

namespace ferry::manager {
namespace {

constexpr unsigned fork_modes = linux::track_missing | linux::track_minor;
/// One zap of the agent, which is to stay responsive.
constexpr std::uint64_t zap_pages_max = 64 * block_pages;
/// What a child does to its mappings ends soon, unless it is stopped: then it is looked at again in the next turn.
constexpr unsigned let_go_tries = 20;
/// Pinned pages that are copied, and blocks looked at for some, before others have their turn.
constexpr std::uint64_t copied_pages_a_turn = 256;
constexpr unsigned looked_at_a_turn = 1024;
/// The forking thread may wait for a thread that waits here (both use the C library's locks). So long between two looks
/// whether it does: far above what a fork takes.
constexpr std::uint64_t look_after_ns = 200'000'000;
/// On a machine where there is always somebody who waits for a processor.
constexpr std::uint64_t patience_ns = 10'000'000'000;

}  // namespace

// --- the fork itself -------------------------------------------------------------------------------------------------

/// The core has taken all pages from the devices. Now the application's threads: what is not in the file is in no page
/// table, and blocks without any data need not be watched.
void Executor::zap_for_fork(Client& client) {
  ForkGate& gate = *client.gate;
  gate.state = ForkGate::State::zapping;
  Fork* fork = find_fork(gate.fork);
  FERRY_CHECK(fork != nullptr);
  fork->spans = client.spans;
  const int file = client.system_file.get();
  for (const auto& [first, count] : client.spans) {
    const Page end = first + count;
    PageSpan run{first, 0};  // blocks that go together
    const auto flush_run = [&] {
      if (run.count_pages == 0 || gate.at_once) return;
      watch_for_fork(client, run);
      for (Page at = run.first; at < run.end(); at += zap_pages_max) {
        const PageSpan part{at, std::min(zap_pages_max, run.end() - at)};
        ++gate.zaps;
        send(make_command(client, no_device, CommandKind::zap_fork, part, 0));
      }
    };
    Page at = first;
    while (at < end) {
      const BlockIndex index = block_of(at);
      const Page block_end = std::min(end, first_page_of(index + 1));
      const BlockState* b = client.blocks.find(index);
      if (b == nullptr || b->armed.none()) {
        const std::uint64_t data = linux::next_data(file, at * page_bytes, end * page_bytes) / page_bytes;
        if (data >= block_end) {
          flush_run();
          at = data >= end ? end : std::max(block_end, first_page_of(block_of(data)));
          run = {at, 0};
          continue;
        }
      }
      const PageSpan part{at, block_end - at};
      fork->pending[index] |= BlockTable::mask_in(index, part);
      if (run.count_pages == 0) run.first = at;
      run.count_pages += part.count_pages;
      at = block_end;
    }
    flush_run();
  }
  if (gate.zaps == 0) begin_copying(client);
}

/// From now on first touches of the pages come here. Blocks that are watched already, for writes maybe, stay so.
void Executor::watch_for_fork(Client& client, PageSpan pages) {
  PageSpan run{pages.first, 0};
  const auto flush_run = [&] {
    if (run.count_pages == 0) return;
    const linux::Fault fault = client.fault_of(run.first).register_span(client.address_of(run.first),
                                                                        run.count_pages * page_bytes, fork_modes);
    for (BlockIndex index = block_of(run.first); index <= block_of(run.end() - 1); ++index) {
      BlockState& b = client.block(index);
      if (fault != linux::Fault::ok) {
        arm(client, index, b);
        continue;
      }
      if (b.armed.none()) ++client.armed_blocks;
      b.armed |= BlockTable::mask_in(index, run);
    }
    run.count_pages = 0;
  };
  for (Page at = pages.first; at < pages.end();) {
    const BlockIndex index = block_of(at);
    const PageSpan part{at, std::min(pages.end(), first_page_of(index + 1)) - at};
    BlockState& b = client.block(index);
    at = part.end();
    if (b.armed.any()) {
      flush_run();
      arm(client, index, b);
      continue;
    }
    if (run.count_pages == 0) run.first = part.first;
    run.count_pages += part.count_pages;
  }
  flush_run();
}

void Executor::fork_zapped(Client& client) {
  if (client.gate == nullptr || client.gate->state != ForkGate::State::zapping) return;
  if (--client.gate->zaps == 0) begin_copying(client);
}

/// Whoever asked for a pin may write there without any mapping of ours, at any time: the child has what was there at the
/// fork, as it gets early copies from the kernel of pages that are pinned for DMA.
void Executor::begin_copying(Client& client) {
  ForkGate& gate = *client.gate;
  gate.state = ForkGate::State::copying;
  const Fork* fork = find_fork(gate.fork);
  if (fork == nullptr || !core_.is_pinned(client.id, {0, Page{1} << 52})) {
    frozen(client);
    return;
  }
  gate.uncopied.reserve(fork->pending.size());
  for (const auto& [index, pages] : fork->pending) gate.uncopied.push_back(index);
}

/// Of one block. How many pages there were.
std::uint64_t Executor::copy_pinned(Client& client, Fork& fork, BlockIndex index) {
  if (!core_.is_pinned(client.id, {first_page_of(index), block_pages})) return 0;
  PageMask pinned;
  fork.pending_in(index).for_each_run([&](unsigned first, unsigned count) {
    for (unsigned at = first; at < first + count; ++at) {
      if (core_.query(client.id, first_page_of(index) + at).pinned) pinned.set(at);
    }
  });
  if (pinned.any()) give_block(fork, index, pinned);
  return pinned.count();
}

bool Executor::copy_for_forks() {
  if (gates_ == 0) return false;
  bool more = false;
  for (std::size_t i = 0; i < forks_.size(); ++i) {
    Fork& fork = *forks_[i];
    if (fork.origin == nullptr || fork.origin->gate == nullptr) continue;
    Client& client = *fork.origin;
    if (client.gate->fork != fork.number || client.gate->state != ForkGate::State::copying) continue;
    std::uint64_t pages = 0;
    for (unsigned blocks = 0; blocks < looked_at_a_turn && pages < copied_pages_a_turn && !fork.gone; ++blocks) {
      if (client.gate->uncopied.empty()) break;
      const BlockIndex index = client.gate->uncopied.back();
      client.gate->uncopied.pop_back();
      pages += copy_pinned(client, fork, index);
    }
    if (fork.gone) continue;  // its gate is open
    if (client.gate->uncopied.empty()) {
      frozen(client);
    } else {
      more = true;
    }
  }
  return more;
}

void Executor::frozen(Client& client) {
  ForkGate& gate = *client.gate;
  gate.state = ForkGate::State::frozen;
  gate.frozen_ns = now_ns_;
  household_.fork_ready(client, gate.request);
}

/// The fork is over, or was none. What waited goes on.
void Executor::open_gate(Client& client) {
  // Taken first: a child that is found to have ended, or to have everything, opens the gate too.
  const std::unique_ptr<ForkGate> gate = std::move(client.gate);
  if (gate == nullptr) return;
  if (gate->state == ForkGate::State::frozen) {
    // Jobs write these without a mapping of their own.
    for (const auto& [id, buffer] : buffers_) {
      if (buffer.userptr && buffer.maker == client.id) give_children(client, buffer.user_pages);
    }
  }
  for (const core::Action& action : gate->maps) perform(action);
  for (const ForkGate::Wave& wave : gate->waves) {
    if (client.devices[wave.device].state == DeviceState::attached)
      on_wave_fault(client, wave.device, wave.cu, wave.record);
  }
  if (client.closing) return;
  for (const ForkGate::Touch& touch : gate->touches) on_cpu_fault(client, touch.address, touch.access);
}

/// Answers what was asked of a device that has ended: nobody else will.
void Executor::device_left_gate(Client& client, DeviceId device) {
  if (client.gate == nullptr) return;
  std::erase_if(client.gate->waves, [&](const ForkGate::Wave& w) { return w.device == device; });
  std::vector<core::Action> of_device;
  std::erase_if(client.gate->maps, [&](const core::Action& a) {
    if (a.verb != core::Verb::map_device || a.device != device) return false;
    of_device.push_back(a);
    return true;
  });
  for (const core::Action& action : of_device) done(action.id, Code::device_lost);
}

void Executor::check_gates() {
  if (gates_ == 0) return;
  gates_ = 0;
  for (const auto& fork : forks_) {
    if (fork->origin == nullptr || fork->origin->gate == nullptr) continue;
    Client& client = *fork->origin;
    if (gate_is_stuck(client)) {
      open_gate(client);
    } else {
      ++gates_;
    }
  }
}

/// Opening it before the fork lets others write what the child will see in part: only where nothing else helps. That is
/// where somebody waits here and the forking thread has slept all the time between two looks, though every thread that
/// is ready to run could do so most of that time: one that could not may have what it waits for.
bool Executor::gate_is_stuck(Client& client) {
  ForkGate& gate = *client.gate;
  if (gate.state != ForkGate::State::frozen || gate.at_once) return false;
  if (now_ns_ - std::max(gate.looked_ns, gate.frozen_ns) <= look_after_ns) return false;
  const std::uint64_t between_ns = now_ns_ - std::exchange(gate.looked_ns, now_ns_);
  const auto before = std::exchange(gate.ran_ns, {});
  bool sleeps = false;
  bool starves = false;
  for (const linux::Process::Thread& thread : client.process.threads()) {
    gate.ran_ns[thread.number] = thread.ran_ns;
    const auto then = before.find(thread.number);
    const std::uint64_t ran_ns = then == before.end() ? 0 : thread.ran_ns - then->second;
    if (thread.number == static_cast<pid_t>(gate.thread)) {
      sleeps = thread.state == 'S' && then != before.end() && ran_ns == 0;
    } else if (thread.state == 'R' && ran_ns < between_ns / 2) {
      starves = true;
    }
  }
  const bool somebody_waits = !gate.touches.empty() || !gate.waves.empty() || !gate.maps.empty();
  const bool for_long = now_ns_ - gate.frozen_ns > patience_ns;
  return sleeps && somebody_waits && (for_long || (gate.goes && !starves));
}

void Executor::fork_goes(Client& client) {
  if (client.gate == nullptr || client.gate->state != ForkGate::State::frozen) return;
  client.gate->goes = true;
  client.gate->frozen_ns = now_ns_;
}

bool Executor::gate_holds(Client& client, const core::Action& action) {
  if (client.gate == nullptr || client.gate->state == ForkGate::State::revoking) return false;
  if (client.gate->at_once && action.verb == core::Verb::map_cpu) return false;
  if (action.verb == core::Verb::map_cpu && action.pages.contains(client.gate->own_page)) return false;
  client.gate->maps.push_back(action);
  return true;
}

// --- forks come and go -----------------------------------------------------------------------------------------------

Fork* Executor::find_fork(std::uint64_t number) {
  for (const auto& fork : forks_) {
    if (fork->number == number && !fork->gone) return fork.get();
  }
  return nullptr;
}

Fork& Executor::add_fork(Client& client, linux::Fd socket) {
  auto fork = std::make_unique<Fork>();
  fork->number = next_fork_++;
  fork->origin = &client;
  fork->socket = std::move(socket);
  fork->window = {client.window_base, client.window_bytes};
  ++client.forks;
  forks_.push_back(std::move(fork));
  return *forks_.back();
}

/// A fork's child forks: what is missing in it is missing in both.
Fork& Executor::add_grandchild(const Fork& parent, linux::Fd socket) {
  auto fork = std::make_unique<Fork>();
  fork->number = next_fork_++;
  fork->origin = parent.origin;
  fork->socket = std::move(socket);
  fork->window = parent.window;
  fork->spans = parent.spans;
  fork->pending = parent.pending;
  fork->moves = parent.moves;
  fork->lost = parent.lost;
  for (const auto& [page, bytes] : parent.taken) {
    fork->taken.emplace(page, bytes == nullptr ? nullptr : std::make_unique<Fork::PageBytes>(*bytes));
  }
  if (fork->origin != nullptr) ++fork->origin->forks;
  forks_.push_back(std::move(fork));
  return *forks_.back();
}

/// Nothing more is done for the child.
void Executor::end_fork(Fork& fork) {
  if (fork.gone) return;
  fork.gone = true;
  household_.fork_ended(fork);
  fork.pending.clear();
  fork.taken.clear();
  Client* origin = fork.origin;
  leave_origin(fork);
  if (origin == nullptr || origin->gate == nullptr || origin->gate->fork != fork.number) return;
  if (origin->gate->state == ForkGate::State::frozen) {
    open_gate(*origin);
  } else if (origin->gate->state == ForkGate::State::copying) {
    const std::uint64_t request = origin->gate->request;
    open_gate(*origin);
    household_.answer_request(*origin, request, fork.rings ? Code::no_memory : Code::client_gone);
  }
}

void Executor::leave_origin(Fork& fork) {
  Client* origin = fork.origin;
  if (origin == nullptr) return;
  fork.origin = nullptr;
  FERRY_CHECK(origin->forks > 0);
  if (--origin->forks == 0 && !origin->closing) stop_watching(*origin);
}

/// The last child has all it needs: blocks that only forks were watched for are the kernel's again. Adopted memory stays
/// watched for as long as it is adopted, or nobody would hear of its unmap.
void Executor::stop_watching(Client& client) {
  if (config_.machine.system_bytes != 0) return;  // all pages are given by us, always
  client.blocks.for_each([&](BlockIndex index, BlockState& b) {
    if (client.is_adopted(first_page_of(index))) return;
    const bool guards = b.guard != nullptr && b.guard->read_only.any();
    if (b.armed.any() && b.revoked.none() && b.steered == 0 && !guards) disarm(client, index, b, b.armed);
  });
}

void Executor::forget_forks() {
  std::erase_if(forks_, [](const std::unique_ptr<Fork>& f) { return f->gone; });
}

/// All pages have been given: the child's memory is the kernel's from now on.
void Executor::finish_if_complete(Fork& fork) {
  if (fork.gone || !fork.userfault || !fork.pending.empty() || !fork.taken.empty()) return;
  if (fork.origin != nullptr && fork.origin->gate != nullptr && fork.origin->gate->fork == fork.number &&
      !fork.origin->gate->at_once) {
    return;
  }
  if (!fork.leaving) {
    fork.leaving = true;
    for (const auto& [first, count] : fork.spans) {
      const std::uint64_t address = fork.window.address_of_page(first);
      fork.userfault.unregister_span(address, count * page_bytes);
      fork.userfault.wake(address, count * page_bytes);
    }
  }
  let_go(fork);
}

/// The child keeps its userfaultfd, so a thread of it that is just changing its mappings waits until that was read, for
/// ever if nobody does. Nothing new is told of memory that is not registered any more.
void Executor::let_go(Fork& fork) {
  if (fork.spans.empty()) {
    end_fork(fork);
    return;
  }
  const std::uint64_t anywhere = fork.window.address_of_page(fork.spans.begin()->first);
  for (unsigned tries = 0; tries < let_go_tries; ++tries) {
    for (; fork.moves_left != fork.moves.size(); ++fork.moves_left) {
      const Fork::Move& m = fork.moves[fork.moves_left];
      fork.userfault.unregister_span(m.to, m.bytes);
      fork.userfault.wake(m.to, m.bytes);
    }
    // Not registered, so nothing is filled: the answer tells whether a change is under way.
    std::uint64_t done_bytes = 0;
    if (fork.userfault.fill(anywhere, nullptr, page_bytes, done_bytes) != linux::Fault::again) {
      end_fork(fork);
      return;
    }
    if (!read_child(fork)) return;
  }
}

void Executor::child_arrived(Fork& fork, linux::Userfaultfd userfault) {
  fork.userfault = std::move(userfault);
  const std::vector<Page> lost = std::move(fork.lost);
  for (const Page page : lost) lose_child(fork, page);
  if (fork.gone) return;
  give_taken(fork);
  finish_if_complete(fork);
}

/// A child that is alive gets the rest now: it does not hold what would tell it of our end any more.
void Executor::child_left(Fork& fork) {
  if (!fork.userfault) {
    end_fork(fork);
    return;
  }
  fork.hurry = true;
}

}  // namespace ferry::manager

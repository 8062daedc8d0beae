#include "manager/executor/executor.h"

#include <cstdio>

#include "linux/futex.h"

namespace ferry::manager {
namespace {

/// Mappings of a process that the manager leaves alone: libraries, stacks, what the application itself maps.
constexpr std::uint64_t mappings_kept_free = 4096;
/// Rounds of actions before peers are listened to again: what is answered at once and asked for anew (a page that
/// cannot be given for lack of memory, a long prefetch of small granules) must not shut out everybody else.
constexpr unsigned rounds_max = 32;

std::uint64_t max_map_count() {
  std::uint64_t value = 65530;
  if (std::FILE* f = std::fopen("/proc/sys/vm/max_map_count", "re")) {
    unsigned long long n = 0;
    if (std::fscanf(f, "%llu", &n) == 1) value = n;
    std::fclose(f);
  }
  return value;
}

}  // namespace

Executor::Executor(core::Core& core, Household& household, const ManagerConfig& config, const linux::Bell& bell,
                   unsigned copy_threads, std::unique_ptr<linux::Store> store)
    : core_(core),
      household_(household),
      config_(config),
      engine_(copy_threads, bell),
      store_(std::move(store)),
      video_(bell) {
  const std::uint64_t limit = max_map_count();
  pieces_max_ = limit > 2 * mappings_kept_free ? limit - mappings_kept_free : limit / 2;
}

void Executor::run_actions() {
  // Performing answers some actions at once, which lets the core ask for more; posting may end a peer, which does too.
  for (unsigned round = 0; round < rounds_max && (core_.has_actions() || !open_.empty());) {
    for (; round < rounds_max && core_.has_actions(); ++round) {
      core_.take_actions(actions_);
      for (const core::Action& action : actions_) perform(action);
    }
    flush();
  }
  wake_all();
}

void Executor::perform(const core::Action& action) {
  if (action.verb == core::Verb::reply) {
    household_.on_reply(action.cookie, action.status);
    return;
  }
  Client* client = household_.find_client(action.client);
  switch (action.verb) {  // what concerns objects that outlive their client
    case core::Verb::move_buffer: move_buffer(action); return;
    case core::Verb::map_buffer: map_buffer(client, action); return;
    case core::Verb::revoke_buffer: revoke_buffer(client, action); return;
    case core::Verb::release_buffer: release_buffer(action); return;
    case core::Verb::run_job: run_job(client, action); return;
    case core::Verb::cancel_job: cancel_job(client, action); return;
    case core::Verb::signal_fence: signal_fence(action); return;
    default: break;
  }
  FERRY_CHECK(client != nullptr);
  switch (action.verb) {
    case core::Verb::revoke_cpu: revoke_cpu(*client, action); break;
    case core::Verb::map_cpu: map_cpu(*client, action); break;
    case core::Verb::protect_cpu: protect_cpu(*client, action); break;
    case core::Verb::wake_cpu:
      if (!action.status.ok() && client->forks != 0) [[unlikely]]
        lose_children(*client, action.pages);
      if (!action.status.ok() && !client->closing) {
        lose_cpu(*client, action.pages, action.status);
        break;
      }
      // Either it is mapped by now, or it is no longer watched: freed pages are disarmed before they are discarded.
      if (!client->closing) {
        if (client->refused_pages != 0) [[unlikely]]
          let_cpu(*client, action.pages);
        client->fault_of(action.pages.first)
            .wake(client->address_of(action.pages.first), action.pages.count_pages * page_bytes);
      }
      break;
    case core::Verb::revoke_device: revoke_device(*client, action); break;
    case core::Verb::map_device: map_device(*client, action); break;
    case core::Verb::copy: copy(*client, action); break;
    case core::Verb::copy_system: copy_system(*client, action); break;
    case core::Verb::wake_wave: resume(*client, action.device, action.token, action.status); break;
    case core::Verb::release_chunk: release_chunk(*client, action); break;
    case core::Verb::discard_system: discard_system(*client, action); break;
    case core::Verb::store: store(*client, action); break;
    case core::Verb::load: load(*client, action); break;
    case core::Verb::discard_store: discard_store(*client, action); break;
    case core::Verb::grant_cus: grant_units(*client, action); break;
    case core::Verb::revoke_cus: revoke_units(*client, action); break;
    case core::Verb::reset_device: reset_device(*client, action); break;
    default: break;
  }
}

bool Executor::poll_copies() {
  const bool some = store_.poll();
  if (!engine_.has_completions()) return some;
  completions_.clear();
  engine_.take_completions(completions_);
  for (const auto& c : completions_) copy_done(c);
  return true;
}

void Executor::wake_all() {
  const auto wake = [](std::atomic<std::uint32_t>& word) { linux::futex_wake(word, 1); };
  for (const Posted& p : posted_) {
    if (p.device == no_device) {
      p.client->agent.posted = false;
      p.client->agent.port.wake(wake);
      continue;
    }
    DevicePeer& peer = p.client->devices[p.device];
    if (p.cu == no_cu) {
      peer.agent.posted = false;
      if (peer.control_map) peer.agent.port.wake(wake);
    } else if (p.cu < peer.cus.size()) {
      peer.cus[p.cu].posted = false;
      peer.cus[p.cu].port.wake(wake);
    }
  }
  posted_.clear();
}

}  // namespace ferry::manager

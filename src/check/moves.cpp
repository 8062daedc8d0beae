// mremap in scenarios: one page goes to the address of another. When it does is told by what the core asks for at that
// moment; until then both read as before, from then on as after (I-74).
#include <algorithm>

#include "check/address.h"
#include "check/world.h"

namespace ferry::check {
using core::Verb;

/// True: the agent waits for the reply.
bool World::move_step(std::uint32_t agent, const Step& s) {
  const std::uint32_t client = scenario_.agents[agent].client;
  if (forking_[client]) return false;  // the manager holds moves back until a fork is over; here it is passed over
  keep_for_children(s.page);
  keep_for_children(s.to_page);
  // In the call it may come to its end.
  moves_.push_back({agent, s.page, s.to_page, false, false});
  const Status status = core_->change(now_ns_, client_id(client), core::Change::move, span_of_page(s.page),
                                      span_of_page(s.to_page).first, 0, {cookie_svm + agent});
  if (!status.ok()) moves_.pop_back();
  return wait_for_reply(agent, status);
}

/// When an action is decided: the core has carried a page if it asks for the bytes at its new address, or gives up
/// system memory there while its VRAM is the target's already.
void World::note_move(const core::Action& a) {
  if (moves_.empty() || a.cause != core::Cause::change || a.pages.count_pages == 0) return;
  const std::uint32_t index = page_at(a.client - 1, a.pages.first);
  for (Move& move : moves_) {
    if (move.to != index || move.carried) continue;
    if (a.verb == Verb::copy_system || a.verb == Verb::copy) {
      carry(move);
    } else if (a.verb == Verb::discard_system) {
      if (core_->query(a.client, a.pages.first).vram_device != no_device) {
        carry(move);
      } else {
        pages_[move.to].shadow = zeros;  // what it held is given up, whatever comes
        pages_[move.to].discarded = false;
      }
    }
  }
}

void World::carry(Move& move) {
  move.carried = true;
  for (const std::uint32_t p : {move.from, move.to}) {
    const PageState& page = pages_[p];
    const bool reached =
        page.cpu_mapped || std::any_of(page.devices.begin(), page.devices.end(),
                                       [](const auto& entry) { return entry.to != DeviceEntry::To::nowhere; });
    if (reached) {
      violate(Verdict::violation, scenario_.pages[move.from].name + " goes to the address of " +
                                      scenario_.pages[move.to].name + " while somebody reaches " +
                                      scenario_.pages[p].name + " (I-74)");
    }
  }
  PageState& from = pages_[move.from];
  PageState& to = pages_[move.to];
  to.shadow = from.shadow;
  to.discarded = from.discarded || from.discarding != 0;
  from.shadow = zeros;
  from.discarded = false;
}

/// The page is about to go.
void World::note_freed(std::uint32_t page) {
  for (Move& move : moves_) {
    move.freed = move.freed || move.from == page || move.to == page;
  }
}

void World::move_replied(std::uint32_t agent, Status status) {
  const auto it = std::find_if(moves_.begin(), moves_.end(), [agent](const Move& m) { return m.agent == agent; });
  if (it == moves_.end()) violate(Verdict::violation, "a move is answered twice");
  if (status.ok() && !it->carried && !it->freed && client_alive_[scenario_.agents[agent].client]) carry(*it);
  if (!status.ok() && it->carried && !failed_before_) {
    violate(Verdict::violation, "a move that has been made ends with: " + words_of(status));
  }
  if (!status.ok() && it->carried) {  // its copies failed: it stays, and the other one was given up
    pages_[it->from].shadow = pages_[it->to].shadow;
    pages_[it->from].discarded = pages_[it->to].discarded;
    pages_[it->to].shadow = zeros;
    pages_[it->to].discarded = false;
  }
  moves_.erase(it);
}

}  // namespace ferry::check

// The budget and its line. Pages are charged before they get memory and given back after they lost it, so that what is
// counted is never less than what is there.
//
// What is charged splits into the normal share, what track's repairs took from their reserve (`lent`), and what had to
// be given over the budget (`over`). Memory that comes back pays for the last first, then the reserve.
#include "core/reclaim/reclaim.h"

#include <algorithm>

#include "core/digest.h"
#include "core/impl.h"
#include "core/reclaim/state.h"

namespace ferry::core {

Reclaim::Reclaim(Core::Impl& core) : state_(new State(core)) {
  counts_ = core.config.system_pages != 0;
  state_->budget = core.config.system_pages;
  if (counts_) {
    // More than half would leave nothing to work with.
    state_->reserve = std::min(core.work.repair_reserve_pages(), state_->budget / 2);
  }
}
Reclaim::~Reclaim() { delete state_; }

std::uint64_t Reclaim::used_pages() const { return state_->used; }
std::uint64_t Reclaim::budget_pages() const { return state_->budget; }

// --- counting --------------------------------------------------------------------------------------------------------

void Reclaim::State::charge(std::uint64_t pages) {
  used += pages;
  core.stats.system_pages = used;
  core.stats.system_peak_pages = std::max(core.stats.system_peak_pages, used);
}

/// Splits what is used anew. REQUIRES: `lent` may only have become too large.
void Reclaim::State::rebalance() {
  const std::uint64_t rest = used - std::min(used, capacity());
  if (!core.planted(PlantedBug::refill_nothing)) {
    lent = std::min(lent, rest);
  }
  over = rest - std::min(lent, rest);
}

bool Reclaim::try_take(std::uint64_t pages) {
  if (!counts_) {
    return true;
  }
  State& s = *state_;
  if (!s.line.empty() || !s.fits(pages)) {
    return false;
  }
  s.charge(pages);
  return true;
}

void Reclaim::give(std::uint64_t pages) {
  if (!counts_ || pages == 0) {
    return;
  }
  State& s = *state_;
  FERRY_CHECK_GE(s.used, pages);
  s.used -= pages;
  s.core.stats.system_pages = s.used;
  s.impatient = false;
  s.rebalance();
  pump();
}

// --- the line --------------------------------------------------------------------------------------------------------

bool Reclaim::take(std::uint64_t pages, const AllocContext& context, const MemoryWaiter& waiter, Request& request) {
  request = 0;
  if (try_take(pages)) {
    return true;
  }
  State& s = *state_;
  s.enter_line(pages, context, waiter);
  const Request id = s.serial;
  if (s.pumping) {
    s.again = true;  // whoever pumps looks at it, and tells
    request = id;
    return false;
  }
  s.taking = id;
  s.taken = false;
  s.recheck();
  s.pump();
  s.taking = 0;
  if (s.taken) {
    return true;
  }
  if (waiter.who == MemoryWaiter::Who::op && !s.refused.empty() && s.refused.back().id == id) {
    s.refused.pop_back();
    return false;
  }
  request = id;
  return false;
}

void Reclaim::State::enter_line(std::uint64_t pages, const AllocContext& context, const MemoryWaiter& waiter) {
  if (line.empty()) {
    moved_ns = core.now_ns;
  }
  MemoryRequest request{++serial, pages, context, waiter, graph::no_node};
  if (graph_kept()) {
    request.node = core.graph.add(core.classes.memory, request.id, graph::Needs::any);
    if (!line.empty()) {
      core.work.circle_found(core.graph.wait(request.node, line.back().node, "is behind"));
    }
  }
  line.push_back(request);
  link_waiter(request);
}

/// Who waits for the request, in the graph. REQUIRES: the request is in line.
void Reclaim::State::link_waiter(const MemoryRequest& request) {
  if (!graph_kept()) {
    return;
  }
  if (request.waiter.who == MemoryWaiter::Who::op) {
    core.show_memory_wait(core.ops[request.waiter.id], request.node);
    return;
  }
  const auto it = core.work.buffers.find(request.waiter.id);
  if (it == core.work.buffers.end()) {
    return;
  }
  if (const auto job = core.work.jobs.find(it->second.claimed_by); job != core.work.jobs.end()) {
    core.work.add_wait(job->second.node, request.node, "needs");
  }
  for (const BufferMapping& mapping : it->second.mappings) {
    for (const BufferMapping::Wave& wave : mapping.waves) {
      const graph::NodeId node = core.work.fault_node(mapping.client, wave.device, wave.token.value);
      if (node != graph::no_node) {
        core.work.add_wait(node, request.node, "needs");
      }
    }
  }
}

void Reclaim::State::leave_line(std::size_t at) {
  const MemoryRequest request = line[at];
  if (fence_for == request.id) {
    unwait();
  }
  line.erase(line.begin() + static_cast<std::ptrdiff_t>(at));
  if (graph_kept()) {
    core.graph.remove(request.node);
    if (at > 0 && at < line.size()) {
      core.work.circle_found(core.graph.wait(line[at].node, line[at - 1].node, "is behind"));
    }
  }
  moved_ns = core.now_ns;
  impatient = impatient && !line.empty();
}

void Reclaim::State::tell(const MemoryRequest& request, Status status) {
  if (request.waiter.who == MemoryWaiter::Who::op) {
    core.op_memory_granted(static_cast<OpIndex>(request.waiter.id), request.waiter.serial, status);
  } else {
    core.work.buffer_memory_granted(request.waiter.id, status);
  }
}

/// Serves the first in line if it fits.
bool Reclaim::State::serve_front() {
  if (line.empty() || !fits(line.front().pages)) {
    return false;
  }
  if (core.planted(PlantedBug::forget_memory_waiter) && line.size() > 1) {
    leave_line(line.size() - 1);
  }
  const MemoryRequest request = line.front();
  charge(request.pages);
  leave_line(0);
  if (request.id == taking) {
    taken = true;
  } else {
    tell(request, {});
  }
  return true;
}

void Reclaim::State::deliver_refusals() {
  for (std::size_t i = 0; i < refused.size(); ++i) {
    if (refused[i].id != taking) {
      const MemoryRequest request = refused[i];
      refused.erase(refused.begin() + static_cast<std::ptrdiff_t>(i--));
      tell(request, Code::no_memory);
    }
  }
}

void Reclaim::State::refuse_front() {
  refused.push_back(line.front());
  leave_line(0);
}

/// Nothing is left to reclaim and nothing is under way. Whoever is first in line is helped another way, or told no.
void Reclaim::State::resolve() {
  // Operations that wait for VRAM hold the memory of their pages. In place they are done, and can be victims.
  if (core.serve_slot_line_in_place()) {
    return;
  }
  const MemoryRequest& front = line.front();
  if (front.waiter.who == MemoryWaiter::Who::op && core.needless_eviction(static_cast<OpIndex>(front.waiter.id))) {
    refuse_front();
    return;
  }
  if (front.context.what != AllocContext::For::fault) {
    refuse_front();
    return;
  }
  const MemoryRequest request = front;
  const std::uint64_t room = capacity() - std::min(normal(), capacity());
  const std::uint64_t beyond = request.pages - std::min(request.pages, room);
  if (lent + beyond <= reserve) {
    lent += beyond;
    ++core.stats.reserve_repairs;
  } else {
    over += beyond;
    core.stats.over_budget_pages += beyond;
  }
  charge(request.pages);
  leave_line(0);
  if (request.id == taking) {
    taken = true;
  } else {
    tell(request, {});
  }
}

void Reclaim::State::pump() {
  if (pumping) {
    again = true;
    return;
  }
  pumping = true;
  do {
    again = suspended = false;
    deliver_refusals();
    while (serve_front()) {}
    shrink();
    if (!line.empty() && fence == 0 && !again && (impatient || !under_way())) {
      resolve();
      again = true;
    }
  } while (again);
  pumping = false;
}

void Reclaim::pump() {
  const State& s = *state_;
  if (counts_ && (!s.line.empty() || !s.refused.empty() || !s.started.empty() || s.background + s.lent + s.over != 0 ||
                  s.pumping)) {
    state_->pump();
  }
}

void Reclaim::withdraw(Request request) {
  State& s = *state_;
  std::erase_if(s.refused, [request](const MemoryRequest& r) { return r.id == request; });
  for (std::size_t i = 0; i < s.line.size(); ++i) {
    if (s.line[i].id == request) {
      s.leave_line(i);
      pump();
      return;
    }
  }
}

void Reclaim::joined(Request request, const AllocContext& context) {
  State& s = *state_;
  for (MemoryRequest& r : s.line) {
    if (r.id == request) {
      if (r.context.what != AllocContext::For::fault) {
        r.context = context;
      }
      s.recheck();
      pump();
      return;
    }
  }
}

bool Reclaim::waits() const { return state_->fence != 0; }

void Reclaim::suspend() {
  state_->unwait();
  state_->suspended = true;
}

void Reclaim::resume() {
  if (state_->suspended) {
    pump();
  }
}

graph::NodeId Reclaim::node(Request request) const {
  for (const MemoryRequest& r : state_->line) {
    if (r.id == request) {
      return r.node;
    }
  }
  return graph::no_node;
}

std::uint64_t Reclaim::State::line_pages() const {
  std::uint64_t pages = 0;
  for (const MemoryRequest& request : line) {
    pages += request.pages;
  }
  return pages;
}

// --- pressure, budget, time ------------------------------------------------------------------------------------------

void Reclaim::pressure(std::uint64_t pages) {
  if (counts_) {
    state_->background = std::min(state_->background + pages, state_->used);
    pump();
  }
}

void Reclaim::set_budget(std::uint64_t pages) {
  if (!counts_ || pages == 0) {
    return;
  }
  State& s = *state_;
  s.budget = pages;
  s.reserve = std::min(s.core.work.repair_reserve_pages(), pages / 2);
  // What is above the rest of the budget fills the reserve first: a reserve that is in use cannot be lent.
  s.lent = std::min(s.used - std::min(s.used, s.capacity()), s.reserve);
  s.rebalance();
  if (s.over > 0) {
    // All that can go without a fence, at once; the rest as soon as it can.
    s.lru.unpark_all();
  }
  pump();
}

void Reclaim::tick() {
  if (!counts_) {
    return;
  }
  State& s = *state_;
  const std::uint64_t now = s.core.now_ns;
  if (s.store_rest_until != 0 && now >= s.store_rest_until) {
    // One more try: if that fails too, the store rests again.
    s.store_rest_until = 0;
    s.store_failures = store_failures_most - 1;
    s.store_full = false;
    s.lru.unpark_all();
  }
  if (!s.line.empty() && s.fence == 0 && now - s.moved_ns > s.core.config.line_patience_ns) {
    s.impatient = true;
  }
  s.recheck();
  pump();
}

std::uint64_t Reclaim::next_tick_ns() const {
  const State& s = *state_;
  if (!counts_) {
    return ~std::uint64_t{0};
  }
  if (!s.refused.empty() || s.suspended) {
    return s.core.now_ns;
  }
  std::uint64_t due = ~std::uint64_t{0};
  if (!s.line.empty()) {
    if (s.fence == 0) {
      due = s.moved_ns + s.core.config.line_patience_ns + 1;
    }
    if (s.store_rest_until != 0) {
      due = std::min(due, s.store_rest_until);
    }
  }
  return due;
}

// --- looking in ------------------------------------------------------------------------------------------------------

bool Reclaim::quiescent() const {
  const State& s = *state_;
  return s.line.empty() && s.refused.empty() && s.leaving == 0 && s.started.empty() && s.fence == 0;
}

void Reclaim::verify() const {
  if (!counts_) {
    return;
  }
  const State& s = *state_;
  FERRY_CHECK_EQ(s.used, s.core.stats.system_pages);
  std::uint64_t charged = 0;
  for (const auto& [id, client] : s.core.clients) {
    charged += client->charged_pages;
  }
  for (const auto& [id, buffer] : s.core.work.buffers) {
    charged += buffer.charged_pages;
  }
  FERRY_CHECK_EQ(charged, s.used);  // I-40
  // I-41: nothing above the budget but what was said to be, and the reserve is whole as soon as memory allows.
  FERRY_CHECK_LE(s.lent, s.reserve);
  FERRY_CHECK_EQ(s.lent + s.over, s.used - std::min(s.used, s.capacity()));
  for (const MemoryRequest& request : s.line) {
    if (request.waiter.who == MemoryWaiter::Who::op) {
      const Op& op = s.core.ops[request.waiter.id];
      FERRY_CHECK(op.in_use && op.serial == request.waiter.serial && op.stage == Stage::wait_memory);  // I-43
      FERRY_CHECK_EQ(op.memory, request.id);
      FERRY_CHECK_EQ(op.outstanding, 0U);
    }
  }
  FERRY_CHECK(s.fence == 0 || (!s.line.empty() && s.line.front().id == s.fence_for));  // I-44
  std::uint64_t entries = 0;
  for (const auto list : {LruEntry::active, LruEntry::parked}) {
    for (std::uint32_t at = s.lru.first(list); at != none_index; at = s.lru.at(at).next) {
      const LruEntry& entry = s.lru.at(at);
      ++entries;
      if (entry.block != nullptr) {
        const PageMask held = entry.block->held & s.core.granule_mask(entry.granule);
        FERRY_CHECK(held.any());
        FERRY_CHECK_EQ(entry.block->granules[entry.granule].lru, std::uint64_t{at} + 1);
      } else {
        FERRY_CHECK(s.core.work.buffers.contains(entry.buffer));
      }
    }
  }
  FERRY_CHECK_EQ(entries, s.lru.size());
}

std::uint64_t Reclaim::digest() const {
  if (!counts_) {
    return 0;
  }
  const State& s = *state_;
  Digest d;
  const auto place = [](const Block& block, std::uint32_t granule) {
    return Digest().add(block.client->id).add(block.index).add(granule).value();
  };
  d.add(s.used).add(s.lent).add(s.over).add(s.budget).add(s.leaving).add(s.storing).add(s.background);
  const auto add_request = [&](const MemoryRequest& r) {
    d.add(r.pages).add(static_cast<std::uint64_t>(r.context.what)).add(r.context.device).add(r.context.client);
    d.add(r.context.cu).add(r.context.fence).add(static_cast<std::uint64_t>(r.waiter.who));
    if (r.waiter.who == MemoryWaiter::Who::op) {
      const Op& op = s.core.ops[r.waiter.id];
      d.add(place(*op.block, op.granule));
    } else {
      d.add(r.waiter.id);
    }
  };
  d.add(s.line.size());
  for (const MemoryRequest& request : s.line) {
    add_request(request);
  }
  d.add(s.refused.size());
  for (const MemoryRequest& request : s.refused) {
    add_request(request);
  }
  if (!s.line.empty()) {
    d.add(s.impatient ? 1 : 0).add(time_since(s.core.now_ns, s.moved_ns, s.core.config.line_patience_ns + 1));
  }
  d.add(s.fence).add(s.shows_machine ? 1 : 0);
  for (const State::Started& started : s.started) {
    d.add(started.buffer).add(started.pages);
  }
  d.add(s.store_failures).add(s.store_full ? 1 : 0);
  d.add(s.store_rest_until == 0 ? 0 : 1 + time_left(s.core.now_ns, s.store_rest_until));
  for (const auto list : {LruEntry::active, LruEntry::parked}) {
    for (std::uint32_t at = s.lru.first(list); at != none_index; at = s.lru.at(at).next) {
      const LruEntry& entry = s.lru.at(at);
      d.add(entry.block != nullptr ? place(*entry.block, entry.granule) : entry.buffer);
    }
    d.add(list);
  }
  return d.value();
}

}  // namespace ferry::core

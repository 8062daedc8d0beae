// What scenarios do with shared virtual memory beside reading and writing it, and what must hold because of it: pinned
// pages stay (I-60), discarded ones read as before or as zeros (I-61), what is forbidden is not mapped (I-50), a fork's
// child sees the moment of its fork (I-80, I-81).
#include <algorithm>

#include "check/address.h"
#include "check/hash.h"
#include "check/world.h"

namespace ferry::check {
using Kind = Step::Kind;
using core::Verb;

/// True: the agent waits for the reply.
bool World::svm_step(std::uint32_t agent, const Step& s) {
  const Agent& def = scenario_.agents[agent];
  const ClientId client = client_id(def.client);
  const core::Cookie cookie{cookie_svm + agent};
  say(LogLine::Kind::call, def.name, "core", s.text);
  if (s.kind == Kind::fork) {
    if (forking_[def.client]) return false;
    forking_[def.client] = true;
    return wait_for_reply(agent, core_->client_fork(now_ns_, client, cookie));
  }
  if (s.kind == Kind::move) return move_step(agent, s);
  PageState& page = pages_[s.page];
  const PageSpan span = span_of_page(s.page);
  switch (s.kind) {
    case Kind::unmap: {
      if (!page.allocated || page.freeing) return false;
      if (setup_.bug != core::PlantedBug::free_before_child) keep_for_children(s.page);
      note_freed(s.page);
      page.freeing = page.unmapping = true;
      page.cpu_mapped = page.cpu_writable = false;
      wake_cpu(span, def.client);
      const Status status = core_->change(now_ns_, client, core::Change::unmap, span, 0, 0, {cookie_free + s.page});
      if (!status.ok()) violate(Verdict::violation, "unmap of an allocated page ends with: " + words_of(status));
      return wait_for_reply(agent, status);
    }
    case Kind::pin:
      keep_for_children(s.page);
      return wait_for_reply(agent, core_->pin(now_ns_, client, span, s.device, cookie));
    case Kind::unpin:
      if (page.pins == 0) return false;
      --page.pins;
      if (const Status status = core_->unpin(now_ns_, client, span); !status.ok()) {
        violate(Verdict::violation, "unpin of a pinned page ends with: " + words_of(status));
      }
      return false;
    case Kind::discard: {
      keep_for_children(s.page);
      const Status status = core_->change(now_ns_, client, core::Change::lazy_free, span, 0, 0, cookie);
      page.discarding = static_cast<std::uint8_t>(page.discarding + (status.ok() ? 1 : 0));
      return wait_for_reply(agent, status);
    }
    case Kind::access: {
      const auto bit = static_cast<std::uint16_t>(1U << s.device);
      const bool refused = s.number == static_cast<std::uint64_t>(core::DeviceAccess::none);
      page.no_access = static_cast<std::uint16_t>(refused ? page.no_access | bit : page.no_access & ~bit);
      page.refused = static_cast<std::uint16_t>(page.refused | page.no_access);
      unsigned wrong = 0;
      const core::Attribute line{core::AttributeType::access, s.device, static_cast<std::uint32_t>(s.number)};
      return wait_for_reply(agent, core_->svm_set(now_ns_, client, span, {line}, cookie, wrong));
    }
    case Kind::migrate:
      if (!core_->migrate(now_ns_, client, span, s.device, s.fence + 1).ok()) fences_[s.fence].signalled = true;
      return false;
    default: return false;
  }
}

bool World::wait_for_reply(std::uint32_t agent, Status status) {
  if (status.ok()) {
    agents_[agent].wait = Wait::reply;
  } else {
    say(LogLine::Kind::note, {}, "core", words_of(status));
  }
  return status.ok();
}

void World::svm_replied(std::uint32_t agent, Status status) {
  const Agent& def = scenario_.agents[agent];
  const Step& s = def.steps[agents_[agent].pc];
  if (s.kind == Kind::fork) {
    forking_[def.client] = false;
    if (client_alive_[def.client] && status.ok()) fork_now(def.client);
    return;
  }
  if (s.kind == Kind::move) {
    move_replied(agent, status);
    return;
  }
  PageState& page = pages_[s.page];
  if (s.kind == Kind::pin && status.ok()) {
    ++page.pins;
    page.pinned_ever = true;
    keep_for_children(s.page);  // DMA asks nobody
  }
  if (s.kind == Kind::discard && page.discarding > 0) {
    --page.discarding;
    page.discarded = page.discarded || (page.allocated && !page.freeing);
  }
  if (s.kind == Kind::access && (page.no_access >> s.device & 1U) != 0 && page.allocated && !page.freeing &&
      page.devices[s.device].to != DeviceEntry::To::nowhere) {
    violate(Verdict::violation, "access to " + scenario_.pages[s.page].name + " is taken from device " +
                                    std::to_string(s.device) + ", which still maps it (I-50)");
  }
}

/// When an action is decided.
void World::check_svm(const core::Action& a) const {
  const std::uint32_t index = a.client == 0 || a.pages.count_pages == 0 ? none : page_at(a.client - 1, a.pages.first);
  if (index == none) return;
  const PageState& page = pages_[index];
  const bool moves = a.verb == Verb::copy || a.verb == Verb::store || a.verb == Verb::discard_system;
  if (page.pins != 0 && moves) {
    violate(Verdict::violation, "pinned " + scenario_.pages[index].name + ": " + words(a) + " (I-60)");
  }
  if (a.verb == Verb::map_device && (page.no_access >> a.device & 1U) != 0 && page.allocated && !page.freeing) {
    violate(Verdict::violation, words(a) + ", which may not reach it (I-50)");
  }
}

/// Threads whose touch fails, as a signal would tell them: they go on behind it.
void World::fail_cpu(PageSpan pages, std::uint32_t client) {
  for (std::uint32_t a = 0; a < agents_.size(); ++a) {
    if (scenario_.agents[a].client != client || agents_[a].wait != Wait::cpu_fault) continue;
    const Step& s = scenario_.agents[a].steps[agents_[a].pc];
    if (s.page == none || !span_of_page(s.page).overlaps(pages)) continue;
    agents_[a].wait = Wait::nothing;
    advance(a);
  }
}

/// The word is what was written last, or zeros where it was discarded; whoever sees it settles it.
bool World::reads_right(PageState& page, Version word, bool settle) {
  const bool loose = page.discarding != 0 || page.discarded;
  if (word != page.shadow && !(loose && word == zeros)) return false;
  if (settle && loose) {
    page.shadow = word;
    page.discarded = false;
  }
  return true;
}

// --- forks -----------------------------------------------------------------------------------------------------------

void World::fork_now(std::uint32_t client) {
  Child child{client, std::vector<ChildPage>(pages_.size())};
  for (std::uint32_t p = 0; p < pages_.size(); ++p) {
    PageState& page = pages_[p];
    if (scenario_.pages[p].client != client || !page.allocated || page.freeing) continue;
    for (const DeviceEntry& entry : page.devices) {
      if (entry.to != DeviceEntry::To::nowhere) {
        violate(Verdict::violation,
                "the fork is answered while a device reaches " + scenario_.pages[p].name + " (I-80)");
      }
    }
    page.cpu_mapped = page.cpu_writable = false;
    child.pages[p] = {page.shadow, true, page.discarding != 0 || page.discarded};
  }
  for (const Flight& f : flights_) {
    if (f.action.verb == Verb::map_device && f.action.client == client_id(client) && !f.effective) {
      violate(Verdict::violation, "the fork is answered while somebody is to " + words(f.action) + " (I-80)");
    }
  }
  children_.push_back(std::move(child));
  for (std::uint32_t p = 0; p < pages_.size(); ++p) {
    if (scenario_.pages[p].client == client && pages_[p].pins != 0) keep_for_children(p);
  }
}

void World::give_children(std::uint32_t page, Version word) {
  for (Child& child : children_) {
    ChildPage& own = child.pages[page];
    if (!own.pending) continue;
    own.pending = false;
    if (word != own.want && !(own.loose && word == zeros)) {
      violate(Verdict::wrong_bytes, "the child of " + scenario_.clients[child.client] + " gets " +
                                        describe_version(word) + " for " + scenario_.pages[page].name +
                                        "; at the fork it was " + describe_version(own.want) + " (I-81)");
    }
  }
}

/// The page is about to go, or to change unseen: children get it from where the core says that it lies.
void World::keep_for_children(std::uint32_t p) {
  const bool needed =
      std::any_of(children_.begin(), children_.end(), [p](const Child& child) { return child.pages[p].pending; });
  if (!needed) return;
  const std::uint32_t client = scenario_.pages[p].client;
  const core::Residency r = core_->query(client_id(client), span_of_page(p).first);
  const bool vram = !r.system_current && r.vram_device != no_device;
  give_children(p, vram                            ? vram_word(client, r.vram_device, r.vram_page)
                   : !r.system_current && r.stored ? pages_[p].stored
                                                   : pages_[p].system);
}

std::uint64_t World::svm_digest() const {
  Hash h;
  for (const PageState& p : pages_) {
    h.add(std::uint64_t{p.pins} | std::uint64_t{p.pinned_ever} << 8 | std::uint64_t{p.unmapping} << 60 |
          std::uint64_t{p.discarding} << 9 | std::uint64_t{p.discarded} << 17 | std::uint64_t{p.no_access} << 18 |
          std::uint64_t{p.refused} << 34);
  }
  for (const Child& child : children_) {
    for (const ChildPage& page : child.pages) {
      h.add(page.want | std::uint64_t{page.pending} << 32 | std::uint64_t{page.loose} << 33);
    }
  }
  for (const Move& m : moves_) {
    h.add(m.agent | std::uint64_t{m.from} << 16 | std::uint64_t{m.to} << 32 | std::uint64_t{m.carried} << 48 |
          std::uint64_t{m.freed} << 49);
  }
  for (const AgentState& a : agents_) h.add(a.old ? 1 : 0);
  for (const std::uint64_t seen : unmaps_seen_) h.add(seen);
  for (const bool forking : forking_) h.add(forking ? 1 : 0);
  return h.value();
}

}  // namespace ferry::check

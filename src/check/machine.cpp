// The machine under the core: what its actions do, when they can end, and whom they wake.
#include <algorithm>
#include <bit>

#include "base/check.h"
#include "check/address.h"
#include "check/hash.h"
#include "check/world.h"

namespace ferry::check {
using core::Action;
using core::Verb;

namespace {
bool touches_cpu(const Action& a) {
  return a.verb == Verb::revoke_cpu || a.verb == Verb::protect_cpu || a.verb == Verb::map_cpu ||
         ((a.verb == Verb::map_buffer || a.verb == Verb::revoke_buffer) && a.device == no_device);
}

bool touches_device(const Action& a) {
  switch (a.verb) {
    case Verb::revoke_device:
    case Verb::map_device:
    case Verb::revoke_cus:
    case Verb::run_job: return true;
    case Verb::map_buffer:
    case Verb::revoke_buffer: return a.device != no_device;
    default: return false;
  }
}

std::string mask_text(std::uint64_t mask) {
  std::string out;
  for (unsigned u = 0; u < 64; ++u) {
    if ((mask >> u & 1) != 0) out += (out.empty() ? "" : "+") + std::to_string(u);
  }
  return out;
}

const char* place_text(core::Place place) {
  switch (place) {
    case core::Place::system: return "system memory";
    case core::Place::vram: return "VRAM";
    case core::Place::store: return "the store";
  }
  return "nowhere";
}
}  // namespace

// --- names -----------------------------------------------------------------------------------------------------------

std::uint32_t World::page_at(std::uint32_t client, Page page) const {
  const BlockIndex block = block_of(page);
  if (block < first_page_block || block - first_page_block >= pages_.size()) return none;
  const auto index = static_cast<std::uint32_t>(block - first_page_block);
  return scenario_.pages[index].client == client ? index : none;
}

std::uint32_t World::buffer_at(std::uint32_t, Page page) const {
  const BlockIndex block = block_of(page);
  if (block < first_buffer_block) return none;
  const auto index = static_cast<std::uint32_t>((block - first_buffer_block) / buffer_blocks);
  return index < buffers_.size() ? index : none;
}

std::uint64_t World::identity_of(const Action& a) const {
  Hash h;
  h.add(static_cast<std::uint64_t>(a.verb) | static_cast<std::uint64_t>(a.place) << 8 |
        static_cast<std::uint64_t>(a.prot) << 16 | static_cast<std::uint64_t>(a.to) << 24 |
        std::uint64_t{a.device} << 32 | std::uint64_t{a.to_device} << 40 | static_cast<std::uint64_t>(a.access) << 48)
      .add(a.client)
      .add(a.pages.first)
      .add(a.pages.count_pages | std::uint64_t{a.vram_first} << 32)
      .add(a.has_token ? a.token.value : 0)
      .add(a.buffer | a.fence << 32)
      .add(a.cu_mask);
  if (a.from_page != 0) h.add(a.from_page);
  return h.value();
}

std::string World::words(const Action& a) const {
  std::string what;
  const std::uint32_t page = a.client == 0 ? none : page_at(a.client - 1, a.pages.first);
  if (a.buffer != 0 && a.buffer <= buffers_.size()) {
    what = scenario_.buffers[a.buffer - 1].name;
  } else if (page != none) {
    what = scenario_.pages[page].name;
  }
  const std::string who = a.client >= 1 && a.client <= scenario_.clients.size() ? scenario_.clients[a.client - 1] : "";
  const std::string on = a.device == no_device ? std::string() : "device " + std::to_string(a.device);
  const auto fence = [&] { return a.fence >= 1 && a.fence <= fences_.size() ? scenario_.fences[a.fence - 1] : "?"; };
  const auto granule = [&] { return " granule " + std::to_string(a.vram_first / block_pages); };
  switch (a.verb) {
    case Verb::revoke_cpu: return "take " + what + " from " + who + "'s CPU";
    case Verb::map_cpu: return "map " + what + " for " + who + "'s CPU" + (a.prot == Prot::read ? ", read-only" : "");
    case Verb::wake_cpu: return "wake CPU threads at " + what;
    case Verb::revoke_device: return "take " + what + " from " + on;
    case Verb::map_device:
      return "map " + what + " for " + on + " in " + place_text(a.place) +
             (a.place == core::Place::vram ? granule() : "") + (a.prot == Prot::read ? ", read-only" : "");
    case Verb::copy: return "copy " + what + (a.place == core::Place::vram ? " home from " : " to ") + on + granule();
    case Verb::wake_wave:
      return "wake the wave at " + what + (a.status.ok() ? "" : std::string(": ") + to_string(a.status.code));
    case Verb::release_chunk: return "give VRAM" + granule() + " of " + who + " on " + on + " back";
    case Verb::discard_system: return "give system memory of " + what + " back";
    case Verb::reply: return "reply" + (a.status.ok() ? std::string() : std::string(": ") + to_string(a.status.code));
    case Verb::store: return "store " + what;
    case Verb::load: return "load " + what;
    case Verb::discard_store: return "forget the stored " + what;
    case Verb::move_buffer:
      return "move " + what + " from " + place_text(a.place) + " to " + place_text(a.to) +
             (a.to_device == no_device ? "" : " of device " + std::to_string(a.to_device));
    case Verb::map_buffer:
      return "map " + what + " for " + who + (on.empty() ? "'s CPU" : " on " + on) + " in " + place_text(a.place);
    case Verb::revoke_buffer: return "take " + what + " from " + who + (on.empty() ? "'s CPU" : " on " + on);
    case Verb::release_buffer: return "give " + what + "'s " + place_text(a.place) + " back";
    case Verb::run_job: return std::string(to_string(a.engine)) + " job of fence " + fence() + " on " + on;
    case Verb::cancel_job: return "cancel the job of fence " + fence();
    case Verb::grant_cus: return "unit " + mask_text(a.cu_mask) + " of " + on + " to " + who;
    case Verb::revoke_cus: return who + " leaves unit " + mask_text(a.cu_mask) + " of " + on;
    case Verb::signal_fence:
      return "fence " + std::string(fence()) + " signals" +
             (a.status.ok() ? "" : std::string(": ") + to_string(a.status.code));
    case Verb::reset_device: return "reset " + who + " on " + on;
    case Verb::protect_cpu: return "take writing to " + what + " from " + who + "'s CPU";
    case Verb::copy_client: return "copy " + what + " for " + who;
    case Verb::copy_system: return "copy what becomes " + what;
  }
  return "?";
}

std::string World::place_of(const Action& a) const {
  const auto agent = [this](std::uint64_t index) {
    return index < scenario_.agents.size() ? scenario_.agents[index].name : std::string("memory");
  };
  switch (a.verb) {
    case Verb::wake_wave: return agent((a.token.value & 0xffff) - 1);
    case Verb::reply: {
      const std::uint64_t index = a.cookie.value & ~cookie_mask;
      const std::uint64_t what = a.cookie.value & cookie_mask;
      if (what == cookie_job) return agent(jobs_[index].submitter);
      return what == cookie_prefetch || what == cookie_svm ? agent(index) : "memory";
    }
    case Verb::run_job:
    case Verb::cancel_job: return std::string(to_string(a.engine)) + " " + std::to_string(a.device);
    case Verb::grant_cus:
    case Verb::revoke_cus: return "units " + std::to_string(a.device);
    case Verb::signal_fence:
      return a.fence >= 1 && a.fence <= fences_.size() ? "fence " + scenario_.fences[a.fence - 1] : "machine";
    default: return "memory";
  }
}

std::vector<std::string> World::participants() const {
  std::vector<std::string> out;
  for (const Agent& agent : scenario_.agents) out.push_back(agent.name);
  out.emplace_back("core");
  out.emplace_back("memory");
  for (std::size_t d = 0; d < models_.size(); ++d) {
    for (const core::Engine engine : {core::Engine::graphics, core::Engine::copy, core::Engine::video}) {
      const bool used = std::any_of(scenario_.jobs.begin(), scenario_.jobs.end(),
                                    [&](const JobDef& j) { return j.engine == engine && j.device == d; });
      if (used) out.push_back(std::string(to_string(engine)) + " " + std::to_string(d));
    }
    out.push_back("units " + std::to_string(d));
  }
  for (const std::string& fence : scenario_.fences) out.push_back("fence " + fence);
  return out;
}

/// The core's words with the scenario's names in them: it knows everybody by number.
std::string World::named(const std::string& text) const {
  const auto replace = [](std::string in, const std::string& word, auto&& name_of) {
    std::string out;
    std::size_t at = 0;
    for (;;) {
      const std::size_t found = in.find(word, at);
      if (found == std::string::npos) break;
      std::size_t end = found + word.size();
      std::uint64_t number = 0;
      while (end < in.size() && in[end] >= '0' && in[end] <= '9' && number < 1'000'000'000) {
        number = number * 10 + static_cast<std::uint64_t>(in[end++] - '0');
      }
      const std::string name = end == found + word.size() ? std::string() : name_of(number);
      out += in.substr(at, found - at) + (name.empty() ? in.substr(found, end - found) : name);
      at = end;
    }
    return out + in.substr(at);
  };
  const auto of = [](const auto& names, std::uint64_t number) {
    return number >= 1 && number <= names.size() ? names[number - 1] : std::string();
  };
  std::string out = replace(text, "fault ", [this](std::uint64_t n) {
    const std::uint64_t agent = (n & 0xffff) - 1;  // a token
    return agent < scenario_.agents.size() ? "the fault of " + scenario_.agents[agent].name : std::string();
  });
  out = replace(std::move(out), "page ", [this](std::uint64_t n) {
    const BlockIndex block = block_of(n);
    const bool is_page = block >= first_page_block && block - first_page_block < pages_.size();
    return is_page ? "page " + scenario_.pages[block - first_page_block].name : std::string();
  });
  out = replace(std::move(out), "fence ", [&](std::uint64_t n) {
    const std::string name = of(scenario_.fences, n);
    return name.empty() ? name : "fence " + name;
  });
  out = replace(std::move(out), "job ", [&](std::uint64_t n) {
    const std::string name = of(scenario_.fences, n);
    return name.empty() ? name : "the job of " + name;
  });
  out = replace(std::move(out), "client ", [&](std::uint64_t n) { return of(scenario_.clients, n); });
  return replace(std::move(out), "buffer ", [this](std::uint64_t n) {
    return n >= 1 && n <= buffers_.size() ? "buffer " + scenario_.buffers[n - 1].name : std::string();
  });
}

World::Version& World::vram_word(std::uint32_t client, DeviceId device, VramPage page) {
  const std::uint64_t key = std::uint64_t{client} << 48 | std::uint64_t{device} << 40 | page / block_pages;
  const auto [it, fresh] = vram_.try_emplace(key, garbage);
  if (fresh) {
    const auto used = std::count_if(vram_.begin(), vram_.end(),
                                    [device](const auto& entry) { return (entry.first >> 40 & 0xff) == device; });
    if (static_cast<std::uint64_t>(used) > scenario_.vram_granules) {
      violate(Verdict::violation, "device " + std::to_string(device) + " uses more VRAM than its budget, or before " +
                                      "whoever had it gave it back");
    }
  }
  return it->second;
}

World::Version& World::buffer_word(std::uint32_t buffer, core::Place where, DeviceId device) {
  BufferState& state = buffers_[buffer];
  switch (where) {
    case core::Place::store: return state.stored;
    case core::Place::vram: FERRY_CHECK_LT(device, state.vram.size()); return state.vram[device];
    case core::Place::system: break;
  }
  return state.system;
}

// --- actions come ----------------------------------------------------------------------------------------------------

void World::take_actions() {
  while (core_->has_actions()) {
    core_->take_actions(taken_);
    const std::vector<Action> actions = std::move(taken_);
    taken_.clear();
    for (const Action& action : actions) issue(action);
  }
}

void World::issue(const Action& a) {
  say(LogLine::Kind::action, "core", place_of(a), words(a));
  check_svm(a);
  note_move(a);
  switch (a.verb) {
    case Verb::wake_wave: wake_wave(a); return;
    case Verb::wake_cpu:
      if (a.status.code == Code::in_use || a.status.code == Code::not_permitted) fail_cpu(a.pages, a.client - 1);
      wake_cpu(a.pages, a.client - 1);
      return;
    case Verb::reply: reply(a); return;
    case Verb::cancel_job:
      for (std::uint32_t j = 0; j < jobs_.size(); ++j) {
        if (scenario_.jobs[j].fence + 1 == a.fence) jobs_[j].cancelled = true;
      }
      return;
    case Verb::grant_cus:
      processes_.at({a.client - 1, a.device}).granted |= a.cu_mask;
      check_units(a.device);
      return;
    case Verb::signal_fence: signal(a); return;
    case Verb::reset_device: kill(a.client - 1, a.device); return;
    default: break;
  }
  flights_.push_back({a, identity_of(a), false, {}});
  switch (a.verb) {
    case Verb::run_job: begin_job(a); return;
    case Verb::revoke_cus: processes_.at({a.client - 1, a.device}).leaving |= a.cu_mask; return;
    case Verb::move_buffer:
    case Verb::discard_system: check_move(a); return;
    default: return;
  }
}

void World::wake_wave(const Action& a) {
  const auto agent = static_cast<std::uint32_t>((a.token.value & 0xffff) - 1);
  if (agent >= agents_.size()) violate(Verdict::violation, "a wave is woken that never faulted");
  AgentState& state = agents_[agent];
  if (state.over) return;
  if (state.wait != Wait::fault || state.serial != static_cast<std::uint8_t>(a.token.value >> 16)) {
    violate(Verdict::violation, scenario_.agents[agent].name + " is woken, and does not wait");
  }
  state.wait = Wait::nothing;
  if (a.status.ok()) return;
  const Step& s = scenario_.agents[agent].steps[state.pc];
  if (a.status.code == Code::kernel_fault && !models_[scenario_.agents[agent].device].retry_faults) {
    // All of the client's memory was to be mapped before it ran, and could not be: its kernel fails, which it is told.
    refuse(scenario_.agents[agent].name + ", " + s.text, a.status);
    end_of(agent);
    state.over = true;
    return;
  }
  if (state.old) {
    violate(Verdict::violation, scenario_.agents[agent].name + ", " + s.text +
                                    ": a fault older than the unmap fails: " + words_of(a.status) + " (I-73)");
  }
  const bool refused = s.page != none && ((pages_[s.page].refused >> scenario_.agents[agent].device & 1U) != 0 ||
                                          (pages_[s.page].pinned_ever && a.status.code == Code::in_use));
  const bool gone = s.page != none ? !pages_[s.page].allocated || pages_[s.page].freeing : failed_before_;
  if (!gone && !refused && !failed_before_) {
    violate(Verdict::violation,
            scenario_.agents[agent].name + ", " + s.text + ": the fault fails: " + words_of(a.status));
  }
  end_of(agent);
  state.over = true;
}

void World::wake_cpu(PageSpan pages, std::uint32_t client, bool readers) {
  for (std::uint32_t a = 0; a < agents_.size(); ++a) {
    AgentState& state = agents_[a];
    if (scenario_.agents[a].client != client || state.wait != Wait::cpu_fault) continue;
    const Step& s = scenario_.agents[a].steps[state.pc];
    if (readers && s.kind != Step::Kind::read) continue;
    const PageSpan at = s.page != none ? PageSpan{span_of_page(s.page).first, 1} : span_of_buffer(s.buffer, 1);
    if (at.overlaps(pages)) state.wait = Wait::nothing;
  }
}

void World::reply(const Action& a) {
  const std::uint64_t what = a.cookie.value & cookie_mask;
  const auto index = static_cast<std::uint32_t>(a.cookie.value & ~cookie_mask);
  if (what == cookie_job) {
    JobState& job = jobs_[index];
    const std::uint32_t fence = scenario_.jobs[index].fence;
    AgentState& submitter = agents_[job.submitter];
    if (submitter.wait == Wait::reply && !scenario_.jobs[index].async) {
      submitter.wait = Wait::nothing;
      if (!submitter.over) advance(job.submitter);
    }
    if (job.state != JobState::State::submitted) {
      violate(Verdict::violation, "the submission of " + fence_name(fence) + " is answered twice");
    }
    if (!a.status.ok()) {
      job.state = JobState::State::ended;
      fences_[fence].signalled = true;
      refuse("the job of " + fence_name(fence), a.status);
      return;
    }
    job.state = JobState::State::visible;
    job.published = ++published_;
    fences_[fence].visible = true;
    check_visible(index);
    return;
  }
  if (what == cookie_free) {
    PageState& page = pages_[index];
    for (const DeviceEntry& entry : page.devices) {
      if (entry.to != DeviceEntry::To::nowhere) {
        violate(Verdict::violation,
                "the free of " + scenario_.pages[index].name + " is answered while a device maps it");
      }
    }
    // Devices are told the number of an unmap before the application is answered.
    if (page.unmapping) unmaps_seen_[a.client - 1] = core_->changes(a.client);
    page.allocated = page.freeing = page.unmapping = false;
    for (std::uint32_t g = 0; g < agents_.size(); ++g) {
      AgentState& state = agents_[g];
      const auto kind = done_with(g) ? Step::Kind::read : scenario_.agents[g].steps[state.pc].kind;
      if (state.wait == Wait::reply && (kind == Step::Kind::free || kind == Step::Kind::unmap) &&
          scenario_.agents[g].steps[state.pc].page == index) {
        state.wait = Wait::nothing;
        advance(g);
      }
    }
    return;
  }
  if (what == cookie_svm && agents_[index].wait == Wait::reply) svm_replied(index, a.status);
  if ((what == cookie_prefetch || what == cookie_svm) && agents_[index].wait == Wait::reply) {
    agents_[index].wait = Wait::nothing;
    advance(index);
  }
}

// --- actions end -----------------------------------------------------------------------------------------------------

/// The process that the action needs has ended.
bool World::is_lost(const Action& a, Status& status) const {
  if (a.client == 0 || a.client > client_alive_.size()) return false;
  if (touches_cpu(a) && !client_alive_[a.client - 1]) {
    status = Code::client_gone;
    return true;
  }
  if (touches_device(a) && !processes_.at({a.client - 1, a.device}).alive) {
    status = Code::device_lost;
    return true;
  }
  return false;
}

/// Where the hardware model speaks: units are left only when the waves on them can be.
bool World::can_end(const Flight& flight) const {
  const Action& a = flight.action;
  Status lost;
  if (a.verb == Verb::run_job) {
    for (std::uint32_t j = 0; j < jobs_.size(); ++j) {
      if (scenario_.jobs[j].fence + 1 == a.fence) {
        return !scenario_.jobs[j].hangs || jobs_[j].cancelled || is_lost(a, lost);
      }
    }
    return true;
  }
  if (a.verb != Verb::revoke_cus || is_lost(a, lost)) return true;
  const core::DeviceModel& model = models_[a.device];
  if (model.preempts_while_faulting && model.policy == core::Policy::preempt) return true;
  for (std::uint32_t i = 0; i < agents_.size(); ++i) {
    const Agent& agent = scenario_.agents[i];
    const AgentState& state = agents_[i];
    if (agent.is_wave && agent.device == a.device && agent.client + 1 == a.client && state.unit != no_unit &&
        (a.cu_mask >> state.unit & 1) != 0 && state.wait == Wait::fault) {
      return false;
    }
  }
  return true;
}

void World::effect(Flight& flight) {
  const Action& a = flight.action;
  if (a.buffer != 0) {
    effect_buffer(a);
    return;
  }
  switch (a.verb) {
    case Verb::release_chunk: {
      const std::uint64_t key =
          std::uint64_t{a.client - 1} << 48 | std::uint64_t{a.device} << 40 | a.vram_first / block_pages;
      vram_.erase(key);
      return;
    }
    case Verb::run_job: {
      for (std::uint32_t j = 0; j < jobs_.size(); ++j) {
        if (scenario_.jobs[j].fence + 1 != a.fence) continue;
        if (jobs_[j].cancelled && flight.status.ok()) flight.status = Code::cancelled;
        if (scenario_.jobs[j].fails && flight.status.ok()) flight.status = Code::kernel_fault;
        if (!flight.status.ok()) failed_before_ = true;
        end_job(j, flight.status);
      }
      return;
    }
    case Verb::revoke_cus: {
      Process& process = processes_.at({a.client - 1, a.device});
      process.granted &= ~a.cu_mask;
      process.leaving &= ~a.cu_mask;
      for (std::uint32_t i = 0; i < agents_.size(); ++i) {
        const Agent& agent = scenario_.agents[i];
        if (agent.is_wave && agent.device == a.device && agent.client + 1 == a.client && agents_[i].unit != no_unit &&
            (a.cu_mask >> agents_[i].unit & 1) != 0) {
          agents_[i].unit = no_unit;
        }
      }
      return;
    }
    default: effect_page(a);
  }
}

void World::effect_page(const Action& a) {
  const std::uint32_t client = a.client - 1;
  for (Page p = a.pages.first; p < a.pages.end(); p += block_pages) {
    const std::uint32_t index = page_at(client, p);
    // A page stands for a granule, and agents touch the first of its pages: what is about others alone is not seen.
    if (index == none || p % block_pages != 0) continue;
    PageState& page = pages_[index];
    const auto vram = static_cast<VramPage>(a.vram_first + (p - a.pages.first));
    switch (a.verb) {
      case Verb::revoke_cpu: page.cpu_mapped = page.cpu_writable = false; break;
      case Verb::protect_cpu: page.cpu_writable = false; break;
      case Verb::map_cpu:
        if (a.prot == Prot::read_write) give_children(index, page.system);
        if (!page.allocated || page.freeing) break;
        page.cpu_mapped = true;
        page.cpu_writable |= a.prot == Prot::read_write;
        break;
      case Verb::revoke_device: page.devices[a.device] = {}; break;
      case Verb::map_device:
        if (a.prot == Prot::read_write) {
          give_children(index, a.place == core::Place::system ? page.system : vram_word(client, a.device, vram));
        }
        page.devices[a.device] = {a.place == core::Place::system ? DeviceEntry::To::system : DeviceEntry::To::vram,
                                  a.prot == Prot::read_write, a.place == core::Place::system ? 0 : vram};
        break;
      case Verb::copy:
        if (a.place == core::Place::system) {
          vram_word(client, a.device, vram) = page.system;
        } else if (a.to == core::Place::vram) {
          vram_word(client, a.to_device, a.vram_to + (vram - a.vram_first)) = vram_word(client, a.device, vram);
        } else {
          page.system = vram_word(client, a.device, vram);
        }
        break;
      case Verb::store: page.stored = page.system; break;
      case Verb::load: page.system = page.stored; break;
      case Verb::discard_store: page.stored = garbage; break;
      case Verb::copy_system: page.system = pages_[page_at(client, a.from_page + (p - a.pages.first))].system; break;
      case Verb::discard_system:
        page.system = page.discarding != 0 || page.discarded || a.cause == core::Cause::change ? zeros : garbage;
        break;
      default: break;
    }
  }
  if (a.verb == Verb::map_cpu) wake_cpu(a.pages, client, a.prot == Prot::read);
  if (a.verb == Verb::map_device && a.has_token) wake_wave(a);
}

void World::effect_buffer(const Action& a) {
  const auto index = static_cast<std::uint32_t>(a.buffer - 1);
  BufferState& buffer = buffers_[index];
  switch (a.verb) {
    case Verb::move_buffer: buffer_word(index, a.to, a.to_device) = buffer_word(index, a.place, a.device); return;
    case Verb::release_buffer: buffer_word(index, a.place, a.device) = garbage; return;
    case Verb::map_buffer: {
      BufferMap& map = buffer.maps[{a.client - 1, a.device}];
      map.to = a.place == core::Place::vram ? BufferMap::To::vram : BufferMap::To::system;
      map.device = a.place == core::Place::vram ? (a.to_device == no_device ? a.device : a.to_device) : no_device;
      map.writable = a.access == Access::write;
      const std::uint32_t page = scenario_.buffers[index].user_page;
      if (page != none) {
        map.generation = pages_[page].generation;
        return;
      }
      if (a.device == no_device) wake_cpu(a.pages, a.client - 1);
      if (a.has_token) wake_wave(a);
      return;
    }
    case Verb::revoke_buffer: buffer.maps[{a.client - 1, a.device}] = {}; return;
    default: return;
  }
}

/// What a failed action leaves behind: the target of a copy holds anything, the rest is as before.
void World::fail_effect(Flight& flight, Code code) {
  const Action& a = flight.action;
  const std::uint32_t index = a.client == 0 ? none : page_at(a.client - 1, a.pages.first);
  switch (a.verb) {
    case Verb::copy:
      if (index == none) return;
      (a.place == core::Place::system ? vram_word(a.client - 1, a.device, a.vram_first) : pages_[index].system) =
          garbage;
      return;
    case Verb::store:
      if (index != none) pages_[index].stored = garbage;
      return;
    case Verb::load:
    case Verb::copy_system:
      if (index != none) pages_[index].system = garbage;
      return;
    case Verb::move_buffer: buffer_word(static_cast<std::uint32_t>(a.buffer - 1), a.to, a.to_device) = garbage; return;
    case Verb::run_job:
      for (std::uint32_t j = 0; j < jobs_.size(); ++j) {
        if (scenario_.jobs[j].fence + 1 == a.fence) end_job(j, code);
      }
      return;
    default: return;
  }
}

void World::answer(std::uint32_t index, Status status) {
  const Flight flight = flights_[index];
  flights_.erase(flights_.begin() + index);
  if (flight.action.verb == Verb::run_job && !status.ok()) {
    for (std::uint32_t j = 0; j < jobs_.size(); ++j) {
      if (scenario_.jobs[j].fence + 1 == flight.action.fence && jobs_[j].state == JobState::State::running) {
        end_job(j, status);
      }
    }
  }
  if (flight.action.verb == Verb::revoke_cus && status.code == Code::device_lost) {
    Process& process = processes_.at({flight.action.client - 1, flight.action.device});
    process.granted &= ~flight.action.cu_mask;
    process.leaving &= ~flight.action.cu_mask;
  }
  say(LogLine::Kind::effect, place_of(flight.action), "core",
      status.ok() ? "done" : std::string("failed: ") + to_string(status.code));
  core_->action_done(now_ns_, flight.action.id, status);
}

}  // namespace ferry::check

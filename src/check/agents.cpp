// What threads and waves do, one step at a time.
#include <algorithm>
#include <bit>

#include "base/check.h"
#include "check/address.h"
#include "check/world.h"

namespace ferry::check {
using Kind = Step::Kind;

/// The unit that the wave runs on, or one that it may take. Units that are to be left take nobody new.
bool World::place_wave(std::uint32_t agent, std::uint8_t& unit) const {
  unit = agents_[agent].unit;
  if (unit != no_unit) return true;
  const Agent& def = scenario_.agents[agent];
  const Process& process = processes_.at({def.client, def.device});
  const std::uint64_t usable = process.granted & ~process.leaving;
  unsigned fewest = ~0U;
  for (std::uint8_t u = 0; u < 64; ++u) {
    if ((usable >> u & 1) == 0) continue;
    unsigned on_it = 0;
    for (std::uint32_t a = 0; a < agents_.size(); ++a) {
      const Agent& other = scenario_.agents[a];
      on_it +=
          other.is_wave && other.client == def.client && other.device == def.device && agents_[a].unit == u ? 1 : 0;
    }
    if (on_it < fewest) {
      fewest = on_it;
      unit = u;
    }
  }
  return unit != no_unit;
}

bool World::can_step(std::uint32_t agent) const {
  const AgentState& state = agents_[agent];
  const Agent& def = scenario_.agents[agent];
  if (state.over || state.pc >= def.steps.size() || state.wait != Wait::nothing) return false;
  if (def.is_wave && !state.begun) return true;
  std::uint8_t unit = no_unit;
  if (def.is_wave && !place_wave(agent, unit)) return false;
  const Step& step = def.steps[state.pc];
  if (def.is_wave && forking_[def.client] && !would_hit(agent)) return false;
  const auto known = [this](std::uint32_t f) { return fences_[f].visible || fences_[f].signalled; };
  switch (step.kind) {
    case Kind::await: return words_[step.word];
    case Kind::spin: return false;
    case Kind::lock: return locks_[step.lock] == none;
    case Kind::wait_fence: return fences_[step.fence].signalled;
    case Kind::submit: {
      // A fence can be named once somebody has got it.
      const auto& waits = scenario_.jobs[step.job].waits;
      return std::all_of(waits.begin(), waits.end(), known);
    }
    case Kind::array: return std::all_of(step.fences.begin(), step.fences.end(), known);
    case Kind::deadline: return known(step.fence);
    default: return true;
  }
}

void World::advance(std::uint32_t agent) {
  AgentState& state = agents_[agent];
  ++state.pc;
  state.reached = false;
  ++progress_;
  if (state.pc >= scenario_.agents[agent].steps.size()) end_of(agent);
}

/// A wave that ends wants no unit any more.
void World::end_of(std::uint32_t agent) {
  const Agent& def = scenario_.agents[agent];
  AgentState& state = agents_[agent];
  if (!def.is_wave || !state.begun) return;
  Process& process = processes_.at({def.client, def.device});
  state.unit = no_unit;
  --process.demand;
  if (process.alive) core_->compute_demand(now_ns_, client_id(def.client), def.device, process.demand);
}

void World::step(std::uint32_t agent) {
  AgentState& state = agents_[agent];
  const Agent& def = scenario_.agents[agent];
  if (def.is_wave && !state.begun) {
    state.begun = true;
    Process& process = processes_.at({def.client, def.device});
    ++process.demand;
    ++progress_;
    say(LogLine::Kind::call, def.name, "core", "wants a unit");
    core_->compute_demand(now_ns_, client_id(def.client), def.device,
                          std::min(process.demand, models_[def.device].cu_count));
    return;
  }
  if (def.is_wave) {
    const bool had = state.unit != no_unit;
    FERRY_CHECK(place_wave(agent, state.unit));
    if (!had) say(LogLine::Kind::note, {}, def.name, "on unit " + std::to_string(state.unit));
  }
  const Step& s = def.steps[state.pc];
  const ClientId client = client_id(def.client);
  switch (s.kind) {
    case Kind::read:
    case Kind::write:
      if (access(agent, s)) advance(agent);
      return;
    case Kind::signal: words_[s.word] = true; break;
    case Kind::await:
    case Kind::wait_fence: break;
    case Kind::spin: return;
    case Kind::lock: locks_[s.lock] = agent; break;
    case Kind::unlock:
      if (locks_[s.lock] == agent) locks_[s.lock] = none;
      break;
    case Kind::submit: submit(agent, s); return;
    case Kind::array: {
      std::vector<core::FenceId> parts;
      for (const std::uint32_t f : s.fences) parts.push_back(f + 1);
      say(LogLine::Kind::call, def.name, "core", s.text);
      fences_[s.fence].visible = true;  // told or not: signal_fence may come within the call
      if (const Status status = core_->fence_array(now_ns_, client, s.fence + 1, parts, s.any); !status.ok()) {
        refuse(fence_name(s.fence), status);
        fences_[s.fence].signalled = true;
      }
      break;
    }
    case Kind::deadline:
      say(LogLine::Kind::call, def.name, "core", s.text);
      if (!fences_[s.fence].signalled) {
        fences_[s.fence].asked_ns = now_ns_;
        fences_[s.fence].deadline_ns = now_ns_ + s.number;
        (void)core_->fence_deadline(now_ns_, s.fence + 1, now_ns_ + s.number);
      }
      break;
    case Kind::cancel:
      say(LogLine::Kind::call, def.name, "core", s.text);
      failed_before_ = true;
      core_->job_cancel(now_ns_, client, s.fence + 1);
      break;
    case Kind::create: create_buffer(s.buffer); break;
    case Kind::close:
      say(LogLine::Kind::call, def.name, "core", s.text);
      if (buffers_[s.buffer].created) (void)core_->buffer_close(now_ns_, client, s.buffer + 1);
      break;
    case Kind::alloc: {
      const Status status =
          core_->alloc(now_ns_, client, span_of_page(s.page),
                       scenario_.pages[s.page].stays_home ? core::Placement::system : core::Placement::automatic);
      if (!status.ok()) {
        refuse("page " + scenario_.pages[s.page].name, status);
        break;
      }
      PageState& page = pages_[s.page];
      page.allocated = true;
      page.freeing = false;
      page.cpu_mapped = page.cpu_writable = scenario_.system_pages == 0;
      page.shadow = page.system = zeros;
      page.stored = garbage;
      page.discarding = page.pins = 0;
      page.discarded = false;
      page.no_access = 0;
      if (scenario_.pages[s.page].read_mostly) mark_read_mostly(s.page);
      break;
    }
    case Kind::free: {
      PageState& page = pages_[s.page];
      if (!page.allocated || page.freeing) break;
      if (setup_.bug != core::PlantedBug::free_before_child) keep_for_children(s.page);
      note_freed(s.page);
      page.freeing = true;
      page.cpu_mapped = page.cpu_writable = false;
      wake_cpu(span_of_page(s.page), def.client);
      say(LogLine::Kind::call, def.name, "core", s.text);
      state.wait = Wait::reply;
      const Status status = core_->free(now_ns_, client, span_of_page(s.page), {cookie_free + s.page});
      if (!status.ok()) violate(Verdict::violation, "free of an allocated page ends with: " + words_of(status));
      return;
    }
    case Kind::prefetch: {
      say(LogLine::Kind::call, def.name, "core", s.text);
      state.wait = Wait::reply;
      if (!core_->prefetch(now_ns_, client, span_of_page(s.page), s.device, {cookie_prefetch + agent}).ok()) {
        state.wait = Wait::nothing;
        break;
      }
      return;
    }
    case Kind::invalidate:
      say(LogLine::Kind::call, def.name, "core", s.text);
      ++pages_[s.page].generation;
      core_->userptr_invalidate(now_ns_, client, span_of_page(s.page));
      break;
    case Kind::advance: {
      say(LogLine::Kind::call, def.name, "core", s.text);
      const Status status = core_->timeline_signal(now_ns_, client, {s.timeline + 1, s.number});
      if (!status.ok()) refuse("timeline " + scenario_.timelines[s.timeline].name, status);
      break;
    }
    case Kind::kill: {
      const bool itself = s.client == def.client && s.device == no_device;
      kill(s.client, s.device);
      if (itself) return;
      break;
    }
    case Kind::pressure:
      say(LogLine::Kind::call, "machine", "core", s.text);
      core_->pressure(now_ns_, s.number * block_pages);
      break;
    case Kind::budget:
      say(LogLine::Kind::call, "machine", "core", s.text);
      core_->set_system_budget(now_ns_, s.number * block_pages);
      break;
    default:
      if (svm_step(agent, s)) return;
      break;
  }
  advance(agent);
}

// --- memory ----------------------------------------------------------------------------------------------------------

bool World::would_hit(std::uint32_t agent) const {
  const Agent& def = scenario_.agents[agent];
  const AgentState& state = agents_[agent];
  if (def.is_wave && !state.begun) return false;
  const Step& s = def.steps[state.pc];
  if (s.kind != Kind::read && s.kind != Kind::write) return false;
  if (s.page != none) {
    const PageState& page = pages_[s.page];
    if (!def.is_wave) return s.kind == Kind::read ? page.cpu_mapped : page.cpu_writable;
    const DeviceEntry& entry = page.devices[def.device];
    return entry.to != DeviceEntry::To::nowhere && (s.kind == Kind::read || entry.writable);
  }
  const auto& maps = buffers_[s.buffer].maps;
  const auto it = maps.find({def.client, def.is_wave ? def.device : no_device});
  return it != maps.end() && it->second.to != BufferMap::To::nowhere && (s.kind == Kind::read || it->second.writable);
}

bool World::access(std::uint32_t agent, const Step& s) {
  return s.page != none ? access_page(agent, s) : access_buffer(agent, s);
}

void World::fault(std::uint32_t agent, Page page, Access access) {
  AgentState& state = agents_[agent];
  const Agent& def = scenario_.agents[agent];
  state.reached = true;
  const std::string what = access == Access::write ? " for writing" : "";
  if (def.is_wave) {
    state.wait = Wait::fault;
    const std::uint32_t touched = def.steps[state.pc].page;
    state.old = touched != none && pages_[touched].unmapping;
    // The answer to an earlier fault's mapping may still be under way: then the two must not have one name.
    if (scenario_.apart) state.serial = static_cast<std::uint8_t>((state.serial + 1) % 4);
    say(LogLine::Kind::call, def.name, "core",
        "fault at " + def.steps[state.pc].text.substr(def.steps[state.pc].text.find(' ') + 1) + what);
    core_->device_fault(now_ns_, client_id(def.client), def.device, page, access,
                        {(std::uint64_t{state.serial} << 16) | (agent + 1)}, state.unit, unmaps_seen_[def.client]);
  } else {
    state.wait = Wait::cpu_fault;
    say(LogLine::Kind::call, def.name, "core",
        "CPU fault at " + def.steps[state.pc].text.substr(def.steps[state.pc].text.find(' ') + 1) + what);
    core_->cpu_fault(now_ns_, client_id(def.client), page, access);
  }
}

/// True: the access is done. False: it faulted.
bool World::access_page(std::uint32_t agent, const Step& s) {
  const Agent& def = scenario_.agents[agent];
  PageState& page = pages_[s.page];
  const bool write = s.kind == Kind::write;
  const Access access = write ? Access::write : Access::read;
  Version* word = nullptr;
  if (def.is_wave) {
    const DeviceEntry& entry = page.devices[def.device];
    if (entry.to != DeviceEntry::To::nowhere && (!write || entry.writable)) {
      word = entry.to == DeviceEntry::To::system ? &page.system : &vram_word(def.client, def.device, entry.vram);
    }
  } else if (!page.allocated || page.freeing) {
    return true;  // the program's own mistake: it meets what it has put there
  } else if (write ? page.cpu_writable : page.cpu_mapped) {
    word = &page.system;
  }
  if (word == nullptr) {
    fault(agent, span_of_page(s.page).first, access);
    return false;
  }
  if (page.allocated && !page.freeing && !reads_right(page, *word, !write)) {
    violate(Verdict::wrong_bytes, def.name + ", " + s.text + ": finds " + describe_version(*word) +
                                      "; last written: " + describe_version(page.shadow));
  }
  if (write) {
    *word = page.shadow = 1 + agent * 64 + agents_[agent].pc;
    page.discarded = false;
    // Both copies lie at one place, or the other one is stale from here on.
  }
  return true;
}

bool World::access_buffer(std::uint32_t agent, const Step& s) {
  const Agent& def = scenario_.agents[agent];
  const bool write = s.kind == Kind::write;
  BufferState& buffer = buffers_[s.buffer];
  if (!buffer.created) return true;
  const BufferMap& map = buffer.maps[{def.client, def.is_wave ? def.device : no_device}];
  if (map.to == BufferMap::To::nowhere || (write && !map.writable)) {
    fault(agent, span_of_buffer(s.buffer, 1).first, write ? Access::write : Access::read);
    return false;
  }
  Version& word = map.to == BufferMap::To::system ? buffer.system : buffer.vram[map.device];
  if (word != buffer.shadow) {
    violate(Verdict::wrong_bytes, def.name + ", " + s.text + ": finds " + describe_version(word) +
                                      "; last written: " + describe_version(buffer.shadow));
  }
  if (write) word = buffer.shadow = 1 + agent * 64 + agents_[agent].pc;
  return true;
}

std::string World::describe_version(Version version) const {
  if (version == zeros) return "zeros";
  if (version == garbage) return "memory that was given back";
  if (version >= job_version) return "what " + fence_name(scenario_.jobs[version - job_version].fence) + " wrote";
  const Agent& agent = scenario_.agents[(version - 1) / 64];
  return "what " + agent.name + " wrote (" + agent.steps[(version - 1) % 64].text + ")";
}

// --- requests --------------------------------------------------------------------------------------------------------

std::string World::words_of(Status status) { return to_string(status.code); }

void World::refuse(const std::string& what, Status status) {
  std::string text = what + " is refused: " + words_of(status);
  if (status.code == Code::would_deadlock) text += " (" + named(core_->last_loop()) + ")";
  say(LogLine::Kind::note, {}, "core", text);
  if (refusal_.empty() && !failed_before_) refusal_ = text;
}

void World::submit(std::uint32_t agent, const Step& s) {
  const Agent& def = scenario_.agents[agent];
  const JobDef& job = scenario_.jobs[s.job];
  JobState& state = jobs_[s.job];
  core::JobSpec spec;
  spec.fence = job.fence + 1;
  spec.engine = job.engine;
  spec.device = job.device;
  spec.priority = job.priority;
  spec.cus_min = job.cus_min;
  spec.cus_max = job.cus_max;
  spec.timeout_ns = job.timeout_ns;
  for (const std::uint32_t b : job.reads) spec.buffers.push_back({b + 1, Access::read});
  for (const std::uint32_t b : job.writes) spec.buffers.push_back({b + 1, Access::write});
  for (const std::uint32_t f : job.waits) spec.waits.push_back(f + 1);
  for (const PointName& p : job.wait_points) spec.wait_points.push_back({p.timeline + 1, p.point});
  for (const PointName& p : job.signal_points) spec.signal_points.push_back({p.timeline + 1, p.point});
  for (const core::JobBuffer& b : spec.buffers) {
    const std::uint32_t page = scenario_.buffers[b.buffer - 1].user_page;
    state.generation.push_back(page == none ? std::uint8_t{0} : pages_[page].generation);
  }
  state.state = JobState::State::submitted;
  state.submitter = agent;
  if (!job.async) agents_[agent].wait = Wait::reply;
  say(LogLine::Kind::call, def.name, "core", s.text);
  const Status status = core_->job_submit(now_ns_, client_id(def.client), spec, {cookie_job + s.job});
  if (!status.ok()) {
    state.state = JobState::State::ended;
    fences_[job.fence].signalled = true;  // whoever would wait is told by the submitter
    agents_[agent].wait = Wait::nothing;
    refuse("the job of " + fence_name(job.fence), status);
    advance(agent);
    return;
  }
  if (job.async) advance(agent);
}

void World::kill(std::uint32_t client, DeviceId device) {
  failed_before_ = true;
  if (!client_alive_[client]) return;
  for (auto& [who, process] : processes_) {
    if (who.first != client || (device != no_device && who.second != device) || !process.alive) continue;
    process.alive = false;
    notices_.push_back({client, who.second});
  }
  for (std::uint32_t a = 0; a < agents_.size(); ++a) {
    const Agent& def = scenario_.agents[a];
    if (def.client != client || (device != no_device && (!def.is_wave || def.device != device))) continue;
    AgentState& state = agents_[a];
    if (def.is_wave && state.begun && !done_with(a)) --processes_.at({client, def.device}).demand;
    state.over = true;
    state.unit = no_unit;
    state.wait = Wait::nothing;
    for (std::uint32_t& holder : locks_) {
      if (holder == a) holder = none;
    }
  }
  if (device == no_device) {
    client_alive_[client] = false;
    notices_.push_back({client, no_device});
    for (std::uint32_t p = 0; p < pages_.size(); ++p) {
      if (scenario_.pages[p].client == client) pages_[p].cpu_mapped = pages_[p].cpu_writable = false;
    }
  }
  if (device == no_device) {
    for (std::uint32_t p = 0; p < pages_.size(); ++p) {
      if (scenario_.pages[p].client != client) continue;
      keep_for_children(p);
      pages_[p].pins = 0;
    }
  }
  say(LogLine::Kind::note, {}, scenario_.clients[client],
      device == no_device ? "is killed" : "its process on device " + std::to_string(device) + " is killed");
  // Nothing of a dead process reaches memory any more.
  for (std::uint32_t p = 0; p < pages_.size(); ++p) {
    if (scenario_.pages[p].client != client) continue;
    for (DeviceId d = 0; d < pages_[p].devices.size(); ++d) {
      if (device == no_device || device == d) pages_[p].devices[d] = {};
    }
  }
  for (BufferState& buffer : buffers_) {
    for (auto& [who, map] : buffer.maps) {
      if (who.first == client && (device == no_device || who.second == device)) map = {};
    }
  }
}

std::string World::missed_wakeup(std::uint32_t agent) const {
  const AgentState& state = agents_[agent];
  const Agent& def = scenario_.agents[agent];
  const Step& s = def.steps[state.pc];
  const std::string who = def.name + ", " + s.text + ": ";
  if (state.wait == Wait::fault && s.page != none) {
    const DeviceEntry& entry = pages_[s.page].devices[def.device];
    if (entry.to != DeviceEntry::To::nowhere && (s.kind == Kind::read || entry.writable)) {
      return who + "its page is mapped, but it was not woken\n";
    }
    if (!pages_[s.page].allocated) return who + "its page is gone, but it was not told\n";
  }
  if (state.wait == Wait::cpu_fault && s.page != none &&
      (s.kind == Kind::read ? pages_[s.page].cpu_mapped : pages_[s.page].cpu_writable)) {
    return who + "its page is mapped, but it was not woken\n";
  }
  if (!def.is_wave && s.kind == Kind::wait_fence && core_->fence_info(s.fence + 1).signalled) {
    return who + "the fence has signalled, but it was not told\n";
  }
  // Memory that is free, and nobody who would give it out.
  const bool wants_memory = state.wait == Wait::fault || state.wait == Wait::cpu_fault;
  const core::Stats& stats = core_->stats();
  if (wants_memory && s.page != none && scenario_.system_pages != 0 && flights_.empty() &&
      stats.system_pages + block_pages <= scenario_.system_pages * block_pages) {
    return who + "there is free memory, but it was not given any\n";
  }
  return {};
}

std::string World::who_waits() const {
  std::string out;
  for (std::uint32_t a = 0; a < agents_.size(); ++a) {
    const AgentState& state = agents_[a];
    const Agent& def = scenario_.agents[a];
    if (state.over || state.pc >= def.steps.size()) continue;
    out += def.name + ": ";
    if (def.is_wave && !state.begun) {
      out += "has not begun\n";
      continue;
    }
    out += def.steps[state.pc].text + ": ";
    switch (state.wait) {
      case Wait::fault:
        out += "waits in a fault" + (state.unit == no_unit ? std::string(", off its unit")
                                                           : ", holding unit " + std::to_string(state.unit) +
                                                                 " of device " + std::to_string(def.device));
        break;
      case Wait::cpu_fault: out += "waits in a CPU fault"; break;
      case Wait::reply: out += "waits for the reply"; break;
      case Wait::nothing:
        out += def.is_wave && state.unit == no_unit && !can_step(a) ? "waits for a unit" : "waits";
        break;
    }
    out += '\n';
  }
  for (std::uint32_t j = 0; j < jobs_.size(); ++j) {
    const JobState& job = jobs_[j];
    if (job.state == JobState::State::none || job.told ||
        (job.state == JobState::State::ended && fences_[scenario_.jobs[j].fence].signalled))
      continue;
    const char* const stages[] = {"", "is not visible yet", "is visible, its job has not begun",
                                  "is visible, its job runs", "its job has ended"};
    out += fence_name(scenario_.jobs[j].fence) + " " + stages[static_cast<unsigned>(job.state)] + '\n';
  }
  for (const Flight& f : flights_) out += "under way: " + words(f.action) + '\n';
  const std::string waits = named(core_->waits());
  if (!waits.empty()) out += "the core: " + waits + (waits.back() == '\n' ? "" : "\n");
  return out;
}

}  // namespace ferry::check

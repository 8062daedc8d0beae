// Events, time, digests, and how an execution ends.
#include "check/world.h"

#include <algorithm>

#include "base/check.h"
#include "check/address.h"
#include "check/hash.h"

namespace ferry::check {
namespace {
/// Timers that fire one after the other with nothing else to do before time counts as idle: more than any chain of
/// slices, timeouts and patience in the core.
constexpr unsigned idle_ticks = 250;
constexpr std::uint64_t second_ns = 1'000'000'000;
/// Answers needed to close a machine down; reached only by a core that asks for ever.
constexpr unsigned closing_bound = 20'000;
}  // namespace

World::World(const Setup& setup, Log* log)
    : setup_(setup),
      scenario_(*setup.scenario),
      log_(log),
      early_left_(scenario_.early_ticks),
      failures_left_(scenario_.failures) {
  for (DeviceId d = 0; d < scenario_.devices.size(); ++d) {
    models_.push_back(scenario_.model(d, setup_.policy, setup_.hardware));
  }
  core_ = std::make_unique<core::Core>(config());
  agents_.resize(scenario_.agents.size());
  pages_.resize(scenario_.pages.size());
  for (PageState& page : pages_) page.devices.resize(models_.size());
  buffers_.resize(scenario_.buffers.size());
  for (BufferState& buffer : buffers_) buffer.vram.resize(models_.size(), zeros);
  jobs_.resize(scenario_.jobs.size());
  fences_.resize(scenario_.fences.size());
  words_.resize(scenario_.words.size());
  locks_.resize(scenario_.locks.size(), none);
  client_alive_.resize(scenario_.clients.size(), true);
  forking_.resize(scenario_.clients.size(), false);
  unmaps_seen_.resize(scenario_.clients.size(), 0);
  try {
    set_up();
  } catch (const Violation& violation) {
    finding_ = violation.finding;
  }
}

World::~World() = default;

core::Config World::config() const {
  core::Config out;
  out.device_count = static_cast<unsigned>(models_.size());
  out.models = models_;
  out.granularity_pages = block_pages;
  out.vram_pages = scenario_.vram_granules * block_pages;
  out.system_pages = scenario_.system_pages * block_pages;
  out.store_pages = scenario_.store_pages * block_pages;
  out.speculation_granules = 0;
  out.pin_pages = ~std::uint64_t{0} >> 1;
  out.leave = core::LeaveKind::never;
  out.end_deadlocks = false;  // the hang itself is looked for
  out.bug = setup_.bug;
  return out;
}

void World::set_up() {
  for (std::uint32_t c = 0; c < scenario_.clients.size(); ++c) core_->client_open(client_id(c));
  for (const Agent& agent : scenario_.agents) {
    const auto use = [&](DeviceId device) {
      if (processes_.try_emplace({agent.client, device}).second) core_->device_attach(client_id(agent.client), device);
    };
    if (agent.is_wave) use(agent.device);
    for (const Step& step : agent.steps) {
      if (step.kind == Step::Kind::submit) use(scenario_.jobs[step.job].device);
      if ((step.kind == Step::Kind::pin || step.kind == Step::Kind::migrate) && step.device != no_device) {
        use(step.device);
      }
    }
  }
  for (std::uint32_t p = 0; p < pages_.size(); ++p) {
    const PageDef& def = scenario_.pages[p];
    if (def.later) continue;
    const Status status = core_->alloc(now_ns_, client_id(def.client), span_of_page(p),
                                       def.stays_home ? core::Placement::system : core::Placement::automatic);
    FERRY_CHECK(status.ok());
    pages_[p].allocated = true;
    pages_[p].cpu_mapped = pages_[p].cpu_writable = scenario_.system_pages == 0;
    if (def.read_mostly) mark_read_mostly(p);
  }
  for (std::uint32_t b = 0; b < buffers_.size(); ++b) {
    if (!scenario_.buffers[b].later) create_buffer(b);
  }
  for (std::uint32_t t = 0; t < scenario_.timelines.size(); ++t) {
    const TimelineDef& def = scenario_.timelines[t];
    FERRY_CHECK(core_->timeline_create(now_ns_, client_id(def.clients[0]), t + 1).ok());
    for (std::size_t i = 1; i < def.clients.size(); ++i) {
      FERRY_CHECK(core_->timeline_open(now_ns_, client_id(def.clients[i]), t + 1).ok());
    }
  }
  settle();
}

void World::mark_read_mostly(std::uint32_t page) {
  unsigned wrong = 0;
  const Status status =
      core_->svm_set(now_ns_, client_id(scenario_.pages[page].client), span_of_page(page),
                     {{core::AttributeType::set_flags, no_device, core::svm_read_mostly}}, {cookie_set + page}, wrong);
  FERRY_CHECK(status.ok());
}

void World::create_buffer(std::uint32_t b) {
  const BufferDef& def = scenario_.buffers[b];
  core::BufferSpec spec;
  spec.count_pages = def.pages * block_pages;
  spec.home = def.home;
  spec.implicit_sync = def.implicit_sync;
  if (def.user_page != none) {
    spec.userptr = true;
    spec.user_pages = span_of_page(def.user_page);
    spec.count_pages = spec.user_pages.count_pages;
  }
  Status status = core_->buffer_create(now_ns_, client_id(def.clients[0]), b + 1, spec);
  say(LogLine::Kind::call, scenario_.clients[def.clients[0]], "core", "create buffer " + def.name);
  for (std::size_t i = 1; i < def.clients.size() && status.ok(); ++i) {
    status = core_->buffer_open(now_ns_, client_id(def.clients[i]), b + 1);
  }
  for (std::size_t i = 0; i < def.clients.size() && status.ok() && def.mapped; ++i) {
    status = core_->buffer_map(now_ns_, client_id(def.clients[i]), b + 1, span_of_buffer(b, 1).first);
  }
  if (!status.ok()) {
    refuse("buffer " + def.name, status);
    return;
  }
  buffers_[b].created = true;
}

void World::say(LogLine::Kind kind, std::string from, std::string to, std::string text) {
  if (log_ != nullptr) log_->push_back({events_, std::move(from), std::move(to), std::move(text), kind});
}

// --- what can happen -------------------------------------------------------------------------------------------------

bool World::only_time() const {
  for (std::uint32_t a = 0; a < agents_.size(); ++a) {
    if (can_step(a) && !only_retries(a)) return false;
  }
  return notices_.empty() &&
         std::none_of(flights_.begin(), flights_.end(), [this](const Flight& f) { return can_end(f); });
}

/// A wave that touches what is not mapped, again and again, as hardware without retry faults lets it while it is being
/// stopped. That keeps no timer from firing.
bool World::only_retries(std::uint32_t agent) const {
  const Agent& def = scenario_.agents[agent];
  return def.is_wave && agents_[agent].reached && !models_[def.device].retry_faults && !would_hit(agent);
}

void World::enabled(std::vector<Event>& out) const {
  out.clear();
  if (broken() || finished()) return;
  const auto add = [&](Event::Kind kind, std::uint32_t index, Code code = Code::ok) {
    Event event{kind, index, code, 0};
    event.key = key_of(event);
    out.push_back(event);
  };
  for (std::uint32_t a = 0; a < agents_.size(); ++a) {
    if (can_step(a)) add(Event::Kind::step, a);
  }
  std::vector<std::uint32_t> order;
  for (std::uint32_t f = 0; f < flights_.size(); ++f) {
    if (can_end(flights_[f])) order.push_back(f);
  }
  std::sort(order.begin(), order.end(), [this](std::uint32_t a, std::uint32_t b) {
    return flights_[a].identity != flights_[b].identity ? flights_[a].identity < flights_[b].identity : a < b;
  });
  for (const std::uint32_t f : order) {
    const Flight& flight = flights_[f];
    if (scenario_.apart && !flight.effective && has_effect_apart(flight.action)) {
      add(Event::Kind::effect, f);
      continue;
    }
    add(Event::Kind::done, f);
    if (failures_left_ > 0 && !flight.effective &&
        std::count(scenario_.failing.begin(), scenario_.failing.end(), flight.action.verb) != 0) {
      add(Event::Kind::fail, f, failure_of(flight.action.verb));
    }
  }
  for (std::uint32_t n = 0; n < notices_.size(); ++n) {
    // The application's end is told after those of its device processes.
    if (notices_[n].device != no_device || n == 0 || notices_[n - 1].client != notices_[n].client) {
      add(Event::Kind::notice, n);
    }
  }
  if (only_time()) {
    if (!time_is_idle_) add(Event::Kind::time, 0);
  } else if (early_left_ > 0 && core_->next_tick_ns() != ~std::uint64_t{0}) {
    add(Event::Kind::tick, 0);
  }
}

std::uint64_t World::key_of(const Event& event) const {
  Hash hash;
  hash.add(static_cast<std::uint64_t>(event.kind));
  switch (event.kind) {
    case Event::Kind::step:
      // An access that hits and one that faults are two events: fairness asks for the former where it could happen.
      hash.add(event.index).add(agents_[event.index].pc).add(agents_[event.index].begun).add(would_hit(event.index));
      break;
    case Event::Kind::done:
    case Event::Kind::effect:
    case Event::Kind::fail: hash.add(flights_[event.index].identity).add(static_cast<std::uint64_t>(event.code)); break;
    case Event::Kind::notice: hash.add(notices_[event.index].client).add(notices_[event.index].device); break;
    case Event::Kind::tick:
    case Event::Kind::time: break;
  }
  return hash.value();
}

std::string World::name(const Event& event) const {
  switch (event.kind) {
    case Event::Kind::step: {
      const Agent& agent = scenario_.agents[event.index];
      const AgentState& state = agents_[event.index];
      if (agent.is_wave && !state.begun) return agent.name + ": begins";
      return agent.name + ": " + agent.steps[state.pc].text + (state.reached ? " again" : "");
    }
    case Event::Kind::done: return "done: " + words(flights_[event.index].action);
    case Event::Kind::effect: return "takes effect: " + words(flights_[event.index].action);
    case Event::Kind::fail:
      return std::string("fails (") + to_string(event.code) + "): " + words(flights_[event.index].action);
    case Event::Kind::notice: {
      const Notice& n = notices_[event.index];
      return "the end of " + scenario_.clients[n.client] +
             (n.device == no_device ? std::string() : " on device " + std::to_string(n.device)) + " is told";
    }
    case Event::Kind::tick: return "a timer fires";
    case Event::Kind::time: return "time passes";
  }
  return {};
}

// --- what happens ----------------------------------------------------------------------------------------------------

void World::perform(const Event& event) {
  ++events_;
  if (log_ != nullptr) {
    const bool of_agent = event.kind == Event::Kind::step;
    std::string who = of_agent ? scenario_.agents[event.index].name
                      : event.kind == Event::Kind::tick || event.kind == Event::Kind::time ? "time"
                      : event.kind == Event::Kind::notice ? scenario_.clients[notices_[event.index].client]
                                                          : place_of(flights_[event.index].action);
    say(LogLine::Kind::event, {}, std::move(who), name(event));
  }
  try {
    switch (event.kind) {
      case Event::Kind::step: step(event.index); break;
      case Event::Kind::effect: {
        Flight& flight = flights_[event.index];
        if (!is_lost(flight.action, flight.status)) effect(flight);
        flight.effective = true;
        flight.identity = mix(flight.identity);
        break;
      }
      case Event::Kind::done: {
        Flight& flight = flights_[event.index];
        if (!flight.effective && !is_lost(flight.action, flight.status)) effect(flight);
        answer(event.index, flights_[event.index].status);
        break;
      }
      case Event::Kind::fail:
        --failures_left_;
        failed_before_ = true;
        fail_effect(flights_[event.index], event.code);
        answer(event.index, event.code);
        break;
      case Event::Kind::notice: tell_notice(event.index); break;
      case Event::Kind::tick:
        --early_left_;
        now_ns_ = std::max(now_ns_ + 1, core_->next_tick_ns());
        core_->tick(now_ns_);
        break;
      case Event::Kind::time: pass_time(); break;
    }
    settle();
  } catch (const Violation& violation) {
    finding_ = violation.finding;
    say(LogLine::Kind::problem, {}, "core", finding_.text);
  } catch (const std::exception& problem) {  // a container's own check
    finding_ = {Verdict::crash, problem.what()};
    say(LogLine::Kind::problem, {}, "core", finding_.text);
  }
}

void World::tell_notice(std::uint32_t index) {
  const Notice notice = notices_[index];
  notices_.erase(notices_.begin() + index);
  if (notice.device == no_device) {
    core_->client_gone(now_ns_, client_id(notice.client), {cookie_gone + notice.client});
  } else {
    core_->device_gone(now_ns_, client_id(notice.client), notice.device);
  }
}

/// What every event ends with: the core's wishes are taken, and looked at.
void World::settle() {
  take_actions();
  check_reports();
  if (core_->stats().over_budget_pages != 0 &&
      std::count(scenario_.strict.begin(), scenario_.strict.end(), setup_.policy) != 0) {
    violate(Verdict::violation, "memory was given over the budget: nothing could be reclaimed\n" + who_waits());
  }
}

/// Time goes on until something else can happen. A deadline that passes meanwhile is missed: the machine stood idle.
void World::pass_time() {
  for (unsigned i = 0; i < idle_ticks; ++i) {
    const std::uint64_t next = std::max(now_ns_ + 1, std::min(core_->next_tick_ns(), now_ns_ + second_ns));
    for (std::uint32_t f = 0; f < fences_.size(); ++f) {
      const FenceState& fence = fences_[f];
      if (fence.deadline_ns != 0 && !fence.signalled && next > fence.deadline_ns) {
        violate(Verdict::late, fence_name(f) + " was wanted " +
                                   std::to_string((fence.deadline_ns - fence.asked_ns) / 1000) +
                                   " us after it was asked for; nothing is under way, and it has not signalled");
      }
    }
    now_ns_ = next;
    core_->tick(now_ns_);
    settle();
    if (finished() || !only_time()) return;
  }
  time_is_idle_ = true;
}

bool World::done_with(std::uint32_t agent) const {
  const AgentState& state = agents_[agent];
  const Agent& def = scenario_.agents[agent];
  return state.over || def.may_hang || state.pc >= def.steps.size() ||
         (state.begun && def.steps[state.pc].kind == Step::Kind::spin);
}

bool World::finished() const {
  if (!flights_.empty() || !notices_.empty()) return false;
  for (std::uint32_t a = 0; a < agents_.size(); ++a) {
    if (!done_with(a)) return false;
  }
  return core_->quiescent() || only_held_jobs();
}

/// What is left are jobs that wait for timeline points which nobody makes: seen by nobody, and no harm to anybody.
bool World::only_held_jobs() const {
  bool held = false;
  for (const JobState& job : jobs_) {
    if (job.state == JobState::State::visible || job.state == JobState::State::running) return false;
    held = held || job.state == JobState::State::submitted;
  }
  return held;
}

// --- state -----------------------------------------------------------------------------------------------------------

std::uint64_t World::digest() const {
  Hash h;
  h.add(core_->digest());
  for (const AgentState& a : agents_) {
    h.add(a.pc | std::uint64_t{a.unit} << 32 | std::uint64_t{static_cast<unsigned>(a.wait)} << 40 |
          std::uint64_t{a.begun} << 44 | std::uint64_t{a.over} << 45 | std::uint64_t{a.reached} << 46 |
          std::uint64_t{a.serial} << 48);
  }
  for (const PageState& p : pages_) {
    h.add(std::uint64_t{p.allocated} | std::uint64_t{p.freeing} << 1 | std::uint64_t{p.cpu_mapped} << 2 |
          std::uint64_t{p.cpu_writable} << 3 | std::uint64_t{p.generation} << 8);
    h.add(p.shadow).add(p.system | std::uint64_t{p.stored} << 32);
    for (const DeviceEntry& e : p.devices) {
      h.add(static_cast<std::uint64_t>(e.to) | std::uint64_t{e.writable} << 8 | std::uint64_t{e.vram} << 16);
    }
  }
  for (const BufferState& b : buffers_) {
    h.add(std::uint64_t{b.created} | std::uint64_t{b.shadow} << 32).add(b.system | std::uint64_t{b.stored} << 32);
    for (const Version v : b.vram) h.add(v);
    for (const auto& [who, map] : b.maps) {
      h.add(who.first | std::uint64_t{who.second} << 32)
          .add(static_cast<std::uint64_t>(map.to) | std::uint64_t{map.writable} << 8 | std::uint64_t{map.device} << 16 |
               std::uint64_t{map.generation} << 24);
    }
  }
  for (const JobState& j : jobs_) {
    h.add(static_cast<std::uint64_t>(j.state) | std::uint64_t{j.cancelled} << 8 | std::uint64_t{j.told} << 9 |
          std::uint64_t{j.ok} << 10 | std::uint64_t{j.published} << 16 | j.cu_mask << 32);
    for (const std::uint8_t g : j.generation) h.add(g);
  }
  for (const FenceState& f : fences_) {
    h.add(std::uint64_t{f.visible} | std::uint64_t{f.signalled} << 1 | std::uint64_t{f.ok} << 2 |
          (f.deadline_ns == 0 ? 0 : (f.deadline_ns - now_ns_) << 3));
  }
  std::uint64_t words = 0;
  for (std::size_t w = 0; w < words_.size(); ++w) words |= std::uint64_t{words_[w]} << (w & 63);
  h.add(words);
  for (const std::uint32_t l : locks_) h.add(l);
  h.add(svm_digest());
  std::uint64_t alive = 0;
  for (std::size_t c = 0; c < client_alive_.size(); ++c) alive |= std::uint64_t{client_alive_[c]} << c;
  h.add(alive | std::uint64_t{time_is_idle_} << 32 | std::uint64_t{failed_before_} << 33 |
        std::uint64_t{!refusal_.empty()} << 34 | std::uint64_t{early_left_} << 40 |
        std::uint64_t{failures_left_} << 48);
  for (const auto& [who, process] : processes_) {
    h.add(std::uint64_t{process.alive} | process.granted << 8 | process.leaving << 24 |
          std::uint64_t{process.demand} << 40);
  }
  for (const auto& [where, version] : vram_) h.add(where).add(version);
  // A set: the order in which actions were asked for does not matter.
  std::uint64_t flights = 0;
  for (const Flight& f : flights_) flights += mix(f.identity ^ (std::uint64_t{f.effective} << 63));
  h.add(flights).add(flights_.size());
  for (const Notice& n : notices_) h.add(n.client | std::uint64_t{n.device} << 32);
  return h.value();
}

std::uint64_t World::footprint(const Event& event) const {
  constexpr std::uint64_t core_bit = std::uint64_t{1} << 63;
  constexpr std::uint64_t everything = ~std::uint64_t{0};
  const auto units_bit = [](std::uint32_t client, DeviceId device) {
    return std::uint64_t{1} << (48 + (client * 3 + device) % 15);
  };
  const auto page_bit = [](std::uint32_t page) { return std::uint64_t{1} << (page % 32); };
  if (event.kind == Event::Kind::step) {
    const AgentState& state = agents_[event.index];
    const Agent& agent = scenario_.agents[event.index];
    std::uint64_t out = 0;
    if (agent.is_wave) {
      // The first step takes a unit, the last one gives it back.
      if (!state.begun || state.unit == no_unit || state.pc + 1 >= agent.steps.size()) return everything;
      out |= units_bit(agent.client, agent.device);
    }
    const Step& s = agent.steps[state.pc];
    switch (s.kind) {
      case Step::Kind::read:
      case Step::Kind::write: return s.page != none && would_hit(event.index) ? out | page_bit(s.page) : everything;
      case Step::Kind::signal:
      case Step::Kind::await: return out | std::uint64_t{1} << (32 + s.word % 8);
      case Step::Kind::lock:
      case Step::Kind::unlock: return out | std::uint64_t{1} << (40 + s.lock % 8);
      default: return everything;
    }
  }
  if (event.kind != Event::Kind::done && event.kind != Event::Kind::effect) return everything;
  const core::Action& a = flights_[event.index].action;
  switch (a.verb) {
    case core::Verb::revoke_cpu:
    case core::Verb::revoke_device:
    case core::Verb::map_device:
    case core::Verb::copy:
    case core::Verb::store:
    case core::Verb::load: {
      const std::uint32_t page = page_at(a.client - 1, a.pages.first);
      return page == none ? everything : core_bit | page_bit(page);
    }
    case core::Verb::map_buffer:
    case core::Verb::revoke_buffer:
    case core::Verb::move_buffer: return core_bit;  // whoever reads or writes a buffer says that it touches everything
    case core::Verb::revoke_cus: return a.client == 0 ? everything : core_bit | units_bit(a.client - 1, a.device);
    default: return everything;
  }
}

// --- the end ---------------------------------------------------------------------------------------------------------

Finding World::conclude() {
  if (broken()) return finding_;
  if (!finished()) return why_stuck();
  try {
    for (std::uint32_t p = 0; p < pages_.size(); ++p) keep_for_children(p);
    core_->verify();
    if (!core_->quiescent()) {
      for (std::uint32_t j = 0; j < jobs_.size(); ++j) {
        if (jobs_[j].state != JobState::State::submitted) continue;
        failed_before_ = true;
        core_->job_cancel(now_ns_, client_id(scenario_.agents[jobs_[j].submitter].client), scenario_.jobs[j].fence + 1);
        settle();
      }
      drain();
      if (!core_->quiescent()) return why_stuck();
    }
    check_charges();
    close_down();
  } catch (const Violation& violation) {
    finding_ = violation.finding;
  } catch (const std::exception& problem) {
    finding_ = {Verdict::crash, problem.what()};
  }
  if (broken()) return finding_;
  if (!warning_.empty()) return {Verdict::broken_rule, warning_};
  if (!refusal_.empty()) return {Verdict::refused, refusal_};
  return {};
}

Finding World::why_stuck() const {
  std::string missed;
  for (std::uint32_t a = 0; a < agents_.size(); ++a) {
    if (!done_with(a)) missed += missed_wakeup(a);
  }
  for (std::uint32_t j = 0; j < jobs_.size(); ++j) {
    const JobState& job = jobs_[j];
    if (job.state == JobState::State::ended && !job.told && fences_[scenario_.jobs[j].fence].visible) {
      missed += fence_name(scenario_.jobs[j].fence) + ": its job has ended, but it never signals\n";
    }
    if (job.state == JobState::State::visible && !scenario_.jobs[j].waits.empty()) {
      const auto& waits = scenario_.jobs[j].waits;
      const bool all = std::all_of(waits.begin(), waits.end(), [this](auto f) { return fences_[f].signalled; });
      // Graphics may still wait for units; the others need nothing but a slot of their engine.
      if (all && scenario_.jobs[j].engine != core::Engine::graphics && nothing_runs()) {
        missed += fence_name(scenario_.jobs[j].fence) + ": all that its job waits for has signalled\n";
      }
    }
  }
  const std::string circle = named(core_->deadlock());
  Finding out;
  out.verdict = circle.empty() && !missed.empty() ? Verdict::lost_wakeup : Verdict::deadlock;
  out.text = circle;
  if (!out.text.empty() && out.text.back() != '\n') out.text += '\n';
  out.text += circle.empty() ? missed : std::string();
  out.text += who_waits();
  if (out.text.empty()) out.text = "everybody has done what he had to, and the core still waits for something\n";
  return out;
}

bool World::nothing_runs() const {
  return std::none_of(jobs_.begin(), jobs_.end(),
                      [](const JobState& j) { return j.state == JobState::State::running; });
}

/// No more is counted than what there is to count.
void World::check_charges() const {
  std::uint64_t most = 0;
  for (const PageState& page : pages_) most += page.allocated ? block_pages : 0;
  for (std::uint32_t b = 0; b < buffers_.size(); ++b) {
    const bool own_memory = buffers_[b].created && scenario_.buffers[b].user_page == none;
    most += own_memory ? scenario_.buffers[b].pages * block_pages : 0;
  }
  const std::uint64_t counted = core_->stats().system_pages;
  if (counted > most) {
    violate(Verdict::violation, std::to_string(counted) + " pages of system memory are counted, and there are only " +
                                    std::to_string(most) + " that could have some");
  }
}

/// Answers all that is under way, oldest first.
void World::drain() {
  for (unsigned n = 0; !flights_.empty(); ++n) {
    if (n == closing_bound) violate(Verdict::livelock, "the core goes on asking when all is over");
    Flight& flight = flights_.front();
    if (!flight.effective && !is_lost(flight.action, flight.status)) effect(flight);
    answer(0, flights_.front().status);
    settle();
  }
}

/// Everything is given back; what is left over is a leak.
void World::close_down() {
  for (std::uint32_t f = 0; f < fences_.size(); ++f) {
    if (fences_[f].visible && !fences_[f].signalled) {
      violate(Verdict::violation, fence_name(f) + " became visible and never signals, though all is done");
    }
  }
  closing_ = true;
  for (auto& [who, process] : processes_) {
    if (!process.alive) continue;
    process.alive = false;
    core_->device_gone(now_ns_, client_id(who.first), who.second);
    settle();
  }
  for (std::uint32_t c = 0; c < client_alive_.size(); ++c) {
    if (!client_alive_[c]) continue;
    client_alive_[c] = false;
    core_->client_gone(now_ns_, client_id(c), {cookie_gone + c});
    settle();
  }
  drain();
  core_->verify();
  const core::Stats& stats = core_->stats();
  const struct {
    std::uint64_t left;
    const char* what;
  } leaks[] = {{stats.dma_mapped_pages - stats.dma_unmapped_pages, "pages opened to devices"},
               {stats.vram_pages, "pages of VRAM"},
               {stats.system_pages, "pages of system memory"},
               {stats.stored_pages, "pages in the store"}};
  for (const auto& leak : leaks) {
    if (leak.left != 0) {
      violate(Verdict::violation,
              "everybody has left, and " + std::to_string(leak.left) + " " + leak.what + " are still counted");
    }
  }
  if (!core_->quiescent()) violate(Verdict::violation, "everybody has left, and the core still waits for something");
}

}  // namespace ferry::check

// Rules that hold whatever the bytes are: of fences, of jobs and their buffers, of units under each policy.
#include <algorithm>
#include <bit>

#include "check/address.h"
#include "check/world.h"
#include "graph/graph.h"

namespace ferry::check {
using core::Action;
using core::Engine;
using core::Policy;

void World::violate(Verdict verdict, const std::string& text) const { throw Violation{{verdict, text}}; }

void World::begin_job(const Action& a) {
  for (std::uint32_t j = 0; j < jobs_.size(); ++j) {
    if (scenario_.jobs[j].fence + 1 != a.fence) continue;
    JobState& job = jobs_[j];
    if (job.state != JobState::State::visible) {
      violate(Verdict::violation, "the job of " + fence_name(scenario_.jobs[j].fence) + " runs, but it is not visible");
    }
    check_job_order(j);
    job.state = JobState::State::running;
    job.cu_mask = a.cu_mask;
    job.where.clear();
    for (const auto* list : {&scenario_.jobs[j].reads, &scenario_.jobs[j].writes}) {
      for (const std::uint32_t b : *list) {
        job.where.push_back(core_->buffer_info(b + 1));
        check_job_buffer(j, b, job.where.back(), job.where.size() - 1);
      }
    }
    if (a.engine == Engine::graphics) check_units(a.device);
  }
}

/// The job looks at its buffer where it lies now.
void World::check_job_buffer(std::uint32_t j, std::uint32_t b, const core::BufferInfo& info, std::size_t place) {
  const std::string who = "the job of " + fence_name(scenario_.jobs[j].fence) + ", buffer " + scenario_.buffers[b].name;
  const std::uint32_t page = scenario_.buffers[b].user_page;
  if (page != none) {
    const std::uint32_t client = scenario_.agents[jobs_[j].submitter].client;
    // Engines other than graphics have no page table of the client's: the machine looks the pages up for them.
    const bool graphics = scenario_.jobs[j].engine == Engine::graphics;
    const BufferMap& map = buffers_[b].maps[{client, graphics ? scenario_.jobs[j].device : no_device}];
    if (map.to == BufferMap::To::nowhere) {
      violate(Verdict::wrong_bytes, who + ": runs without a mapping of it");
    }
    if (map.generation < jobs_[j].generation[place]) {
      violate(Verdict::wrong_bytes, who + ": uses pages that had been replaced before it was submitted");
    }
    return;
  }
  using Where = core::BufferInfo::Where;
  if (info.where != Where::system && info.where != Where::vram) {
    violate(Verdict::wrong_bytes, who + ": runs, and the buffer is in no memory that it can reach");
  }
  if (info.moving) violate(Verdict::wrong_bytes, who + ": runs while the buffer moves");
  const Version& word =
      info.where == Where::system ? buffers_[b].system : buffer_word(b, core::Place::vram, info.device);
  if (word != buffers_[b].shadow) {
    violate(Verdict::wrong_bytes,
            who + ": finds " + describe_version(word) + "; last written: " + describe_version(buffers_[b].shadow));
  }
}

void World::end_job(std::uint32_t j, Status status) {
  JobState& job = jobs_[j];
  if (job.state != JobState::State::running) return;
  const JobDef& def = scenario_.jobs[j];
  std::size_t place = 0;
  for (const auto* list : {&def.reads, &def.writes}) {
    for (const std::uint32_t b : *list) {
      const core::BufferInfo before = job.where[place++];
      if (scenario_.buffers[b].user_page != none || !status.ok()) continue;
      const core::BufferInfo now = core_->buffer_info(b + 1);
      if (now.where != before.where || now.device != before.device) {
        violate(Verdict::wrong_bytes, "buffer " + scenario_.buffers[b].name + " moved while the job of " +
                                          fence_name(def.fence) + " used it");
      }
      if (list != &def.writes) continue;
      Version& word = before.where == core::BufferInfo::Where::system
                          ? buffers_[b].system
                          : buffer_word(b, core::Place::vram, before.device);
      word = buffers_[b].shadow = job_version + j;
    }
  }
  job.state = JobState::State::ended;
  job.ok = status.ok();
  job.cu_mask = 0;
}

void World::signal(const Action& a) {
  if (a.fence < 1 || a.fence > fences_.size()) violate(Verdict::violation, "a fence signals that nobody made");
  const auto f = static_cast<std::uint32_t>(a.fence - 1);
  FenceState& fence = fences_[f];
  for (std::uint32_t j = 0; j < jobs_.size(); ++j) {
    if (scenario_.jobs[j].fence != f) continue;
    JobState& job = jobs_[j];
    if (job.told) violate(Verdict::violation, fence_name(f) + " signals twice");
    if (job.state == JobState::State::running || (a.status.ok() && job.state != JobState::State::ended)) {
      violate(Verdict::violation, fence_name(f) + " signals, and its job has not ended");
    }
    if (a.status.ok() && !job.ok) violate(Verdict::violation, fence_name(f) + " signals success, and its job failed");
    if (!a.status.ok() && job.ok) {
      violate(Verdict::violation, fence_name(f) + " signals " + words_of(a.status) + ", and its job ended well");
    }
    if (!a.status.ok() && !failed_before_) {
      violate(Verdict::violation, fence_name(f) + " fails: " + words_of(a.status) + "; but nothing has failed");
    }
    job.told = true;
    job.state = JobState::State::ended;
  }
  fence.signalled = true;
  fence.ok = a.status.ok();
}

/// All that the job has to wait for has really come to its end.
void World::check_job_order(std::uint32_t j) const {
  const JobDef& def = scenario_.jobs[j];
  const auto ended = [this](std::uint32_t fence) {
    for (std::uint32_t i = 0; i < jobs_.size(); ++i) {
      if (scenario_.jobs[i].fence == fence) return jobs_[i].state == JobState::State::ended;
    }
    return fences_[fence].signalled;
  };
  for (const std::uint32_t f : def.waits) {
    if (!ended(f)) {
      violate(Verdict::violation, "the job of " + fence_name(def.fence) + " runs before " + fence_name(f) + " is done");
    }
  }
  const auto uses = [](const std::vector<std::uint32_t>& list, std::uint32_t b) {
    return std::count(list.begin(), list.end(), b) != 0;
  };
  for (std::uint32_t i = 0; i < jobs_.size(); ++i) {
    const JobState& other = jobs_[i];
    const bool before = other.state == JobState::State::running ||
                        (other.state == JobState::State::visible && other.published < jobs_[j].published);
    if (i == j || !before) continue;
    for (std::uint32_t b = 0; b < buffers_.size(); ++b) {
      if (!scenario_.buffers[b].implicit_sync) continue;
      const JobDef& d = scenario_.jobs[i];
      const bool writes = uses(def.writes, b) || uses(d.writes, b);
      const bool both = (uses(def.writes, b) || uses(def.reads, b)) && (uses(d.writes, b) || uses(d.reads, b));
      if (writes && both) {
        violate(Verdict::violation, "the job of " + fence_name(def.fence) + " runs before " + fence_name(d.fence) +
                                        " is done, and both use buffer " + scenario_.buffers[b].name);
      }
    }
  }
}

/// A unit has one user, and each policy keeps what it promises.
void World::check_units(DeviceId device) const {
  const core::DeviceModel& model = models_[device];
  std::uint64_t compute = 0;
  for (const auto& [who, process] : processes_) {
    if (who.second != device || !process.alive) continue;
    if ((compute & process.granted) != 0) violate(Verdict::violation, "a compute unit is given to two clients");
    compute |= process.granted;
  }
  std::uint64_t jobs = 0;
  unsigned visible = 0;
  unsigned most_needed = 0;
  for (std::uint32_t j = 0; j < jobs_.size(); ++j) {
    const JobDef& def = scenario_.jobs[j];
    if (def.engine != Engine::graphics || def.device != device) continue;
    if (jobs_[j].state == JobState::State::running) {
      if ((jobs & jobs_[j].cu_mask) != 0) violate(Verdict::violation, "a compute unit is given to two jobs");
      jobs |= jobs_[j].cu_mask;
    }
    if (jobs_[j].state == JobState::State::visible || jobs_[j].state == JobState::State::running) {
      ++visible;
      most_needed = std::max(most_needed, def.cus_min);
    }
  }
  if ((compute & jobs) != 0) violate(Verdict::violation, "a compute unit is given to a job and to compute");
  const auto used = static_cast<unsigned>(std::popcount(compute));
  if (used > model.cu_count) violate(Verdict::violation, "more units are given than there are");
  if (model.policy == Policy::reserve && used + std::min(model.reserved_cus, model.cu_count) > model.cu_count) {
    violate(Verdict::violation, "policy reserve: compute got a unit that is kept for fenced work");
  }
  if (visible == 0) return;
  if (model.policy == Policy::exclusive && compute != 0) {
    violate(Verdict::violation, "policy exclusive: compute has a unit while a graphics fence is visible");
  }
  if (model.policy == Policy::reserve_in_flight) {
    const unsigned kept = std::min(std::max(model.reserved_cus, most_needed), model.cu_count);
    if (used + kept > model.cu_count) {
      violate(Verdict::violation,
              "policy reserve-in-flight: a graphics fence is visible, and compute has units that "
              "are to be kept for it");
    }
  }
}

void World::check_visible(std::uint32_t job) const {
  const JobDef& def = scenario_.jobs[job];
  if (def.engine == Engine::graphics) check_units(def.device);
}

/// A buffer stays where it is while a visible fence uses it; under policy pinned for ever.
void World::check_move(const Action& a) const {
  if (a.verb == core::Verb::discard_system) {
    for (std::uint32_t b = 0; b < buffers_.size(); ++b) {
      const std::uint32_t page = scenario_.buffers[b].user_page;
      if (page == none || !a.pages.overlaps(span_of_page(page))) continue;
      if (const std::uint32_t fence = busy_with(b); fence != none) {
        violate(Verdict::violation, "page " + scenario_.pages[page].name + " is given back, and " + fence_name(fence) +
                                        " uses it through buffer " + scenario_.buffers[b].name);
      }
    }
    return;
  }
  if (a.buffer < 1 || a.buffer > buffers_.size()) return;
  const auto b = static_cast<std::uint32_t>(a.buffer - 1);
  if (const std::uint32_t fence = busy_with(b); fence != none) {
    violate(Verdict::violation,
            "buffer " + scenario_.buffers[b].name + " moves, and " + fence_name(fence) + " uses it");
  }
}

/// A visible fence whose job has not ended and lists the buffer, or none.
std::uint32_t World::busy_with(std::uint32_t buffer) const {
  for (std::uint32_t j = 0; j < jobs_.size(); ++j) {
    const JobDef& def = scenario_.jobs[j];
    const bool lists = std::count(def.reads.begin(), def.reads.end(), buffer) != 0 ||
                       std::count(def.writes.begin(), def.writes.end(), buffer) != 0;
    if (lists && (jobs_[j].state == JobState::State::visible || jobs_[j].state == JobState::State::running)) {
      return def.fence;
    }
  }
  return none;
}

/// What the core's own graph has seen. A circle is for the end of the execution to judge: whether it hangs shows there.
void World::check_reports() {
  for (graph::Report& report : core_->take_graph_reports()) {
    using What = graph::Report::What;
    report.text = named(report.text);
    say(LogLine::Kind::note, {}, "core", report.text);
    if (report.what == What::class_circle || report.what == What::circle) {
      remarks_.push_back(std::move(report.text));
      continue;
    }
    if (report.what == What::wait_in_section) {
      // Explored further: what comes of it is the verdict, if it is worse.
      if (warning_.empty()) warning_ = std::move(report.text);
      continue;
    }
    if (closing_ && report.what == What::never_signalled) continue;
    violate(Verdict::violation, report.text);
  }
}

}  // namespace ferry::check

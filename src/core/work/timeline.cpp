// Timelines: points that get their fences in order, and jobs that are held back for points without one. A held job is
// invisible: it holds nothing, and nobody waits for it but others that are held. Loops among them are refused at
// submission, the only moment that adds a wait or a promise.
#include <algorithm>

#include "core/digest.h"
#include "core/impl.h"

namespace ferry::core {
namespace {

/// All points up to it have fences, so whoever waits for one of them knows what to wait for.
std::uint64_t fenced_up_to(const Timeline& timeline) {
  std::uint64_t last = timeline.value;
  for (const auto& [at, point] : timeline.points) {
    if (!point.fenced && !point.done) {
      break;
    }
    last = at;
  }
  return last;
}

bool is_promise(const Point& point) { return !point.fenced && !point.done; }

/// First error among the point and all before it. (A point that failed out of its order is not counted in `error` yet.)
Status error_of(const Timeline& timeline, std::uint64_t wait) {
  if (timeline.error_point != 0) {
    return timeline.error_point <= wait ? timeline.error : Status{};
  }
  for (const auto& [at, point] : timeline.points) {
    if (!point.status.ok()) {
      return point.status;
    }
    if (at >= wait) {
      break;
    }
  }
  return {};
}

std::string loop_step(const Job& job, const TimelinePoint& wait, std::uint64_t promise, const Job& by) {
  const auto point_of = [&](std::uint64_t point) {
    return "point " + std::to_string(point) + " of timeline " + std::to_string(wait.timeline);
  };
  std::string text = "job " + std::to_string(job.spec.fence) + " waits for " + point_of(wait.point);
  if (promise != wait.point) {
    text += ", which comes after point " + std::to_string(promise);
  }
  return text + "; " + point_of(promise) + " is promised by job " + std::to_string(by.spec.fence);
}

}  // namespace

// --- holds -----------------------------------------------------------------------------------------------------------

Status Work::timeline_create(ClientId client, TimelineId id) {
  const Client* owner = core.find_client(client);
  if (owner == nullptr || owner->dying) {
    return Code::client_gone;
  }
  if (id == 0 || timelines.contains(id)) {
    return Code::in_use;
  }
  Timeline& timeline = timelines[id];
  timeline.id = id;
  timeline.holds[client] = 1;
  return {};
}

Status Work::timeline_open(ClientId client, TimelineId id) {
  const Client* owner = core.find_client(client);
  if (owner == nullptr || owner->dying) {
    return Code::client_gone;
  }
  const auto it = timelines.find(id);
  if (it == timelines.end() || it->second.holds.empty()) {
    return Code::not_held;
  }
  ++it->second.holds[client];
  return {};
}

Status Work::timeline_close(ClientId client, TimelineId id) {
  const auto it = timelines.find(id);
  if (it == timelines.end() || !it->second.holds.contains(client)) {
    return Code::not_held;
  }
  if (--it->second.holds[client] == 0) {
    it->second.holds.erase(client);
    timeline_unheld(id);
  }
  let_on();
  return {};
}

void Work::timelines_client_gone(ClientId client) {
  std::vector<TimelineId> unheld;
  for (auto& [id, timeline] : timelines) {
    if (timeline.holds.erase(client) != 0) {
      unheld.push_back(id);
    }
  }
  for (const TimelineId id : unheld) {
    timeline_unheld(id);
  }
  let_on();
}

/// After a hold's end. With the last one nobody can make points any more: who waits for one past the last never gets it.
void Work::timeline_unheld(TimelineId id) {
  Timeline& timeline = timelines.find(id)->second;
  if (!timeline.holds.empty()) {
    return;
  }
  const std::uint64_t last = timeline.points.empty() ? timeline.value : timeline.points.rbegin()->first;
  for (auto it = timeline.held.upper_bound(last); it != timeline.held.end(); it = timeline.held.erase(it)) {
    for (const FenceId job : it->second) {
      point_known(job, Code::cancelled);
    }
  }
  timeline_drop_if_over(id);
}

void Work::timeline_drop_if_over(TimelineId id) {
  const auto it = timelines.find(id);
  if (it != timelines.end() && it->second.holds.empty() && it->second.points.empty() && it->second.held.empty()) {
    timelines.erase(it);
  }
}

// --- points ----------------------------------------------------------------------------------------------------------

/// The point, or a later one, has a fence or has signalled, or this one is spoken for.
bool Work::point_taken(const Timeline& timeline, std::uint64_t point) const {
  if (point <= timeline.value || timeline.points.contains(point)) {
    return true;
  }
  return std::any_of(timeline.points.upper_bound(point), timeline.points.end(),
                     [](const auto& later) { return !is_promise(later.second); });
}

Status Work::timeline_signal(ClientId client, TimelinePoint at) {
  const auto it = timelines.find(at.timeline);
  if (it == timelines.end() || !it->second.holds.contains(client)) {
    return Code::not_held;
  }
  if (point_taken(it->second, at.point)) {
    return Code::in_use;
  }
  it->second.points[at.point].done = true;
  timeline_advance(at.timeline);
  let_on();
  return {};
}

std::uint64_t Work::timeline_value(TimelineId id) const {
  const auto it = timelines.find(id);
  return it == timelines.end() ? 0 : it->second.value;
}

/// Some points changed: the value rises over those that are done, jobs that wait only for points with fences go on.
void Work::timeline_advance(TimelineId id) {
  Timeline& timeline = timelines.find(id)->second;
  while (!timeline.points.empty() && timeline.points.begin()->second.done) {
    const auto first = timeline.points.begin();
    timeline.value = first->first;
    if (!first->second.status.ok() && timeline.error_point == 0) {
      timeline.error_point = first->first;
      timeline.error = first->second.status;
    }
    timeline.points.erase(first);
  }
  const std::uint64_t known = fenced_up_to(timeline);
  while (!timeline.held.empty() && timeline.held.begin()->first <= known) {
    const auto first = timeline.held.begin();
    const Status status = error_of(timeline, first->first);
    const std::vector<FenceId> waiting = std::move(first->second);
    timeline.held.erase(first);
    for (const FenceId job : waiting) {
      point_known(job, status);
    }
  }
  timeline_drop_if_over(id);
}

/// One of the points that a held job waits for has a fence, or (status) never will.
void Work::point_known(FenceId id, Status status) {
  const auto it = jobs.find(id);
  FERRY_CHECK(it != jobs.end() && it->second.points_left > 0);
  Job& job = it->second;
  --job.points_left;
  if (!status.ok() && job.failure.ok()) {
    job.failure = status;
    letting_on.push_back(id);
  } else if (job.points_left == 0 && job.failure.ok()) {
    letting_on.push_back(id);
  }
}

void Work::let_on() {
  if (letting_on_now) {
    return;
  }
  letting_on_now = true;
  while (!letting_on.empty()) {
    const FenceId job = letting_on.front();
    letting_on.pop_front();
    if (const auto it = jobs.find(job); it != jobs.end() && it->second.stage == Job::Stage::held) {
      job_points_ready(job);
    }
  }
  letting_on_now = false;
}

// --- jobs ------------------------------------------------------------------------------------------------------------

Status Work::timeline_check(const Job& job) {
  const auto held_by_client = [&](const TimelinePoint& at) {
    const auto it = timelines.find(at.timeline);
    return it != timelines.end() && it->second.holds.contains(job.client);
  };
  for (const auto* list : {&job.spec.wait_points, &job.spec.signal_points}) {
    for (const TimelinePoint& at : *list) {
      if (!held_by_client(at)) {
        return Code::not_held;
      }
      if (at.point == 0) {
        return Code::bad_range;
      }
    }
  }
  const auto& signals = job.spec.signal_points;
  for (std::size_t i = 0; i < signals.size(); ++i) {
    if (point_taken(timelines.find(signals[i].timeline)->second, signals[i].point)) {
      return Code::in_use;
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (signals[i].timeline == signals[j].timeline && signals[i].point == signals[j].point) {
        return Code::in_use;
      }
    }
  }
  return find_loop(job) ? Status(Code::would_deadlock) : Status();
}

/// Whether the job would wait for itself, by way of held jobs. Only waits that are certain count: for a point that is
/// promised and not past the one that is waited for. (A later promise is one way to get a fence for a point, but
/// anybody may make another.) Each held job is looked at once.
bool Work::find_loop(const Job& job) {
  const auto own = [&](const TimelinePoint& wait) {
    std::uint64_t point = 0;
    for (const TimelinePoint& at : job.spec.signal_points) {
      if (at.timeline == wait.timeline && at.point <= wait.point) {
        point = at.point;
      }
    }
    return point;
  };
  const bool others_wait =
      std::any_of(job.spec.signal_points.begin(), job.spec.signal_points.end(), [&](const TimelinePoint& at) {
        const auto& held = timelines.find(at.timeline)->second.held;
        return held.lower_bound(at.point) != held.end();
      });
  struct Seen {
    const Job* job;
    std::size_t by;         ///< index of the one that waits for it
    TimelinePoint wait;     ///< ... for this point
    std::uint64_t promise;  ///< ... and so for this one of the timeline, which the job promised
  };
  std::vector<Seen> seen{{&job, 0, {}, 0}};
  std::set<FenceId> known;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    for (const TimelinePoint& wait : seen[i].job->spec.wait_points) {
      if (const std::uint64_t point = own(wait); point != 0) {
        last_loop.clear();
        seen.push_back({&job, i, wait, point});
        for (std::size_t at = seen.size() - 1; at != 0; at = seen[at].by) {
          const Seen& step = seen[at];
          last_loop = loop_step(*seen[step.by].job, step.wait, step.promise, *step.job) +
                      (last_loop.empty() ? "" : "; ") + last_loop;
        }
        return true;
      }
      const auto it = timelines.find(wait.timeline);
      if (!others_wait || it == timelines.end()) {
        continue;
      }
      for (const auto& [at, point] : it->second.points) {
        if (at > wait.point) {
          break;
        }
        if (is_promise(point) && known.insert(point.promised_by).second) {
          seen.push_back({&jobs.find(point.promised_by)->second, i, wait, at});
        }
      }
    }
  }
  return false;
}

/// In the wait graph: who is held back for the point, and the job that promised it.
void Work::show_point(const Timeline& timeline, std::uint64_t at, Point& point, const Job& job) {
  point.node = core.graph.add(core.classes.point, at);
  core.graph.describe(point.node, "of timeline %", timeline.id);
  circle_found(core.graph.wait(point.node, job.node, "is promised by"));
  for (auto held = timeline.held.lower_bound(at); held != timeline.held.end(); ++held) {
    for (const FenceId waiting : held->second) {
      circle_found(core.graph.wait(jobs.find(waiting)->second.node, point.node));
    }
  }
}

void Work::timeline_promise(Job& job) {
  const FenceId id = job.spec.fence;
  for (const TimelinePoint& at : job.spec.signal_points) {
    Timeline& timeline = timelines.find(at.timeline)->second;
    Point& point = timeline.points[at.point];
    point.promised_by = id;
    if (core.config.wait_graph) {
      show_point(timeline, at.point, point, job);
    }
  }
  job.points_left = 0;
  for (const TimelinePoint& at : job.spec.wait_points) {
    Timeline& timeline = timelines.find(at.timeline)->second;
    if (at.point > fenced_up_to(timeline)) {
      timeline.held[at.point].push_back(id);
      ++job.points_left;
      for (const auto& [before, point] : timeline.points) {
        if (before > at.point) {
          break;
        }
        if (point.node != graph::no_node) {
          circle_found(core.graph.wait(job.node, point.node));
        }
      }
    }
  }
}

Status Work::timeline_fences(const Job& job, std::vector<FenceId>& out) const {
  Status status;
  for (const TimelinePoint& wait : job.spec.wait_points) {
    const auto it = timelines.find(wait.timeline);
    if (it == timelines.end()) {
      continue;  // all of its points have signalled, and the last hold is gone
    }
    const Timeline& timeline = it->second;
    if (status.ok()) {
      status = error_of(timeline, wait.point);
    }
    for (const auto& [at, point] : timeline.points) {
      if (point.fenced && !point.done) {
        out.push_back(point.promised_by);
      }
      if (at >= wait.point) {
        break;
      }
    }
  }
  return status;
}

void Work::timeline_publish(Job& job) {
  const FenceId id = job.spec.fence;
  std::set<TimelineId> changed;
  for (const TimelinePoint& at : job.spec.signal_points) {
    Point& point = timelines.find(at.timeline)->second.points.find(at.point)->second;
    FERRY_CHECK(point.promised_by == id && is_promise(point));
    point.fenced = true;
    core.graph.remove(point.node);
    point.node = graph::no_node;
    if (changed.insert(at.timeline).second) {
      FERRY_CHECK(fence_wait(id, {FenceWaiter::Who::timeline, at.timeline}));
    }
  }
  for (const TimelineId timeline : changed) {
    timeline_advance(timeline);
  }
  let_on();
}

void Work::timeline_break(Job& job, Status status) {
  const FenceId id = job.spec.fence;
  for (const TimelinePoint& at : job.spec.wait_points) {
    const auto it = timelines.find(at.timeline);
    if (it == timelines.end()) {
      continue;
    }
    if (const auto held = it->second.held.find(at.point); held != it->second.held.end()) {
      std::erase(held->second, id);
      if (held->second.empty()) {
        it->second.held.erase(held);
      }
    }
    timeline_drop_if_over(at.timeline);
  }
  for (const TimelinePoint& at : job.spec.signal_points) {
    const auto it = timelines.find(at.timeline);
    if (it == timelines.end()) {
      continue;
    }
    Timeline& timeline = it->second;
    const auto point = timeline.points.find(at.point);
    if (point == timeline.points.end() || point->second.promised_by != id || !is_promise(point->second)) {
      continue;
    }
    point->second.done = true;
    point->second.status = status;
    core.graph.remove(point->second.node);
    point->second.node = graph::no_node;
    for (auto held = timeline.held.lower_bound(at.point); held != timeline.held.end();
         held = timeline.held.erase(held)) {
      for (const FenceId waiting : held->second) {
        point_known(waiting, status);
      }
    }
    timeline_advance(at.timeline);
  }
  let_on();
}

void Work::timeline_fence_done(TimelineId id, FenceId fence, Status status) {
  const auto it = timelines.find(id);
  FERRY_CHECK(it != timelines.end());
  for (auto& [at, point] : it->second.points) {
    if (point.promised_by == fence && point.fenced && !point.done) {
      point.done = true;
      point.status = status;
    }
  }
  timeline_advance(id);
  let_on();
}

// --- checks ----------------------------------------------------------------------------------------------------------

void Work::verify_timelines() const {
  FERRY_CHECK(letting_on.empty() && !letting_on_now);
  for (const auto& [id, timeline] : timelines) {
    FERRY_CHECK_EQ(id, timeline.id);
    FERRY_CHECK(!timeline.holds.empty() || !timeline.points.empty() || !timeline.held.empty());
    FERRY_CHECK(timeline.points.empty() || timeline.points.begin()->first > timeline.value);  // I-23
    FERRY_CHECK(timeline.points.empty() || !timeline.points.begin()->second.done);            // I-23
    FERRY_CHECK(timeline.error_point == 0 ? timeline.error.ok()
                                          : !timeline.error.ok() && timeline.error_point <= timeline.value);
    for (const auto& [at, point] : timeline.points) {
      FERRY_CHECK(point.done || jobs.contains(point.promised_by));
      FERRY_CHECK_EQ(core.graph.exists(point.node), core.config.wait_graph && is_promise(point));
      if (point.fenced && !point.done) {
        const auto fence = fences.find(point.promised_by);
        FERRY_CHECK(fence != fences.end() && fence->second.visible && !fence->second.signalled);
        const auto& waiters = fence->second.waiters;
        FERRY_CHECK_EQ(std::count(waiters.begin(), waiters.end(), FenceWaiter{FenceWaiter::Who::timeline, id}), 1);
      }
    }
    const std::uint64_t known = fenced_up_to(timeline);
    for (const auto& [at, waiting] : timeline.held) {
      FERRY_CHECK(at > known && !waiting.empty());  // I-23
      for (const FenceId job : waiting) {
        const auto it = jobs.find(job);
        FERRY_CHECK(it != jobs.end() && it->second.points_left > 0);
      }
    }
  }
}

std::uint64_t Work::digest_timelines() const {
  Digest d;
  for (const auto& [id, timeline] : timelines) {
    d.add(id).add(timeline.value).add(timeline.error_point).add(timeline.error).add(timeline.holds.size());
    for (const auto& [client, holds] : timeline.holds) {
      d.add(client).add(holds);
    }
    d.add(timeline.points.size());
    for (const auto& [at, point] : timeline.points) {
      d.add(at).add(point.promised_by).add((point.fenced ? 1U : 0U) | (point.done ? 2U : 0U)).add(point.status);
    }
    for (const auto& [at, waiting] : timeline.held) {
      d.add(at).add(waiting.size());
      for (const FenceId job : waiting) {
        d.add(job);
      }
    }
  }
  return d.value();
}

}  // namespace ferry::core

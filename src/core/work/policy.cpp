// What a policy lets reclaim wait for. `query` asks the fence, which asks everything that it waits for; `track` asks the
// wait graph. Everything unknown says that it may deadlock.
#include <algorithm>
#include <bit>
#include <set>

#include "core/impl.h"

namespace ferry::core {
namespace {

unsigned count_of(std::uint64_t mask) { return static_cast<unsigned>(std::popcount(mask)); }

}  // namespace

bool Work::may_wait(const AllocContext& context, FenceId fence, graph::NodeId from) {
  const auto it = jobs.find(fence);
  if (it == jobs.end()) {
    return true;  // it has signalled
  }
  const Policy policy = model(it->second.spec.device).policy;
  const auto either = [&](Policy p) {
    return policy == p || (context.device < devices.size() && model(context.device).policy == p);
  };
  bool refused = policy == Policy::pinned;
  if (!refused && either(Policy::query)) {
    refused = may_deadlock(fence);
  }
  if (!refused && either(Policy::track)) {
    refused = closes_circle(context, fence, from);
  }
  if (refused) {
    ++core.stats.fence_waits_refused;
  }
  return !refused;
}

/// Would whoever asks then wait for itself? Without a node of its own, it is its faults, or its job.
bool Work::closes_circle(const AllocContext& context, FenceId fence, graph::NodeId from) {
  std::vector<graph::NodeId> asking;
  if (from != graph::no_node) {
    asking.push_back(from);
  }
  if (context.what == AllocContext::For::fault && context.device < devices.size()) {
    const WorkDevice& dev = devices[context.device];
    for (auto it = dev.faults.lower_bound({context.client, 0}); it != dev.faults.end(); ++it) {
      if (it->first.first != context.client) {
        break;
      }
      if (context.cu >= dev.model.cu_count || (it->second.cu_mask >> context.cu & 1) != 0) {
        asking.push_back(it->second.node);
      }
    }
  } else if (const auto job = jobs.find(context.fence); job != jobs.end()) {
    asking.push_back(job->second.node);
  }
  const graph::NodeId to = fences.at(fence).node;
  for (const graph::NodeId node : asking) {
    const graph::Circle circle = core.graph.would_close(node, to);
    if (!circle.empty()) {
      last_refusal = core.graph.sentences(circle);
      return true;
    }
  }
  return false;
}

bool Work::may_deadlock(FenceId fence) const {
  if (core.planted(PlantedBug::query_says_no)) {
    return false;
  }
  std::set<FenceId> asked;
  std::vector<FenceId> open{fence};
  while (!open.empty()) {
    const FenceId id = open.back();
    open.pop_back();
    const auto known = fences.find(id);
    if (!asked.insert(id).second || known == fences.end() || known->second.signalled) {
      continue;
    }
    if (known->second.is_array) {
      // Of one that needs any part, all are asked: which will be the first nobody knows.
      open.insert(open.end(), known->second.parts.begin(), known->second.parts.end());
      continue;
    }
    const auto it = jobs.find(id);
    if (it == jobs.end() || !known->second.visible) {
      return true;
    }
    const Job& job = it->second;
    for (const Job::Dependency& dependency : job.ordered_by) {
      open.push_back(dependency.fence);
    }
    if (job.spec.engine == Engine::graphics && job.stage != Job::Stage::running && units_may_deadlock(job)) {
      return true;
    }
    // Copy and video: they run to their end, and those ahead in the queue depend on nothing any more.
  }
  return false;
}

/// Of the units that are free, held by jobs, or held by compute that can leave, enough for each job that waits for some.
bool Work::units_may_deadlock(const Job& job) const {
  const DeviceId device = job.spec.device;
  const unsigned certain = count_of(all_units(device) & ~stuck_units(device));
  unsigned needed = job.spec.cus_min;
  for (const FenceId other : devices[device].queued[static_cast<unsigned>(Engine::graphics)]) {
    needed = std::max(needed, jobs.at(other).spec.cus_min);
  }
  return certain < needed;
}

std::uint64_t Work::repair_reserve_pages() const {
  std::uint64_t granules = 0;
  for (const WorkDevice& dev : devices) {
    if (dev.model.policy == Policy::track) {
      granules += dev.model.repair_reserve_granules != 0 ? dev.model.repair_reserve_granules : dev.model.cu_count;
    }
  }
  return granules * core.config.granularity_pages;
}

}  // namespace ferry::core

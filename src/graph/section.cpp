// From a fence's becoming visible to its signal: what it may not wait for in between, and that it ends, once.
#include <algorithm>

#include "graph/impl.h"

namespace ferry::graph {

namespace {
enum State : std::uint8_t { undecided, bad };
}  // namespace

void Graph::begin_section(NodeId fence) {
  Impl& g = *impl_;
  const Index index = g.find(fence);
  if (index == nil || g.nodes[index].section == Section::visible) return;
  if (g.nodes[index].section == Section::signalled) {
    g.report(Report::What::signalled_twice, g.name(index) + " became visible again after it had signalled");
    return;
  }
  g.nodes[index].section = Section::visible;
  ++g.open_sections;
  g.check_section_begin(index);
}

void Graph::end_section(NodeId fence) {
  Impl& g = *impl_;
  const Index index = g.find(fence);
  if (index == nil) return;
  switch (g.nodes[index].section) {
    case Section::none:
      g.report(Report::What::signal_outside, g.name(index) + " signalled, but never became visible");
      break;
    case Section::signalled: g.report(Report::What::signalled_twice, g.name(index) + " signalled twice"); return;
    case Section::visible: --g.open_sections; break;
  }
  g.nodes[index].section = Section::signalled;
}

void Graph::expect_no_sections() {
  for (Index node = 0; node < impl_->nodes.size(); ++node) {
    if (impl_->nodes[node].alive && impl_->nodes[node].section == Section::visible) impl_->report_never_signalled(node);
  }
}

void Graph::Impl::report_never_signalled(Index fence) {
  std::string text = name(fence) + " became visible and never signalled";
  if (nodes[fence].ins != 0) {
    text += "; ";
    for (Index e = nodes[fence].first_in; e != nil; e = edges[e].next_in) {
      if (e != nodes[fence].first_in) text += ", ";
      text += name(edges[e].from);
    }
    text += nodes[fence].ins == 1 ? " waits for it" : " wait for it";
  }
  report(Report::What::never_signalled, std::move(text));
}

// Which nodes of `reach` cannot get past something forbidden: the smallest such set, from the forbidden ones up.
void Graph::Impl::decide_forbidden() {
  queue.clear();
  for (const Index node : reach) {
    if ((forbidden_classes & bit(nodes[node].cls)) == 0) continue;
    marks[node].state = bad;
    queue.push_back(node);
  }
  for (std::size_t i = 0; i < queue.size(); ++i) {
    for (Index e = nodes[queue[i]].first_in; e != nil; e = edges[e].next_in) {
      const Index waiter = edges[e].from;
      Mark& mark = marks[waiter];
      if (mark.epoch != epoch || mark.state == bad) continue;
      // `left` is what the waiter had when it was collected; other visible fences were collected without.
      if (mark.left == 0 || (--mark.left != 0 && nodes[waiter].any)) continue;
      mark.state = bad;
      queue.push_back(waiter);
    }
  }
}

// Everything that `root` cannot proceed before, but not past other visible fences: their sins are told as theirs.
void Graph::Impl::collect_section(Index root) {
  new_epoch();
  reach.clear();
  const auto add = [this, root](Index node) {
    if (marks[node].epoch == epoch) return;
    const bool closed = node != root && nodes[node].section == Section::visible;
    marks[node] = {.epoch = epoch, .state = undecided, .left = closed ? 0 : nodes[node].outs};
    reach.push_back(node);
  };
  add(root);
  for (std::size_t i = 0; i < reach.size(); ++i) {
    if (marks[reach[i]].left == 0) continue;
    for (Index e = nodes[reach[i]].first_out; e != nil; e = edges[e].next_out) add(edges[e].to);
  }
}

void Graph::Impl::check_wait_in_section(Index from, Index to) {
  if (forbidden_classes == 0 || (nodes[from].section != Section::visible && nodes[from].first_in == nil)) return;
  if ((forbidden_classes & bit(nodes[to].cls)) == 0 && nodes[to].first_out == nil) return;
  // Every visible fence that `from` holds up, and nobody behind such a fence.
  up.assign(1, from);
  fences.clear();
  new_epoch();
  marks[from].epoch = epoch;
  for (std::size_t i = 0; i < up.size(); ++i) {
    if (nodes[up[i]].section == Section::visible) {
      fences.push_back(up[i]);
      continue;
    }
    for (Index e = nodes[up[i]].first_in; e != nil; e = edges[e].next_in) {
      if (marks[edges[e].from].epoch == epoch) continue;
      marks[edges[e].from].epoch = epoch;
      up.push_back(edges[e].from);
    }
  }
  for (const Index fence : fences) check_section_begin(fence);
}

void Graph::Impl::check_section_begin(Index fence) {
  if (forbidden_classes == 0) return;
  collect_section(fence);
  decide_forbidden();
  if (marks[fence].state != bad) return;
  // The shortest way to something forbidden, along those that cannot get past one.
  queue.clear();
  queue.push_back(fence);
  marks[fence].reached_by = nil;
  Index last = nil;
  for (std::size_t i = 0; i < queue.size() && last == nil; ++i) {
    for (Index e = nodes[queue[i]].first_out; e != nil && last == nil; e = edges[e].next_out) {
      Mark& mark = marks[edges[e].to];
      if (mark.epoch != epoch || mark.state != bad || mark.reached_by != nil || edges[e].to == fence) continue;
      mark.reached_by = e;
      if ((forbidden_classes & bit(nodes[edges[e].to].cls)) != 0) {
        last = e;
      } else if (nodes[edges[e].to].section != Section::visible) {
        queue.push_back(edges[e].to);
      }
    }
  }
  if (last == nil) return;
  const ClassId forbidden = nodes[edges[last].to].cls;
  std::vector<Step> steps;
  std::uint32_t kind = static_cast<std::uint32_t>(nodes[fence].cls) << 16 | forbidden;
  kind |= static_cast<std::uint32_t>(nodes[edges[last].from].cls) << 8;
  for (Index e = last; e != nil; e = marks[edges[e].from].reached_by) {
    steps.push_back({id_of(edges[e].from), id_of(edges[e].to), edges[e].how});
  }
  if (!section_waits.insert(kind).second) return;
  std::reverse(steps.begin(), steps.end());
  report(Report::What::wait_in_section, name(fence) + " is visible, and before it signals nothing may wait for a " +
                                            classes[forbidden].name + ": " + sentences(steps));
}

}  // namespace ferry::graph

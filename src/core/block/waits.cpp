// Operations in the wait graph. Only those that wait for something that may never come have a node: memory, or VRAM
// whose eviction waits for memory. All others wait for the machine, which answers.
#include "core/impl.h"

namespace ferry::core {

namespace {
void make_node(Core::Impl& core, Op& op) {
  if (core.graph.exists(op.node)) {
    return;
  }
  op.node = core.graph.add(core.classes.operation, op.serial);
  const PageSpan span = core.granule_span(*op.block, op.granule);
  core.graph.describe(op.node, "on page % of client %", span.first, op.block->client->id);
  for (const Waiter& waiter : op.waiters) {
    core.show_fault(op, waiter);
  }
}
}  // namespace

void Core::Impl::show_fault(Op& op, const Waiter& waiter) {
  if (!config.wait_graph || !graph.exists(op.node)) {
    return;
  }
  const graph::NodeId fault = work.fault_node(op.block->client->id, waiter.device, waiter.token.value);
  if (fault != graph::no_node) {
    work.add_wait(fault, op.node);
  }
}

void Core::Impl::show_memory_wait(Op& op, graph::NodeId memory) {
  if (!config.wait_graph) {
    return;
  }
  make_node(*this, op);
  work.add_wait(op.node, memory, "needs");
  if (granule_state(op).slot != none_index) {
    show_slot_line(granule_state(op).owner);
  }
}

/// Those who wait for VRAM of the device wait for its evictions, any of them.
void Core::Impl::show_slot_line(DeviceId d) {
  Device& device = devices[d];
  if (!config.wait_graph || device.waiting.empty()) {
    return;
  }
  std::vector<graph::NodeId>& evictions = scratch_nodes;
  evictions.clear();
  bool others = false;
  for (const Op& op : ops) {
    if (op.in_use && granule_state(op).slot != none_index && granule_state(op).owner == d) {
      if (op.stage == Stage::wait_memory && graph.exists(op.node)) {
        evictions.push_back(op.node);
      } else {
        others = true;
      }
    }
  }
  graph.remove(device.node);
  device.node = graph::no_node;
  if (evictions.empty() || others) {
    return;  // something ends by itself, and the line moves
  }
  device.node = graph.add(classes.line, d, graph::Needs::any);
  work.circle_found(graph.wait_any(device.node, evictions, "needs the eviction of"));
  for (const OpIndex index : device.waiting) {
    make_node(*this, ops[index]);
    work.add_wait(ops[index].node, device.node, "waits in");
  }
}

/// An operation has ended: those that are left may all wait for memory.
void Core::Impl::show_slot_lines() {
  if (memory_line_ops == 0) {
    return;
  }
  for (DeviceId d = 0; d < devices.size(); ++d) {
    show_slot_line(d);
  }
}

void Core::Impl::hide_waits(Op& op) {
  if (op.node != graph::no_node) {
    graph.remove(op.node);
    op.node = graph::no_node;
  }
}

}  // namespace ferry::core

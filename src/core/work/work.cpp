// The parts together: clients and devices come and go, answers, time.
#include <algorithm>

#include "core/impl.h"

namespace ferry::core {

Work::Work(Core::Impl& c) : core(c) {
  bool rules_hold = true;
  for (unsigned d = 0; d < core.config.device_count; ++d) {
    WorkDevice& device = devices.emplace_back();
    if (d < core.config.models.size()) {
      device.model = core.config.models[d];
    }
    FERRY_CHECK(device.model.cu_count >= 1 && device.model.cu_count <= 64);
    FERRY_CHECK_LE(device.model.reserved_cus, device.model.cu_count);
    const Policy policy = device.model.policy;
    asks_fences = asks_fences || policy == Policy::query || policy == Policy::track;
    rules_hold = rules_hold && policy != Policy::query && policy != Policy::track && policy != Policy::pinned;
    core.config.wait_graph = core.config.wait_graph || policy == Policy::track;
    device.units.resize(device.model.cu_count);
    device.queued.resize(engine_count);
    device.running.resize(engine_count);
  }
  using graph::Graph;
  graph::Graph& g = core.graph;
  auto& cls = core.classes;
  // Policies query, track and pinned let a visible fence wait for a fault, and see to it elsewhere that this ends.
  const auto forbidden = rules_hold ? Graph::InSection::forbidden : Graph::InSection::allowed;
  cls.fault = g.define("fault", forbidden);
  cls.operation = g.define("operation");
  cls.memory = g.define("memory", forbidden);
  cls.fence = g.define("fence");
  cls.job = g.define("job");
  cls.unit = g.define("compute unit");
  cls.compute = g.define("a free unit for job");
  cls.engine = g.define("engine");
  cls.line = g.define("the line for VRAM of device");
  cls.gate = g.define("gate");
  cls.buffer = g.define("buffer");
  cls.point = g.define("timeline point");
  cls.machine = g.define("the machine");
  cls.unseen = g.define("job");  // not visible yet: it may wait for what a visible one may not
  g.resource(cls.unit);
  g.ordered(cls.fence, cls.fence);  // arrays: of fences that are visible already
  g.ordered(cls.job, cls.fence);    // jobs wait for fences that were visible before theirs
  g.ordered(cls.job, cls.job);      // queues
  g.ordered(cls.unseen, cls.unseen);
  g.ordered(cls.point, cls.unseen);    // loops of held jobs are refused
  g.ordered(cls.line, cls.operation);  // those that give VRAM back want none
  g.ordered(cls.memory, cls.memory);   // its line
  if (asks_fences) {
    g.ordered(cls.memory, cls.fence);  // each such wait was asked for and found good
  }
  if (core.config.wait_graph) {
    for (DeviceId d = 0; d < devices.size(); ++d) {
      for (unsigned cu = 0; cu < devices[d].units.size(); ++cu) {
        const graph::NodeId node = g.add(cls.unit, cu);
        devices[d].units[cu].node = node;
        if (devices.size() > 1) {
          g.describe(node, "of device %", d);
        }
      }
    }
  }
}

Work::~Work() = default;

void Work::client_open(ClientId) {}

void Work::client_gone(ClientId client) {
  jobs_client_gone(client);
  timelines_client_gone(client);
  buffers_client_gone(client);
  for (DeviceId d = 0; d < devices.size(); ++d) {
    const auto it = devices[d].compute.find(client);
    if (it != devices[d].compute.end()) {
      it->second.demand = 0;
      unit_pump(d);
    }
  }
}

bool Work::client_idle(ClientId client) const {
  for (const auto& [id, job] : jobs) {
    if (job.client == client) {
      return false;
    }
  }
  for (const WorkDevice& dev : devices) {
    if (dev.revokes.contains(client)) {
      return false;
    }
  }
  return buffers_client_idle(client);
}

bool Work::memory_idle(ClientId client) const {
  const auto userptr = userptrs.lower_bound({client, 0});
  return userptr == userptrs.end() || userptr->first != client;
}

void Work::device_attach(ClientId, DeviceId) {}

/// The process is gone, and with it what held its units. Jobs that run there are answered by the machine.
void Work::device_gone(ClientId client, DeviceId device) {
  buffers_device_gone(client, device);
  WorkDevice& dev = devices[device];
  const auto compute = dev.compute.find(client);
  if (compute == dev.compute.end()) {
    return;
  }
  for (auto it = dev.faults.lower_bound({client, 0}); it != dev.faults.end() && it->first.first == client;
       it = dev.faults.lower_bound({client, 0})) {
    fault_ends(client, device, it->first.second);
  }
  for (unsigned cu = 0; cu < dev.units.size(); ++cu) {
    if (dev.units[cu].holder == Unit::Holder::compute && dev.units[cu].client == client) {
      unit_free(device, cu);
    }
  }
  let_revocations_go(device, client);
  dev.compute.erase(compute);
  unit_pump(device);
}

void Work::action_done(const WorkRef& ref, Status status) {
  switch (ref.what) {
    case WorkRef::What::run_job: job_done(ref.id, status); return;
    case WorkRef::What::revoke_units: units_left(ref, status); return;
    case WorkRef::What::buffer_move:
    case WorkRef::What::buffer_map:
    case WorkRef::What::buffer_revoke:
    case WorkRef::What::buffer_release: buffer_action_done(ref, status); return;
  }
}

void Work::tick() {
  engine_timeouts();
  for (DeviceId d = 0; d < devices.size(); ++d) {
    if (devices[d].due_ns <= core.now_ns) {
      unit_pump(d);
    }
    restore_stopped(d);
  }
  end_circles();
}

std::uint64_t Work::next_tick_ns() const {
  std::uint64_t due_ns = jobs.empty() ? ~std::uint64_t{0} : engine_due_ns();
  for (DeviceId d = 0; d < devices.size(); ++d) {
    due_ns = std::min({due_ns, devices[d].due_ns, restore_due_ns(d)});
  }
  if (circle_ns != 0 && core.config.end_deadlocks) {
    due_ns = std::min(due_ns, circle_ns + core.config.deadlock_ns);
  }
  return due_ns;
}

bool Work::quiescent() const {
  if (!jobs.empty() || !buffers_quiescent()) {
    return false;
  }
  for (const WorkDevice& dev : devices) {
    if (!dev.revokes.empty() || !dev.faults.empty()) {
      return false;
    }
    for (const auto& [client, compute] : dev.compute) {
      if (compute.waiting_ns != 0) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace ferry::core

// The parts together: clients and devices come and go, answers, time.
#include "core/impl.h"

namespace ferry::core {

Work::Work(Core::Impl& c) : core(c) {
  using graph::Graph;
  graph::Graph& g = core.graph;
  auto& cls = core.classes;
  cls.fault = g.define("fault", Graph::InSection::forbidden);
  cls.operation = g.define("operation");
  cls.memory = g.define("memory", Graph::InSection::forbidden);
  cls.fence = g.define("fence");
  cls.job = g.define("job");
  cls.unit = g.define("compute unit");
  cls.compute = g.define("free compute units for job");
  cls.engine = g.define("engine");
  cls.line = g.define("the line of jobs");
  cls.gate = g.define("gate");
  cls.buffer = g.define("buffer");
  cls.point = g.define("timeline point");
  cls.machine = g.define("the machine");
  for (unsigned d = 0; d < core.config.device_count; ++d) {
    WorkDevice& device = devices.emplace_back();
    if (d < core.config.models.size()) {
      device.model = core.config.models[d];
    }
    device.units.resize(device.model.cu_count);
    device.queued.resize(engine_count);
    device.running.resize(engine_count);
  }
}

Work::~Work() = default;

void Work::client_open(ClientId) {}
void Work::client_gone(ClientId) {}
bool Work::client_idle(ClientId) const { return true; }
void Work::device_attach(ClientId, DeviceId) {}
void Work::device_gone(ClientId, DeviceId) {}
void Work::action_done(const WorkRef&, Status) {}
void Work::tick() {}
std::uint64_t Work::next_tick_ns() const { return ~std::uint64_t{0}; }
bool Work::quiescent() const { return true; }
void Work::verify() const {}
std::uint64_t Work::digest() const { return {}; }

}  // namespace ferry::core

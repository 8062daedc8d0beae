// The public face of the core, and what all its parts share: asking, answering, telling.
#include "core/core.h"

#include <algorithm>

#include "core/impl.h"

namespace ferry::core {

Core::Core(const Config& config, Observer* observer) : impl_(std::make_unique<Impl>(config, observer)) {}
Core::~Core() = default;

void Core::client_open(ClientId client) { impl_->client_open(client); }

void Core::client_gone(std::uint64_t now_ns, ClientId client, Cookie cookie) {
  impl_->now_ns = now_ns;
  impl_->client_gone(client, cookie);
}

void Core::device_attach(ClientId client, DeviceId device) { impl_->device_attach(client, device); }

void Core::device_gone(std::uint64_t now_ns, ClientId client, DeviceId device) {
  impl_->now_ns = now_ns;
  impl_->device_gone(client, device);
}

Status Core::alloc(std::uint64_t now_ns, ClientId client, PageSpan span, Placement placement) {
  impl_->now_ns = now_ns;
  return impl_->alloc(client, span, placement);
}

Status Core::free(std::uint64_t now_ns, ClientId client, PageSpan span, Cookie cookie) {
  impl_->now_ns = now_ns;
  return impl_->free(client, span, cookie);
}

Status Core::prefetch(std::uint64_t now_ns, ClientId client, PageSpan span, DeviceId device, Cookie cookie) {
  impl_->now_ns = now_ns;
  return impl_->prefetch(client, span, device, cookie);
}

Status Core::client_fork(std::uint64_t now_ns, ClientId client, Cookie cookie) {
  impl_->now_ns = now_ns;
  return impl_->client_fork(client, cookie);
}

void Core::device_fault(std::uint64_t now_ns, ClientId client, DeviceId device, Page page, Access access,
                        FaultToken token, unsigned cu, std::uint64_t seen) {
  impl_->now_ns = now_ns;
  impl_->device_fault(client, device, page, access, token, cu, seen);
}

void Core::cpu_fault(std::uint64_t now_ns, ClientId client, Page page, Access access) {
  impl_->now_ns = now_ns;
  impl_->cpu_fault(client, page, access);
}

void Core::action_done(std::uint64_t now_ns, ActionId id, Status status) {
  impl_->now_ns = now_ns;
  impl_->action_done(id, status);
}

void Core::tick(std::uint64_t now_ns) {
  impl_->now_ns = now_ns;
  impl_->tick();
  impl_->end_turns();
  impl_->work.tick();
  impl_->reclaim.tick();
  impl_->end_rest();
}

std::uint64_t Core::next_tick_ns() const {
  if (!impl_->resting.empty()) {
    return impl_->now_ns;
  }
  return std::min({impl_->work.next_tick_ns(), impl_->reclaim.next_tick_ns(), impl_->next_turn_ns()});
}

Status Core::buffer_create(std::uint64_t now_ns, ClientId client, BufferId buffer, const BufferSpec& spec) {
  impl_->now_ns = now_ns;
  return impl_->work.buffer_create(client, buffer, spec);
}

Status Core::buffer_open(std::uint64_t now_ns, ClientId client, BufferId buffer) {
  impl_->now_ns = now_ns;
  return impl_->work.buffer_open(client, buffer);
}

Status Core::buffer_close(std::uint64_t now_ns, ClientId client, BufferId buffer) {
  impl_->now_ns = now_ns;
  return impl_->work.buffer_close(client, buffer);
}

Status Core::buffer_map(std::uint64_t now_ns, ClientId client, BufferId buffer, Page at) {
  impl_->now_ns = now_ns;
  return impl_->work.buffer_map(client, buffer, at);
}

Status Core::buffer_unmap(std::uint64_t now_ns, ClientId client, Page at, Cookie cookie) {
  impl_->now_ns = now_ns;
  return impl_->work.buffer_unmap(client, at, cookie);
}

void Core::userptr_invalidate(std::uint64_t now_ns, ClientId client, PageSpan span) {
  impl_->now_ns = now_ns;
  impl_->work.userptr_invalidate(client, span);
}

Status Core::fence_array(std::uint64_t now_ns, ClientId client, FenceId fence, const std::vector<FenceId>& parts,
                         bool any) {
  impl_->now_ns = now_ns;
  return impl_->work.fence_array(client, fence, parts, any);
}

Status Core::fence_deadline(std::uint64_t now_ns, FenceId fence, std::uint64_t deadline_ns) {
  impl_->now_ns = now_ns;
  return impl_->work.fence_deadline(fence, deadline_ns);
}

FenceInfo Core::fence_info(FenceId fence) const { return impl_->work.fence_info(fence); }
void Core::fence_forget(FenceId fence) { impl_->work.fence_forget(fence); }

Status Core::timeline_create(std::uint64_t now_ns, ClientId client, TimelineId timeline) {
  impl_->now_ns = now_ns;
  return impl_->work.timeline_create(client, timeline);
}

Status Core::timeline_open(std::uint64_t now_ns, ClientId client, TimelineId timeline) {
  impl_->now_ns = now_ns;
  return impl_->work.timeline_open(client, timeline);
}

Status Core::timeline_close(std::uint64_t now_ns, ClientId client, TimelineId timeline) {
  impl_->now_ns = now_ns;
  return impl_->work.timeline_close(client, timeline);
}

Status Core::timeline_signal(std::uint64_t now_ns, ClientId client, TimelinePoint point) {
  impl_->now_ns = now_ns;
  return impl_->work.timeline_signal(client, point);
}

std::uint64_t Core::timeline_value(TimelineId timeline) const { return impl_->work.timeline_value(timeline); }

Status Core::job_submit(std::uint64_t now_ns, ClientId client, const JobSpec& spec, Cookie cookie) {
  impl_->now_ns = now_ns;
  return impl_->work.job_submit(client, spec, cookie);
}

void Core::job_cancel(std::uint64_t now_ns, ClientId client, FenceId fence) {
  impl_->now_ns = now_ns;
  impl_->work.job_cancel(client, fence);
}

const std::string& Core::last_loop() const { return impl_->work.last_loop; }

void Core::compute_demand(std::uint64_t now_ns, ClientId client, DeviceId device, unsigned cus) {
  impl_->now_ns = now_ns;
  impl_->work.compute_demand(client, device, cus);
}

std::uint64_t Core::compute_units(ClientId client, DeviceId device) const {
  return impl_->work.compute_units(client, device);
}

void Core::pressure(std::uint64_t now_ns, std::uint64_t pages) {
  impl_->now_ns = now_ns;
  impl_->reclaim.pressure(pages);
}

void Core::set_system_budget(std::uint64_t now_ns, std::uint64_t pages) {
  impl_->now_ns = now_ns;
  impl_->reclaim.set_budget(pages);
}

BufferInfo Core::buffer_info(BufferId buffer) const { return impl_->work.buffer_info(buffer); }

std::vector<std::string> Core::take_reports() {
  std::vector<std::string> out;
  for (auto& report : impl_->graph.take_reports()) {
    out.push_back(std::move(report.text));
  }
  return out;
}

std::vector<graph::Report> Core::take_graph_reports() { return impl_->graph.take_reports(); }

std::string Core::waits() const { return impl_->graph.dump(); }
std::uint64_t Core::digest() const { return impl_->digest(); }

void Core::take_actions(std::vector<Action>& out) {
  out.clear();
  out.swap(impl_->actions);
}

bool Core::has_actions() const { return !impl_->actions.empty(); }
SpanState Core::span_state(ClientId client, PageSpan span) const { return impl_->span_state(client, span); }
bool Core::is_pinned(ClientId client, PageSpan span) const {
  const Client* c = impl_->find_client(client);
  return c != nullptr && impl_->pinned(*c, span);
}
Residency Core::query(ClientId client, Page page) const { return impl_->query(client, page); }
const Stats& Core::stats() const { return impl_->stats; }

Stats Core::client_stats(ClientId client) const {
  if (const Client* c = impl_->find_client(client)) {
    return c->stats;
  }
  const auto gone = impl_->gone_stats.find(client);
  return gone == impl_->gone_stats.end() ? Stats{} : gone->second;
}

std::uint64_t Core::vram_used_pages(DeviceId device) const { return impl_->devices[device].chunk_owned * block_pages; }

unsigned Core::wave_limit(DeviceId device) const { return impl_->devices[device].throttle.limit(); }

bool Core::quiescent() const { return impl_->quiescent(); }
void Core::verify() const { impl_->verify(); }

// --- shared ----------------------------------------------------------------------------------------------------------

Core::Impl::Impl(const Config& c, Observer* o) : config(c), observer(o), classes(), work(*this), reclaim(*this) {
  FERRY_CHECK(config.granularity_pages >= 1 && config.granularity_pages <= block_pages);
  FERRY_CHECK_EQ(config.granularity_pages & (config.granularity_pages - 1), 0U);
  FERRY_CHECK(config.device_count <= max_devices);
  devices.resize(config.device_count);
  scratch_granules.reserve(std::max<std::size_t>(block_pages, config.speculation_granules));
  for (auto& device : devices) {
    device.chunk_total = config.vram_pages / block_pages;
    device.victims.configure(config.victims, device.chunk_total * slots_per_chunk());
    device.throttle.configure(config.waves_per_cu, device.chunk_total * slots_per_chunk());
  }
}

Action& Core::Impl::emit(Verb verb, const Client& client) {
  Action& action = actions.emplace_back();
  action.verb = verb;
  action.client = client.id;
  return action;
}

std::uint32_t Core::Impl::new_pending() {
  std::uint32_t index = 0;
  if (pending_holes.empty()) {
    index = static_cast<std::uint32_t>(pendings.size());
    pendings.emplace_back();
  } else {
    index = pending_holes.back();
    pending_holes.pop_back();
  }
  Pending& pending = pendings[index];
  const std::uint32_t generation = pending.generation + 1;
  pending = {};
  pending.generation = generation;
  pending.in_use = true;
  ++pending_in_use;
  return index;
}

namespace {
ActionId id_of(std::uint32_t index, std::uint32_t generation) {
  return (std::uint64_t{generation} << 32) | (std::uint64_t{index} + 1);
}
}  // namespace

Action& Core::Impl::ask(Verb verb, Op& op, PageSpan pages) {
  const std::uint32_t index = new_pending();
  Pending& pending = pendings[index];
  pending.op = op.self;
  pending.op_serial = op.serial;
  pending.verb = verb;
  pending.device = op.device;
  pending.client = op.block->client;
  pending.process = op.device == no_device ? 0 : op.block->client->devices[op.device].process;
  pending.pages = pages;
  ++op.outstanding;
  Action& action = emit(verb, *op.block->client);
  action.id = id_of(index, pending.generation);
  action.device = op.device;
  action.cause = op.cause;
  action.pages = pages;
  return action;
}

Action& Core::Impl::ask_client(Verb verb, Client& client, std::uint32_t& index) {
  index = new_pending();
  Pending& pending = pendings[index];
  pending.verb = verb;
  pending.client = &client;
  ++client.upkeep;
  Action& action = emit(verb, client);
  action.id = id_of(index, pending.generation);
  return action;
}

void Core::Impl::action_done(ActionId id, Status status) {
  const auto index = static_cast<std::uint32_t>((id & 0xffff'ffff) - 1);
  FERRY_CHECK_LT(index, pendings.size());
  FERRY_CHECK(pendings[index].in_use);
  FERRY_CHECK_EQ(pendings[index].generation, static_cast<std::uint32_t>(id >> 32));
  const Pending pending = pendings[index];
  pendings[index].in_use = false;
  pending_holes.push_back(index);
  --pending_in_use;
  if (pending.is_work) {
    work.action_done(pending.work, status);
  } else if (pending.verb == Verb::release_chunk) {
    --pending.client->upkeep;
    release_done(pending);
  } else if (pending.verb == Verb::discard_system && pending.op == none_index) {
    --pending.client->upkeep;
    if (pending.request == none_index) {
      ranges_discarded(*pending.client);
    } else {
      free_forgotten(pending.request);
    }
  } else {
    op_action_done(pending, status);
  }
}

Action& Core::Impl::emit_for(Verb verb, ClientId client) {
  Action& action = actions.emplace_back();
  action.verb = verb;
  action.client = client;
  return action;
}

Action& Core::Impl::ask_work(Verb verb, ClientId client, const WorkRef& ref) {
  const std::uint32_t index = new_pending();
  Pending& pending = pendings[index];
  pending.verb = verb;
  pending.is_work = true;
  pending.work = ref;
  Action& action = emit_for(verb, client);
  action.id = id_of(index, pending.generation);
  return action;
}

void Core::Impl::reply_to(Cookie cookie, ClientId client, Status status) {
  Action& action = emit_for(Verb::reply, client);
  action.cookie = cookie;
  action.status = status;
}

void Core::Impl::reply(Cookie cookie, const Client& client, Status status) {
  Action& action = emit(Verb::reply, client);
  action.cookie = cookie;
  action.status = status;
}

void Core::Impl::tell(EventKind kind, const Client& client, DeviceId device, PageSpan pages, Cause cause, Access access,
                      Place to, Code status, DeviceId from) {
  if (observer == nullptr) {
    return;
  }
  Event event;
  event.time_ns = now_ns;
  event.kind = kind;
  event.cause = cause;
  event.to = to;
  event.access = access;
  event.device = device;
  event.from = from;
  event.status = status;
  event.client = client.id;
  event.pages = pages;
  observer->on_event(event);
}

}  // namespace ferry::core

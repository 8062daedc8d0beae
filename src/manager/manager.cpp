#include "manager/manager.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <thread>

#include "linux/futex.h"
#include "manager/log.h"
#include "manager/report.h"
#include "manager/text_file.h"

namespace ferry::manager {
namespace {

/// Records taken from one port before the others have their turn.
constexpr std::uint32_t records_a_turn = 64;
constexpr unsigned faults_a_turn = 32;
constexpr std::uint64_t userfault_poll_ns = 1'000;
constexpr std::uint64_t event_poll_ns = 20'000;
constexpr std::uint64_t tick_ns = 1'000'000'000;
/// While an application forks, its threads wait for so long at most and a little more (executor/fork.cpp).
constexpr int gate_look_ms = 200;
/// What a child of a fork waits for was refused by its kernel for the moment; nothing tells when it would not be.
constexpr int children_look_ms = 1;
constexpr std::uint64_t yield_after_ns = 20'000;
constexpr std::uint64_t yield_ns = 25'000;
/// Looks at the rings between two turns: long enough to spare clock readings, short beside userfault_poll_ns.
constexpr unsigned quick_looks = 16;
/// Records that make no sense before a peer is ended: a race cannot produce any, so this is generous.
constexpr std::uint32_t garbage_max = 256;

unsigned cpu_count() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<unsigned>(CPU_COUNT(&set));
  return std::max(1U, std::thread::hardware_concurrency());
}

// epoll data: source 8 bits, device 8 bits, serial 48 bits.
constexpr std::uint64_t event_key(unsigned source, DeviceId device, std::uint64_t serial) {
  return (std::uint64_t{source} << 56) | (std::uint64_t{device} << 48) | serial;
}

}  // namespace

Manager::Manager(const ManagerConfig& config) : config_(config), incoming_(std::make_unique<linux::Incoming>()) {}

Manager::~Manager() {
  // Device processes are this manager's to end; applications see the connection close.
  for (auto& [serial, client] : connections_) {
    for (const DevicePeer& peer : client->devices) peer.process.kill();
  }
  // Its threads use the memory of applications until they have ended.
  executor_.reset();
}

Result<std::unique_ptr<Manager>> Manager::make(const ManagerConfig& config) {
  std::unique_ptr<Manager> m(new Manager(config));
  const Status s = m->start();
  if (!s.ok()) return s;
  return m;
}

Status Manager::start() {
  linux::raise_descriptor_limit();
  for (linux::Bell* bell : {&stop_, &copies_bell_}) {
    auto made = linux::Bell::make();
    if (!made) return made.status();
    *bell = std::move(made).value();
  }
  closer_.emplace(copies_bell_);
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return {Code::no_memory, errno};
  watch(stop_.fd(), Source::stop, nullptr, no_device, EPOLLIN);
  watch(copies_bell_.fd(), Source::copies, nullptr, no_device, EPOLLIN | EPOLLET);

  now_ns_ = linux::monotonic_ns();
  recorder_ = std::make_unique<Recorder>(now_ns_, !config_.trace_file.empty());
  core_ = std::make_unique<core::Core>(config_.machine.core_config(), recorder_.get());
  recorder_->watch(core_->stats());
  const unsigned cpus = cpu_count();
  const unsigned threads = config_.copy_threads != 0 ? config_.copy_threads : std::clamp(cpus - 1, 1U, 4U);
  Household& household = *this;
  const core::Config memory = config_.machine.core_config();
  if (memory.system_pages != 0) {
    pressure_ = linux::Pressure::open();
    if (pressure_.stall_fd() >= 0) watch(pressure_.stall_fd(), Source::stall, nullptr, no_device, EPOLLPRI);
    if (pressure_.events_fd() >= 0)
      watch(pressure_.events_fd(), Source::cgroup, nullptr, no_device, EPOLLPRI | EPOLLET);
  }
  if (memory.store_pages != 0 && config_.machine.keep_free != 0)
    watermark_ = Watermark(memory.system_pages, memory.granularity_pages);
  std::unique_ptr<linux::Store> store;
  if (linux::StoreConfig how = config_.machine.store_config(); config_.machine.store_room_bytes() != 0) {
    how.threads = threads;
    auto made = linux::Store::make(how, copies_bell_);
    if (!made) {
      log("cannot make the store in '%s': %s; choose another --store-dir, or '' for no file", how.directory.c_str(),
          std::strerror(made.status().sys_errno));
      return made.status();
    }
    store = std::move(made).value();
  }
  executor_ = std::make_unique<Executor>(*core_, household, config_, copies_bell_, threads, std::move(store));

  if (config_.is_private()) {
    Client* client = add_connection(linux::Fd(config_.private_fd));
    if (client == nullptr) return Code::bad_message;
  } else {
    auto listener =
        config_.listen_fd >= 0 ? Listener::adopt(linux::Fd(config_.listen_fd)) : Listener::make(config_.socket_path);
    if (!listener) return listener.status();
    listener_ = std::move(listener).value();
    watch(listener_.fd(), Source::listener, nullptr, no_device, EPOLLIN);
  }
  return {};
}

void Manager::watch(int fd, Source source, const Client* client, DeviceId device, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = event_key(static_cast<unsigned>(source), device, client == nullptr ? 0 : client->serial);
  epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
}

void Manager::watch_number(int fd, Source source, std::uint64_t number, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = event_key(static_cast<unsigned>(source), no_device, number);
  epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
}

void Manager::unwatch(int fd) {
  if (fd >= 0) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

// --- the loop --------------------------------------------------------------------------------------------------------

Status Manager::run() {
  last_progress_ns_ = now_ns_ = linux::monotonic_ns();
  std::uint64_t then = now_ns_;
  while (!stopping_) {
    const bool progress = turn();
    const std::uint64_t now = linux::monotonic_ns();
    (progress ? time_.manager_busy_ns : time_.manager_poll_ns) += now - then;
    then = now;
    if (progress || stopping_) {
      last_progress_ns_ = now;
      continue;
    }
    doze_idle(now);
    // What was read out of turn rings no bell.
    const bool anyone = std::any_of(clients_.begin(), clients_.end(),
                                    [](const Client* c) { return c->awake || (!c->told.empty() && !c->closing); });
    const bool copying = executor_->copying() && now - last_progress_ns_ < config_.spin_expecting_ns;
    if (anyone || copying) {
      // Who polls must not keep from running what it waits for; but while events flow, a yield would lose their pace.
      if (now - last_progress_ns_ > yield_after_ns && now - last_yield_ns_ > yield_ns) {
        sched_yield();
        last_yield_ns_ = linux::monotonic_ns();
      }
      for (unsigned i = 0; i < quick_looks && !something_ready(); ++i) cpu_relax();
      continue;
    }
    sleep();
    const std::uint64_t woken = linux::monotonic_ns();
    time_.manager_sleep_ns += woken - then;
    then = woken;
    last_progress_ns_ = woken;
  }
#ifndef NDEBUG
  if (core_->quiescent()) core_->verify();
#endif
  Status status;
  finish_files(status);
  return status;
}

/// A look at the rings alone: loads and no system call.
bool Manager::something_ready() const {
  if (executor_->has_completions()) return true;
  for (const Client* client : clients_) {
    if (!client->awake) continue;
    if (!client->closing && client->agent.port.ready()) return true;
    for (const DevicePeer& peer : client->devices) {
      if (peer.state != DeviceState::attached) continue;
      if (peer.agent.port.ready()) return true;
      for (const ComputeUnit& cu : peer.cus) {
        if (cu.port.ready()) return true;
      }
    }
  }
  return false;
}

/// Takes in whatever is there and has the core's answers performed. False: nothing was there.
bool Manager::turn() {
  now_ns_ = linux::monotonic_ns();
  executor_->set_time(now_ns_);
  bool progress = poll_peers();
  progress |= executor_->poll_copies();
  progress |= executor_->poll_video();
  if (now_ns_ - last_event_poll_ns_ > event_poll_ns) {
    last_event_poll_ns_ = now_ns_;
    poll_events(0);
    advise();
  }
  progress |= serve_forks();
  if (const std::uint64_t pages = watermark_.want(now_ns_, core_->stats().system_pages); pages != 0) {
    core_->pressure(now_ns_, pages);
  }
  if (core_->has_actions()) progress = true;
  executor_->run_actions();
  if (!holding_.empty()) [[unlikely]]
    answer_held();
  show_timelines();
  recorder_->streams().wake_readers();
  if (progress && !work_.leaving.empty()) drop_left_buffers();
  end_dropped();
  if (now_ns_ - last_tick_ns_ > tick_ns || now_ns_ >= core_->next_tick_ns()) tick();
  if (core_->stats().circles != circles_told_) tell_circles();
  return progress;
}

/// Who wants compute units of the device, as the core is to know it. While one process alone has the device, and no
/// graphics jobs are run, it is said to want all, whatever it does, so that a launch needs no manager.
void Manager::share_units(DeviceId device) {
  const auto has_it = [device](const Client* c) { return c->devices[device].state == DeviceState::attached; };
  const bool shared = executor_->runs_graphics() || std::count_if(clients_.begin(), clients_.end(), has_it) > 1;
  for (Client* client : clients_) {
    if (!has_it(client)) continue;
    client->devices[device].control()->units.report_demand.store(shared ? 1 : 0, std::memory_order_seq_cst);
    tell_demand(*client, device);
  }
}

void Manager::tell_demand(Client& client, DeviceId device) {
  DevicePeer& peer = client.devices[device];
  const wire::UnitControl& units = peer.control()->units;
  // The device changes the number first, then looks whether it need say so, or has said so already (ring.h, taken()).
  std::atomic_thread_fence(std::memory_order_seq_cst);
  unsigned demand = static_cast<unsigned>(peer.cus.size());
  if (units.report_demand.load(std::memory_order_relaxed) != 0) {
    demand = std::min<unsigned>(demand, units.demand.load(std::memory_order_relaxed));
  }
  if (demand == peer.demand) return;
  peer.demand = demand;
  core_->compute_demand(now_ns_, client.id, device, demand);
}

/// Passes the core's advice on to the devices.
void Manager::advise() {
  if (executor_->runs_graphics() != graphics_known_) {
    graphics_known_ = true;
    for (unsigned d = 0; d < config_.machine.devices; ++d) share_units(static_cast<DeviceId>(d));
  }
  for (auto& client : clients_) {
    for (unsigned d = 0; d < client->devices.size(); ++d) {
      if (wire::DeviceControl* control = client->devices[d].control(); control != nullptr) {
        control->wave_limit.store(core_->wave_limit(static_cast<DeviceId>(d)), std::memory_order_relaxed);
      }
    }
  }
}

void Manager::tick() {
  last_tick_ns_ = now_ns_;
  executor_->check_deadlines();
  relieve();
  core_->tick(now_ns_);
  executor_->run_actions();
  end_dropped();
}

/// Gives memory back where the machine or the cgroup is short of it.
void Manager::relieve() {
  if (config_.machine.system_bytes == 0) return;
  const std::uint64_t pages = pressure_.want(now_ns_, core_->stats().system_pages * page_bytes) / page_bytes;
  if (pages == 0) return;
  ++pressure_events_;
  pressure_pages_ += pages;
  core_->pressure(now_ns_, pages);
}

/// A deadlock, or a broken rule of fences, is told at once, in sentences, while it stands. Who waits is a few facts of the
/// core; nobody has to answer for it to be told.
void Manager::tell_circles() {
  circles_told_ = core_->stats().circles;
  const std::string circle = core_->deadlock();
  if (!circle.empty()) log("deadlock: %s", circle.c_str());
  for (const std::string& report : core_->take_reports()) {
    if (report != circle) log("%s", report.c_str());
  }
}

bool Manager::poll_peers() {
  bool progress = false;
  const bool faults = now_ns_ - last_userfault_poll_ns_ >= userfault_poll_ns;
  if (faults) last_userfault_poll_ns_ = now_ns_;
  // By index: taking records in may end clients, never add any.
  for (std::size_t i = 0; i < clients_.size(); ++i) {
    Client& client = *clients_[i];
    // What was read out of turn, while pages were given, is told by nobody again.
    if (!client.awake && client.told.empty()) continue;
    bool some = poll_client(client);
    if (faults && client.armed_blocks != 0 && !client.closing) some |= poll_userfault(client);
    if ((faults || !client.told.empty()) && client.outside_userfault && !client.closing) some |= poll_outside(client);
    if (some) client.last_event_ns = now_ns_;
    progress |= some;
  }
  return progress;
}

bool Manager::poll_client(Client& client) {
  bool some = false;
  if (!client.closing && client.agent.port.ready()) {
    some = true;
    const bool sane = client.agent.port.poll(records_a_turn, [&](const wire::UpRecord& record) {
      if (record.kind == static_cast<std::uint32_t>(wire::UpKind::done)) {
        executor_->on_done(client, no_device, Executor::no_cu, record);
      } else {
        ++client.garbage;
      }
    });
    if (!sane || client.garbage > garbage_max) drop_client(client, "its control file holds garbage");
  }
  for (DeviceId d = 0; d < client.devices.size(); ++d) {
    if (client.devices[d].state == DeviceState::attached) some |= poll_device(client, d);
  }
  return some;
}

bool Manager::poll_device(Client& client, DeviceId device) {
  DevicePeer& peer = client.devices[device];
  bool some = false;
  bool sane = true;
  for (unsigned cu = 0; cu < peer.cus.size(); ++cu) {
    if (!peer.cus[cu].port.ready()) continue;
    some = true;
    sane &= peer.cus[cu].port.poll(records_a_turn, [&](const wire::UpRecord& record) {
      switch (static_cast<wire::UpKind>(record.kind)) {
        case wire::UpKind::fault: executor_->on_wave_fault(client, device, cu, record); break;
        case wire::UpKind::done: executor_->on_done(client, device, cu, record); break;
        case wire::UpKind::units_left: executor_->on_units_left(client, device, record); break;
        case wire::UpKind::job_done: executor_->on_job_done(client, device, record); break;
        case wire::UpKind::demand: tell_demand(client, device); break;
        case wire::UpKind::kernel_begin:
        case wire::UpKind::kernel_end: {
          KernelEvent event;
          event.now_ns = now_ns_;
          event.time_ns = record.time_ns;
          event.client = client.id;
          event.device = device;
          event.queue = record.queue;
          event.launch = record.launch;
          event.value = record.value;
          if (record.kind == static_cast<std::uint32_t>(wire::UpKind::kernel_end)) {
            recorder_->kernel_end(event);
            break;
          }
          const std::string name = read_kernel_name(peer.queue_file.get(), record.queue, record.launch);
          event.name = name;
          recorder_->kernel_begin(event);
          break;
        }
        default: ++peer.garbage; break;
      }
    });
  }
  if (peer.agent.port.ready()) {
    some = true;
    sane &= peer.agent.port.poll(records_a_turn, [&](const wire::UpRecord& record) {
      switch (static_cast<wire::UpKind>(record.kind)) {
        case wire::UpKind::done: executor_->on_done(client, device, Executor::no_cu, record); break;
        case wire::UpKind::units_left: executor_->on_units_left(client, device, record); break;
        case wire::UpKind::job_done: executor_->on_job_done(client, device, record); break;
        default: ++peer.garbage; break;
      }
    });
  }
  if (!sane || peer.garbage > garbage_max) drop_device(client, device, "its control file holds garbage");
  return some;
}

bool Manager::poll_userfault(Client& client) {
  std::array<uffd_msg, faults_a_turn> messages;
  const int count = client.userfault.read(messages);
  if (count < 0) {
    drop_client(client, "its userfaultfd cannot be read");
    return false;
  }
  for (int i = 0; i < count; ++i) {
    const uffd_msg& m = messages[static_cast<std::size_t>(i)];
    if (m.event != UFFD_EVENT_PAGEFAULT) continue;
    const bool write = (m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0;
    executor_->on_cpu_fault(client, m.arg.pagefault.address, write ? Access::write : Access::read,
                            m.arg.pagefault.feat.ptid);
  }
  return count > 0;
}

// --- sleeping --------------------------------------------------------------------------------------------------------

/// Peers that have been quiet for a while ring the bell from now on.
void Manager::doze_idle(std::uint64_t now) {
  for (Client* client : clients_) {
    if (!client->awake) continue;
    const std::uint64_t patience = client->expected != 0 ? config_.spin_expecting_ns : config_.spin_ns;
    if (now - client->last_event_ns >= patience && doze(*client, now)) client->awake = false;
  }
}

/// True if the client's peers ring from now on and nothing had come before they knew.
bool Manager::doze(Client& client, std::uint64_t now) {
  if (!client.closing) {
    wire::announce_manager_sleep(client.control()->head);
    if (client.agent.port.ready()) {
      client.awake = false;
      client.wake(now);
      return false;
    }
  }
  for (DevicePeer& peer : client.devices) {
    if (peer.state != DeviceState::attached) continue;
    wire::announce_manager_sleep(peer.control()->head);
    bool ready = peer.agent.port.ready();
    for (const ComputeUnit& cu : peer.cus) ready |= cu.port.ready();
    if (ready) {
      client.awake = false;
      client.wake(now);
      return false;
    }
  }
  return true;
}

void Manager::sleep() {
  drop_left_buffers();
  executor_->set_owner_sleeping(true);
  int timeout_ms = -1;
  // Deadlines of what peers owe.
  if (executor_->expecting()) timeout_ms = static_cast<int>(tick_ns / 1'000'000);
  // Slices and time-outs of jobs; a millisecond late at most.
  if (const std::uint64_t next = core_->next_tick_ns(); next != ~std::uint64_t{0}) {
    const std::uint64_t now = linux::monotonic_ns();
    const std::uint64_t left_ms = next <= now ? 0 : (next - now) / 1'000'000 + 1;
    if (timeout_ms < 0 || left_ms < static_cast<std::uint64_t>(timeout_ms)) timeout_ms = static_cast<int>(left_ms);
  }
  if (executor_->has_completions()) timeout_ms = 0;
  const auto at_most = [&](int ms) { timeout_ms = timeout_ms < 0 ? ms : std::min(timeout_ms, ms); };
  if (executor_->gates()) at_most(gate_look_ms);
  if (executor_->children_wait()) at_most(children_look_ms);
  poll_events(timeout_ms);
  executor_->set_owner_sleeping(false);
}

void Manager::poll_events(int timeout_ms) {
  std::array<epoll_event, 32> events;
  const int count = epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), timeout_ms);
  if (timeout_ms != 0) {
    now_ns_ = linux::monotonic_ns();
    executor_->set_time(now_ns_);
  }
  for (int i = 0; i < count; ++i) {
    const std::uint64_t key = events[static_cast<std::size_t>(i)].data.u64;
    const auto source = static_cast<Source>(key >> 56);
    const auto device = static_cast<DeviceId>(key >> 48);
    switch (source) {
      case Source::stop: stopping_ = true; continue;
      case Source::copies:
        if (listener_waits_) listen_again();
        continue;
      case Source::stall:
        pressure_.stalled();
        relieve();
        continue;
      case Source::cgroup: relieve(); continue;
      case Source::listener:
        for (linux::Fd fd = listener_.accept(); fd; fd = listener_.accept()) add_connection(std::move(fd));
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
          // It stays ready, and looking again would find the same: until one is closed.
          log("no descriptors for more applications: raise the limit (ulimit -n)");
          unwatch(listener_.fd());
          listener_waits_ = true;
        }
        continue;
      case Source::fork: on_fork(key & 0xffff'ffff'ffff); continue;
      case Source::fork_memory:
        if (Fork* fork = executor_->find_fork(key & 0xffff'ffff'ffff)) executor_->on_child(*fork);
        continue;
      case Source::token: drop_token(key & 0xffff'ffff'ffff); continue;
      default: break;
    }
    const auto found = connections_.find(key & 0xffff'ffff'ffff);
    if (found == connections_.end()) continue;
    Client& client = *found->second;
    switch (source) {
      case Source::connection: on_connection(client); break;
      case Source::kick: client.wake(now_ns_); break;
      case Source::userfault:
        if (client.closing) break;
        if ((events[static_cast<std::size_t>(i)].events & EPOLLERR) != 0) {
          // Somebody made it blocking, which would make it look ready for ever.
          ++client.garbage;
          fcntl(client.userfault.fd(), F_SETFL, O_NONBLOCK);
          if (client.garbage > garbage_max) drop_client(client, "its userfaultfd does not stay non-blocking");
        }
        if (poll_userfault(client)) client.wake(now_ns_);
        if (client.outside_userfault && poll_outside(client)) client.wake(now_ns_);
        break;
      case Source::application: close_client(client, nullptr); break;
      case Source::device: device_process_ended(client, device); break;
      case Source::device_socket: on_device_socket(client, device); break;
      default: break;
    }
  }
}

void Manager::end_dropped() {
  // Ending one may drop another.
  while (!dropped_.empty()) {
    const Dropped d = dropped_.back();
    dropped_.pop_back();
    const auto found = connections_.find(d.serial);
    if (found == connections_.end()) continue;
    if (d.device == no_device) {
      close_client(*found->second, d.why);
    } else if (found->second->devices[d.device].state == DeviceState::attached ||
               found->second->devices[d.device].state == DeviceState::starting) {
      log("device %u of pid %d is ended: %s", d.device, found->second->process.pid(), d.why);
      end_device(*found->second, d.device);
    }
    executor_->run_actions();
  }
  if (forgotten_.empty()) return;
  for (const std::uint64_t serial : forgotten_) connections_.erase(serial);
  forgotten_.clear();
  if (listener_waits_) listen_again();
}

void Manager::drop_device(Client& client, DeviceId device, const char* why) {
  dropped_.push_back({client.serial, device, why});
}
void Manager::drop_client(Client& client, const char* why) { dropped_.push_back({client.serial, no_device, why}); }

Client* Manager::find_client(ClientId id) {
  if (last_found_ != nullptr && last_found_->id == id) return last_found_;
  for (Client* c : clients_) {
    if (c->id == id) {
      last_found_ = c;
      return c;
    }
  }
  return nullptr;
}

// --- files -----------------------------------------------------------------------------------------------------------

void Manager::finish_files(Status& status) {
  now_ns_ = linux::monotonic_ns();
  const StatsDocument d = document();
  const auto note = [&](const char* what, const std::string& path, Status s) {
    if (s.ok()) return;
    log("cannot write the %s to %s: %s", what, path.c_str(),
        s.sys_errno != 0 ? std::strerror(s.sys_errno) : to_string(s.code));
    status = s;
  };
  if (!config_.stats_file.empty()) {
    TextFile file(config_.stats_file);
    file.write(to_json(d));
    file.write("\n");
    note("statistics", config_.stats_file, file.finish());
  }
  if (!config_.trace_file.empty()) {
    note("trace", config_.trace_file, recorder_->trace()->write(config_.trace_file, now_ns_));
  }
  if (!config_.report_file.empty()) {
    Report report;
    report.title = config_.title.empty() ? "ferryd" : config_.title;
    report.machine = machine_line(config_.machine) + "; " + host_line();
    report.document = d;
    report.samples = recorder_->series().samples(now_ns_);
    report.start_ns = recorder_->series().start_ns();
    note("report", config_.report_file, write_report(config_.report_file, report));
  }
  if (shutdown_serial_ != 0) {
    const auto found = connections_.find(shutdown_serial_);
    if (found != connections_.end()) answer(*found->second, shutdown_request_, status);
  }
}

}  // namespace ferry::manager

// Applications and device processes come and go.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "linux/futex.h"
#include "manager/log.h"
#include "manager/manager.h"

namespace ferry::manager {
namespace {

constexpr std::uint64_t window_bytes_max = std::uint64_t{1} << 46;
constexpr std::uint64_t address_end = std::uint64_t{1} << 47;
constexpr int no_wait = 0;

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // of Linux 6.5
#endif

/// Who connected has ended, so its number may be another process's by now. False where the kernel cannot tell.
bool has_ended_before(int socket) {
  int peer = -1;
  socklen_t size = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &peer, &size) != 0) return errno == ESRCH;
  const linux::Fd held(peer);
  pollfd p{peer, POLLIN, 0};
  return ::poll(&p, 1, 0) > 0;
}

Result<linux::Mapping> map_whole(const linux::Fd& file, std::size_t bytes) {
  auto mapped = linux::Mapping::map(file.get(), 0, bytes);
  return mapped;
}

}  // namespace

// --- applications ----------------------------------------------------------------------------------------------------

Client* Manager::add_connection(linux::Fd socket) {
  if (!socket || !linux::is_message_socket(socket.get())) return nullptr;
  ::fcntl(socket.get(), F_SETFD, FD_CLOEXEC);
  const auto who = linux::peer_credentials(socket.get());
  if (!who) return nullptr;
  auto client = std::make_unique<Client>();
  client->serial = next_serial_++;
  client->socket = std::move(socket);
  client->uid = who.value().uid;
  auto process = linux::Process::open(who.value().pid);
  if (process && !has_ended_before(client->socket.get())) client->process = std::move(process).value();
  Client* c = client.get();
  connections_.emplace(c->serial, std::move(client));
  if (c->uid != ::geteuid() && c->uid != 0) {
    refuse(*c, Code::not_permitted, "this manager serves only its own user and root");
    close_client(*c, nullptr);
    return nullptr;
  }
  watch(c->socket.get(), Source::connection, c, no_device, EPOLLIN);
  return c;
}

/// There is room for a descriptor again.
void Manager::listen_again() {
  listener_waits_ = false;
  watch(listener_.fd(), Source::listener, nullptr, no_device, EPOLLIN);
}

void Manager::hello(Client& client) {
  wire::Hello hello{};
  if (!incoming_->body(hello) || incoming_->fd_count != 1) {
    refuse(client, Code::bad_message, "hello is not understood");
    close_client(client, "its hello is not understood");
    return;
  }
  const bool window_ok = hello.window_base % block_bytes == 0 && hello.window_bytes % block_bytes == 0 &&
                         hello.window_bytes >= block_bytes && hello.window_bytes <= window_bytes_max &&
                         hello.window_base >= block_bytes && hello.window_base < address_end &&
                         hello.window_bytes <= address_end - hello.window_base;
  auto userfault = linux::Userfaultfd::adopt(std::move(incoming_->fds[0]), linux::Userfaultfd::Tells::touches);
  if (!window_ok || !userfault || !client.process) {
    const char* why =
        !window_ok   ? "the window cannot be"
        : !userfault ? userfault.status().code == Code::unsupported
                           ? "what the userfaultfd tells of cannot be seen from here (no /proc, or no descriptors left)"
                           : "the descriptor is no userfaultfd, or tells of more than touches"
                     : "the application's process cannot be seen from here (another PID namespace?)";
    refuse(client, client.process ? Code::bad_message : Code::unsupported, why);
    close_client(client, why);
    return;
  }
  client.userfault = std::move(userfault).value();
  client.window_base = hello.window_base;
  client.window_bytes = hello.window_bytes;
  client.program = clean_text(hello.program, sizeof hello.program);
  client.blocks = BlockTable(client.page_end() / block_pages);
  client.mirrors.resize((client.page_end() * page_bytes + client.segment_bytes() - 1) / client.segment_bytes());

  const auto fail = [&](Status s) {
    refuse(client, s.code, "no memory or descriptors for another application");
    close_client(client, "no memory or descriptors for it");
  };
  auto bell = linux::Bell::make();
  auto system = linux::make_memory_file("ferry-system", client.page_end() * page_bytes);
  auto control = linux::make_memory_file("ferry-control", sizeof(wire::AppControl));
  if (!bell || !system || !control) return fail(Code::no_memory);
  client.kick = std::move(bell).value();
  client.system_file = std::move(system).value();
  client.control_file = std::move(control).value();
  auto mapped = map_whole(client.control_file, sizeof(wire::AppControl));
  if (!mapped) return fail(mapped.status());
  client.control_map = std::move(mapped).value();
  client.control()->head.magic = wire::control_magic;
  client.control()->head.version = wire::wire_version;
  client.agent.port = wire::ManagerPort(client.control()->agent);

  const std::uint64_t vram_pages = config_.machine.core_config().vram_pages;
  const std::uint64_t chunks = std::max<std::uint64_t>(1, vram_pages / block_pages);
  client.devices.resize(config_.machine.devices);
  for (unsigned d = 0; d < client.devices.size(); ++d) {
    DevicePeer& peer = client.devices[d];
    auto vram = linux::make_memory_file("ferry-vram", chunks * block_bytes);
    if (!vram) return fail(vram.status());
    peer.vram_file = std::move(vram).value();
    auto vram_map = map_whole(peer.vram_file, chunks * block_bytes);
    if (!vram_map) return fail(vram_map.status());
    peer.vram = std::move(vram_map).value();
    peer.chunk_ready.assign(chunks, 0);
    if (const Status s = make_control(peer, d); !s.ok()) return fail(s);
  }

  client.id = next_client_++;
  wire::Welcome welcome{};
  welcome.client = client.id;
  welcome.device_count = config_.machine.devices;
  welcome.cu_count = config_.machine.cu_count();
  welcome.waves_per_cu = config_.machine.waves_per_cu;
  welcome.granularity_pages = static_cast<std::uint32_t>(config_.machine.granule_bytes() / page_bytes);
  welcome.manager_pid = static_cast<std::uint32_t>(::getpid());
  welcome.vram_bytes = config_.machine.vram_bytes;
  const std::vector<std::uint8_t> hives = config_.machine.hives();
  std::copy(hives.begin(), hives.end(), welcome.hives);
  std::vector<int> fds = {client.kick.fd(), client.system_file.get(), client.control_file.get()};
  for (const DevicePeer& peer : client.devices) {
    fds.insert(fds.end(), {peer.vram_file.get(), peer.control_file.get(), peer.queue_file.get()});
  }
  client.greeted = true;
  clients_.push_back(&client);
  core_->client_open(client.id);
  recorder_->name_client(client.id, client.program, static_cast<std::uint32_t>(client.process.pid()), client.window());
  watch(client.kick.fd(), Source::kick, &client, no_device, EPOLLIN | EPOLLET);
  watch(client.process.fd(), Source::application, &client, no_device, EPOLLIN);
  watch(client.userfault.fd(), Source::userfault, &client, no_device, EPOLLIN);
  client.wake(now_ns_);
  const Status sent = linux::send_message(client.socket.get(), wire::MessageType::welcome, incoming_->head.request,
                                          welcome, fds, no_wait);
  if (!sent.ok()) drop_client(client, "it does not take the answer to its hello");
}

Status Manager::make_control(DevicePeer& peer, unsigned device) {
  auto control = linux::make_memory_file("ferry-device", sizeof(wire::DeviceControl));
  auto queues = linux::make_memory_file("ferry-queues", sizeof(wire::QueueControl));
  if (!control || !queues) return Code::no_memory;
  auto mapped = map_whole(control.value(), sizeof(wire::DeviceControl));
  if (!mapped) return mapped.status();
  peer.control_file = std::move(control).value();
  peer.queue_file = std::move(queues).value();
  peer.control_map = std::move(mapped).value();
  wire::DeviceControl& c = *peer.control();
  c.head.magic = wire::control_magic;
  c.head.version = wire::wire_version;
  c.cu_count = config_.machine.cu_count();
  c.adopts = 1;
  const core::DeviceModel model = config_.machine.model(device);
  const bool preempt = model.preempts_while_faulting && model.policy == core::Policy::preempt;
  c.units.leave_while_faulting = preempt ? 1 : 0;
  c.units.wait_in_place = model.preempts_while_faulting ? 0 : 1;
  struct {
    std::uint32_t magic = wire::control_magic;
    std::uint32_t version = wire::wire_version;
  } head;
  if (::pwrite(peer.queue_file.get(), &head, sizeof head, 0) != static_cast<ssize_t>(sizeof head)) {
    return Code::no_memory;
  }
  peer.agent = {};
  peer.agent.port = wire::ManagerPort(c.agent);
  peer.cus.clear();
  peer.cus.resize(c.cu_count);
  for (unsigned i = 0; i < peer.cus.size(); ++i) peer.cus[i].port = wire::ManagerPort(c.cus[i]);
  peer.garbage = 0;
  peer.lent_units = 0;
  peer.demand = 0;
  return {};
}

/// Nothing is asked of the application from now on; its device processes are ended. Its memory goes when they have.
void Manager::close_client(Client& client, const char* why) {
  if (client.closing) return;
  client.closing = true;
  if (why != nullptr) log("connection of pid %d is closed: %s", client.process.pid(), why);
  unwatch(client.socket.get());
  if (client.serial != shutdown_serial_) closer_->close_socket(std::move(client.socket));
  if (!client.greeted) {
    forget(client);
    return;
  }
  unwatch(client.kick.fd());
  unwatch(client.process.fd());
  unwatch(client.userfault.fd());
  if (client.outside_userfault) unwatch(client.outside_userfault.fd());
  for (DeviceId d = 0; d < client.devices.size(); ++d) {
    const DeviceState state = client.devices[d].state;
    if (state == DeviceState::attached || state == DeviceState::starting) end_device(client, d);
  }
  close_forks(client);
  executor_->client_ended(client);
  // Not woken: a thread that waits for a page must not go on without it. The application keeps a descriptor of its own
  // and ends when it sees the connection closed.
  client.userfault.close();
  client.outside_userfault.close();
  finish_close(client);
}

void Manager::finish_close(Client& client) {
  if (!client.closing || client.told_core) return;
  for (const DevicePeer& peer : client.devices) {
    if (peer.state == DeviceState::ending) return;
  }
  if (!executor_->drain_forks(client)) {
    closes_wait_ = true;  // serve_forks() comes again
    return;
  }
  client.told_core = true;
  core_->client_gone(now_ns_, client.id, make_cookie(Request::Kind::gone, client.id, 0));
}

/// The connection goes at the end of the turn: events of it may still be in hand.
void Manager::forget(Client& client) {
  if (client.greeted) forget_work(client);
  recorder_->streams().forget(client.id);
  executor_->forget_client(client);
  std::erase(clients_, &client);
  if (last_found_ == &client) last_found_ = nullptr;
  for (std::uint32_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i].kind != Request::Kind::none && requests_[i].client == client.id && client.id != 0) {
      requests_[i].kind = Request::Kind::none;
      free_requests_.push_back(i);
    }
  }
  forgotten_.push_back(client.serial);
  if (!config_.is_private()) return;
  if (executor_->has_forks()) {
    stop_after_forks_ = true;
  } else {
    stopping_ = true;
  }
}

// --- devices ---------------------------------------------------------------------------------------------------------

void Manager::attach_device(Client& client) {
  const std::uint64_t request = incoming_->head.request;
  wire::AttachDevice attach{};
  if (!incoming_->body(attach) || incoming_->fd_count != 1 || attach.device >= client.devices.size() ||
      !linux::is_message_socket(incoming_->fds[0].get())) {
    answer(client, request, Code::bad_message);
    return;
  }
  DevicePeer& peer = client.devices[attach.device];
  if (peer.state != DeviceState::absent) {
    // Its control files were used: fresh ones have to be asked for first.
    answer(client, request, Code::device_lost);
    return;
  }
  peer.state = DeviceState::starting;
  peer.attach_request = request;
  peer.socket = std::move(incoming_->fds[0]);
  linux::ask_for_sender(peer.socket.get());
  watch(peer.socket.get(), Source::device_socket, &client, static_cast<DeviceId>(attach.device), EPOLLIN);
}

void Manager::on_device_socket(Client& client, DeviceId device) {
  DevicePeer& peer = client.devices[device];
  if (peer.state != DeviceState::starting && peer.state != DeviceState::attached) return;
  const linux::Receive received = linux::receive_message(peer.socket.get(), *incoming_, no_wait);
  if (received == linux::Receive::nothing) return;
  on_device_hello(client, device, received);
  sweep_descriptors();
}

void Manager::on_device_hello(Client& client, DeviceId device, linux::Receive received) {
  DevicePeer& peer = client.devices[device];
  wire::DeviceHello hello{};
  if (received != linux::Receive::message || peer.state != DeviceState::starting ||
      incoming_->type() != wire::MessageType::device_hello || !incoming_->body(hello) || incoming_->fd_count != 1 ||
      hello.device != device) {
    end_device(client, device);
    return;
  }
  // The number of the process comes from the kernel, not from the message: it will be killed one day.
  auto userfault = linux::Userfaultfd::adopt(std::move(incoming_->fds[0]), linux::Userfaultfd::Tells::touches);
  // Where the kernel cannot pass the process itself (before 6.5) its number may be another's by now, if it has ended since.
  auto process = incoming_->sender ? linux::Process::adopt(std::move(incoming_->sender), incoming_->sender_pid)
                                   : linux::Process::open(incoming_->sender_pid);
  if (!userfault || !process || incoming_->sender_uid != client.uid || incoming_->sender_pid == ::getpid() ||
      incoming_->sender_pid == client.process.pid()) {
    end_device(client, device);
    return;
  }
  peer.userfault = std::move(userfault).value();
  peer.process = std::move(process).value();
  peer.state = DeviceState::attached;
  watch(peer.process.fd(), Source::device, &client, device, EPOLLIN);
  core_->device_attach(client.id, device);
  share_units(device);
  client.awake = false;
  client.wake(now_ns_);
  const wire::AttachDevice body{device, 0};
  const Status sent =
      linux::send_message(client.socket.get(), wire::MessageType::attached, peer.attach_request, body, {}, no_wait);
  if (!sent.ok()) drop_client(client, "it does not take answers");
}

void Manager::device_control(Client& client) {
  const std::uint64_t request = incoming_->head.request;
  wire::AttachDevice which{};
  if (!incoming_->body(which) || which.device >= client.devices.size()) {
    answer(client, request, Code::bad_message);
    return;
  }
  DevicePeer& peer = client.devices[which.device];
  if (peer.state == DeviceState::starting || peer.state == DeviceState::attached) {
    answer(client, request, Code::overlap);
    return;
  }
  if (peer.state == DeviceState::ending) {
    answer(client, request, Code::device_lost);
    return;
  }
  if (const Status s = make_control(peer, which.device); !s.ok()) {
    answer(client, request, s);
    return;
  }
  tell_changes(client);
  peer.state = DeviceState::absent;
  const int fds[] = {peer.control_file.get(), peer.queue_file.get()};
  const Status sent =
      linux::send_message(client.socket.get(), wire::MessageType::device_files, request, which, fds, no_wait);
  if (!sent.ok()) drop_client(client, "it does not take answers");
}

/// Ends the process; the rest follows when it has gone.
void Manager::end_device(Client& client, DeviceId device) {
  DevicePeer& peer = client.devices[device];
  unwatch(peer.socket.get());
  closer_->close_socket(std::move(peer.socket));
  if (peer.state == DeviceState::starting) {
    // It has not said who it is, and has nothing; the closed socket ends it.
    peer.state = DeviceState::lost;
    if (!client.closing) answer(client, peer.attach_request, Code::device_lost);
    return;
  }
  peer.state = DeviceState::ending;
  peer.process.kill();
}

void Manager::device_process_ended(Client& client, DeviceId device) {
  DevicePeer& peer = client.devices[device];
  if (peer.state != DeviceState::attached && peer.state != DeviceState::ending) return;
  // What it still told: the ends of its kernels are posted without waking anyone.
  poll_device(client, device);
  unwatch(peer.process.fd());
  unwatch(peer.socket.get());
  closer_->close_socket(std::move(peer.socket));
  peer.process = {};
  peer.userfault.close();
  peer.state = DeviceState::lost;
  executor_->check_dma(client, device);
  core_->device_gone(now_ns_, client.id, device);
  executor_->device_ended(client, device);
  share_units(device);
  recorder_->device_gone(now_ns_, client.id, device);
  if (!client.closing) {
    const wire::AttachDevice body{device, 0};
    const Status sent = linux::send_message(client.socket.get(), wire::MessageType::device_lost, 0, body, {}, no_wait);
    if (!sent.ok()) drop_client(client, "it does not take messages");
  }
  finish_close(client);
}

}  // namespace ferry::manager

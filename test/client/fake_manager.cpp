// A manager for tests of libferry alone, started in the place of ferryd through FERRY_FERRYD. FERRY_FAKE says how it
// misbehaves; "in_place" serves well, by the simplest means: devices reach all memory in place, nothing ever moves.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "linux/event.h"
#include "linux/futex.h"
#include "linux/memory_file.h"
#include "linux/socket.h"
#include "wire/control.h"
#include "wire/message.h"
#include "wire/ring.h"

namespace {

using namespace ferry;  // NOLINT(google-build-using-namespace)

constexpr unsigned cus = 2;
constexpr unsigned waves = 8;

template <typename T>
struct ControlFile {
  linux::Fd fd;
  linux::Mapping mapping;
  T* get() const { return reinterpret_cast<T*>(mapping.data()); }
};

template <typename T>
ControlFile<T> make_control(const char* name) {
  ControlFile<T> file;
  const std::size_t bytes = (sizeof(T) + page_bytes - 1) & ~(page_bytes - 1);
  file.fd = std::move(linux::make_memory_file(name, bytes).value());
  file.mapping = std::move(linux::Mapping::map(file.fd.get(), 0, bytes).value());
  file.get()->head.magic = wire::control_magic;
  file.get()->head.version = wire::wire_version;
  return file;
}

class FakeManager {
 public:
  explicit FakeManager(int socket) : socket_(socket), kick_(std::move(linux::Bell::make().value())) {}

  int run() {
    for (;;) {
      pollfd polls[] = {{socket_, POLLIN, 0}, {kick_.fd(), POLLIN, 0}, {device_socket_.get(), POLLIN, 0}};
      announce();
      if (!port_ready()) ::poll(polls, 3, -1);
      end_announcement();
      std::uint64_t kicks = 0;
      if (polls[1].revents != 0 && ::read(kick_.fd(), &kicks, sizeof kicks) < 0) return 1;
      serve_ports();
      if (device_socket_ && polls[2].revents != 0 && !serve_device()) device_socket_.reset();
      if (polls[0].revents == 0) continue;
      const auto got = linux::receive_message(socket_, in_, 0);
      if (got == linux::Receive::nothing) continue;
      if (got != linux::Receive::message) return 0;
      serve();
    }
  }

 private:
  void announce() {
    if (device_) wire::announce_manager_sleep(control_.get()->head);
  }
  void end_announcement() {
    if (device_) wire::end_manager_sleep(control_.get()->head);
  }
  bool port_ready() const {
    for (const auto& port : ports_) {
      if (port.ready()) return true;
    }
    return false;
  }

  void serve_ports() {
    for (unsigned i = 0; i < ports_.size(); ++i) {
      const bool sane = ports_[i].poll(wire::ring_entries, [&](const wire::UpRecord& up) {
        if (up.kind != static_cast<std::uint32_t>(wire::UpKind::fault)) return;
        wire::DownRecord down{};
        down.slot = up.slot;
        down.generation = up.generation;
        const std::uint64_t page = (up.address - hello_.window_base) / page_bytes;
        if (!is_allocated(page)) {
          down.kind = static_cast<std::uint32_t>(wire::DownKind::resume);
          down.status = static_cast<std::uint32_t>(Code::not_allocated);
        } else {
          down.kind = static_cast<std::uint32_t>(wire::DownKind::resume_map);
          down.file = static_cast<std::uint8_t>(wire::File::system);
          down.rights = 1;
          down.address = hello_.window_base + page * page_bytes;
          down.length_bytes = page_bytes;
          down.file_offset = page * page_bytes;
          down.action = ++action_;
        }
        if (!ports_[i].post(down)) std::abort();
      });
      if (!sane) std::abort();
      ports_[i].wake([](std::atomic<std::uint32_t>& word) { linux::futex_wake(word, 1); });
    }
  }

  bool is_allocated(std::uint64_t page) const {
    for (const auto& s : spans_) {
      if (page >= s.first_page && page - s.first_page < s.count_pages) return true;
    }
    return false;
  }

  bool serve_device() {
    const auto got = linux::receive_message(device_socket_.get(), in_, 0);
    if (got == linux::Receive::nothing) return true;
    if (got == linux::Receive::message) {
      reply(wire::MessageType::attached, attach_request_, wire::AttachDevice{});
      // All compute units are the device's for good: there is nobody else.
      wire::ManagerPort agent(control_.get()->agent);
      wire::DownRecord grant{};
      grant.kind = static_cast<std::uint32_t>(wire::DownKind::grant_units);
      grant.units = (std::uint64_t{1} << cus) - 1;
      if (!agent.post(grant)) std::abort();
      agent.wake([](std::atomic<std::uint32_t>& word) { linux::futex_wake(word, 1); });
      return true;
    }
    [[maybe_unused]] const Status told =
        linux::send_message(socket_, wire::MessageType::device_lost, 0, wire::AttachDevice{});
    return false;
  }

  template <typename T>
  void reply(wire::MessageType type, std::uint64_t request, const T& body, std::span<const int> fds = {}) {
    if (!linux::send_message(socket_, type, request, body, fds).ok()) std::exit(0);
  }
  void done(Code code = Code::ok) {
    reply(wire::MessageType::done, in_.head.request, wire::Done{static_cast<std::uint32_t>(code), 0});
  }

  void make_device_files() {
    device_ = true;
    control_ = make_control<wire::DeviceControl>("control");
    queues_ = make_control<wire::QueueControl>("queues");
    control_.get()->cu_count = cus;
    ports_.clear();
    for (unsigned i = 0; i < cus; ++i) ports_.emplace_back(control_.get()->cus[i]);
  }

  void serve() {
    switch (in_.type()) {
      case wire::MessageType::hello: {
        if (!in_.body(hello_)) std::exit(1);
        userfault_ = std::move(in_.fds[0]);
        system_ = std::move(linux::make_memory_file("system", hello_.window_bytes).value());
        vram_ = std::move(linux::make_memory_file("vram", block_bytes).value());
        app_ = make_control<wire::AppControl>("app");
        make_device_files();
        wire::Welcome welcome{};
        welcome.device_count = 1;
        welcome.cu_count = cus;
        welcome.waves_per_cu = waves;
        welcome.granularity_pages = block_pages;
        welcome.manager_pid = static_cast<std::uint32_t>(::getpid());
        welcome.vram_bytes = block_bytes;
        const int fds[] = {kick_.fd(), system_.get(), app_.fd.get(), vram_.get(), control_.fd.get(), queues_.fd.get()};
        reply(wire::MessageType::welcome, in_.head.request, welcome, fds);
        return;
      }
      case wire::MessageType::attach_device:
        device_socket_ = std::move(in_.fds[0]);
        attach_request_ = in_.head.request;
        return;
      case wire::MessageType::device_control: {
        make_device_files();
        const int fds[] = {control_.fd.get(), queues_.fd.get()};
        reply(wire::MessageType::device_files, in_.head.request, wire::AttachDevice{}, fds);
        return;
      }
      case wire::MessageType::alloc: {
        wire::Span span{};
        if (!in_.body(span)) std::exit(1);
        if (mode_ == "no_memory" && span.count_pages > 1024) return done(Code::no_memory);
        spans_.push_back(span);
        return done();
      }
      case wire::MessageType::free: {
        wire::Span span{};
        if (!in_.body(span)) std::exit(1);
        std::erase_if(spans_, [&](const wire::Span& s) { return s.first_page == span.first_page; });
        [[maybe_unused]] const Status punched =
            linux::punch_hole(system_.get(), span.first_page * page_bytes, span.count_pages * page_bytes);
        return done();
      }
      case wire::MessageType::converted:
      case wire::MessageType::prefetch: return done();
      case wire::MessageType::query: {
        wire::Span span{};
        wire::PageResidency r{};
        if (!in_.body(span)) std::exit(1);
        r.allocated = is_allocated(span.first_page) ? 1 : 0;
        r.system_current = 1;
        r.vram_device = no_device;
        r.cpu_may_map = 1;
        r.last_move_age_ns = ~std::uint64_t{0};
        return reply(wire::MessageType::residency, in_.head.request, r);
      }
      default: return done(Code::bad_message);
    }
  }

  int socket_;
  linux::Bell kick_;
  std::string mode_ = std::getenv("FERRY_FAKE") == nullptr ? "" : std::getenv("FERRY_FAKE");
  linux::Incoming in_{};
  wire::Hello hello_{};
  linux::Fd userfault_;
  linux::Fd system_;
  linux::Fd vram_;
  ControlFile<wire::AppControl> app_;
  bool device_ = false;
  ControlFile<wire::DeviceControl> control_;
  ControlFile<wire::QueueControl> queues_;
  std::vector<wire::ManagerPort> ports_;
  linux::Fd device_socket_;
  std::uint64_t attach_request_ = 0;
  std::uint64_t action_ = 0;
  std::vector<wire::Span> spans_;
};

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = std::getenv("FERRY_FAKE") == nullptr ? "in_place" : std::getenv("FERRY_FAKE");
  if (mode == "die" || argc != 3 || std::strcmp(argv[1], "--private-fd") != 0) return 3;
  const int socket = std::atoi(argv[2]);
  static linux::Incoming in{};
  if (mode == "version" || mode == "garbage" || mode == "refuse") {
    if (linux::receive_message(socket, in, -1) != linux::Receive::message) return 4;
    if (mode == "garbage") {
      const char text[] = "HTTP/1.1 400 Bad Request\r\n\r\n";
      return ::write(socket, text, sizeof text) > 0 ? 0 : 5;
    }
    if (mode == "version") {
      wire::MessageHead head{};
      head.magic = wire::control_magic;
      head.version = 4711;
      return ::write(socket, &head, sizeof head) > 0 ? 0 : 5;
    }
    wire::Refused refused{};
    refused.code = static_cast<std::uint32_t>(Code::no_memory);
    std::snprintf(refused.text, sizeof refused.text, "no room for another program");
    return linux::send_message(socket, wire::MessageType::refused, in.head.request, refused).ok() ? 0 : 5;
  }
  static FakeManager manager(socket);
  return manager.run();
}

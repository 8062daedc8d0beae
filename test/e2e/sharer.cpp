// An application that does as it is told over a socket (descriptor 9), with the public interface alone: one datagram a
// command ("copy 3"), which may carry a descriptor; one a reply ("ok", or the number of an error), which may, too.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <ferry/work.hpp>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr int command_socket = 9;
constexpr std::size_t page = 4096;

struct Message {
  std::string text;
  int fd = -1;
};

bool receive(Message& out) {
  char text[256];
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  iovec iov{text, sizeof text - 1};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = sizeof control;
  const ssize_t n = recvmsg(command_socket, &msg, MSG_CMSG_CLOEXEC);
  if (n <= 0) return false;
  out = {std::string(text, static_cast<std::size_t>(n)), -1};
  if (const cmsghdr* c = CMSG_FIRSTHDR(&msg)) std::memcpy(&out.fd, CMSG_DATA(c), sizeof out.fd);
  return true;
}

void reply(const std::string& text, int fd = -1) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec iov{const_cast<char*>(text.data()), text.size()};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  if (fd >= 0) {
    msg.msg_control = control;
    msg.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
  }
  if (sendmsg(command_socket, &msg, MSG_NOSIGNAL) < 0) _exit(3);
  if (fd >= 0) close(fd);
}

std::uint32_t value_at(std::size_t i, std::uint32_t seed) { return static_cast<std::uint32_t>(i * 2654435761U) + seed; }

/// What an application has: one shared buffer, one of its own as large, a fence, a timeline.
struct State {
  std::optional<ferry::buffer> shared;
  std::optional<ferry::buffer> own;
  std::optional<ferry::fence> fence;
  std::optional<ferry::timeline> line;

  [[nodiscard]] std::uint32_t* pixels() const { return shared->map<std::uint32_t>(); }
  [[nodiscard]] std::size_t count() const { return shared->bytes() / sizeof(std::uint32_t); }
  void make_own() {
    if (!own) own.emplace(shared->bytes());
  }
};

using Words = std::istringstream;

std::string check(const std::uint32_t* p, std::size_t n, std::uint32_t seed) {
  for (std::size_t i = 0; i < n; ++i) {
    if (p[i] != value_at(i, seed))
      return "wrong at " + std::to_string(i) + ": " + std::to_string(p[i] - value_at(i, 0));
  }
  return "ok";
}

void obey(State& s, const Message& m) {
  Words words(m.text);
  std::string verb;
  long a = 0;
  long b = 0;
  words >> verb >> a >> b;
  const auto seed = static_cast<std::uint32_t>(a);
  if (verb == "create") {  // bytes, home
    s.shared.emplace(static_cast<std::size_t>(a), ferry::home{static_cast<int>(b)});
    reply("ok");
  } else if (verb == "export") {
    reply("ok", s.shared->export_fd());
  } else if (verb == "import") {
    s.shared.emplace(ferry::buffer::import_fd(m.fd));
    reply("ok");
  } else if (verb == "id") {
    reply(std::to_string(s.shared->id()));
  } else if (verb == "close") {
    s.own.reset();
    s.shared.reset();
    reply("ok");
  } else if (verb == "fill") {
    auto* p = s.pixels();
    for (std::size_t i = 0; i < s.count(); ++i) p[i] = value_at(i, seed);
    reply("ok");
  } else if (verb == "check") {
    reply(check(s.pixels(), s.count(), seed));
  } else if (verb == "kernel") {  // adds, on device b
    ferry::queue q(static_cast<unsigned>(b));
    q.parallel_for(s.count(), [p = s.pixels(), seed](std::size_t i) { p[i] += seed; }).wait();
    reply("ok");
  } else if (verb == "write") {  // jobs that each write the whole buffer, the last one with `seed`; not waited for
    s.make_own();
    auto* p = s.own->map<std::uint32_t>();
    for (long i = b - 1; i >= 0; --i) {
      if (i != b - 1) s.fence->wait();  // it reads what is changed here
      for (std::size_t k = 0; k < s.count(); ++k) p[k] = value_at(k, seed + static_cast<std::uint32_t>(i));
      s.fence.emplace(ferry::submit_copy({}, *s.shared, 0, *s.own, 0, s.shared->bytes()));
    }
    reply("ok");
  } else if (verb == "read") {  // by a job, on device b
    s.make_own();
    ferry::submit_copy({.device = static_cast<unsigned>(b)}, *s.own, 0, *s.shared, 0, s.shared->bytes()).wait();
    reply(check(s.own->map<std::uint32_t>(), s.count(), seed));
  } else if (verb == "hold") {  // a job that does not run before point 1
    if (!s.line) s.line.emplace();
    s.make_own();
    s.fence.emplace(ferry::submit_copy({.wait_points = {s.line->at(1)}}, *s.shared, 0, *s.own, 0, page));
    reply("ok");
  } else if (verb == "after") {  // a job that waits for the fence; how it ends
    s.make_own();
    ferry::submit_copy({.waits = {&*s.fence}}, *s.own, 0, *s.own, page, page).wait();
    reply("ok");
  } else if (verb == "fence") {
    reply("ok", s.fence->export_fd());
  } else if (verb == "take_fence") {
    s.fence.emplace(ferry::fence::import_fd(m.fd));
    reply("ok");
  } else if (verb == "await") {  // milliseconds
    reply(s.fence->wait_for(std::chrono::milliseconds(a)) ? "ok" : "waiting");
  } else if (verb == "cancel") {
    s.fence->cancel();
    reply("ok");
  } else if (verb == "line") {
    if (!s.line) s.line.emplace();
    reply("ok", s.line->export_fd());
  } else if (verb == "take_line") {
    s.line.emplace(ferry::timeline::import_fd(m.fd));
    reply("ok");
  } else if (verb == "signal") {
    s.line->signal(static_cast<std::uint64_t>(a));
    reply("ok");
  } else if (verb == "await_point") {  // milliseconds
    reply(s.line->wait_for(static_cast<std::uint64_t>(a), std::chrono::milliseconds(b)) ? "ok" : "waiting");
  } else if (verb == "sync_status") {  // needs no session
    pollfd p{m.fd, POLLIN, 0};
    const bool signalled = poll(&p, 1, static_cast<int>(a)) == 1;
    const auto status = ferry::sync_fd_status(m.fd);
    reply(signalled && status ? std::to_string(*status) : "waiting");
  } else {
    reply("what?");
  }
}

}  // namespace

int main() {
  State state;
  for (Message m; receive(m);) {
    try {
      obey(state, m);
    } catch (const ferry::error& e) {
      reply(std::to_string(static_cast<int>(e.code())) + " " + std::string(e.what()).substr(0, 200));
    }
    if (m.fd >= 0) close(m.fd);
  }
}

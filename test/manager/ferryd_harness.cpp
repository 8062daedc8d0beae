#include "ferryd_harness.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "linux/futex.h"

namespace ferry::manager::test {
namespace {

std::string program() { return std::string(FERRY_TEST_BUILD_DIR) + "/bin/ferryd"; }

pid_t start(const std::vector<std::string>& arguments, int output) {
  std::vector<char*> argv;
  const std::string path = program();
  argv.push_back(const_cast<char*>(path.c_str()));
  for (const auto& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(126);
    if (output >= 0) {
      ::dup2(output, STDOUT_FILENO);
      ::dup2(output, STDERR_FILENO);
    }
    ::execv(path.c_str(), argv.data());
    ::_exit(127);
  }
  return pid;
}

/// Waits for the end of a child with a bound.
int wait_child(pid_t& pid) {
  if (pid <= 0) return -1;
  auto process = linux::Process::open(pid);
  if (process) {
    pollfd p{process.value().fd(), POLLIN, 0};
    if (::poll(&p, 1, patience_ms) != 1) return -1;
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  pid = 0;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void end_child(pid_t& pid) {
  if (pid <= 0) return;
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  pid = 0;
}

}  // namespace

Folder::Folder() {
  char name[] = "/tmp/ferry-test-XXXXXX";
  EXPECT_NE(::mkdtemp(name), nullptr);
  path_ = name;
}

Folder::~Folder() {
  if (DIR* d = ::opendir(path_.c_str())) {
    while (const dirent* e = ::readdir(d)) ::unlink((path_ + "/" + e->d_name).c_str());
    ::closedir(d);
  }
  ::rmdir(path_.c_str());
}

Ferryd::Ferryd(std::vector<std::string> arguments, const std::string& path)
    : socket_(path.empty() ? folder_.file("s") : path) {
  arguments.insert(arguments.begin(), {"--socket", socket_});
  pid_ = start(arguments, -1);
  const std::uint64_t end = linux::monotonic_ns() + std::uint64_t{patience_ms} * 1'000'000;
  while (linux::monotonic_ns() < end) {
    if (linux::connect_socket(socket_.c_str()).ok()) return;
    ::poll(nullptr, 0, 5);  // between two tries; the socket file appears before anybody listens on it
  }
  ADD_FAILURE() << program() << " does not listen at " << socket_;
}

Ferryd::~Ferryd() { end_child(pid_); }
void Ferryd::signal(int number) const { ::kill(pid_, number); }
int Ferryd::join() { return wait_child(pid_); }
bool Ferryd::alive() const { return pid_ > 0 && ::waitpid(pid_, nullptr, WNOHANG) == 0; }

unsigned Ferryd::descriptors() const {
  unsigned n = 0;
  if (DIR* d = ::opendir(("/proc/" + std::to_string(pid_) + "/fd").c_str())) {
    while (::readdir(d) != nullptr) ++n;
    ::closedir(d);
  }
  return n;
}

bool Ferryd::serves() const {
  Speaker s(*this);
  return static_cast<bool>(s.hello()) && s.ask(wire::MessageType::alloc, 0, 1) == Code::ok;
}

int Ferryd::run(const std::vector<std::string>& arguments, std::string& output) {
  int pipe_ends[2];
  EXPECT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  pid_t pid = start(arguments, pipe_ends[1]);
  ::close(pipe_ends[1]);
  char text[4096];
  for (;;) {
    pollfd p{pipe_ends[0], POLLIN, 0};
    if (::poll(&p, 1, patience_ms) <= 0) break;
    const ssize_t n = ::read(pipe_ends[0], text, sizeof text);
    if (n <= 0) break;
    output.append(text, static_cast<std::size_t>(n));
  }
  ::close(pipe_ends[0]);
  const int status = wait_child(pid);
  end_child(pid);
  return status;
}

Speaker::Speaker(const Ferryd& ferryd) {
  auto connected = linux::connect_socket(ferryd.socket().c_str());
  EXPECT_TRUE(connected.ok()) << "cannot connect";
  if (connected) fd_ = std::move(connected).value();
}

void Speaker::send_raw(const void* data, std::size_t bytes) {
  // EPIPE: the manager has had enough.
  [[maybe_unused]] const ssize_t n = ::send(fd(), data, bytes, MSG_NOSIGNAL);
}

::testing::AssertionResult Speaker::got(wire::MessageType type) {
  const linux::Receive r = receive();
  if (r != linux::Receive::message) return ::testing::AssertionFailure() << "received " << static_cast<int>(r);
  if (in_->type() != type) return ::testing::AssertionFailure() << "message of type " << in_->head.type;
  return ::testing::AssertionSuccess();
}

Code Speaker::done() {
  EXPECT_TRUE(got(wire::MessageType::done));
  wire::Done body{};
  EXPECT_TRUE(in_->body(body));
  return static_cast<Code>(body.code);
}

::testing::AssertionResult Speaker::hello() {
  auto u = linux::Userfaultfd::open({.sigbus = false, .prefer_full_service = false});
  if (!u) return ::testing::AssertionFailure() << "no userfaultfd";
  userfault = std::move(u).value();
  wire::Hello body{};
  body.window_base = window_base;
  body.window_bytes = window_bytes;
  body.pid = static_cast<std::uint32_t>(::getpid());
  send(wire::MessageType::hello, body, {userfault.fd()});
  if (auto r = got(wire::MessageType::welcome); !r) return r;
  if (!in_->body(welcome)) return ::testing::AssertionFailure() << "the welcome's body";
  files.clear();
  for (unsigned i = 0; i < in_->fd_count; ++i) files.push_back(std::move(in_->fds[i]));
  return ::testing::AssertionSuccess();
}

Code Speaker::ask(wire::MessageType type, std::uint64_t first_page, std::uint64_t pages, std::uint32_t device) {
  wire::Span span{};
  span.first_page = first_page;
  span.count_pages = pages;
  span.device = device;
  send(type, span);
  return done();
}

bool Speaker::closed() {
  for (;;) {
    const linux::Receive r = receive();
    if (r == linux::Receive::closed) return true;
    if (r == linux::Receive::nothing) return false;
  }
}

FakeDevice::FakeDevice(int end, std::uint32_t device, std::uint32_t claimed_pid) {
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ != 0) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);
  // The application's own connection among them: the manager has to see it close.
  constexpr int kept = 100;
  if (end >= 0 && ::dup2(end, kept) < 0) ::_exit(4);
  ::close_range(3, kept - 1, 0);
  ::close_range(kept + 1, ~0U, 0);
  if (end < 0) {
    for (;;) ::pause();
  }
  end = kept;
  auto u = linux::Userfaultfd::open({.sigbus = true, .prefer_full_service = false});
  if (!u) ::_exit(2);
  wire::DeviceHello hello{};
  hello.pid = claimed_pid != 0 ? claimed_pid : static_cast<std::uint32_t>(::getpid());
  hello.device = device;
  const int fd = u.value().fd();
  if (!linux::send_message(end, wire::MessageType::device_hello, 1, hello, {&fd, 1}).ok()) ::_exit(3);
  for (;;) ::pause();
}

FakeDevice::~FakeDevice() { end_child(pid_); }
int FakeDevice::join() { return wait_child(pid_); }

std::unique_ptr<FakeDevice> attach_device(Speaker& application, std::uint32_t device) {
  auto pair = std::move(linux::make_socket_pair().value());
  auto fake = std::make_unique<FakeDevice>(pair.second.get(), device);
  pair.second.reset();
  application.send(wire::MessageType::attach_device, wire::AttachDevice{device, 0}, {pair.first.get()});
  const auto attached = application.got(wire::MessageType::attached);
  EXPECT_TRUE(attached);
  return attached ? std::move(fake) : nullptr;
}

}  // namespace ferry::manager::test

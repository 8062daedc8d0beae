// Applications that share buffers, fences and timelines by descriptors, on one ferryd; and what becomes of them when one
// dies, goes on without the other, or is killed in the middle of everything.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <iostream>
#include <random>

#include "family.h"

namespace ferry::test {
namespace {

constexpr int command_socket = 9;

/// A descriptor of this process.
class Token {
 public:
  Token() = default;
  explicit Token(int fd) : fd_(fd) {}
  Token(Token&& o) noexcept : fd_(std::exchange(o.fd_, -1)) {}
  Token& operator=(Token&& o) noexcept {
    std::swap(fd_, o.fd_);
    return *this;
  }
  ~Token() {
    if (fd_ >= 0) close(fd_);
  }
  Token(const Token&) = delete;
  Token& operator=(const Token&) = delete;
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_ = -1;
};

class Sharer {
 public:
  explicit Sharer(const Daemon& daemon) : Sharer(make_pair(), {{"FERRY_SOCKET", daemon.socket()}}) {}

  /// What it answers; its descriptor, if it sends one, in `got`. Empty: it has ended, or says nothing.
  std::string ask(const std::string& command, int fd = -1, Token* got = nullptr) {
    say(command, fd);
    return answer(got);
  }
  void say(const std::string& command, int fd = -1) {
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    iovec iov{const_cast<char*>(command.data()), command.size()};
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
    sendmsg(socket_.get(), &msg, MSG_NOSIGNAL);
  }
  std::string answer(Token* got = nullptr) {
    pollfd p{socket_.get(), POLLIN, 0};
    if (poll(&p, 1, patience_ms) != 1) {
      ADD_FAILURE() << "no answer; it says " << app_.errors();
      return {};
    }
    char text[512];
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    iovec iov{text, sizeof text};
    msghdr msg{};
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control;
    msg.msg_controllen = sizeof control;
    const ssize_t n = recvmsg(socket_.get(), &msg, MSG_CMSG_CLOEXEC);
    if (n <= 0) return {};
    if (const cmsghdr* c = CMSG_FIRSTHDR(&msg)) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
      Token token(fd);
      if (got != nullptr) *got = std::move(token);
    }
    return {text, static_cast<std::size_t>(n)};
  }
  Token token(const std::string& command) {
    Token t;
    EXPECT_EQ(ask(command, -1, &t), "ok");
    EXPECT_GE(t.get(), 0);
    return t;
  }
  void kill() {
    ::kill(app_.pid(), SIGKILL);
    app_.wait_end();
  }
  void end() {
    socket_ = {};
    EXPECT_EQ(app_.wait_end(), 0) << app_.errors();
  }
  App& app() { return app_; }

 private:
  struct Pair {
    Token ours;
    Token theirs;
  };
  static Pair make_pair() {
    int pair[2] = {-1, -1};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    return {Token(pair[0]), Token(pair[1])};
  }
  Sharer(Pair pair, const Environment& environment)
      : socket_(std::move(pair.ours)), app_({program("bin/test/e2e_sharer")}, environment, [&pair] {
          dup2(pair.theirs.get(), command_socket);
          fcntl(command_socket, F_SETFD, 0);  // it may have had that number before
        }) {}

  Token socket_;
  App app_;
};

class Work : public testing::Test {
 protected:
  Work() : daemon_(folder_, {{"FERRY_VRAM", "8M"}, {"FERRY_DEVICES", "2"}, {"FERRY_CUS", "2"}}) {}

  void TearDown() override {
    if (HasFailure()) std::cout << "ferryd says: " << daemon_.app().errors() << "\n";
  }

  /// No memory of buffers is left in the manager once all applications and descriptors are gone.
  void expect_empty() {
    EXPECT_TRUE(wait_until(daemon_.pid(), [&] { return memory_files(daemon_.pid()) == MemoryFiles{}; }))
        << memory_files(daemon_.pid()).descriptors << " files, " << memory_files(daemon_.pid()).mapped << " mapped";
  }

  Folder folder_;
  Daemon daemon_;
};

TEST_F(Work, TwoApplicationsShareABuffer) {
  {
    Sharer a(daemon_);
    Sharer b(daemon_);
    ASSERT_EQ(a.ask("create 1500000 -1"), "ok");
    ASSERT_EQ(a.ask("fill 10"), "ok");
    ASSERT_EQ(b.ask("import", a.token("export").get()), "ok");
    EXPECT_EQ(a.ask("id"), b.ask("id"));
    EXPECT_EQ(b.ask("check 10"), "ok") << "by the CPU";
    EXPECT_EQ(b.ask("read 10 0"), "ok") << "by the copy engine";
    EXPECT_EQ(b.ask("kernel 5 0"), "ok");
    EXPECT_EQ(a.ask("check 15"), "ok");
    EXPECT_EQ(a.ask("kernel 7 1"), "ok") << "on the other device";
    EXPECT_EQ(b.ask("check 22"), "ok");
    a.end();
    EXPECT_EQ(b.ask("check 22"), "ok") << "the maker has gone";
    EXPECT_EQ(b.ask("kernel 1 1"), "ok");
    EXPECT_EQ(b.ask("check 23"), "ok");
    b.end();
  }
  expect_empty();
}

TEST_F(Work, ABufferInVramIsSharedBetweenDevices) {
  {
    Sharer a(daemon_);
    Sharer b(daemon_);
    ASSERT_EQ(a.ask("create 2097152 0"), "ok");
    ASSERT_EQ(a.ask("write 50 1"), "ok");
    ASSERT_EQ(b.ask("import", a.token("export").get()), "ok");
    EXPECT_EQ(b.ask("read 50 0"), "ok");
    EXPECT_EQ(b.ask("check 50"), "ok");
    EXPECT_EQ(b.ask("read 50 1"), "ok") << "a job of the other device";
    EXPECT_EQ(b.ask("kernel 3 1"), "ok");
    EXPECT_EQ(a.ask("read 53 0"), "ok");
    EXPECT_EQ(a.ask("check 53"), "ok");
  }
  expect_empty();
}

TEST_F(Work, JobsOfApplicationsAreInOrderWithoutBeingTold) {
  Sharer a(daemon_);
  Sharer b(daemon_);
  ASSERT_EQ(a.ask("create 4194304 -1"), "ok");
  ASSERT_EQ(b.ask("import", a.token("export").get()), "ok");
  for (int turn = 1; turn <= 20; ++turn) {
    const std::string seed = std::to_string(turn * 100);
    ASSERT_EQ(a.ask("write " + seed + " 2"), "ok");
    // Its last job may still wait or run; the reader's comes behind it. (Submitted, it is visible soon: only then is
    // there an order.)
    ASSERT_EQ(a.ask("await 60000"), "ok");
    ASSERT_EQ(b.ask("read " + seed + " " + std::to_string(turn % 2)), "ok");
  }
}

TEST_F(Work, ADyingExporterLeavesTheBufferToTheDescriptor) {
  Token token;
  {
    Sharer a(daemon_);
    ASSERT_EQ(a.ask("create 300000 -1"), "ok");
    ASSERT_EQ(a.ask("fill 3"), "ok");
    token = a.token("export");
    a.kill();
  }
  {
    Sharer b(daemon_);
    ASSERT_EQ(b.ask("import", token.get()), "ok");
    EXPECT_EQ(b.ask("check 3"), "ok");
    ASSERT_EQ(b.ask("import", token.get()), "ok") << "a second time";
    EXPECT_EQ(b.ask("check 3"), "ok");
    b.kill();
  }
  {
    Sharer c(daemon_);
    ASSERT_EQ(c.ask("import", token.get()), "ok");
    EXPECT_EQ(c.ask("check 3"), "ok");
  }
  EXPECT_NE(memory_files(daemon_.pid()), MemoryFiles{}) << "the descriptor keeps it";
  token = {};
  expect_empty();
}

TEST_F(Work, ABusyBufferOutlivesEverybody) {
  {
    Sharer a(daemon_);
    ASSERT_EQ(a.ask("create 4194304 0"), "ok");
    ASSERT_EQ(a.ask("write 9 3"), "ok");
    a.kill();
  }
  expect_empty();
}

TEST_F(Work, WaitsForFencesOfADeadApplicationEnd) {
  Sharer b(daemon_);
  ASSERT_EQ(b.ask("create 65536 -1"), "ok");
  Token token;
  {
    Sharer a(daemon_);
    ASSERT_EQ(a.ask("create 65536 -1"), "ok");
    ASSERT_EQ(a.ask("hold"), "ok");
    token = a.token("fence");
    ASSERT_EQ(b.ask("take_fence", token.get()), "ok");
    EXPECT_EQ(b.ask("await 20"), "waiting");
    b.say("await 60000");
    a.kill();
  }
  const std::string how = b.answer();
  EXPECT_TRUE(how.starts_with("31 ") || how.starts_with("42 ")) << "client_gone or cancelled, not " << how;
  EXPECT_EQ(b.ask("after").substr(0, 3), how.substr(0, 3)) << "jobs that wait for it fail as it did";
  Sharer without_session(daemon_);
  EXPECT_EQ(without_session.ask("sync_status 60000", token.get()) + " ", how.substr(0, 3));
  EXPECT_EQ(b.ask("fill 1"), "ok");
  EXPECT_EQ(b.ask("read 1 0"), "ok") << "nothing else is harmed";
}

TEST_F(Work, AnErrorPassesBetweenApplications) {
  Sharer a(daemon_);
  Sharer b(daemon_);
  ASSERT_EQ(a.ask("create 65536 -1"), "ok");
  ASSERT_EQ(b.ask("create 65536 -1"), "ok");
  ASSERT_EQ(a.ask("hold"), "ok");
  Token token = a.token("fence");
  ASSERT_EQ(b.ask("take_fence", token.get()), "ok");
  b.say("after");
  ASSERT_EQ(a.ask("cancel"), "ok");
  EXPECT_EQ(b.answer().substr(0, 3), "42 ");
  EXPECT_EQ(b.ask("cancel").substr(0, 2), "7 ") << "the job is not its own to cancel";
}

TEST_F(Work, ATimelineIsSharedBetweenApplications) {
  Sharer a(daemon_);
  Sharer b(daemon_);
  ASSERT_EQ(a.ask("create 65536 -1"), "ok");
  ASSERT_EQ(b.ask("take_line", a.token("line").get()), "ok");
  ASSERT_EQ(a.ask("hold"), "ok");
  EXPECT_EQ(a.ask("await 20"), "waiting");
  a.say("await 60000");
  ASSERT_EQ(b.ask("signal 1"), "ok");
  EXPECT_EQ(a.answer(), "ok");
  a.say("await_point 2 60000");
  ASSERT_EQ(b.ask("signal 2"), "ok");
  EXPECT_EQ(a.answer(), "ok");
  EXPECT_EQ(a.ask("signal 2").substr(0, 2), "8 ") << "in use";
}

TEST_F(Work, OneTokenIsNotAnother) {
  Sharer a(daemon_);
  Sharer b(daemon_);
  ASSERT_EQ(a.ask("create 65536 -1"), "ok");
  const Token line = a.token("line");
  EXPECT_EQ(b.ask("import", line.get()).substr(0, 2), "7 ");
  EXPECT_EQ(b.ask("take_fence", line.get()).substr(0, 2), "7 ");
  // Of another ferryd.
  Folder folder;
  Daemon other(folder, {{"FERRY_VRAM", "8M"}});
  Sharer c(other);
  const Token exported = a.token("export");
  EXPECT_EQ(c.ask("import", exported.get()).substr(0, 2), "7 ");
}

TEST_F(Work, AStoppedApplicationHoldsUpNobody) {
  Sharer a(daemon_);
  Sharer b(daemon_);
  ASSERT_EQ(a.ask("create 4194304 0"), "ok");
  ASSERT_EQ(b.ask("import", a.token("export").get()), "ok");
  for (int turn = 1; turn <= 5; ++turn) {
    const std::string seed = std::to_string(turn);
    // Both have it mapped in system memory or VRAM; then one is stopped, and the other has it moved.
    ASSERT_EQ(a.ask("fill " + seed), "ok");
    ASSERT_EQ(b.ask("check " + seed), "ok");
    App::signal(b.app().pid(), SIGSTOP);
    EXPECT_EQ(a.ask("read " + seed + " 0"), "ok") << "to the VRAM of device 0";
    EXPECT_EQ(a.ask("read " + seed + " 1"), "ok") << "and back, for the other device";
    EXPECT_EQ(a.ask("kernel 1000 0"), "ok");
    EXPECT_EQ(a.ask("read " + std::to_string(turn + 1000) + " 0"), "ok");
    App::signal(b.app().pid(), SIGCONT);
    EXPECT_EQ(b.ask("check " + std::to_string(turn + 1000)), "ok") << "what it had mapped is not what it sees";
    EXPECT_EQ(b.ask("kernel 1 1"), "ok");
    EXPECT_EQ(a.ask("check " + std::to_string(turn + 1001)), "ok");
  }
}

/// Applications that share two buffers and are killed at random. The manager stays, nothing stays behind.
TEST_F(Work, RandomKills) {
  std::mt19937_64 random(seed_of_run());
  std::cout << "FERRY_E2E_SEED=" << seed_of_run() << "\n";
  const unsigned long kills = number_from_environment("FERRY_E2E_KILLS", 24) / 2;
  Token token;
  std::vector<std::unique_ptr<Sharer>> sharers(3);
  for (unsigned long killed = 0; killed < kills && !HasFailure();) {
    for (auto& s : sharers) {
      if (s != nullptr) continue;
      s = std::make_unique<Sharer>(daemon_);
      if (token.get() < 0 || random() % 4 == 0) {
        ASSERT_EQ(s->ask("create 1048576 " + std::to_string(static_cast<int>(random() % 3) - 1)), "ok")
            << s->app().errors();
        ASSERT_EQ(s->ask("fill 1"), "ok");
        token = s->token("export");
      } else {
        ASSERT_EQ(s->ask("import", token.get()), "ok") << s->app().errors();
      }
    }
    static constexpr const char* work[] = {"write 1 3", "kernel 0 0", "kernel 0 1", "fill 1", "hold", "read 1 1"};
    for (auto& s : sharers) s->say(work[random() % 6]);
    const timespec moment{0, static_cast<long>(random() % 5'000'000)};
    ppoll(nullptr, 0, &moment, nullptr);
    const std::size_t victim = random() % sharers.size();
    sharers[victim]->kill();
    sharers[victim].reset();
    ++killed;
    for (auto& s : sharers) {
      if (s != nullptr) {
        const std::string answer = s->answer();
        EXPECT_FALSE(answer.empty()) << s->app().errors();
      }
    }
  }
  sharers.clear();
  token = {};
  expect_empty();
  EXPECT_EQ(daemon_.end(), 0) << daemon_.app().errors();
}

class Frames : public testing::TestWithParam<const char*> {};

/// The example, under every policy, beside nothing: all engines, implicit order between them.
TEST_P(Frames, AreDrawnScaledAndCopied) {
  App app({program("examples/frames"), "30"},
          {{"FERRY_VRAM", "8M"}, {"FERRY_CUS", "2"}, {"FERRY_POLICY", GetParam()}, {"FERRY_SOCKET", ""}});
  EXPECT_EQ(app.wait_end(), 0) << app.said() << app.errors();
  EXPECT_NE(app.said().find(" 0 wrong"), std::string::npos) << app.said();
}
INSTANTIATE_TEST_SUITE_P(Under, Frames,
                         testing::Values("none", "preempt", "reserve", "reserve-in-flight", "exclusive", "query",
                                         "track", "pinned"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace ferry::test

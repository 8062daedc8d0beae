// The asker's side against a manager that answers as a test wants: late, wrong, or not at all.
#include "cli/admin.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <thread>

#include "cli/private_socket.h"

namespace ferry::cli {
namespace {

constexpr int patient_ms = 20'000;

/// Accepts one connection and serves it with `serve`, once for each request.
class FakeManager {
 public:
  using Serve = std::function<void(int socket, const linux::Incoming& in)>;
  explicit FakeManager(Serve serve) {
    std::string where;
    auto made = PrivateSocket::make(where);
    EXPECT_TRUE(made) << where;
    socket_.emplace(std::move(made).value());
    thread_ = std::thread([this, serve = std::move(serve)] {
      const linux::Fd listener(dup(socket_->listener()));
      linux::Fd peer;
      while (!peer) {
        peer.reset(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!peer) std::this_thread::yield();
      }
      auto in = std::make_unique<linux::Incoming>();
      while (linux::receive_message(peer.get(), *in, patient_ms) == linux::Receive::message) serve(peer.get(), *in);
    });
  }
  ~FakeManager() { thread_.join(); }
  [[nodiscard]] const std::string& path() const { return socket_->path(); }

 private:
  std::optional<PrivateSocket> socket_;
  std::thread thread_;
};

void answer(int socket, const linux::Incoming& in, wire::MessageType type, const std::string& text) {
  EXPECT_TRUE(linux::send_text(socket, type, in.head.request, text).ok());
}

void answer_done(int socket, const linux::Incoming& in, Status status) {
  const wire::Done done{static_cast<std::uint32_t>(status.code), status.sys_errno};
  EXPECT_TRUE(linux::send_message(socket, wire::MessageType::done, in.head.request, done).ok());
}

TEST(Admin, StatsAreTheTextOfTheAnswer) {
  FakeManager manager([](int s, const linux::Incoming& in) {
    EXPECT_EQ(in.type(), wire::MessageType::stats);
    answer(s, in, wire::MessageType::reply_text, "{}");
  });
  auto admin = Admin::connect(manager.path());
  ASSERT_TRUE(admin);
  const auto text = admin.value().stats(patient_ms);
  ASSERT_TRUE(text);
  EXPECT_EQ(text.value(), "{}");
}

TEST(Admin, ALateAnswerIsNotTakenForTheNext) {
  unsigned asked = 0;
  FakeManager manager([&](int s, const linux::Incoming& in) {
    if (asked++ == 0) {
      // Answers the question before this one, which nobody asked.
      EXPECT_TRUE(linux::send_text(s, wire::MessageType::reply_text, in.head.request - 1, "old").ok());
    }
    answer(s, in, wire::MessageType::reply_text, "new");
  });
  auto admin = Admin::connect(manager.path());
  ASSERT_TRUE(admin);
  EXPECT_EQ(admin.value().stats(patient_ms).value(), "new");
}

TEST(Admin, ShutdownBringsWhatCouldNotBeWritten) {
  FakeManager manager([](int s, const linux::Incoming& in) {
    EXPECT_EQ(in.type(), wire::MessageType::shutdown);
    answer_done(s, in, {Code::no_space, ENOSPC});
  });
  auto admin = Admin::connect(manager.path());
  ASSERT_TRUE(admin);
  ASSERT_TRUE(admin.value().request_shutdown(patient_ms).ok());
  EXPECT_EQ(admin.value().shutdown_answer(patient_ms), Status(Code::no_space, ENOSPC));
}

TEST(Admin, ExplainAsksForOnePageOfOneProcess) {
  FakeManager manager([](int s, const linux::Incoming& in) {
    wire::Span span{};
    ASSERT_TRUE(in.body(span));
    EXPECT_EQ(in.type(), wire::MessageType::explain);
    EXPECT_EQ(span.pid, 4711U);
    EXPECT_EQ(span.count_pages, 1U);
    if (span.first_page != 7) return answer_done(s, in, Code::not_allocated);
    wire::PageResidency residency{};
    residency.vram_device = 3;
    EXPECT_TRUE(linux::send_message(s, wire::MessageType::residency, in.head.request, residency).ok());
  });
  auto admin = Admin::connect(manager.path());
  ASSERT_TRUE(admin);
  const auto found = admin.value().explain(4711, 7, patient_ms);
  ASSERT_TRUE(found);
  EXPECT_EQ(found.value().vram_device, 3);
  EXPECT_EQ(admin.value().explain(4711, 8, patient_ms).status().code, Code::not_allocated);
}

TEST(Admin, WrongAnswersAreErrors) {
  unsigned asked = 0;
  FakeManager manager([&](int s, const linux::Incoming& in) {
    switch (asked++) {
      case 0: return answer(s, in, wire::MessageType::welcome, "?");
      case 1: return answer(s, in, wire::MessageType::done, "short");
      case 2: return answer_done(s, in, Code::ok);
      default: shutdown(s, SHUT_RDWR);
    }
  });
  auto admin = Admin::connect(manager.path());
  ASSERT_TRUE(admin);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(admin.value().stats(patient_ms).status().code, Code::bad_message) << i;
  EXPECT_EQ(admin.value().stats(patient_ms).status().code, Code::manager_lost);
  EXPECT_EQ(admin.value().stats(patient_ms).status().code, Code::manager_lost);
}

TEST(Admin, SilenceEndsInTime) {
  FakeManager manager([](int, const linux::Incoming&) {});
  auto admin = Admin::connect(manager.path());
  ASSERT_TRUE(admin);
  EXPECT_EQ(admin.value().stats(50).status().code, Code::timed_out);
}

TEST(Admin, NobodyThereIsAnError) {
  const auto admin = Admin::connect("/nonexistent/socket");
  ASSERT_FALSE(admin);
  EXPECT_EQ(admin.status(), Status(Code::io_error, ENOENT));
}

TEST(PrivateSocket, IsForThisUserAloneAndGoesAway) {
  std::string path;
  {
    std::string where;
    auto made = PrivateSocket::make(where);
    ASSERT_TRUE(made) << where;
    const PrivateSocket socket = std::move(made).value();
    path = socket.path();
    struct stat info {};
    const std::string folder = path.substr(0, path.rfind('/'));
    ASSERT_EQ(stat(folder.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0700U);
    EXPECT_EQ(info.st_uid, geteuid());
    EXPECT_EQ(access(path.c_str(), F_OK), 0);
  }
  EXPECT_NE(access(path.substr(0, path.rfind('/')).c_str(), F_OK), 0);
}

}  // namespace
}  // namespace ferry::cli

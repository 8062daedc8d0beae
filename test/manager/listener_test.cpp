#include "manager/listener.h"

#include <gtest/gtest.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "linux/socket.h"

namespace ferry::manager {
namespace {

class Listeners : public ::testing::Test {
 protected:
  Listeners() {
    char name[] = "/tmp/ferry-test-XXXXXX";
    folder_ = ::mkdtemp(name);
    path_ = folder_ + "/s";
  }
  ~Listeners() override {
    ::unlink(path_.c_str());
    ::unlink((path_ + ".lock").c_str());
    EXPECT_EQ(::rmdir(folder_.c_str()), 0) << "something was left behind";
  }
  std::string folder_;
  std::string path_;
};

TEST_F(Listeners, OneAPath) {
  auto first = Listener::make(path_);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(Listener::make(path_).status().code, Code::overlap);
  EXPECT_TRUE(linux::connect_socket(path_.c_str()).ok());
}

TEST_F(Listeners, WhoeverFindsItsPathCanConnect) {
  // A socket that is made at the path does not listen yet; one that is moved there may.
  const linux::Fd watch(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  ASSERT_GE(::inotify_add_watch(watch.get(), folder_.c_str(), IN_CREATE | IN_MOVED_TO), 0);
  const auto listener = Listener::make(path_);
  ASSERT_TRUE(listener.ok());
  alignas(inotify_event) std::array<char, 4096> events{};
  const ssize_t bytes = ::read(watch.get(), events.data(), events.size());
  ASSERT_GT(bytes, 0);
  bool moved = false;
  for (ssize_t at = 0; at < bytes;) {
    inotify_event event{};
    std::memcpy(&event, events.data() + at, sizeof event);
    const std::string name = events.data() + at + sizeof event;
    EXPECT_FALSE(name == "s" && (event.mask & IN_CREATE) != 0);
    moved = moved || (name == "s" && (event.mask & IN_MOVED_TO) != 0);
    at += static_cast<ssize_t>(sizeof event + event.len);
  }
  EXPECT_TRUE(moved);
}

TEST_F(Listeners, FilesGoWithIt) {
  { ASSERT_TRUE(Listener::make(path_).ok()); }
  struct stat st {};
  EXPECT_EQ(::stat(path_.c_str(), &st), -1);
  EXPECT_EQ(::stat((path_ + ".lock").c_str(), &st), -1);
  EXPECT_TRUE(Listener::make(path_).ok());
}

TEST_F(Listeners, PathsThatCannotBe) {
  EXPECT_EQ(Listener::make("").status().sys_errno, ENAMETOOLONG);
  EXPECT_EQ(Listener::make(std::string(200, 'x')).status().sys_errno, ENAMETOOLONG);
  EXPECT_EQ(Listener::make("/nonexistent/s").status().sys_errno, ENOENT);
}

TEST_F(Listeners, OnlyListeningSocketsAreAdopted) {
  EXPECT_EQ(Listener::adopt(linux::Fd(::dup(0))).status().code, Code::bad_message);
  EXPECT_EQ(Listener::adopt(linux::Fd(::socket(AF_UNIX, SOCK_SEQPACKET, 0))).status().code, Code::bad_message);
}

TEST_F(Listeners, AcceptReturnsAtOnceWhereNobodyIs) {
  auto l = std::move(Listener::make(path_)).value();
  EXPECT_FALSE(l.accept().valid());
  auto c = linux::connect_socket(path_.c_str());
  EXPECT_TRUE(l.accept().valid());
}

}  // namespace
}  // namespace ferry::manager

#include "manager/listener.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
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

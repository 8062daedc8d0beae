// Starting, ending and asking ferryd.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <sstream>

#include "ferryd_harness.h"

namespace ferry::manager::test {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream f(path);
  std::stringstream s;
  s << f.rdbuf();
  return s.str();
}

TEST(Ferryd, SocketIsPrivateToTheUserAndGoesWithIt) {
  Ferryd ferryd;
  struct stat st {};
  ASSERT_EQ(::stat(ferryd.socket().c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600U);
  EXPECT_TRUE(ferryd.serves());
  ferryd.signal(SIGTERM);
  EXPECT_EQ(ferryd.join(), 0);
  EXPECT_EQ(::stat(ferryd.socket().c_str(), &st), -1) << "the socket file is left behind";
}

TEST(Ferryd, SocketOfADeadOneIsReplaced) {
  Folder folder;
  const std::string path = folder.file("s");
  {
    // Bound and never unlinked: what a killed ferryd leaves.
    const linux::Fd dead(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path.c_str());
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  const Ferryd ferryd({}, path);
  EXPECT_TRUE(ferryd.serves());
}

TEST(Ferryd, KilledOnesPathCanBeUsedAgain) {
  Folder folder;
  for (int round = 0; round < 3; ++round) {
    Ferryd ferryd({}, folder.file("s"));
    EXPECT_TRUE(ferryd.serves());
    ferryd.signal(SIGKILL);
    EXPECT_EQ(ferryd.join(), 128 + SIGKILL);
  }
}

TEST(Ferryd, SecondOneOnTheSamePathIsRefused) {
  Ferryd first;
  std::string output;
  EXPECT_EQ(Ferryd::run({"--socket", first.socket()}, output), 1);
  EXPECT_NE(output.find("another ferryd listens"), std::string::npos) << output;
  EXPECT_TRUE(first.serves());
}

TEST(Ferryd, FileThatIsNoSocketIsLeftAlone) {
  Folder folder;
  std::ofstream(folder.file("s")) << "precious";
  std::string output;
  EXPECT_EQ(Ferryd::run({"--socket", folder.file("s")}, output), 1);
  EXPECT_NE(output.find("is no socket"), std::string::npos) << output;
  EXPECT_EQ(read_file(folder.file("s")), "precious");
}

TEST(Ferryd, WrongUseSaysWhatToDo) {
  std::string output;
  EXPECT_EQ(Ferryd::run({}, output), 2);
  EXPECT_NE(output.find("--socket"), std::string::npos) << output;
  output.clear();
  EXPECT_EQ(Ferryd::run({"--socket", "/tmp/x", "--vram", "3 apples"}, output), 2);
  EXPECT_FALSE(output.empty());
  output.clear();
  EXPECT_EQ(Ferryd::run({"--private-fd", "77"}, output), 1);
  EXPECT_NE(output.find("77"), std::string::npos) << output;
}

TEST(Ferryd, InterruptWritesTheFiles) {
  Folder out;
  Ferryd other({"--stats", out.file("stats"), "--trace", out.file("trace"), "--report", out.file("report")});
  EXPECT_TRUE(other.serves());
  other.signal(SIGINT);
  EXPECT_EQ(other.join(), 0);
  EXPECT_NE(read_file(out.file("stats")).find("\"device_faults\""), std::string::npos);
  EXPECT_NE(read_file(out.file("trace")).find("traceEvents"), std::string::npos);
  EXPECT_NE(read_file(out.file("report")).find("<html"), std::string::npos);
}

TEST(Ferryd, FileThatCannotBeWrittenIsAnError) {
  Ferryd ferryd({"--stats", "/nonexistent/stats"});
  ferryd.signal(SIGTERM);
  EXPECT_EQ(ferryd.join(), 1);
}

TEST(Ferryd, StatsAndShutdownNeedNoHello) {
  Folder out;
  Ferryd ferryd({"--stats", out.file("stats")});
  Speaker admin(ferryd);
  admin.send_empty(wire::MessageType::stats);
  ASSERT_TRUE(admin.got(wire::MessageType::reply_text));
  EXPECT_NE(admin.in().text().find("\"clients\": 0"), std::string_view::npos);
  wire::Span whom{};
  whom.pid = 1;
  admin.send(wire::MessageType::explain, whom);
  EXPECT_EQ(admin.done(), Code::client_gone);
  admin.send_empty(wire::MessageType::shutdown);
  EXPECT_EQ(admin.done(), Code::ok);
  EXPECT_NE(read_file(out.file("stats")).find("device_faults"), std::string::npos)
      << "answered before the file was written";
  EXPECT_EQ(ferryd.join(), 0);
}

TEST(Ferryd, ShutdownTellsOfAFileThatCannotBeWritten) {
  Ferryd ferryd({"--trace", "/nonexistent/trace"});
  Speaker admin(ferryd);
  admin.send_empty(wire::MessageType::shutdown);
  EXPECT_EQ(admin.done(), Code::io_error);
}

TEST(Ferryd, InheritedListenerIsServed) {
  Folder folder;
  const linux::Fd listener(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, folder.file("s").c_str());
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(listener.get(), 4), 0);
  Speaker early;
  early = Speaker(std::move(linux::connect_socket(folder.file("s").c_str())).value());
  pid_t pid = ::fork();
  if (pid == 0) {
    const std::string program = std::string(FERRY_TEST_BUILD_DIR) + "/bin/ferryd";
    ::execl(program.c_str(), "ferryd", "--listen-fd", std::to_string(listener.get()).c_str(), nullptr);
    ::_exit(127);
  }
  EXPECT_TRUE(early.hello()) << "a connection made before it started";
  ::kill(pid, SIGTERM);
  int status = 0;
  ::waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(Ferryd, PrivateOneEndsWithItsApplication) {
  auto pair = std::move(linux::make_socket_pair().value());
  pid_t pid = ::fork();
  if (pid == 0) {
    ::fcntl(pair.second.get(), F_SETFD, 0);
    const std::string program = std::string(FERRY_TEST_BUILD_DIR) + "/bin/ferryd";
    ::execl(program.c_str(), "ferryd", "--private-fd", std::to_string(pair.second.get()).c_str(), nullptr);
    ::_exit(127);
  }
  pair.second.reset();
  Speaker application(std::move(pair.first));
  ASSERT_TRUE(application.hello());
  EXPECT_EQ(application.ask(wire::MessageType::alloc, 0, 100), Code::ok);
  ::kill(pid, SIGINT);  // a terminal's: not for it
  EXPECT_EQ(application.ask(wire::MessageType::alloc, 200, 100), Code::ok);
  application.close();
  auto process = linux::Process::open(pid);
  ASSERT_TRUE(process.ok());
  pollfd p{process.value().fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&p, 1, patience_ms), 1) << "it lives on";
  ::kill(pid, SIGKILL);
  int status = 0;
  ::waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace
}  // namespace ferry::manager::test

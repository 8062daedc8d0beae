// Opening a session, with managers that are well, ill, foreign or not there. The manager is a fake: what is tested is
// libferry's side.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

#include "base/status.h"
#include "programs_runner.h"

namespace ferry::test {
namespace {

const std::string fake = std::string("FERRY_FERRYD=") + FERRY_TEST_BUILD_DIR + "/bin/test/fake_manager";

Ended run_with(const std::string& program, const std::string& mode) {
  return run_program(program, {fake, "FERRY_FAKE=" + mode, "FERRY_SOCKET="});
}

std::string code_line(Code code) { return std::to_string(static_cast<int>(code)) + ": "; }

TEST(Session, AKernelRunsAndPrints) {
  const Ended e = run_with("ok", "in_place");
  EXPECT_EQ(e.exit_code, 0) << e.describe();
  for (const char* line : {"item 0\n", "item 1\n", "item 2\n"}) {
    EXPECT_NE(e.out.find(line), std::string::npos) << e.describe();
  }
}

TEST(Session, AStaticConstructorMayOpenIt) {
  const Ended e = run_program("static_open", {fake, "FERRY_FAKE=in_place", "FERRY_SOCKET=", "FERRY_TEST_EARLY=1"});
  EXPECT_EQ(e.exit_code, 0) << e.describe();
}

TEST(Session, RefusalIsToldWithItsReason) {
  const Ended e = run_with("open", "refuse");
  EXPECT_EQ(e.exit_code, 3) << e.describe();
  EXPECT_EQ(e.out.rfind(code_line(Code::no_memory), 0), 0U) << e.describe();
  EXPECT_NE(e.out.find("no room for another program"), std::string::npos) << e.describe();
}

TEST(Session, AnotherVersionIsToldWithBothNumbers) {
  const Ended e = run_with("open", "version");
  EXPECT_EQ(e.exit_code, 3) << e.describe();
  EXPECT_EQ(e.out.rfind(code_line(Code::bad_version), 0), 0U) << e.describe();
  EXPECT_NE(e.out.find("4711"), std::string::npos) << e.describe();
}

TEST(Session, GarbageIsAnError) {
  const Ended e = run_with("open", "garbage");
  EXPECT_EQ(e.exit_code, 3) << e.describe();
  EXPECT_EQ(e.out.rfind(code_line(Code::bad_message), 0), 0U) << e.describe();
}

TEST(Session, AManagerThatEndsAtOnceIsAnError) {
  const Ended e = run_with("open", "die");
  EXPECT_EQ(e.exit_code, 3) << e.describe();
  EXPECT_EQ(e.out.rfind(code_line(Code::manager_lost), 0), 0U) << e.describe();
}

TEST(Session, AProgramThatIsNotThereIsNamed) {
  const Ended e = run_program("open", {"FERRY_FERRYD=/nowhere/ferryd", "FERRY_SOCKET="});
  EXPECT_EQ(e.exit_code, 3) << e.describe();
  EXPECT_NE(e.out.find("/nowhere/ferryd"), std::string::npos) << e.describe();
}

TEST(Session, AMissingSocketSaysWhatToStart) {
  const Ended e = run_program("open", {"FERRY_SOCKET=/nowhere/ferry.sock"});
  EXPECT_EQ(e.exit_code, 3) << e.describe();
  EXPECT_NE(e.out.find("ferryd --socket /nowhere/ferry.sock"), std::string::npos) << e.describe();
}

TEST(Session, AFileThatIsNoSocketIsCalledSo) {
  // One that this user may write: of others' only the owner hears what they are.
  char file[] = "/tmp/ferry-test-XXXXXX";
  const int fd = ::mkstemp(file);
  ASSERT_GE(fd, 0);
  ::close(fd);
  const Ended e = run_program("open", {std::string("FERRY_SOCKET=") + file});
  ::unlink(file);
  EXPECT_EQ(e.exit_code, 3) << e.describe();
  EXPECT_NE(e.out.find(std::string(file) + " is no socket"), std::string::npos) << e.describe();
}

TEST(Session, ASocketWithoutListenerSaysWhatToStart) {
  char folder[] = "/tmp/ferry-test-XXXXXX";
  ASSERT_NE(::mkdtemp(folder), nullptr);
  const std::string path = std::string(folder) + "/sock";
  {
    const linux::Fd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    ASSERT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  }
  const Ended e = run_program("open", {"FERRY_SOCKET=" + path});
  EXPECT_EQ(e.exit_code, 3) << e.describe();
  EXPECT_EQ(e.out.rfind(code_line(Code::manager_lost), 0), 0U) << e.describe();
  EXPECT_NE(e.out.find("nobody listens"), std::string::npos) << e.describe();
  ::unlink(path.c_str());
  ::rmdir(folder);
}

TEST(Session, TooMuchMemoryIsAnErrorAndNothingBreaks) {
  const Ended e = run_with("no_memory", "no_memory");
  EXPECT_EQ(e.exit_code, 0) << e.describe();
}

TEST(Session, CodeThatTheDeviceDoesNotHaveIsRefused) {
  const Ended e = run_with("code_of_later", "in_place");
  EXPECT_EQ(e.exit_code, 0) << e.describe();
}

TEST(Session, TheProgramSeesNoChildren) {
  const Ended e = run_with("no_visible_children", "in_place");
  EXPECT_EQ(e.exit_code, 0) << e.describe();
}

TEST(Session, InterruptsOfTheTerminalReachOnlyTheProgram) {
  const Ended e = run_with("interrupted", "in_place");
  EXPECT_EQ(e.exit_code, 0) << e.describe();
}

}  // namespace
}  // namespace ferry::test

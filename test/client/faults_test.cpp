// Processes that are stopped or killed at any moment, and forks: the survivors are right, and nothing stays behind.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <string>

#include "base/random.h"
#include "programs_runner.h"

namespace ferry::test {
namespace {

const std::vector<std::string> private_manager = {"FERRY_SOCKET="};

TEST(Faults, AProgramRunsOverARealManager) {
  const Ended e = run_program("ok", private_manager);
  EXPECT_EQ(e.exit_code, 0) << e.describe();
}

TEST(Faults, TheChildOfAForkHasItsMemory) {
  const Ended e = run_program("fork_touch", private_manager);
  EXPECT_EQ(e.exit_code, 0) << e.describe();
}

TEST(Faults, TheChildOfAForkGetsErrors) {
  const Ended e = run_program("fork_calls", private_manager);
  EXPECT_EQ(e.exit_code, 0) << e.describe();
}

TEST(Faults, AChildThatOutlivesTheProgramKeepsNothingAlive) {
  Program program("fork_outlived", private_manager);
  EXPECT_EQ(program.read_line(), "forked");
  // The program ends now; the child waits for its input to close.
  for (const char* name : {"ferry-device", "ferry-template", "ferryd"}) {
    for (int i = 0; i < 6000 && !program.processes(name).empty(); ++i) ::poll(nullptr, 0, 5);
    EXPECT_TRUE(program.processes(name).empty()) << name;
  }
  EXPECT_EQ(program.finish().exit_code, 0);
  EXPECT_TRUE(program.all_gone());
}

TEST(Faults, SystemAndSpawnAndForkWithExecWork) {
  const Ended e = run_program("spawns", private_manager);
  EXPECT_EQ(e.exit_code, 0) << e.describe();
}

#ifndef FERRY_TEST_NO_PRELOAD
TEST(Faults, APreloadedMallocMakesOrdinaryContainersManagedAndForkCopiesThem) {
  const Ended e = run_program("plain_heap", {"FERRY_SOCKET=", "LD_PRELOAD=" FERRY_MALLOC_LIBRARY});
  EXPECT_EQ(e.exit_code, 0) << e.describe();
}
#endif

TEST(Faults, ExitWhileKernelsRunEndsEverything) {
  const Ended e = run_program("exit_while_running", private_manager);
  EXPECT_EQ(e.exit_code, 0) << e.describe();
}

TEST(Faults, AProgramWhoseManagerDiesEndsWithAClearError) {
  Random random(1);
  for (int round = 0; round < 10; ++round) {
    Program program("read_for_ever", private_manager);
    const std::string line = program.read_line();
    ASSERT_EQ(line.rfind("manager ", 0), 0U) << line;
    ::poll(nullptr, 0, static_cast<int>(random.below(50)));
    ASSERT_EQ(::kill(std::atoi(line.c_str() + 8), SIGKILL), 0);
    const Ended e = program.finish();
    EXPECT_EQ(e.exit_code, 117) << e.describe();
    EXPECT_NE(e.err.find("the manager (pid " + line.substr(8) + ") ended"), std::string::npos) << e.describe();
    EXPECT_EQ(e.out.find("WRONG BYTES"), std::string::npos) << e.describe();
    EXPECT_TRUE(program.all_gone());
  }
}

TEST(Faults, ADeviceThatIsKilledIsReplacedAndMemoryIsKept) {
  Program program("survives_device_loss", private_manager);
  ASSERT_EQ(program.read_line(), "ready");
  Random random(2);
  for (int loss = 1; loss <= 3; ++loss) {
    // One that is killed between two launches is replaced without the program's noticing: then once more.
    std::string line = program.read_line(std::chrono::milliseconds(0));
    for (int kills = 0; line.empty() && kills < 30; ++kills) {
      const pid_t device = program.wait_for_process("ferry-device");
      ASSERT_GT(device, 0);
      ::poll(nullptr, 0, static_cast<int>(random.below(100)));
      ASSERT_EQ(::kill(device, SIGKILL), 0);
      line = program.read_line(std::chrono::seconds(2));
    }
    ASSERT_EQ(line, "lost " + std::to_string(loss));
  }
  const Ended e = program.finish();
  EXPECT_EQ(e.exit_code, 0) << e.describe();
  EXPECT_TRUE(program.all_gone());
}

TEST(Faults, WithoutItsTemplateAProgramHasNoDeviceButItsMemory) {
  Program program("survives_template_loss", private_manager);
  ASSERT_EQ(program.read_line(), "ready");
  const pid_t forker = program.wait_for_process("ferry-template");
  ASSERT_GT(forker, 0);
  ASSERT_EQ(::kill(forker, SIGKILL), 0);
  const Ended e = program.finish();
  EXPECT_EQ(e.exit_code, 0) << e.describe();
  EXPECT_TRUE(program.all_gone());
}

TEST(Faults, StoppedProcessesGoOnWhenTheyAreContinued) {
  Program program("read_for_ever", private_manager);
  const std::string line = program.read_line();
  ASSERT_EQ(line.rfind("manager ", 0), 0U) << line;
  const pid_t manager = std::atoi(line.c_str() + 8);
  const pid_t device = program.wait_for_process("ferry-device");
  ASSERT_GT(device, 0);
  for (const pid_t stopped : {manager, device, program.pid()}) {
    ASSERT_EQ(::kill(stopped, SIGSTOP), 0);
    ::poll(nullptr, 0, 300);
    ASSERT_EQ(::kill(stopped, SIGCONT), 0);
    ::poll(nullptr, 0, 100);
  }
  ASSERT_EQ(::kill(program.pid(), SIGTERM), 0);
  const Ended e = program.finish();
  EXPECT_EQ(e.signal, SIGTERM) << e.describe();
  EXPECT_EQ(e.out.find("WRONG BYTES"), std::string::npos) << e.describe();
  EXPECT_TRUE(program.all_gone());
}

TEST(Faults, NothingStaysBehindAKilledProgramWhateverWasStopped) {
  for (const char* stopped : {"", "ferry-device", "ferryd"}) {
    Program program("work_for_ever", private_manager);
    ASSERT_EQ(program.read_line(), "ready");
    if (*stopped != '\0') {
      const pid_t pid = program.wait_for_process(stopped);
      ASSERT_GT(pid, 0) << stopped;
      ASSERT_EQ(::kill(pid, SIGSTOP), 0);
    }
    ASSERT_EQ(::kill(program.pid(), SIGKILL), 0);
    EXPECT_EQ(program.finish().signal, SIGKILL);
    EXPECT_TRUE(program.all_gone()) << "with '" << stopped << "' stopped";
  }
}

}  // namespace
}  // namespace ferry::test

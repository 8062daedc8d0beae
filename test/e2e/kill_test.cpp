// SIGKILL to each process at random moments while data move and every byte is checked.
//
// By default a few kills. The long form: FERRY_E2E_KILLS=200 e2e_kill_test (it divides the number over the tests).
// A failure names its seed; FERRY_E2E_SEED=N repeats the choices, though not the machine's timing.
#include <gtest/gtest.h>
#include <poll.h>

#include <csignal>
#include <iostream>
#include <random>

#include "family.h"

namespace ferry::test {
namespace {

constexpr int killed = 128 + SIGKILL;
constexpr int manager_lost = 117;
constexpr int error_told = 4;
constexpr int no_device = 6;

unsigned kills_of(unsigned share_percent) {
  const unsigned long all = number_from_environment("FERRY_E2E_KILLS", 24);
  return static_cast<unsigned>(std::max<unsigned long>(all * share_percent / 100, 2));
}

class Kill : public testing::Test {
 protected:
  Kill() : random_(seed_of_run()) {
    RecordProperty("seed", std::to_string(seed_of_run()));
    std::cout << "FERRY_E2E_SEED=" << seed_of_run() << "\n";
  }

  unsigned below(unsigned n) { return static_cast<unsigned>(random_() % n); }

  Environment machine() {
    static constexpr const char* granularities[] = {"2M", "64K", "64K", "4K"};
    return {{"FERRY_VRAM", "4M"},
            {"FERRY_GRANULARITY", granularities[below(4)]},
            {"FERRY_DEVICES", std::to_string(1 + below(2))},
            {"FERRY_CUS", std::to_string(1 + below(3))},
            {"FERRY_CONFIG", below(4) == 0 ? "" : restless_.path()},
            {"FERRY_SOCKET", ""}};
  }

  /// A random part of a round or two, which take some milliseconds each.
  void a_moment() {
    const timespec time{0, static_cast<long>(below(8'000'000))};
    ppoll(nullptr, 0, &time, nullptr);
  }

  void some_rounds(App& app) {
    app.drain();
    app.wait_lines("round", below(4));
    a_moment();
  }

  static std::string told(const Environment& machine) {
    std::string text = "FERRY_E2E_SEED=" + std::to_string(seed_of_run());
    for (const auto& [name, value] : machine) text += " " + name + "=" + value;
    return text;
  }

  static void expect_clean() {
    expect_no_processes();
    EXPECT_EQ(memory_files(getpid()), MemoryFiles{});
  }

  /// The program goes on, unharmed, after a device of its was killed. It notices nothing if that had no work then.
  void expect_recovery(App& app, pid_t device) {
    EXPECT_TRUE(wait_until(getpid(), [&] { return kill(device, 0) != 0; })) << "the killed device is still there";
    app.drain();
    ASSERT_TRUE(app.wait_lines("round", 3));
  }
  void expect_good_end(App& app) {
    app.close_input();
    EXPECT_EQ(app.wait_end(), 0) << app.errors();
    const unsigned lost = count(app.said(), "\nlost ");
    EXPECT_EQ(lost, count(app.said(), "\nintact "));
    std::cout << lost << " launches were lost\n";
  }
  static unsigned count(const std::string& text, const std::string& what) {
    unsigned n = 0;
    for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
    return n;
  }

  /// A program with a manager of its own loses one of its processes; nothing of it is left.
  void kill_one(std::vector<std::string> words, Role victim, unsigned number, const Environment& surroundings) {
    SCOPED_TRACE(words[0] + " " + words[1] + ": kill of the " + to_string(victim) + ", number " +
                 std::to_string(number) + ", " + told(surroundings));
    words[0] = program(words[0].c_str());
    App app(words, surroundings);
    ASSERT_TRUE(app.wait_line("ready"));
    ASSERT_TRUE(app.wait_line("round"));
    const pid_t pid = app.wait_for(victim);
    ASSERT_GT(pid, 0);
    some_rounds(app);
    switch (victim) {
      case Role::application:
        App::signal(pid, SIGKILL);
        EXPECT_EQ(app.wait_end(), killed);
        break;
      case Role::device:
        App::signal(pid, SIGKILL);
        expect_recovery(app, pid);
        expect_good_end(app);
        break;
      case Role::manager:
        App::signal(pid, SIGKILL);
        EXPECT_EQ(app.wait_end(), manager_lost);
        EXPECT_NE(app.errors().find("the manager (pid " + std::to_string(pid) + ") ended"), std::string::npos)
            << app.errors();
        break;
      case Role::zygote:
        App::signal(pid, SIGKILL);
        EXPECT_EQ(app.wait_end(), no_device);
        EXPECT_NE(app.said().find("must be started again"), std::string::npos) << app.said();
        break;
      case Role::child:
        // The one that was found has ended by now: one that is there now, if it still is.
        kill(app.wait_for(Role::child), SIGKILL);
        app.drain();
        ASSERT_TRUE(app.wait_lines("round", 3));
        expect_good_end(app);
        break;
    }
    expect_clean();
    app.drain();  // what children of it said last
  }

  std::mt19937_64 random_;
  RestlessMachine restless_;
};

TEST_F(Kill, PrivateManager) {
  const unsigned kills = kills_of(50);
  for (unsigned i = 0; i < kills && !HasFailure(); ++i) {
    static constexpr Role roles[] = {Role::application, Role::device, Role::manager};
    kill_one({"bin/test/e2e_migrator", "8"}, i % 8 == 7 ? Role::zygote : roles[i % 3], i, machine());
  }
}

/// Several devices of one program, one after the other.
TEST_F(Kill, DevicesOfOneProgram) {
  const unsigned kills = kills_of(20);
  const Environment surroundings = machine();
  SCOPED_TRACE(told(surroundings));
  App app({program("bin/test/e2e_migrator"), "8"}, surroundings);
  ASSERT_TRUE(app.wait_line("round"));
  for (unsigned i = 0; i < kills && !HasFailure(); ++i) {
    const pid_t pid = app.wait_for(Role::device);
    ASSERT_GT(pid, 0);
    some_rounds(app);
    App::signal(pid, SIGKILL);
    expect_recovery(app, pid);
  }
  expect_good_end(app);
  expect_clean();
}

/// Before anything is known to be there: processes are being forked, greeted, attached.
TEST_F(Kill, WhileStarting) {
  const unsigned kills = kills_of(20);
  for (unsigned i = 0; i < kills && !HasFailure(); ++i) {
    const Environment surroundings = machine();
    SCOPED_TRACE("kill number " + std::to_string(i) + ", " + told(surroundings));
    App app({program("bin/test/e2e_migrator"), "8"}, surroundings);
    for (unsigned moments = below(6); moments > 0; --moments) a_moment();
    const auto there = app.relatives();
    const pid_t pid = there.empty() ? app.pid() : there[below(static_cast<unsigned>(there.size()))];
    kill(pid, SIGKILL);
    // It may have come through, with a new device for the lost one.
    app.close_input();
    const int status = app.wait_end();
    EXPECT_TRUE(status == 0 || status == killed || status == manager_lost || status == error_told ||
                status == no_device)
        << "status " << status << "\n"
        << app.said() << app.errors();
    if (status == manager_lost || status == error_told) {
      EXPECT_NE(app.errors() + app.said(), "") << "ended without a word";
    }
    expect_clean();
  }
}

TEST_F(Kill, OneOfTwoProgramsOfOneManager) {
  const unsigned kills = kills_of(10);
  const Environment surroundings = machine();
  SCOPED_TRACE(told(surroundings));
  Folder folder;
  Daemon daemon(folder, surroundings);
  const Environment here = {{"FERRY_SOCKET", daemon.socket()}};
  App survivor({program("bin/test/e2e_migrator"), "8"}, here);
  ASSERT_TRUE(survivor.wait_line("round"));
  const MemoryFiles before = memory_files(daemon.pid());
  for (unsigned i = 0; i < kills && !HasFailure(); ++i) {
    SCOPED_TRACE("kill number " + std::to_string(i));
    App other({program("bin/test/e2e_migrator"), "8"}, here);
    ASSERT_TRUE(other.wait_line("round"));
    const Role victim = i % 2 == 0 ? Role::application : Role::device;
    const pid_t pid = other.wait_for(victim);
    some_rounds(other);
    App::signal(pid, SIGKILL);
    if (victim == Role::device) {
      expect_recovery(other, pid);
      expect_good_end(other);
    } else {
      EXPECT_EQ(other.wait_end(), killed);
    }
    survivor.drain();
    ASSERT_TRUE(survivor.wait_lines("round", 3));
    EXPECT_EQ(survivor.said().find("lost"), std::string::npos);
    MemoryFiles now;
    EXPECT_TRUE(wait_until(daemon.pid(), [&] { return (now = memory_files(daemon.pid())) == before; }))
        << "the manager keeps memory of a program that has ended: " << now.descriptors << " descriptors and "
        << now.mapped << " files mapped, before it " << before.descriptors << " and " << before.mapped << "\n"
        << daemon.app().errors();
  }
  survivor.close_input();
  EXPECT_EQ(survivor.wait_end(), 0);
  EXPECT_EQ(daemon.end(), 0) << daemon.app().errors();
  EXPECT_EQ(folder.entries(), std::vector<std::string>{});
  expect_clean();
}

TEST_F(Kill, ManagerOfTwoPrograms) {
  const Environment surroundings = machine();
  SCOPED_TRACE(told(surroundings));
  Folder folder;
  {
    Daemon daemon(folder, surroundings);
    const Environment here = {{"FERRY_SOCKET", daemon.socket()}};
    App one({program("bin/test/e2e_migrator"), "8"}, here);
    App two({program("bin/test/e2e_migrator"), "8"}, here);
    ASSERT_TRUE(one.wait_line("round"));
    ASSERT_TRUE(two.wait_line("round"));
    some_rounds(one);
    App::signal(daemon.pid(), SIGKILL);
    for (App* app : {&one, &two}) {
      EXPECT_EQ(app->wait_end(), manager_lost);
      EXPECT_NE(app->errors().find("the manager (pid " + std::to_string(daemon.pid()) + ") ended"), std::string::npos)
          << app->errors();
    }
    expect_clean();
  }
  // What it left behind is not in the way of the next one, which leaves nothing.
  Daemon next(folder, surroundings);
  App app({program("bin/test/e2e_migrator"), "8", "3"}, {{"FERRY_SOCKET", next.socket()}});
  EXPECT_EQ(app.wait_end(), 0) << app.errors();
  EXPECT_EQ(next.end(), 0) << next.app().errors();
  EXPECT_EQ(folder.entries(), std::vector<std::string>{});
  expect_clean();
}

/// What storm.cpp does while processes are killed: memory of the program's own is taken and given back, children are forked,
/// attributes are set, mappings move, everything is saved.
class Storm : public Kill, public testing::WithParamInterface<const char*> {
 protected:
  Environment short_machine() {
    Environment out = machine();
    if (below(3) == 0) out.emplace_back("FERRY_SYSTEM", "6M");
    return out;
  }
};
INSTANTIATE_TEST_SUITE_P(Of, Storm, testing::Values("adopt", "fork", "attributes", "move", "checkpoint"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(Storm, PrivateManager) {
  const std::string kind = GetParam();
  const unsigned kills = kills_of(20);
  static constexpr Role roles[] = {Role::device, Role::application, Role::manager, Role::child, Role::zygote};
  for (unsigned i = 0; i < kills && !HasFailure(); ++i) {
    const Role victim = roles[i % 5];
    kill_one({"bin/test/e2e_storm", kind}, victim == Role::child && kind != "fork" ? Role::device : victim, i,
             short_machine());
  }
}

TEST_P(Storm, BesideOthersOfItsManager) {
  const unsigned kills = kills_of(10);
  const Environment surroundings = short_machine();
  SCOPED_TRACE(told(surroundings));
  Folder folder;
  Daemon daemon(folder, surroundings);
  const Environment here = {{"FERRY_SOCKET", daemon.socket()}};
  {
    App survivor({program("bin/test/e2e_migrator"), "4"}, here);
    ASSERT_TRUE(survivor.wait_line("round"));
    for (unsigned i = 0; i < kills && !HasFailure(); ++i) {
      App other({program("bin/test/e2e_storm"), GetParam()}, here);
      ASSERT_TRUE(other.wait_line("round"));
      const pid_t pid = other.wait_for(i % 2 == 0 ? Role::application : Role::device);
      some_rounds(other);
      App::signal(pid, SIGKILL);
      if (i % 2 == 0) {
        EXPECT_EQ(other.wait_end(), killed);
      } else {
        expect_recovery(other, pid);
        expect_good_end(other);
      }
      survivor.drain();
      ASSERT_TRUE(survivor.wait_lines("round", 3));
      EXPECT_EQ(survivor.said().find("lost"), std::string::npos);
    }
    survivor.close_input();
    EXPECT_EQ(survivor.wait_end(), 0);
  }
  MemoryFiles now;
  EXPECT_TRUE(wait_until(daemon.pid(), [&] { return (now = memory_files(daemon.pid())) == MemoryFiles{}; }))
      << "the manager keeps " << now.descriptors << " descriptors and " << now.mapped
      << " files of programs that ended\n"
      << daemon.app().errors();
  EXPECT_EQ(daemon.end(), 0) << daemon.app().errors();
  expect_clean();
}

/// A checkpoint that was being written restores nothing or all of it.
TEST_F(Kill, WhileSaving) {
  const unsigned kills = kills_of(20);
  for (unsigned i = 0; i < kills && !HasFailure(); ++i) {
    const Role victim = i % 2 == 0 ? Role::application : Role::manager;
    Folder folder;
    const Environment surroundings = machine();
    SCOPED_TRACE(std::string("kill of the ") + to_string(victim) + ", number " + std::to_string(i) + ", " +
                 told(surroundings));
    Environment saving = surroundings;
    saving.emplace_back("FERRY_STORM_FILE", folder.file("saved"));
    App app({program("bin/test/e2e_storm"), "checkpoint"}, saving);
    ASSERT_TRUE(app.wait_line("round"));
    const pid_t pid = app.wait_for(victim);
    some_rounds(app);
    App::signal(pid, SIGKILL);
    EXPECT_EQ(app.wait_end(), victim == Role::manager ? manager_lost : killed) << app.said() << app.errors();
    expect_clean();
    App next({program("bin/test/e2e_storm"), "restore", folder.file("saved")}, surroundings);
    EXPECT_EQ(next.wait_end(), 0) << next.said() << next.errors();
    std::cout << next.said();
    expect_clean();
  }
}

}  // namespace
}  // namespace ferry::test

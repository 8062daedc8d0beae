// libferry_progress as a driver outside uses it: both interfaces, hostile arguments, threads, and the example.
#include <ferry/progress.hpp>

#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

extern "C" std::size_t ferry_test_circle_from_c(char* buffer, std::size_t bytes);
extern "C" int ferry_test_unknown_numbers(void);

namespace ferry::progress {
namespace {

TEST(ProgressC, ACircleFromC) {
  std::array<char, 200> buffer{};
  EXPECT_GT(ferry_test_circle_from_c(buffer.data(), buffer.size()), 0U);
  EXPECT_STREQ(buffer.data(), "deadlock: job 2 needs job 1; job 1 waits for job 2");
}

TEST(ProgressC, BadArgumentsAreRefused) {
  EXPECT_EQ(ferry_progress_define(nullptr, FERRY_PROGRESS_WORK, "x"), FERRY_PROGRESS_BAD_ARGUMENT);
  EXPECT_EQ(ferry_progress_wait(nullptr, 1, 2, nullptr), FERRY_PROGRESS_BAD_ARGUMENT);
  EXPECT_EQ(ferry_progress_take(nullptr, nullptr, nullptr, 0), 0U);
  EXPECT_EQ(ferry_progress_set_callback(nullptr, nullptr, nullptr), FERRY_PROGRESS_BAD_ARGUMENT);
  ferry_progress_destroy(nullptr);

  const Model model;
  ferry_progress* m = model.get();
  EXPECT_EQ(ferry_progress_define(m, FERRY_PROGRESS_WORK, nullptr), FERRY_PROGRESS_BAD_ARGUMENT);
  EXPECT_EQ(ferry_test_unknown_numbers(), 1);
  EXPECT_EQ(ferry_progress_add(m, 0, 1, 0), FERRY_PROGRESS_NONE) << "no class yet";
  const ferry_progress_class work = ferry_progress_define(m, FERRY_PROGRESS_WORK, "job");
  ASSERT_EQ(work, 0);
  EXPECT_EQ(ferry_progress_add(m, -1, 1, 0), FERRY_PROGRESS_NONE);
  EXPECT_EQ(ferry_progress_add(m, 1, 1, 0), FERRY_PROGRESS_NONE);
  EXPECT_EQ(ferry_progress_add(m, work, 1, 2), FERRY_PROGRESS_NONE) << "no such flag";
  EXPECT_EQ(ferry_progress_ordered(m, work, 1), FERRY_PROGRESS_BAD_ARGUMENT);
  const ferry_progress_node a = ferry_progress_add(m, work, 1, 0);
  const ferry_progress_node b = ferry_progress_add(m, work, 2, 0);
  EXPECT_EQ(ferry_progress_publish(m, a), FERRY_PROGRESS_BAD_ARGUMENT) << "no fence";
  EXPECT_EQ(ferry_progress_signal(m, a), FERRY_PROGRESS_BAD_ARGUMENT);
  EXPECT_EQ(ferry_progress_wait_any(m, a, nullptr, 1, nullptr), FERRY_PROGRESS_BAD_ARGUMENT);
  const ferry_progress_node some[] = {b, 12345};
  EXPECT_EQ(ferry_progress_wait_any(m, a, some, 2, nullptr), FERRY_PROGRESS_GONE);
  EXPECT_EQ(ferry_progress_waits(m, nullptr, 0), 0U) << "nothing of a refused call stays";
  EXPECT_EQ(ferry_progress_remove(m, b), FERRY_PROGRESS_OK);
  EXPECT_EQ(ferry_progress_remove(m, b), FERRY_PROGRESS_GONE);
  EXPECT_EQ(ferry_progress_wait(m, a, b, nullptr), FERRY_PROGRESS_GONE);
  EXPECT_EQ(ferry_progress_wait(m, FERRY_PROGRESS_NONE, a, nullptr), FERRY_PROGRESS_GONE);
  EXPECT_EQ(ferry_progress_wait(m, ~std::uint64_t{0}, a, nullptr), FERRY_PROGRESS_GONE);
  EXPECT_EQ(ferry_progress_would_close(m, a, b, nullptr, 0), 0U);
  for (int i = 1; i < FERRY_PROGRESS_CLASSES_MAX; ++i) {
    ASSERT_EQ(ferry_progress_define(m, FERRY_PROGRESS_WORK, "another"), i);
  }
  EXPECT_EQ(ferry_progress_define(m, FERRY_PROGRESS_WORK, "one too many"), FERRY_PROGRESS_FULL);
}

TEST(ProgressC, AReportThatDoesNotFitStays) {
  Model model;
  const Class fences = model.define(Kind::fence, "fence");
  Node fence = model.add(fences, 1);
  EXPECT_TRUE(fence.signal());
  ferry_progress_what what = FERRY_PROGRESS_CIRCLE;
  char small[8];
  const std::size_t length = ferry_progress_take(model.get(), &what, small, sizeof small);
  EXPECT_EQ(what, FERRY_PROGRESS_SIGNAL_OUTSIDE);
  EXPECT_STREQ(small, "fence 1");
  EXPECT_EQ(ferry_progress_take(model.get(), nullptr, nullptr, 0), length);
  std::string large(length + 1, '?');
  EXPECT_EQ(ferry_progress_take(model.get(), &what, large.data(), large.size()), length);
  EXPECT_EQ(large.c_str(), std::string("fence 1 signalled, but never became visible"));
  EXPECT_EQ(ferry_progress_take(model.get(), nullptr, small, sizeof small), 0U);
  EXPECT_STREQ(small, "");
}

struct Progress : testing::Test {
  Model model;
  Class work = model.define(Kind::work, "job");
  Class fence = model.define(Kind::fence, "fence");
  Class engine = model.define(Kind::engine, "engine");
  Class lock = model.define(Kind::lock, "lock");
  Class other_lock = model.define(Kind::lock, "other lock");
  Class reservation = model.define(Kind::reservation, "reservation");
  Class memory = model.define(Kind::memory, "memory");
};

TEST_F(Progress, ADriverThatWorksIsToldNothing) {
  Node slot = model.add(engine);
  for (std::uint64_t i = 1; i <= 10; ++i) {
    Node job = model.add(fence, i);
    job.publish();
    job.wait(slot);
    job.acquire(slot);
    job.release(slot);
    job.signal();
  }
  model.finish();
  EXPECT_TRUE(model.take().empty());
  EXPECT_EQ(model.waits(), "");
}

TEST_F(Progress, WaitsAndStuckAreSentences) {
  Node a = model.add(fence, 1);
  Node b = model.add(fence, 2);
  a.wait(b, "needs");
  EXPECT_EQ(model.waits(), "fence 1 needs fence 2\n");
  EXPECT_EQ(b.would_close(a), "fence 2 waits for fence 1; fence 1 needs fence 2");
  EXPECT_TRUE(a.stuck().empty());
  EXPECT_TRUE(b.wait(a));
  EXPECT_EQ(a.stuck(), "fence 1 needs fence 2; fence 2 waits for fence 1");
  EXPECT_FALSE(b.done(a));
  EXPECT_TRUE(a.stuck().empty());
  ASSERT_EQ(model.take().size(), 1U);
}

TEST_F(Progress, LockOrderWithoutContention) {
  Node a = model.add(lock, 1);
  Node b = model.add(other_lock, 2);
  Node first = model.add(work, 1);
  Node second = model.add(work, 2);
  first.acquire(a);
  first.acquire(b);
  first.release(b);
  first.release(a);
  second.acquire(b);
  EXPECT_TRUE(second.acquire(a));
  const auto reports = model.take();
  ASSERT_EQ(reports.size(), 1U);
  EXPECT_EQ(reports[0].what, What::class_circle);
  EXPECT_NE(reports[0].text.find("job 1 waits for other lock 2, and holds lock 1"), std::string::npos)
      << reports[0].text;
  EXPECT_NE(reports[0].text.find("job 2 waits for lock 1, and holds other lock 2"), std::string::npos);
}

TEST_F(Progress, ALockTakenTwiceByItsHolderIsADeadlock) {
  Node a = model.add(lock, 1);
  Node job = model.add(work, 1);
  job.acquire(a);
  EXPECT_TRUE(job.wait(a));
  ASSERT_FALSE(model.take().empty());
  EXPECT_NE(job.stuck(), "");
}

TEST_F(Progress, LocksOfOneClassNeedAnOrder) {
  for (const bool ordered : {false, true}) {
    Model m;
    const Class task = m.define(Kind::work, "task");
    const Class locks = m.define(Kind::lock, "lock");
    if (ordered) m.ordered(task, locks);
    Node a = m.add(locks, 1);
    Node b = m.add(locks, 2);
    Node t = m.add(task, 1);
    t.acquire(a);
    EXPECT_EQ(t.acquire(b), !ordered);
  }
}

TEST_F(Progress, RulesOfSections) {
  Node f = model.add(fence, 1);
  Node r = model.add(reservation, 1);
  Node m = model.add(memory);
  f.wait(m);
  f.done(m);
  EXPECT_TRUE(model.take().empty()) << "before it is published, a job may wait for memory";
  f.publish();
  EXPECT_TRUE(f.wait(r));
  auto reports = model.take();
  ASSERT_EQ(reports.size(), 1U);
  EXPECT_EQ(reports[0].what, What::wait_in_section);
  Node g = model.add(fence, 2);
  g.publish();
  EXPECT_TRUE(model.finish());
  EXPECT_EQ(model.take().size(), 2U);
  g.signal();
  EXPECT_TRUE(g.signal());
  { Node moved = std::move(f); }
  reports = model.take();
  ASSERT_EQ(reports.size(), 2U);
  EXPECT_EQ(reports[0].what, What::signalled_twice);
  EXPECT_EQ(reports[1].what, What::never_signalled);
}

TEST_F(Progress, SignalEndsAllWaitsForIt) {
  Node f = model.add(fence, 1);
  Node job = model.add(work, 1);
  f.publish();
  job.wait(f);
  f.signal();
  EXPECT_EQ(model.waits(), "");
}

TEST_F(Progress, CallbacksMayCallBackAndGetWhatWaited) {
  Node f = model.add(fence, 1);
  f.signal();
  std::vector<std::string> told;
  model.on_report([&](const Report& report) { told.push_back(report.text + "|" + model.waits()); });
  ASSERT_EQ(told.size(), 1U) << "what was told before";
  Node a = model.add(memory, 1);
  EXPECT_TRUE(a.wait(a));
  ASSERT_EQ(told.size(), 2U);
  EXPECT_EQ(told[1], "deadlock: memory 1 waits for memory 1|memory 1 waits for memory 1\n");
  model.on_report(nullptr);
  EXPECT_TRUE(f.signal());
  EXPECT_EQ(told.size(), 2U);
  EXPECT_EQ(model.take().size(), 1U);
}

TEST_F(Progress, MistakesThrow) {
  Node nobody;
  Node a = model.add(work, 1);
  EXPECT_THROW(nobody.wait(a), std::invalid_argument);
  EXPECT_THROW(a.wait(nobody), std::invalid_argument);
  EXPECT_THROW(a.publish(), std::invalid_argument);
  EXPECT_THROW(static_cast<void>(model.add(Class(), 1)), std::invalid_argument);
  for (int i = 7; i < FERRY_PROGRESS_CLASSES_MAX; ++i) static_cast<void>(model.define(Kind::work, "w"));
  EXPECT_THROW(static_cast<void>(model.define(Kind::work, "w")), std::invalid_argument);
}

TEST_F(Progress, ManyThreadsOneModel) {
  model.ordered(work, work);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < 2000; ++i) {
        Node a = model.add(work, t);
        Node b = model.add(fence, i);
        b.publish();
        a.wait(b);
        b.signal();
        a.done(b);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(model.take().empty());
  EXPECT_EQ(model.waits(), "");
}

struct Said {
  int status = -1;
  std::string text;
};

Said run_example(const char* argument) {
  const std::string command = std::string(FERRY_TEST_BUILD_DIR "/examples/progress ") + argument + " 2>&1";
  Said said;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return said;
  for (int c = 0; (c = std::fgetc(pipe)) != EOF;) said.text += static_cast<char>(c);
  const int status = pclose(pipe);
  said.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return said;
}

TEST(ProgressExample, TheWrongDriverIsToldAllThreeMistakes) {
  const Said said = run_example("wrong");
  EXPECT_EQ(said.status, 1) << said.text;
  EXPECT_NE(said.text.find("memory waits for fence 42; fence 42 waits for compute unit 0; compute unit 0 is held by "
                           "wave 3; wave 3 waits for fault 17; fault 17 waits for memory"),
            std::string::npos)
      << said.text;
  EXPECT_NE(said.text.find("[possible deadlock]"), std::string::npos) << said.text;
  EXPECT_NE(said.text.find("thread 2 in reset() waits for address space lock, and holds ring lock"), std::string::npos)
      << said.text;
  EXPECT_NE(said.text.find("fence 43 became visible and never signalled; thread 5 of the display waits for it"),
            std::string::npos)
      << said.text;
}

TEST(ProgressExample, TheRepairedDriverIsClean) {
  const Said said = run_example("repaired");
  EXPECT_EQ(said.status, 0) << said.text;
  EXPECT_NE(said.text.find("clean"), std::string::npos) << said.text;
}

}  // namespace
}  // namespace ferry::progress

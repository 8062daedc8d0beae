// Memory that had contents before it was managed, under a budget of system memory: the core hears of them page by page.
#include <sys/mman.h>
#include <unistd.h>

#include "core/svm/types.h"
#include "ferryd_harness.h"
#include "linux/event.h"
#include "linux/futex.h"
#include "wire/change.h"
#include "wire/ring.h"

namespace ferry::manager::test {
namespace {

using wire::MessageType;

class Contents : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(app_.hello());
    control_ = std::move(linux::Mapping::map(app_.files[2].get(), 0, sizeof(wire::AppControl)).value());
  }
  [[nodiscard]] wire::Port& agent() const { return reinterpret_cast<wire::AppControl*>(control_.data())->agent; }
  void put(std::uint64_t page, char value) const {
    ASSERT_EQ(::pwrite(app_.files[1].get(), &value, 1, static_cast<off_t>(page * page_bytes)), 1);
  }
  [[nodiscard]] int get(std::uint64_t page) const {
    char value = 0;
    EXPECT_EQ(::pread(app_.files[1].get(), &value, 1, static_cast<off_t>(page * page_bytes)), 1);
    return value;
  }
  Code alloc_with_contents(std::uint64_t page, std::uint64_t pages) {
    wire::Span span{};
    span.first_page = page;
    span.count_pages = pages;
    span.device = wire::to_system;
    span.flags = wire::span_has_contents;
    app_.send(MessageType::alloc, span);
    return app_.done();
  }
  void discard(std::uint64_t page, std::uint64_t pages) {
    app_.send(MessageType::change, wire::Change{page, pages, 0, static_cast<std::uint32_t>(core::Change::discard), 0});
  }
  wire::DownRecord next_command() const {
    wire::Port& port = agent();
    const std::uint32_t head = port.down_head.load();
    port.peer_sleeping.store(1);
    while (port.down_tail.load() == head) {
      if (linux::futex_wait(port.down_tail, head, std::uint64_t{patience_ms} * 1'000'000) != ETIMEDOUT) continue;
      ADD_FAILURE() << "no command came";
      return {};
    }
    const wire::DownRecord command = port.down[head % wire::ring_entries];
    port.down_head.store(head + 1);
    return command;
  }
  void answer(const wire::DownRecord& command) const {
    wire::Port& port = agent();
    const std::uint32_t tail = port.up_tail.load();
    wire::UpRecord done{};
    done.kind = static_cast<std::uint32_t>(wire::UpKind::done);
    done.action = command.action;
    port.up[tail % wire::ring_entries] = done;
    port.up_tail.store(tail + 1);
    linux::Bell::ring_fd(app_.files[0].get());
  }

  Ferryd ferryd_{{"--vram", "8M", "--system", "16M", "--granularity", "2M"}};
  Speaker app_{ferryd_};
  linux::Mapping control_;
};

TEST_F(Contents, GivenUpBeforeTheyAreChargedAreZeros) {
  put(0, 'a');
  ASSERT_EQ(alloc_with_contents(0, 4), Code::ok);
  // An operation on the granule, which lasts until the application's agent has answered.
  discard(0, 4);
  const wire::DownRecord zap = next_command();
  // What is managed from now on lies in the same granule: its charge has to wait.
  put(8, 'b');
  ASSERT_EQ(alloc_with_contents(8, 4), Code::ok);
  discard(8, 4);
  answer(zap);
  constexpr int turn_ms = 10;
  int done = 0;
  for (int turns = 0; done < 2; ++turns) {
    ASSERT_LT(turns, patience_ms / turn_ms) << "a discard was never said to be done";
    if (agent().down_head.load() != agent().down_tail.load()) answer(next_command());
    if (app_.receive(turn_ms) == linux::Receive::message) ++done;
  }
  EXPECT_EQ(get(0), 0);
  EXPECT_EQ(get(8), 0) << "the old bytes, after their discard was said to be done";
}

}  // namespace
}  // namespace ferry::manager::test

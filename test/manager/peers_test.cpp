// Applications and devices that write what they like into the memory that they share with ferryd, lie about who they
// are, and die.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "base/random.h"
#include "ferryd_harness.h"
#include "linux/event.h"
#include "linux/futex.h"

namespace ferry::manager::test {
namespace {

using wire::MessageType;

class Peers : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(good_.hello());
    ASSERT_TRUE(app_.hello());
    ASSERT_EQ(app_.ask(MessageType::alloc, 0, 512), Code::ok);
    control_ = std::move(linux::Mapping::map(app_.files[2].get(), 0, sizeof(wire::AppControl)).value());
    device_control_ = std::move(linux::Mapping::map(app_.files[4].get(), 0, sizeof(wire::DeviceControl)).value());
  }
  void TearDown() override {
    EXPECT_TRUE(ferryd_.alive());
    EXPECT_EQ(good_.ask(MessageType::alloc, 1024, 512), Code::ok) << "the honest application suffers";
    EXPECT_TRUE(ferryd_.serves());
  }
  [[nodiscard]] wire::AppControl& control() const { return *reinterpret_cast<wire::AppControl*>(control_.data()); }
  [[nodiscard]] wire::DeviceControl& device_control() const {
    return *reinterpret_cast<wire::DeviceControl*>(device_control_.data());
  }
  void kick() const { linux::Bell::ring_fd(app_.files[0].get()); }
  /// Posts as an honest peer would.
  void post(wire::Port& port, const wire::UpRecord& record) const {
    const std::uint32_t tail = port.up_tail.load();
    port.up[tail % wire::ring_entries] = record;
    port.up_tail.store(tail + 1);
    kick();
  }
  ::testing::AssertionResult device_lost() { return app_.got(MessageType::device_lost); }

  Ferryd ferryd_{{"--vram", "8M", "--cus", "2", "--granularity", "4K", "--answer-timeout", "1"}};
  Speaker good_{ferryd_};
  Speaker app_{ferryd_};
  linux::Mapping control_;
  linux::Mapping device_control_;
};

TEST_F(Peers, ApplicationWithARingThatCannotBeIsDropped) {
  control().agent.up_tail.store(0x8000'0000);
  kick();
  EXPECT_TRUE(app_.closed());
}

TEST_F(Peers, ApplicationThatAnswersWhatNobodyAskedIsDropped) {
  for (unsigned i = 0; i < 1000; ++i) {
    wire::UpRecord record{};
    record.kind = i % 7;
    record.action = i;
    post(control().agent, record);
    while (control().agent.up_head.load() != control().agent.up_tail.load()) {
      kick();
      if (app_.receive(1) == linux::Receive::closed) return;
    }
  }
  FAIL() << "it was never dropped";
}

TEST_F(Peers, DeviceAttachesAndItsDeathIsTold) {
  auto device = attach_device(app_);
  ASSERT_NE(device, nullptr);
  ::kill(device->pid(), SIGKILL);
  EXPECT_TRUE(device_lost());
  EXPECT_EQ(device->join(), 128 + SIGKILL);
  // Its control files were used: a next one needs fresh ones.
  app_.send(MessageType::device_control, wire::AttachDevice{0, 0});
  ASSERT_TRUE(app_.got(MessageType::device_files));
  EXPECT_EQ(app_.in().fd_count, 2U);
  auto again = attach_device(app_);
  EXPECT_NE(again, nullptr);
}

TEST_F(Peers, DeviceEndsWithItsApplication) {
  auto device = attach_device(app_);
  ASSERT_NE(device, nullptr);
  app_.close();
  EXPECT_EQ(device->join(), 128 + SIGKILL);
}

TEST_F(Peers, PidInAHelloIsNotBelieved) {
  // A manager that killed whom the message names would be a weapon.
  auto pair = std::move(linux::make_socket_pair().value());
  FakeDevice victim(-1, 0);
  FakeDevice liar(pair.second.get(), 0, static_cast<std::uint32_t>(victim.pid()));
  pair.second.reset();
  app_.send(MessageType::attach_device, wire::AttachDevice{0, 0}, {pair.first.get()});
  ASSERT_TRUE(app_.got(MessageType::attached));
  app_.close();
  EXPECT_EQ(liar.join(), 128 + SIGKILL);
}

TEST_F(Peers, ApplicationCannotBeItsOwnDevice) {
  auto pair = std::move(linux::make_socket_pair().value());
  auto u = std::move(linux::Userfaultfd::open({.sigbus = true, .prefer_full_service = false}).value());
  const int fd = u.fd();
  ASSERT_TRUE(linux::send_message(pair.second.get(), MessageType::device_hello, 1,
                                  wire::DeviceHello{static_cast<std::uint32_t>(::getpid()), 0}, {&fd, 1})
                  .ok());
  app_.send(MessageType::attach_device, wire::AttachDevice{0, 0}, {pair.first.get()});
  EXPECT_EQ(app_.done(), Code::device_lost);
}

TEST_F(Peers, AttachWithNoSocketOrTwice) {
  app_.send(MessageType::attach_device, wire::AttachDevice{0, 0});
  EXPECT_EQ(app_.done(), Code::bad_message);
  app_.send(MessageType::attach_device, wire::AttachDevice{0, 0}, {app_.files[1].get()});
  EXPECT_EQ(app_.done(), Code::bad_message);
  auto pair = std::move(linux::make_socket_pair().value());
  app_.send(MessageType::attach_device, wire::AttachDevice{7, 0}, {pair.first.get()});
  EXPECT_EQ(app_.done(), Code::bad_message);
  auto device = attach_device(app_);
  ASSERT_NE(device, nullptr);
  app_.send(MessageType::attach_device, wire::AttachDevice{0, 0}, {pair.first.get()});
  EXPECT_EQ(app_.done(), Code::device_lost);
}

TEST_F(Peers, DeviceThatClosesItsSocketBeforeHello) {
  auto pair = std::move(linux::make_socket_pair().value());
  app_.send(MessageType::attach_device, wire::AttachDevice{0, 0}, {pair.first.get()});
  pair.first.reset();
  pair.second.reset();
  EXPECT_EQ(app_.done(), Code::device_lost);
}

TEST_F(Peers, FaultOutsideEverythingFailsItsWave) {
  auto device = attach_device(app_);
  ASSERT_NE(device, nullptr);
  wire::Port& cu = device_control().cus[0];
  std::uint32_t seen = 0;
  std::uint64_t generation = 100;
  for (const std::uint64_t address :
       {user_address_end, ~std::uint64_t{0}, window_base + 600 * page_bytes /* in the window, not allocated */}) {
    wire::UpRecord record{};
    record.kind = static_cast<std::uint32_t>(wire::UpKind::fault);
    record.slot = 3;
    record.address = address;
    record.generation = ++generation;
    post(cu, record);
    cu.peer_sleeping.store(1);
    while (cu.down_tail.load() == seen) {
      ASSERT_NE(linux::futex_wait(cu.down_tail, seen, std::uint64_t{patience_ms} * 1'000'000), ETIMEDOUT)
          << "no answer for " << std::hex << address;
    }
    ASSERT_EQ(cu.down_tail.load(), seen + 1) << std::hex << address;
    const wire::DownRecord& answer = cu.down[seen % wire::ring_entries];
    EXPECT_EQ(answer.kind, static_cast<std::uint32_t>(wire::DownKind::resume));
    EXPECT_EQ(answer.slot, 3);
    EXPECT_EQ(answer.generation, generation);
    EXPECT_EQ(answer.status, static_cast<std::uint32_t>(Code::not_allocated));
    cu.down_head.store(++seen);
  }
}

TEST_F(Peers, AnswersToWhatWasNotYetSentAreNotBelieved) {
  auto device = attach_device(app_);
  ASSERT_NE(device, nullptr);
  // More commands than the ring holds, so that some wait behind it: pages with contents, no two of them neighbours.
  constexpr unsigned commands = wire::ring_entries + 40;
  ASSERT_EQ(app_.ask(MessageType::alloc, 1024, 2 * commands), Code::ok);
  for (unsigned i = 0; i < commands; ++i) {
    ASSERT_EQ(::pwrite(app_.files[1].get(), "x", 1, static_cast<off_t>((1024 + 2 * i) * page_bytes)), 1);
    wire::Span span{};
    span.first_page = 1024 + 2 * i;
    span.count_pages = 1;
    span.device = 0;
    app_.send(MessageType::prefetch, span);
  }
  wire::Port& agent = control().agent;
  const auto wait_for_tail = [&](std::uint32_t tail) {
    agent.peer_sleeping.store(1);
    for (std::uint32_t seen = agent.down_tail.load(); seen < tail; seen = agent.down_tail.load()) {
      if (linux::futex_wait(agent.down_tail, seen, std::uint64_t{patience_ms} * 1'000'000) == ETIMEDOUT) return false;
    }
    return true;
  };
  // Answered after all of them were taken in.
  ASSERT_EQ(app_.ask(MessageType::alloc, 4096, 1), Code::ok);
  constexpr unsigned sent = wire::ring_entries - 1;
  ASSERT_TRUE(wait_for_tail(sent)) << agent.down_tail.load();
  // Numbers are given out in order, so those of the rest can be guessed. The last first: the others are still in line then.
  std::uint64_t largest = 0;
  for (unsigned i = 0; i < sent; ++i) largest = std::max(largest, agent.down[i].action);
  for (unsigned i = commands - sent; i > 0; --i) {
    wire::UpRecord lie{};
    lie.kind = static_cast<std::uint32_t>(wire::UpKind::done);
    lie.action = largest + i;
    post(agent, lie);
    // So that what it leads to is done before the next.
    while (agent.up_head.load() != agent.up_tail.load()) ::sched_yield();
    ASSERT_EQ(app_.ask(MessageType::alloc, 4096 + i, 1), Code::ok);
  }
  // All the rest comes once the ring is answered, each once.
  std::vector<unsigned> seen(commands, 0);
  for (std::uint32_t head = 0; head < commands; ++head) {
    ASSERT_TRUE(wait_for_tail(head + 1)) << "command " << head;
    const wire::DownRecord command = agent.down[head % wire::ring_entries];
    agent.down_head.store(head + 1);
    ASSERT_EQ(command.kind, static_cast<std::uint32_t>(wire::DownKind::zap)) << head;
    const std::uint64_t page = (command.address - window_base) / page_bytes;
    ASSERT_TRUE(page >= 1024 && page < 1024 + 2 * commands && page % 2 == 0) << page;
    EXPECT_EQ(++seen[(page - 1024) / 2], 1U) << page;
    wire::UpRecord done{};
    done.kind = static_cast<std::uint32_t>(wire::UpKind::done);
    done.action = command.action;
    while (agent.up_tail.load() - agent.up_head.load() >= wire::ring_entries) ::sched_yield();
    post(agent, done);
  }
}

TEST_F(Peers, DeviceWithImpossibleTailIsEnded) {
  auto device = attach_device(app_);
  ASSERT_NE(device, nullptr);
  device_control().cus[1].up_tail.store(5000);
  kick();
  EXPECT_EQ(device->join(), 128 + SIGKILL);
  EXPECT_TRUE(device_lost());
}

TEST_F(Peers, DeviceThatWritesGarbageIsEnded) {
  auto device = attach_device(app_);
  ASSERT_NE(device, nullptr);
  Random random(7);
  for (unsigned i = 0; i < 5000; ++i) {
    wire::UpRecord record;
    for (std::size_t b = 0; b < sizeof record; b += 8) {
      const std::uint64_t v = random.next();
      std::memcpy(reinterpret_cast<char*>(&record) + b, &v, 8);
    }
    record.kind = static_cast<std::uint32_t>(random.below(6));
    if (random.chance(300)) record.address = window_base + random.below(window_bytes);
    if (random.chance(500)) record.slot = static_cast<std::uint16_t>(random.below(64));
    wire::Port& port = random.chance(200) ? device_control().agent : device_control().cus[random.below(2)];
    post(port, record);
    for (auto* p : {&device_control().agent, &device_control().cus[0], &device_control().cus[1]}) {
      p->down_head.store(p->down_tail.load());
    }
    if (i % 128 == 127) {
      const linux::Receive r = app_.receive(1);
      if (r == linux::Receive::message) break;
    }
  }
  EXPECT_EQ(device->join(), 128 + SIGKILL);
}

TEST_F(Peers, DeviceThatDoesNotAnswerIsEndedAndNobodyWaitsOn) {
  auto device = attach_device(app_);
  ASSERT_NE(device, nullptr);
  // Has a page mapped by the device's agent, which is not there. The page was never touched: the application's agent,
  // which is not there either, is not needed.
  wire::Span span{};
  span.count_pages = 1;
  span.device = 0;
  app_.send(MessageType::prefetch, span);
  EXPECT_EQ(device->join(), 128 + SIGKILL);
  // In either order.
  bool lost = false;
  bool answered = false;
  while (!lost || !answered) {
    ASSERT_EQ(app_.receive(), linux::Receive::message);
    lost |= app_.in().type() == MessageType::device_lost;
    answered |= app_.in().type() == MessageType::done;
  }
}

TEST_F(Peers, CommandsReachTheAgentsAndTheirAnswersTheCore) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "ThreadSanitizer keeps the window's addresses for itself";
#endif
  auto device = attach_device(app_);
  ASSERT_NE(device, nullptr);
  const auto system = std::move(linux::Mapping::map(app_.files[1].get(), 0, page_bytes).value());
  system.data()[0] = std::byte{42};
  // The application maps its page, as the client library does, so that there is something to take from it.
  void* const at = reinterpret_cast<void*>(window_base);
  ASSERT_EQ(::mmap(at, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, app_.files[1].get(), 0),
            at);
  const auto take = [&](wire::Port& port, wire::DownKind kind) {
    const std::uint32_t head = port.down_head.load();
    port.peer_sleeping.store(1);
    while (port.down_tail.load() == head) {
      if (linux::futex_wait(port.down_tail, head, std::uint64_t{patience_ms} * 1'000'000) == ETIMEDOUT) break;
    }
    const wire::DownRecord command = port.down[head % wire::ring_entries];
    port.down_head.store(head + 1);
    EXPECT_EQ(command.kind, static_cast<std::uint32_t>(kind));
    if (kind == wire::DownKind::grant_units) return command;
    EXPECT_EQ(command.address, window_base);
    EXPECT_EQ(command.length_bytes, page_bytes);
    return command;
  };
  const auto answer = [&](wire::Port& port, const wire::DownRecord& command) {
    wire::UpRecord done{};
    done.kind = static_cast<std::uint32_t>(wire::UpKind::done);
    done.action = command.action;
    post(port, done);
  };
  // Alone on the device, it has all units from the start.
  const wire::DownRecord grant = take(device_control().agent, wire::DownKind::grant_units);
  EXPECT_EQ(grant.units, 0b11U);
  answer(device_control().agent, grant);
  wire::Span span{};
  span.count_pages = 1;
  span.device = 0;
  app_.send(MessageType::prefetch, span);
  const wire::DownRecord zap = take(control().agent, wire::DownKind::zap);
  ASSERT_EQ(::madvise(at, page_bytes, MADV_DONTNEED), 0);
  answer(control().agent, zap);
  const wire::DownRecord map = take(device_control().agent, wire::DownKind::map);
  EXPECT_EQ(map.file, static_cast<std::uint8_t>(wire::File::vram));
  const auto vram = std::move(linux::Mapping::map(app_.files[3].get(), 0, 8U << 20).value());
  EXPECT_EQ(vram.data()[map.file_offset], std::byte{42});
  answer(device_control().agent, map);
  EXPECT_EQ(app_.done(), Code::ok);

  // Back: the device lets go first, then the page is copied home and given to whoever faults.
  vram.data()[map.file_offset] = std::byte{43};
  const bool writable = (map.rights & wire::map_write) != 0;
  span.device = wire::to_system;
  app_.send(MessageType::prefetch, span);
  answer(device_control().agent, take(device_control().agent, wire::DownKind::rearm));
  EXPECT_EQ(app_.done(), Code::ok);
  EXPECT_EQ(*static_cast<volatile unsigned char*>(at), writable ? 43 : 42)
      << "a copy that could not be written is clean";
  ASSERT_EQ(::munmap(at, page_bytes), 0);
}

// --- compute units ---------------------------------------------------------------------------------------------------

/// The device's side of its agent's port, played by the test.
class AgentOf {
 public:
  AgentOf(const Speaker& application, const std::function<void()>& kick)
      : map_(std::move(linux::Mapping::map(application.files[4].get(), 0, sizeof(wire::DeviceControl)).value())),
        kick_(kick) {}
  [[nodiscard]] wire::DeviceControl& control() const { return *reinterpret_cast<wire::DeviceControl*>(map_.data()); }
  /// The next command; answered at once.
  wire::DownRecord take() {
    wire::Port& port = control().agent;
    const std::uint32_t head = port.down_head.load();
    port.peer_sleeping.store(1);
    while (port.down_tail.load() == head) {
      if (linux::futex_wait(port.down_tail, head, std::uint64_t{patience_ms} * 1'000'000) == ETIMEDOUT) return {};
    }
    const wire::DownRecord command = port.down[head % wire::ring_entries];
    port.down_head.store(head + 1);
    wire::UpRecord done{};
    done.kind = static_cast<std::uint32_t>(wire::UpKind::done);
    done.action = command.action;
    post(port, done);
    return command;
  }
  void left(std::uint64_t units) {
    wire::UpRecord record{};
    record.kind = static_cast<std::uint32_t>(wire::UpKind::units_left);
    record.value = units;
    post(control().agent, record);
  }
  void want(unsigned units) {
    control().units.demand.store(units);
    wire::UpRecord record{};
    record.kind = static_cast<std::uint32_t>(wire::UpKind::demand);
    post(control().cus[0], record);
  }

 private:
  void post(wire::Port& port, const wire::UpRecord& record) const {
    const std::uint32_t tail = port.up_tail.load();
    port.up[tail % wire::ring_entries] = record;
    port.up_tail.store(tail + 1);
    kick_();
  }
  linux::Mapping map_;
  std::function<void()> kick_;
};

constexpr auto kind_of(const wire::DownRecord& record) { return static_cast<wire::DownKind>(record.kind); }

class PeersThatShare : public Peers {
 protected:
  void SetUp() override {
    Peers::SetUp();
    device_ = attach_device(app_);
    ASSERT_NE(device_, nullptr);
    agent_ = std::make_unique<AgentOf>(app_, [this] { kick(); });
    const wire::DownRecord grant = agent_->take();
    ASSERT_EQ(kind_of(grant), wire::DownKind::grant_units);
    EXPECT_EQ(grant.units, 0b11U);
    agent_->want(2);
    EXPECT_EQ(agent_->control().units.report_demand.load(), 0U) << "alone, it need not tell";
    other_device_ = attach_device(good_);
    ASSERT_NE(other_device_, nullptr);
    other_ = std::make_unique<AgentOf>(good_, [this] { linux::Bell::ring_fd(good_.files[0].get()); });
    EXPECT_EQ(agent_->control().units.report_demand.load(), 1U);
    EXPECT_EQ(other_->control().units.report_demand.load(), 1U);
  }
  std::unique_ptr<FakeDevice> device_;
  std::unique_ptr<FakeDevice> other_device_;
  std::unique_ptr<AgentOf> agent_;
  std::unique_ptr<AgentOf> other_;
};

TEST_F(PeersThatShare, UnitsChangeHands) {
  // More than there are: bounded.
  other_->want(1'000'000);
  const wire::DownRecord taken = agent_->take();
  ASSERT_EQ(kind_of(taken), wire::DownKind::take_units);
  EXPECT_NE(taken.units, 0U);
  agent_->left(taken.units);
  const wire::DownRecord granted = other_->take();
  ASSERT_EQ(kind_of(granted), wire::DownKind::grant_units);
  EXPECT_EQ(granted.units & ~taken.units, 0U) << "units that somebody else holds";
}

TEST_F(PeersThatShare, DeviceThatDoesNotLeaveItsUnitsIsEnded) {
  other_->want(2);
  ASSERT_EQ(kind_of(agent_->take()), wire::DownKind::take_units);
  EXPECT_TRUE(device_lost());
  EXPECT_EQ(device_->join(), 128 + SIGKILL);
  EXPECT_EQ(kind_of(other_->take()), wire::DownKind::grant_units);
}

TEST_F(PeersThatShare, DeviceThatLeavesWhatNobodyAskedForIsEnded) {
  for (unsigned i = 0; i < 1000; ++i) {
    agent_->left(~std::uint64_t{0});
    while (agent_->control().agent.up_head.load() != agent_->control().agent.up_tail.load()) {
      kick();
      if (app_.receive(1) != linux::Receive::message) continue;
      EXPECT_EQ(app_.in().type(), MessageType::device_lost);
      EXPECT_EQ(device_->join(), 128 + SIGKILL);
      return;
    }
  }
  FAIL() << "it was never ended";
}

TEST_F(PeersThatShare, DeviceThatEndsJobsNobodyStartedIsEnded) {
  for (unsigned i = 0; i < 1000; ++i) {
    wire::UpRecord record{};
    record.kind = static_cast<std::uint32_t>(wire::UpKind::job_done);
    record.slot = static_cast<std::uint16_t>(i * 77);
    post(agent_->control().agent, record);
    while (agent_->control().agent.up_head.load() != agent_->control().agent.up_tail.load()) {
      kick();
      if (app_.receive(1) != linux::Receive::message) continue;
      EXPECT_EQ(app_.in().type(), MessageType::device_lost);
      return;
    }
  }
  FAIL() << "it was never ended";
}

TEST_F(PeersThatShare, UnitsOfADeadDeviceGoToTheOthers) {
  ::kill(device_->pid(), SIGKILL);
  EXPECT_TRUE(device_lost());
  other_->want(2);
  const wire::DownRecord granted = other_->take();
  ASSERT_EQ(kind_of(granted), wire::DownKind::grant_units);
  EXPECT_EQ(granted.units, 0b11U);
}

TEST_F(Peers, BlockingUserfaultfdDoesNotStopTheManager) {
  ASSERT_EQ(::fcntl(app_.userfault.fd(), F_SETFL, 0), 0);
  EXPECT_EQ(app_.ask(MessageType::alloc, 2048, 10), Code::ok);
}

TEST_F(Peers, BlockingBellDoesNotStopTheManager) {
  ASSERT_EQ(::fcntl(app_.files[0].get(), F_SETFL, 0), 0);
  kick();
  std::uint64_t n = 0;
  ASSERT_EQ(::read(app_.files[0].get(), &n, sizeof n), 8);
  EXPECT_EQ(app_.ask(MessageType::alloc, 2048, 10), Code::ok);
}

}  // namespace
}  // namespace ferry::manager::test

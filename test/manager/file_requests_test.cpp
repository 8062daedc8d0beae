// Files of an application on its devices (wire/files.h), said by applications and devices that lie: refused with nothing
// changed, and the manager goes on serving. The device is a process that sleeps; the test speaks for its agent and its waves.
#include <limits>
#include <memory>

#include "ferryd_harness.h"
#include "linux/event.h"
#include "linux/futex.h"
#include "linux/memory_file.h"
#include "manager/executor/executor.h"
#include "wire/ring.h"

namespace ferry::manager::test {
namespace {

using wire::DownKind;
using wire::MessageType;
constexpr std::uint64_t address = 0x7000'0000'0000;
constexpr std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();

class FileRequests : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(app_.hello());
    control_ = std::move(linux::Mapping::map(app_.files[4].get(), 0, sizeof(wire::DeviceControl)).value());
    device_ = attach_device(app_);
    ASSERT_NE(device_, nullptr);
    const wire::DownRecord grant = take(control().agent);
    ASSERT_EQ(static_cast<DownKind>(grant.kind), DownKind::grant_units);
    answer(grant, 0, 0, 0);
  }
  void TearDown() override { EXPECT_TRUE(ferryd_.serves()); }

  [[nodiscard]] wire::DeviceControl& control() const {
    return *reinterpret_cast<wire::DeviceControl*>(control_.data());
  }
  void post(wire::Port& port, const wire::UpRecord& record) const {
    const std::uint32_t tail = port.up_tail.load();
    port.up[tail % wire::ring_entries] = record;
    port.up_tail.store(tail + 1);
    linux::Bell::ring_fd(app_.files[0].get());
  }
  static wire::DownRecord take(wire::Port& port) {
    const std::uint32_t head = port.down_head.load();
    port.peer_sleeping.store(1);
    while (port.down_tail.load() == head) {
      if (linux::futex_wait(port.down_tail, head, std::uint64_t{patience_ms} * 1'000'000) == ETIMEDOUT) return {};
    }
    const wire::DownRecord record = port.down[head % wire::ring_entries];
    port.down_head.store(head + 1);
    return record;
  }
  void answer(const wire::DownRecord& command, int error, std::uint64_t at, std::uint64_t bytes) const {
    wire::UpRecord done{};
    done.kind = static_cast<std::uint32_t>(wire::UpKind::done);
    done.action = command.action;
    done.error = error;
    done.address = at;
    done.value = bytes;
    post(control().agent, done);
  }
  /// A wave touches the page, and the application is asked.
  void touch(std::uint16_t slot, std::uint64_t at) {
    wire::UpRecord fault{};
    fault.kind = static_cast<std::uint32_t>(wire::UpKind::fault);
    fault.slot = slot;
    fault.address = at;
    fault.generation = ++generation_;
    fault.unit = wire::no_unit;
    post(control().cus[0], fault);
  }
  void asked() {
    ASSERT_TRUE(app_.got(MessageType::adopt_ask));
    wire::AdoptAsk ask{};
    ASSERT_TRUE(app_.in().body(ask));
    EXPECT_EQ(ask.address, address);
    EXPECT_EQ(ask.devices, 1U);
  }
  static wire::FileServe serve() {
    wire::FileServe s{};
    s.address = address;
    s.first_page = Window{window_base, window_bytes}.page_of_address(address) - 4;
    s.count_pages = 16;
    s.file_offset = 4096;
    s.rights = wire::map_write;
    s.serial = 7;
    s.devices = 1;
    return s;
  }
  Code say(const wire::FileServe& body) {
    app_.send(MessageType::file_serve, body);
    return app_.done();
  }
  Code drop() {
    const wire::FileServe s = serve();
    return app_.ask(MessageType::file_drop, s.first_page, s.count_pages);
  }

  Ferryd ferryd_{{"--vram", "8M"}};
  Speaker app_{ferryd_};
  std::unique_ptr<FakeDevice> device_;
  linux::Mapping control_;
  std::uint64_t generation_ = 0;
};

TEST_F(FileRequests, AFileIsMappedAndTheWaveGoesOn) {
  touch(0, address);
  asked();
  ASSERT_EQ(say(serve()), Code::ok);
  const wire::DownRecord command = take(control().agent);
  ASSERT_EQ(static_cast<DownKind>(command.kind), DownKind::map_file);
  EXPECT_EQ(command.address, address - 4 * page_bytes);
  EXPECT_EQ(command.length_bytes, 16 * page_bytes);
  EXPECT_EQ(command.file_offset, 4096U);
  EXPECT_EQ(command.buffer, 7U);
  EXPECT_EQ(command.units, address);
  // Less than it was told: it has memory of its own there.
  answer(command, 0, address, 2 * page_bytes);
  const wire::DownRecord resume = take(control().cus[0]);
  EXPECT_EQ(static_cast<DownKind>(resume.kind), DownKind::resume);
  EXPECT_EQ(resume.status, 0U);
  // The same touch again is an error of the file.
  touch(0, address);
  const wire::DownRecord failed = take(control().cus[0]);
  EXPECT_EQ(failed.buffer, static_cast<std::uint32_t>(wire::Refusal::file_end));
  // What was mapped is taken away before the answer.
  wire::Span span{};
  span.first_page = serve().first_page;
  span.count_pages = 5;
  app_.send(MessageType::file_drop, span);
  const wire::DownRecord revoke = take(control().agent);
  ASSERT_EQ(static_cast<DownKind>(revoke.kind), DownKind::revoke);
  EXPECT_EQ(revoke.address, address);
  EXPECT_EQ(revoke.length_bytes, 2 * page_bytes);
  EXPECT_EQ(app_.receive(50), linux::Receive::nothing);
  answer(revoke, 0, 0, 0);
  EXPECT_EQ(app_.done(), Code::ok);
}

TEST_F(FileRequests, WhatNobodyAskedForOrCannotBeIsRefused) {
  EXPECT_EQ(say(serve()), Code::bad_range) << "without a question";
  touch(0, address);
  asked();
  for (int i = 0; i < 9; ++i) {
    wire::FileServe s = serve();
    switch (i) {
      case 0: s.address += 4096; break;
      case 1: s.first_page = 0; break;
      case 2: s.first_page += 5; break;
      case 3: s.count_pages = 0; break;
      case 4: s.count_pages = huge; break;
      case 5: s.first_page = huge - 3; break;
      case 6: s.file_offset = 17; break;
      case 7: s.file_offset = huge - 4095; break;
      default: s.rights = 2; break;
    }
    EXPECT_EQ(say(s), Code::bad_range) << i;
  }
  // Of devices that are not there nothing is told, and the question is answered.
  wire::FileServe nobody = serve();
  nobody.devices = ~1U;
  EXPECT_EQ(say(nobody), Code::ok);
  // It may have been unmapped again in the meantime: it is asked anew, not for ever.
  for (unsigned i = 1; i < Executor::stale_answers_max; ++i) {
    asked();
    EXPECT_EQ(say(nobody), Code::ok);
  }
  const wire::DownRecord resume = take(control().cus[0]);
  EXPECT_EQ(resume.buffer, static_cast<std::uint32_t>(wire::Refusal::kernel));
  EXPECT_EQ(app_.ask(MessageType::file_drop, huge, 1), Code::bad_range);
  EXPECT_EQ(app_.ask(MessageType::file_drop, 0, 1), Code::bad_range) << "in the window";
  EXPECT_EQ(drop(), Code::ok) << "nothing is there";
}

TEST_F(FileRequests, AnswersThatComeLateAreNoReasonToRefuseWhereMemoryIsAdoptedMeanwhile) {
  touch(0, address);
  wire::AdoptAnswer late{};
  late.address = address;
  wire::Span span{};
  span.count_pages = 1;
  span.device = wire::to_system;
  span.flags = wire::span_has_contents;
  for (unsigned i = 0; i < 2 * Executor::stale_answers_max; ++i) {
    asked();
    span.first_page = serve().first_page + 100 + i;
    app_.send(MessageType::alloc, span);
    ASSERT_EQ(app_.done(), Code::ok) << i;
    app_.send(MessageType::adopt_answer, late);
  }
  // Nothing is adopted any more: there is an end to it.
  for (unsigned i = 1; i < Executor::stale_answers_max; ++i) {
    asked();
    app_.send(MessageType::adopt_answer, late);
  }
  EXPECT_EQ(take(control().cus[0]).buffer, static_cast<std::uint32_t>(wire::Refusal::kernel));
}

TEST_F(FileRequests, ADeviceThatMapsWhatItWasNotToldIsEnded) {
  touch(0, address);
  asked();
  ASSERT_EQ(say(serve()), Code::ok);
  answer(take(control().agent), 0, address + 4096, 4096);
  EXPECT_TRUE(app_.got(MessageType::device_lost));
  EXPECT_EQ(device_->join(), 128 + SIGKILL);
  EXPECT_EQ(drop(), Code::ok);
}

TEST_F(FileRequests, ADeviceThatCannotMapFailsTheWaveAndADeviceThatEndsHasNothing) {
  touch(0, address);
  asked();
  ASSERT_EQ(say(serve()), Code::ok);
  answer(take(control().agent), EEXIST, 0, 0);
  EXPECT_EQ(take(control().cus[0]).buffer, static_cast<std::uint32_t>(wire::Refusal::device_memory));
  touch(0, address);
  asked();
  ASSERT_EQ(say(serve()), Code::ok);
  const wire::DownRecord command = take(control().agent);
  answer(command, 0, command.address, command.length_bytes);
  EXPECT_EQ(take(control().cus[0]).status, 0U);
  // While it is being taken away.
  wire::Span span{};
  span.first_page = serve().first_page;
  span.count_pages = 1;
  app_.send(MessageType::file_drop, span);
  EXPECT_EQ(static_cast<DownKind>(take(control().agent).kind), DownKind::revoke);
  ::kill(device_->pid(), SIGKILL);
  bool lost = false;
  bool dropped = false;
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(app_.receive(), linux::Receive::message);
    lost = lost || app_.in().type() == MessageType::device_lost;
    dropped = dropped || app_.in().type() == MessageType::done;
  }
  EXPECT_TRUE(lost);
  EXPECT_TRUE(dropped);
}

}  // namespace
}  // namespace ferry::manager::test

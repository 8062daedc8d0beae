// Verbs of the executor that a core asks for, performed in this process: the test plays application, device and owner.
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/mman.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "linux/event.h"
#include "linux/futex.h"
#include "linux/memory_file.h"
#include "linux/socket.h"
#include "manager/executor/executor.h"

namespace ferry::manager {
namespace {

constexpr int patience_ms = 20'000;
constexpr std::uint64_t blocks = 4;
constexpr std::uint64_t bytes = blocks * block_bytes;
constexpr ClientId id = 1;

class Verbs : public ::testing::Test, public Household {
 protected:
  void SetUp() override {
    core::Config config;
    config.device_count = 2;
    core_ = std::make_unique<core::Core>(config);
    bell_ = std::make_unique<linux::Bell>(std::move(linux::Bell::make().value()));
    manager_.machine.devices = 2;
    executor_ = std::make_unique<Executor>(*core_, *this, manager_, *bell_, 1, nullptr);
    client_.id = id;
    client_.system_file = std::move(linux::make_memory_file("ferry-test", bytes).value());
    window_ = std::move(linux::Mapping::map(client_.system_file.get(), 0, bytes).value());
    client_.window_base = reinterpret_cast<std::uint64_t>(window_.data());
    client_.window_bytes = bytes;
    client_.blocks = BlockTable(blocks);
    client_.mirrors.resize(1);
    client_.spans[0] = blocks * block_pages;
    auto u = linux::Userfaultfd::open({.sigbus = false, .prefer_full_service = false, .protect = true});
    ASSERT_TRUE(u.ok());
    client_.userfault = std::move(u).value();
    client_.control_file = std::move(linux::make_memory_file("ferry-test", sizeof(wire::AppControl)).value());
    client_.control_map =
        std::move(linux::Mapping::map(client_.control_file.get(), 0, sizeof(wire::AppControl)).value());
    client_.agent.port = wire::ManagerPort(client_.control()->agent);
    client_.devices.resize(2);
    for (DevicePeer& peer : client_.devices) {
      peer.vram_file = std::move(linux::make_memory_file("ferry-test", bytes).value());
      peer.vram = std::move(linux::Mapping::map(peer.vram_file.get(), 0, bytes).value());
      peer.chunk_ready.assign(blocks, 0);
      peer.control_file = std::move(linux::make_memory_file("ferry-test", sizeof(wire::DeviceControl)).value());
      peer.control_map =
          std::move(linux::Mapping::map(peer.control_file.get(), 0, sizeof(wire::DeviceControl)).value());
      peer.agent.port = wire::ManagerPort(peer.control()->agent);
      peer.state = DeviceState::attached;
    }
    core_->client_open(id);
    ASSERT_TRUE(core_->alloc(0, id, {0, blocks * block_pages}, core::Placement::automatic).ok());
  }

  // Household
  Client* find_client(ClientId) override { return &client_; }
  void on_reply(core::Cookie, Status) override {}
  void on_fence(core::FenceId, Status) override {}
  void drop_device(Client&, DeviceId, const char* why) override { dropped_ = why; }
  void drop_client(Client&, const char* why) override { dropped_ = why; }

  static core::Action action(core::Verb verb, Page first, std::uint64_t count) {
    core::Action a;
    a.verb = verb;
    a.client = id;
    a.pages = {first, count};
    return a;
  }
  void perform(const core::Action& a) { executor_->perform(a); }
  void protect(Page first, std::uint64_t count) { perform(action(core::Verb::protect_cpu, first, count)); }
  void give(Page first, std::uint64_t count, Prot prot) {
    core::Action a = action(core::Verb::map_cpu, first, count);
    a.prot = prot;
    perform(a);
  }
  /// As the application's agent does what the executor asks it to.
  void revoke(Page first, std::uint64_t count) {
    perform(action(core::Verb::revoke_cpu, first, count));
    ASSERT_EQ(::madvise(window_.data() + first * page_bytes, count * page_bytes, MADV_DONTNEED), 0);
  }

  [[nodiscard]] std::atomic<std::uint64_t>& word(Page page) const {
    return *reinterpret_cast<std::atomic<std::uint64_t>*>(window_.data() + page * page_bytes);
  }
  [[nodiscard]] std::atomic<std::uint64_t>& behind(Page page) {
    return *reinterpret_cast<std::atomic<std::uint64_t>*>(client_.mirror(page));
  }
  [[nodiscard]] const CpuGuard& guard(Page page) { return *client_.block(block_of(page)).guard; }
  [[nodiscard]] bool next_fault(uffd_msg& message, int timeout_ms) const {
    pollfd p{client_.userfault.fd(), POLLIN, 0};
    return ::poll(&p, 1, timeout_ms) == 1 && client_.userfault.read({&message, 1}) == 1;
  }
  /// Serves faults as the manager does, until `thread` has ended; those that the core is told of stay unanswered until
  /// `asked`, called for the first write of them, has had them answered.
  void serve(const std::atomic<bool>& ended, const std::function<void(Page, Access)>& asked) {
    const std::uint64_t limit = linux::monotonic_ns() + std::uint64_t{patience_ms} * 1'000'000;
    while (!ended.load()) {
      ASSERT_LT(linux::monotonic_ns(), limit) << "a thread was never let on";
      uffd_msg message;
      if (!next_fault(message, 20)) continue;
      const bool write = (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0;
      const std::uint64_t address = message.arg.pagefault.address;
      const std::uint64_t before = core_->stats().cpu_faults + core_->stats().cpu_faults_merged;
      executor_->on_cpu_fault(client_, address, write ? Access::write : Access::read);
      if (core_->stats().cpu_faults + core_->stats().cpu_faults_merged == before) continue;
      asked((address - client_.window_base) / page_bytes, write ? Access::write : Access::read);
    }
  }
  /// Runs `body` on a thread of the application.
  void run(const std::function<void()>& body, const std::function<void(Page, Access)>& asked) {
    std::atomic<bool> ended{false};
    std::thread thread([&] {
      body();
      ended.store(true);
    });
    serve(ended, asked);
    if (HasFatalFailure()) client_.userfault.close();  // lets go of it
    thread.join();
  }
  static void nobody(Page page, Access) { ADD_FAILURE() << "the core was asked for page " << page; }

  void expect_protected(Page page, Page end) {
    for (Page p = page; p < end; ++p) behind(p).store(p);
    run(
        [&] {
          for (Page p = page; p < end; ++p) EXPECT_EQ(word(p).load(), p);
        },
        nobody);
    unsigned asked = 0;
    run([&] { word(page).store(99); },
        [&](Page p, Access access) {
          ++asked;
          EXPECT_EQ(p, page);
          EXPECT_EQ(access, Access::write);
          EXPECT_EQ(behind(page).load(), page) << "it was written before the core had said so";
          give(page, 1, Prot::read_write);
        });
    EXPECT_EQ(asked, 1U);
    EXPECT_EQ(behind(page).load(), 99U);
    run([&] { word(page).store(100); }, nobody);
  }

  ManagerConfig manager_;
  std::unique_ptr<core::Core> core_;
  std::unique_ptr<linux::Bell> bell_;
  linux::Mapping window_;
  Client client_;
  std::unique_ptr<Executor> executor_;
  std::string dropped_;
};

/// As many mappings as the process may have, until it goes.
class Crowd {
 public:
  Crowd()
      : at_(static_cast<char*>(::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    for (std::size_t i = 0; i < size; i += 2 * page_bytes) {
      if (::mprotect(at_ + i, page_bytes, PROT_READ) != 0) {
        full_ = errno == ENOMEM;
        return;
      }
    }
  }
  ~Crowd() { ::munmap(at_, size); }
  Crowd(const Crowd&) = delete;
  Crowd& operator=(const Crowd&) = delete;
  [[nodiscard]] bool full() const { return full_; }

 private:
  static constexpr std::size_t size = std::size_t{1} << 30;
  char* at_;
  bool full_ = false;
};

/// What an application has just unmapped, or mapped over, is in the way of registering, and no mapping may be cut in two.
TEST_F(Verbs, AtTheLimitOfMappingsWhatIsLeftOfAnAllocationIsRegisteredWhole) {
  client_.process = std::move(linux::Process::open(::getpid()).value());
  if (!client_.process.mappings(client_.window_base, client_.window_base + 1).ok())
    GTEST_SKIP() << "PROCMAP_QUERY (Linux 6.11)";
  for (Page p = 90; p < 110; ++p) word(p).store(p);
  char* const over = reinterpret_cast<char*>(window_.data()) + 100 * page_bytes;
  ASSERT_EQ(::mmap(over, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), over);
  ASSERT_EQ(::munmap(over + 100 * page_bytes, page_bytes), 0);
  {
    const Crowd crowd;
    if (!crowd.full()) GTEST_SKIP() << "vm.max_map_count is too large for this test";
    revoke(90, 8);
  }
  EXPECT_EQ(dropped_, "");
  unsigned asked = 0;
  run([&] { EXPECT_EQ(word(91).load(), 91U); },
      [&](Page p, Access) {
        ++asked;
        EXPECT_EQ(p, 91U);
        give(90, 8, Prot::read_write);
      });
  EXPECT_EQ(asked, 1U);
}

/// Memory that the machine did not have for a chunk is asked for again by the next copy.
TEST_F(Verbs, AChunkThatCouldNotBeGivenMemoryIsPreparedAgain) {
  const auto copy_up = [&] {
    core::Action a = action(core::Verb::copy, 0, 64);
    a.device = 0;
    a.place = core::Place::system;
    perform(a);
    const std::uint64_t limit = linux::monotonic_ns() + std::uint64_t{patience_ms} * 1'000'000;
    while (executor_->copying() && linux::monotonic_ns() < limit) executor_->poll_copies();
    ASSERT_FALSE(executor_->copying());
  };
  DevicePeer& peer = client_.devices[0];
  word(0).store(42);
  // As a kernel without memory, to MADV_POPULATE_WRITE.
  ASSERT_EQ(::mprotect(peer.vram.data(), block_bytes, PROT_NONE), 0);
  copy_up();
  EXPECT_EQ(peer.chunk_ready[0], 0);
  ASSERT_EQ(::mprotect(peer.vram.data(), block_bytes, PROT_READ | PROT_WRITE), 0);
  copy_up();
  EXPECT_EQ(peer.chunk_ready[0], 1);
  EXPECT_EQ(*reinterpret_cast<const std::uint64_t*>(peer.vram.data()), 42U);
}

TEST_F(Verbs, WhatIsDiscardedWhileItsApplicationTakesItBackIsGone) {
  client_.block(0).managed = PageMask::all();
  client_.releasing.emplace(0, Client::Releasing{{0, 16}, false});
  word(3) = 42;
  word(4) = 43;
  perform(action(core::Verb::discard_system, 3, 1));
  EXPECT_EQ(behind(3), 0U) << "it is the core's still: what went to VRAM, or was given up, is not here any more";
  // Freed: from here on the bytes are the application's, until it says that it has them.
  client_.block(0).managed.remove(PageMask::range(0, 16));
  client_.spans.clear();
  perform(action(core::Verb::discard_system, 0, 16));
  EXPECT_EQ(behind(4), 43U);
}

class VerbsProtect : public Verbs {
 protected:
  void SetUp() override {
    Verbs::SetUp();
    if (!linux::can_map_for_reading()) GTEST_SKIP() << "UFFDIO_CONTINUE_MODE_WP needs Linux 6.4";
  }
};

TEST_F(VerbsProtect, ASpanThatNobodySteeredIsReadAndNotWritten) {
  for (Page p = 0; p < 8; ++p) word(p).store(p);
  protect(0, block_pages);
  EXPECT_TRUE(guard(0).guarded.contains(PageMask::all()));
  expect_protected(0, 64);  // most of them holes until now
}

TEST_F(VerbsProtect, ASteeredSpanIsToo) {
  for (Page p = 512; p < 520; ++p) word(p).store(p);
  revoke(512, 8);
  give(512, 8, Prot::read_write);
  run([&] { word(513).store(5); }, nobody);
  protect(512, 8);
  expect_protected(512, 520);
}

TEST_F(VerbsProtect, RevokedPagesAreGivenForReading) {
  for (Page p = 0; p < 32; ++p) word(p).store(p);
  revoke(0, 32);
  give(0, 16, Prot::read);
  expect_protected(0, 16);
  // The rest is still the core's.
  unsigned asked = 0;
  run([&] { EXPECT_EQ(word(20).load(), 20U); },
      [&](Page p, Access) {
        ++asked;
        EXPECT_EQ(p, 20U);
        give(16, 16, Prot::read);
      });
  EXPECT_EQ(asked, 1U);
  expect_protected(24, 32);
}

TEST_F(VerbsProtect, PagesMappedForWritingAreNoMoreWhenGivenForReading) {
  for (Page p = 0; p < 16; ++p) word(p).store(p);
  give(0, 16, Prot::read);
  expect_protected(0, 16);
}

TEST_F(VerbsProtect, RevokedWhileProtectedAndBack) {
  for (Page p = 0; p < 16; ++p) word(p).store(p);
  protect(0, 16);
  revoke(0, 16);
  EXPECT_FALSE(guard(0).read_only.any());
  unsigned asked = 0;
  run([&] { word(3).store(7); },
      [&](Page, Access) {
        ++asked;
        give(0, 16, Prot::read_write);
      });
  EXPECT_EQ(asked, 1U);
  EXPECT_EQ(behind(3).load(), 7U);
  run([&] { word(4).store(8); }, nobody);
}

TEST_F(VerbsProtect, AHugeBlockIsProtectedWhole) {
  std::memset(window_.data(), 1, block_bytes);
  BlockState& b = client_.block(0);
  b.huge = linux::make_huge(client_.mirror(0), block_bytes);
  if (!b.huge) GTEST_SKIP() << "no huge page to be had";
  ASSERT_NE(::mmap(window_.data(), block_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE,
                   client_.system_file.get(), 0),
            MAP_FAILED);
  protect(0, block_pages);
  expect_protected(0, block_pages);
}

TEST_F(VerbsProtect, WritersFindEveryProtectionAndLoseNothing) {
  constexpr unsigned pages = 8;
  constexpr std::uint64_t rounds = 20'000;
  for (Page p = 0; p < pages; ++p) word(p).store(0);
  std::atomic<bool> begun{false};
  std::atomic<bool> ended{false};
  std::thread writer([&] {
    begun.wait(false);  // until something is protected
    for (std::uint64_t i = 0; i < rounds; ++i) word(i % pages).fetch_add(1);
    ended.store(true);
  });
  std::uint64_t protections = 0;
  const std::uint64_t limit = linux::monotonic_ns() + std::uint64_t{patience_ms} * 1'000'000;
  while (!ended.load() && linux::monotonic_ns() < limit) {
    protect(0, pages);
    ++protections;
    std::uint64_t before = 0;
    for (Page p = 0; p < pages; ++p) before += behind(p).load();
    begun.store(true);
    begun.notify_one();
    uffd_msg message;
    while (!ended.load() && !next_fault(message, 20)) {}
    std::uint64_t after = 0;
    for (Page p = 0; p < pages; ++p) after += behind(p).load();
    EXPECT_EQ(before, after) << "a write after the protection was made";
    give(0, pages, Prot::read_write);
  }
  EXPECT_TRUE(ended.load());
  if (!ended.load()) client_.userfault.close();
  writer.join();
  std::uint64_t sum = 0;
  for (Page p = 0; p < pages; ++p) sum += behind(p).load();
  EXPECT_EQ(sum, rounds);
  EXPECT_GT(protections, 0U);
}

TEST_F(VerbsProtect, FreedPagesAreGuardedNoMore) {
  for (Page p = 0; p < 16; ++p) word(p).store(p);
  protect(0, 16);
  client_.block(0).managed.remove(PageMask::range(0, 16));
  perform(action(core::Verb::discard_system, 0, 16));
  EXPECT_FALSE(guard(0).guarded.intersects(PageMask::range(0, 16)));
  run([&] { word(3).store(7); }, nobody);
  EXPECT_EQ(behind(3).load(), 7U);
}

/// As before Linux 6.4.
class VerbsWithoutProtection : public Verbs {
 protected:
  void SetUp() override {
    manager_.protect_pages = false;
    Verbs::SetUp();
  }
  /// A read asks the core for the right to write, and has it then.
  void expect_read_asks(Page page, Page first, std::uint64_t count) {
    unsigned asked = 0;
    run([&] { EXPECT_EQ(word(page).load(), page); },
        [&](Page p, Access) {
          ++asked;
          EXPECT_EQ(p, page);
          give(first, count, Prot::read_write);
        });
    EXPECT_EQ(asked, 1U);
    run([&] { word(page).store(7); }, nobody);
    EXPECT_EQ(behind(page).load(), 7U);
  }
};

TEST_F(VerbsWithoutProtection, PagesAreTakenAndAReadAsksForTheRightToWrite) {
  for (Page p = 0; p < 16; ++p) word(p).store(p);
  protect(0, 16);
  EXPECT_FALSE(guard(0).guarded.any());
  executor_->run_actions();
  const wire::DownRecord& command = client_.control()->agent.down[0];
  ASSERT_EQ(client_.control()->agent.down_tail.load(), 1U) << "the agent is to take them away";
  EXPECT_EQ(command.kind, static_cast<std::uint32_t>(wire::DownKind::zap));
  ASSERT_EQ(::madvise(reinterpret_cast<void*>(command.address), command.length_bytes, MADV_DONTNEED), 0);
  expect_read_asks(3, 0, 16);
}

TEST_F(VerbsWithoutProtection, PagesGivenForReadingStayOutOfReach) {
  for (Page p = 0; p < 16; ++p) word(p).store(p);
  revoke(0, 16);
  give(0, 16, Prot::read);
  expect_read_asks(5, 0, 16);
}

// --- devices ---------------------------------------------------------------------------------------------------------

class VerbsDevices : public Verbs {
 protected:
  void SetUp() override {
    Verbs::SetUp();
    for (DeviceId d = 0; d < 2; ++d) {
      auto pair = std::move(linux::make_socket_pair().value());
      client_.devices[d].socket = std::move(pair.first);
      ends_[d] = std::move(pair.second);
    }
  }
  wire::DownRecord take(DeviceId device) {
    wire::Port& port = client_.devices[device].control()->agent;
    const std::uint32_t head = port.down_head.load();
    if (port.down_tail.load() == head) {
      ADD_FAILURE() << "no command for device " << device;
      return {};
    }
    port.down_head.store(head + 1);
    return port.down[head % wire::ring_entries];
  }
  void answer(DeviceId device, const wire::DownRecord& command, int error = 0) {
    wire::UpRecord done{};
    done.action = command.action;
    done.error = error;
    executor_->on_done(client_, device, Executor::no_cu, done);
  }
  core::Action map(DeviceId device, Page first, std::uint64_t count) {
    core::Action a = action(core::Verb::map_device, first, count);
    a.device = device;
    return a;
  }
  [[nodiscard]] const DeviceBlock& block(DeviceId device, Page page) {
    return client_.device_block(client_.block(block_of(page)), device);
  }
  linux::Fd ends_[2];
};

TEST_F(VerbsDevices, CopyGoesFromOneDevicesMemoryToTheOthersAndNowhereElse) {
  DevicePeer& from = client_.devices[0];
  DevicePeer& to = client_.devices[1];
  std::memset(from.vram.data() + 3 * page_bytes, 0x33, 5 * page_bytes);
  core::Action a = action(core::Verb::copy, 520, 5);
  a.place = core::Place::vram;
  a.device = 0;
  a.vram_first = 3;
  a.to = core::Place::vram;
  a.to_device = 1;
  a.vram_to = block_pages + 7;
  perform(a);
  const std::uint64_t limit = linux::monotonic_ns() + std::uint64_t{patience_ms} * 1'000'000;
  while (executor_->copying() && linux::monotonic_ns() < limit) executor_->poll_copies();
  ASSERT_FALSE(executor_->copying());
  const std::byte* const target = to.vram.data() + (block_pages + 7) * page_bytes;
  EXPECT_EQ(target[0], std::byte{0x33});
  EXPECT_EQ(target[5 * page_bytes - 1], std::byte{0x33});
  EXPECT_EQ(target[5 * page_bytes], std::byte{0});
  EXPECT_EQ(target[-1], std::byte{0});
  EXPECT_EQ(linux::next_data(client_.system_file.get(), 0, bytes), bytes) << "nothing went through system memory";
  EXPECT_NE(to.chunk_ready[1], 0);
  EXPECT_EQ(executor_->copy_to_vram_ns + executor_->copy_to_system_ns, 0U);
  EXPECT_NE(executor_->copy_to_peer_ns, 0U);
}

TEST_F(VerbsDevices, LinkedMemoryIsSentOnceAndMappedByNumber) {
  core::Action a = map(1, 0, 16);
  a.place = core::Place::vram;
  a.owner = 0;
  a.vram_first = 32;
  a.prot = Prot::read;
  perform(a);
  const wire::DownRecord first = take(1);
  EXPECT_EQ(first.kind, static_cast<std::uint32_t>(wire::DownKind::map));
  EXPECT_EQ(first.file, static_cast<std::uint8_t>(wire::File::peer));
  EXPECT_EQ(first.buffer, 0U);
  EXPECT_EQ(first.file_offset, 32 * page_bytes);
  EXPECT_EQ(first.rights, 0);
  auto in = std::make_unique<linux::Incoming>();
  ASSERT_EQ(linux::receive_message(ends_[1].get(), *in, patience_ms), linux::Receive::message);
  wire::PeerFile body{};
  ASSERT_TRUE(in->type() == wire::MessageType::peer_file && in->body(body) && in->fd_count == 1);
  EXPECT_EQ(body.device, 0U);
  const auto theirs = std::move(linux::Mapping::map(in->fds[0].get(), 0, bytes).value());
  client_.devices[0].vram.data()[0] = std::byte{9};
  EXPECT_EQ(theirs.data()[0], std::byte{9});
  EXPECT_EQ(client_.devices[1].peer_files_taken, 0U);
  answer(1, first);
  EXPECT_EQ(client_.devices[1].peer_files_taken, 1U);
  a.pages.first = 16;
  a.vram_first = 48;
  a.prot = Prot::read_write;
  perform(a);
  EXPECT_EQ(take(1).rights, wire::map_write);
  EXPECT_EQ(linux::receive_message(ends_[1].get(), *in, 0), linux::Receive::nothing) << "sent twice";
  EXPECT_EQ(client_.devices[1].dma_pages, 0U) << "no system page is open";
  // Its own, named as owner, is no peer's.
  a.owner = 1;
  a.pages.first = 32;
  perform(a);
  EXPECT_EQ(take(1).file, static_cast<std::uint8_t>(wire::File::vram));
}

TEST_F(VerbsDevices, InPlaceForReadingOrCallingIsAnExtentWithJustThatRight) {
  core::Action a = map(0, 8, 4);
  a.prot = Prot::read;
  perform(a);
  wire::DownRecord command = take(0);
  EXPECT_EQ(command.file, static_cast<std::uint8_t>(wire::File::system));
  EXPECT_EQ(command.file_offset, 8 * page_bytes);
  EXPECT_EQ(command.rights, 0);
  EXPECT_EQ(client_.devices[0].dma_pages, 4U) << "open before the answer: it may be reachable";
  answer(0, command);
  a.pages = {16, 4};
  a.prot = Prot::read_write;
  a.exec = true;
  perform(a);
  command = take(0);
  EXPECT_EQ(command.rights, wire::map_write | wire::map_exec);
  answer(0, command);
  EXPECT_TRUE(block(0, 16).exec.contains(PageMask::range(16, 4)));
  EXPECT_FALSE(block(0, 8).exec.intersects(PageMask::range(8, 4)));
  EXPECT_EQ(client_.devices[0].dma_pages, 8U);

  core::Action gone = action(core::Verb::revoke_device, 8, 12);
  gone.device = 0;
  perform(gone);
  executor_->run_actions();
  command = take(0);
  EXPECT_EQ(command.kind, static_cast<std::uint32_t>(wire::DownKind::rearm));
  EXPECT_EQ(client_.devices[0].dma_pages, 8U) << "closed before the device had let go";
  answer(0, command);
  EXPECT_EQ(client_.devices[0].dma_pages, 0U);
  EXPECT_FALSE(block(0, 16).exec.any());
}

TEST_F(VerbsDevices, WhatADeadDeviceHadOpenIsClosed) {
  core::Action a = map(0, 0, block_pages);
  perform(a);
  take(0);
  a.pages = {block_pages, 8};
  a.prot = Prot::read;
  perform(a);
  EXPECT_EQ(client_.devices[0].dma_pages, block_pages + 8);
  executor_->device_ended(client_, 0);
  EXPECT_EQ(client_.devices[0].dma_pages, 0U);
  EXPECT_FALSE(block(0, 0).dma.any());
}

}  // namespace
}  // namespace ferry::manager

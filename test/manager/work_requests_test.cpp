// Messages about buffers, fences, timelines and jobs from an application that lies: what is not its own it does not get,
// what cannot be is refused, and the manager goes on serving.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <limits>

#include "base/random.h"
#include "core/work/types.h"
#include "ferryd_harness.h"
#include "linux/process.h"

namespace ferry::manager::test {
namespace {

using wire::MessageType;
constexpr std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();

class WorkRequests : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(app_.hello());
    ASSERT_TRUE(other_.hello());
  }
  void TearDown() override { EXPECT_TRUE(ferryd_.serves()); }

  static wire::WorkAnswer answer(Speaker& to) {
    wire::WorkAnswer a{};
    a.code = huge & 0xffff;
    if (to.got(MessageType::work_answer)) {
      EXPECT_TRUE(to.in().body(a));
    }
    return a;
  }
  template <typename T>
  static wire::WorkAnswer ask(Speaker& to, MessageType type, const T& body, std::vector<int> fds = {}) {
    to.send(type, body, std::move(fds));
    return answer(to);
  }
  static Code code(const wire::WorkAnswer& a) { return static_cast<Code>(a.code); }
  static Code ref(Speaker& to, MessageType type, std::uint64_t id, std::uint64_t value = 0) {
    return code(ask(to, type, wire::ObjectRef{id, value}));
  }
  static Code import(Speaker& to, MessageType type, int fd) {
    EXPECT_TRUE(linux::send_bytes(to.fd(), type, 77, {}, std::vector<int>{fd}).ok());
    return code(answer(to));
  }

  static std::uint64_t buffer(Speaker& to, std::uint64_t pages = 16) {
    wire::BufferCreate create{};
    create.count_pages = pages;
    create.home = wire::to_system;
    const wire::WorkAnswer a = ask(to, MessageType::buffer_create, create);
    EXPECT_EQ(code(a), Code::ok);
    EXPECT_EQ(to.in().fd_count, 1U);
    EXPECT_TRUE(linux::is_sealed(to.in().fds[0].get()));
    return a.id;
  }
  static std::uint64_t timeline(Speaker& to) {
    to.send_empty(MessageType::timeline_create);
    return answer(to).id;
  }
  static wire::JobSubmit copy(std::uint64_t from, std::uint64_t to) {
    wire::JobSubmit job{};
    job.engine = static_cast<std::uint32_t>(core::Engine::copy);
    job.priority = 1;
    job.cus_min = job.cus_max = 1;
    job.timeout_ns = 1'000'000'000;
    job.buffer_count = 2;
    job.buffers[0] = {from, 0, 0};
    job.buffers[1] = {to, 1, 0};
    const wire::CopyArguments a{from, 0, to, 0, page_bytes};
    job.packet.capture_bytes = sizeof a;
    std::memcpy(job.packet.captures, &a, sizeof a);
    return job;
  }
  static Code submit(Speaker& to, const wire::JobSubmit& job) { return code(ask(to, MessageType::job_submit, job)); }
  static int token(Speaker& to, MessageType type, std::uint64_t id) {
    EXPECT_EQ(ref(to, type, id), Code::ok);
    EXPECT_EQ(to.in().fd_count, 1U);
    return to.in().fds[0].release();
  }

  Ferryd ferryd_{{"--vram", "8M", "--devices", "2"}};
  Speaker app_{ferryd_};
  Speaker other_{ferryd_};
};

constexpr MessageType by_id[] = {
    MessageType::buffer_close,   MessageType::buffer_map,      MessageType::buffer_query,    MessageType::buffer_export,
    MessageType::fence_close,    MessageType::fence_hold,      MessageType::fence_deadline,  MessageType::fence_export,
    MessageType::timeline_close, MessageType::timeline_signal, MessageType::timeline_export, MessageType::job_cancel};

TEST_F(WorkRequests, NumbersOfNothing) {
  for (const MessageType type : by_id) {
    for (const std::uint64_t id : {std::uint64_t{0}, std::uint64_t{1}, huge}) {
      EXPECT_EQ(ref(app_, type, id), Code::not_held) << static_cast<unsigned>(type) << ' ' << id;
    }
  }
  app_.send(MessageType::buffer_unmap, wire::ObjectRef{1, 5});
  EXPECT_EQ(app_.done(), Code::not_allocated);
}

TEST_F(WorkRequests, NumbersOfOthers) {
  const std::uint64_t mine = buffer(app_);
  const std::uint64_t line = timeline(app_);
  wire::JobSubmit held = copy(mine, mine);
  const wire::CopyArguments within{mine, 0, mine, 2 * page_bytes, page_bytes};
  std::memcpy(held.packet.captures, &within, sizeof within);
  held.wait_point_count = 1;
  held.wait_points[0] = {line, 1};
  const wire::WorkAnswer submitted = ask(app_, MessageType::job_submit, held);
  ASSERT_EQ(code(submitted), Code::ok) << submitted.text;
  for (const std::uint64_t id : {mine, line, submitted.id}) {
    for (const MessageType type : by_id) EXPECT_EQ(ref(other_, type, id, 1), Code::not_held);
  }
  // In the lists of a job.
  const std::uint64_t theirs = buffer(other_);
  EXPECT_EQ(submit(other_, copy(mine, theirs)), Code::not_held);
  EXPECT_EQ(submit(other_, copy(theirs, mine)), Code::not_held);
  wire::JobSubmit job = held;
  job.buffers[0] = job.buffers[1] = {theirs, 1, 0};
  const wire::CopyArguments own{theirs, 0, theirs, 2 * page_bytes, page_bytes};
  std::memcpy(job.packet.captures, &own, sizeof own);
  EXPECT_EQ(submit(other_, job), Code::not_held) << "waits for a point of another's timeline";
  job.wait_point_count = 0;
  job.signal_point_count = 1;
  job.signal_points[0] = {line, 1};
  EXPECT_EQ(submit(other_, job), Code::not_held);
  job.signal_point_count = 0;
  job.wait_count = 1;
  job.waits[0] = submitted.id;
  EXPECT_EQ(submit(other_, job), Code::not_held);
  job.wait_count = 0;
  EXPECT_EQ(submit(other_, job), Code::ok);
  wire::FenceMerge merge{};
  merge.count = 1;
  merge.fences[0] = submitted.id;
  EXPECT_EQ(code(ask(other_, MessageType::fence_merge, merge)), Code::not_held);
}

TEST_F(WorkRequests, BuffersThatCannotBe) {
  const auto create = [&](std::uint64_t pages, std::uint32_t home, std::uint32_t flags, std::uint64_t user = 0) {
    wire::BufferCreate c{};
    c.count_pages = pages;
    c.home = home;
    c.flags = flags;
    c.user_first_page = user;
    return code(ask(app_, MessageType::buffer_create, c));
  };
  EXPECT_EQ(create(0, wire::to_system, 0), Code::bad_range);
  EXPECT_EQ(create(huge, wire::to_system, 0), Code::bad_range);
  EXPECT_EQ(create(std::uint64_t{1} << 40, wire::to_system, 0), Code::bad_range);
  EXPECT_EQ(create(1, 2, 0), Code::bad_range);
  EXPECT_EQ(create(1, wire::to_system, 0xf0), Code::bad_range);
  EXPECT_EQ(create(16, wire::to_system, wire::buffer_userptr, 0), Code::not_allocated)
      << "pages that are not allocated";
  EXPECT_EQ(create(16, wire::to_system, wire::buffer_userptr, huge), Code::bad_range);
  EXPECT_EQ(create(16, 0, wire::buffer_userptr, 0), Code::bad_range) << "nobody's pages are born in VRAM";
  EXPECT_EQ(app_.ask(MessageType::alloc, 0, 16), Code::ok);
  EXPECT_EQ(create(16, wire::to_system, wire::buffer_userptr, 0), Code::ok);
  EXPECT_EQ(create(17, wire::to_system, wire::buffer_userptr, 0), Code::not_allocated);
}

TEST_F(WorkRequests, AddressesThatCannotBe) {
  const std::uint64_t id = buffer(app_);
  EXPECT_EQ(ref(app_, MessageType::buffer_map, id, 7), Code::bad_range) << "not a block's first page";
  EXPECT_EQ(ref(app_, MessageType::buffer_map, id, huge), Code::bad_range);
  EXPECT_EQ(ref(app_, MessageType::buffer_map, id, window_bytes / page_bytes), Code::bad_range);
  EXPECT_EQ(app_.ask(MessageType::alloc, 512, 16), Code::ok);
  EXPECT_EQ(ref(app_, MessageType::buffer_map, id, 512), Code::overlap);
  // Nothing is mapped there in the application: nothing can be watched.
  EXPECT_NE(ref(app_, MessageType::buffer_map, id, 1024), Code::ok);
  // Mapped as it should be, twice at one place, and over.
  auto* const at = reinterpret_cast<void*>(window_base + 2048 * page_bytes);
  const int file = ::memfd_create("stands-for-the-buffer", MFD_CLOEXEC);
  ASSERT_EQ(::ftruncate(file, 16 * page_bytes), 0);
  ASSERT_EQ(::mmap(at, 16 * page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, file, 0), at);
  ::close(file);
  EXPECT_EQ(ref(app_, MessageType::buffer_map, id, 2048), Code::ok);
  EXPECT_EQ(ref(app_, MessageType::buffer_map, id, 2048), Code::overlap);
  EXPECT_EQ(app_.ask(MessageType::alloc, 2040, 16), Code::overlap);
  app_.send(MessageType::buffer_unmap, wire::ObjectRef{id, 2048});
  EXPECT_EQ(app_.done(), Code::ok);
  app_.send(MessageType::buffer_unmap, wire::ObjectRef{id, 2048});
  EXPECT_EQ(app_.done(), Code::not_allocated);
  // Closed with the address still taken: it goes with the last hold, and can be had again.
  EXPECT_EQ(ref(app_, MessageType::buffer_map, id, 2048), Code::ok);
  EXPECT_EQ(ref(app_, MessageType::buffer_close, id), Code::ok);
  const std::uint64_t next = buffer(app_);
  EXPECT_EQ(ref(app_, MessageType::buffer_map, next, 2048), Code::ok);
  ::munmap(at, 16 * page_bytes);
}

TEST_F(WorkRequests, JobsOutOfRange) {
  const std::uint64_t from = buffer(app_);
  const std::uint64_t to = buffer(app_);
  const wire::JobSubmit good = copy(from, to);
  EXPECT_EQ(submit(app_, good), Code::ok);
  const auto with = [&](const std::function<void(wire::JobSubmit&)>& change) {
    wire::JobSubmit job = good;
    change(job);
    return submit(app_, job);
  };
  for (const std::uint32_t engine : {0U, 4U, 99U, ~0U}) {
    EXPECT_EQ(with([&](auto& j) { j.engine = engine; }), Code::bad_range) << engine;
  }
  EXPECT_EQ(with([](auto& j) { j.device = 2; }), Code::bad_range);
  EXPECT_EQ(with([](auto& j) { j.device = ~0U; }), Code::bad_range);
  EXPECT_EQ(with([](auto& j) { j.priority = 4; }), Code::bad_range);
  EXPECT_EQ(with([](auto& j) { j.timeout_ns = 0; }), Code::bad_range);
  EXPECT_EQ(with([](auto& j) { j.timeout_ns = huge; }), Code::bad_range);
  EXPECT_EQ(with([](auto& j) { j.buffer_count = 65; }), Code::bad_range);
  EXPECT_EQ(with([](auto& j) { j.wait_count = ~0U; }), Code::bad_range);
  EXPECT_EQ(with([](auto& j) { j.wait_point_count = 65; }), Code::bad_range);
  EXPECT_EQ(with([](auto& j) { j.signal_point_count = 64; }), Code::bad_range);
  EXPECT_EQ(with([](auto& j) { j.packet.capture_bytes = ~0U; }), Code::bad_range);
  EXPECT_EQ(with([](auto& j) { j.packet.capture_bytes = 8; }), Code::bad_range) << "not the arguments of a copy";
  EXPECT_EQ(with([](auto& j) { j.buffers[1].write = 0; }), Code::bad_range) << "it writes what it says that it reads";
  EXPECT_EQ(with([](auto& j) { j.buffers[1].write = 2; }), Code::bad_range);
  EXPECT_EQ(with([](auto& j) { j.buffer_count = 1; }), Code::bad_range) << "its target is not listed";
  const auto with_arguments = [&](wire::CopyArguments a) {
    return with([&](auto& j) { std::memcpy(j.packet.captures, &a, sizeof a); });
  };
  EXPECT_EQ(with_arguments({from, 0, to, 0, 16 * page_bytes}), Code::ok);
  EXPECT_EQ(with_arguments({from, 0, to, 0, 16 * page_bytes + 1}), Code::bad_range);
  EXPECT_EQ(with_arguments({from, huge, to, 0, 2}), Code::bad_range);
  EXPECT_EQ(with_arguments({from, 0, to, huge - 1, huge}), Code::bad_range);
  EXPECT_EQ(with_arguments({from, 0, to, 0, 0}), Code::bad_range);
  EXPECT_EQ(with_arguments({to, 0, from, 0, 1}), Code::bad_range) << "the wrong way round";
  wire::JobSubmit graphics = good;
  graphics.engine = static_cast<std::uint32_t>(core::Engine::graphics);
  EXPECT_EQ(submit(app_, graphics), Code::device_lost) << "there is no device process";
}

TEST_F(WorkRequests, RandomJobs) {
  Random random(20250311);
  const std::uint64_t from = buffer(app_);
  const std::uint64_t to = buffer(app_);
  const wire::JobSubmit good = copy(from, to);
  for (int i = 0; i < 800; ++i) {
    wire::JobSubmit job = good;
    auto* bytes = reinterpret_cast<unsigned char*>(&job);
    const std::size_t changes = 1 + random.below(4);
    for (std::size_t k = 0; k < changes; ++k) {
      // Half of them in the numbers at the front, which decide how the rest is read.
      const std::size_t at = random.below(random.chance(500) ? 48 : sizeof job);
      bytes[at] = static_cast<unsigned char>(random.next());
    }
    app_.send(MessageType::job_submit, job);
    static_cast<void>(answer(app_));
  }
  std::vector<std::byte> odd(sizeof good - 8);
  std::memcpy(odd.data(), &good, odd.size());
  EXPECT_TRUE(linux::send_bytes(app_.fd(), MessageType::job_submit, 5, odd).ok());
  EXPECT_EQ(app_.done(), Code::bad_message);
}

TEST_F(WorkRequests, TokensAreOnlyWhatTheManagerMade) {
  const std::uint64_t id = buffer(app_);
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
  const int event = ::eventfd(0, EFD_CLOEXEC);
  for (const MessageType type : {MessageType::buffer_import, MessageType::fence_import, MessageType::timeline_import}) {
    for (const int fd : {pair[0], event, other_.fd(), app_.files[1].get()}) {
      EXPECT_EQ(import(other_, type, fd), Code::not_held);
    }
  }
  ::close(pair[0]);
  ::close(pair[1]);
  ::close(event);
  const int good = token(app_, MessageType::buffer_export, id);
  EXPECT_EQ(import(other_, MessageType::fence_import, good), Code::not_held);
  EXPECT_EQ(import(other_, MessageType::buffer_import, good), Code::ok);
  // Whoever has it may write to it, or shut it down for all; the manager does not care.
  for (int i = 0; i < 5000; ++i) {
    if (::send(good, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) break;
  }
  EXPECT_EQ(import(other_, MessageType::buffer_import, good), Code::ok);
  ::shutdown(good, SHUT_RDWR);
  Code after = Code::ok;
  for (int i = 0; i < patience_ms && after == Code::ok; ++i) after = import(other_, MessageType::buffer_import, good);
  EXPECT_EQ(after, Code::not_held);
  ::close(good);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(ref(other_, MessageType::buffer_close, id), Code::ok);
}

TEST_F(WorkRequests, ExportsAreBoundedAndComeBack) {
  linux::raise_descriptor_limit();
  const int highest = ::fcntl(0, F_DUPFD_CLOEXEC, 4096);
  if (highest < 0) GTEST_SKIP() << "this user may have no 4096 descriptors";
  ::close(highest);
  const std::uint64_t line = timeline(app_);
  std::vector<linux::Fd> tokens;
  Code last = Code::ok;
  while (last == Code::ok && tokens.size() < 5000) {
    last = ref(app_, MessageType::timeline_export, line);
    if (last == Code::ok) tokens.push_back(std::move(app_.in().fds[0]));
  }
  EXPECT_EQ(last, Code::no_memory);
  EXPECT_EQ(tokens.size(), 1024U);
  tokens.clear();
  for (int i = 0; i < patience_ms && last != Code::ok; ++i) last = ref(app_, MessageType::timeline_export, line);
  EXPECT_EQ(last, Code::ok) << "closed descriptors do not count";
}

TEST_F(WorkRequests, ADeathLeavesNothing) {
  const unsigned before = ferryd_.descriptors();
  {
    Speaker doomed(ferryd_);
    ASSERT_TRUE(doomed.hello());
    const std::uint64_t from = buffer(doomed, 2048);
    const std::uint64_t to = buffer(doomed, 2048);
    const std::uint64_t line = timeline(doomed);
    wire::JobSubmit job = copy(from, to);
    const wire::CopyArguments all{from, 0, to, 0, 2048 * page_bytes};
    std::memcpy(job.packet.captures, &all, sizeof all);
    for (int i = 0; i < 50; ++i) EXPECT_EQ(submit(doomed, job), Code::ok);
    job.wait_point_count = 1;
    job.wait_points[0] = {line, 1};
    for (int i = 0; i < 50; ++i) EXPECT_EQ(submit(doomed, job), Code::ok);
    ::close(token(doomed, MessageType::buffer_export, from));
  }
  bool back = false;
  for (int i = 0; i < patience_ms && !back; ++i) {
    back = ferryd_.descriptors() <= before;  // before: what others sent may not all have been closed
    if (!back) ::poll(nullptr, 0, 1);
  }
  EXPECT_LE(ferryd_.descriptors(), before);
}

}  // namespace
}  // namespace ferry::manager::test

// Buffers, fences, timelines and jobs from one program: what they do, and what becomes of bad input.
// Longer than 600 lines because all of it runs in one program with one session, which is what is tested.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <ferry/work.hpp>
#include <numeric>
#include <thread>

#include "e2e.h"

namespace ferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::size_t kib = 1024;
constexpr auto patience = std::chrono::seconds(60);

void fill(std::uint32_t* p, std::size_t n, std::uint32_t seed) {
  for (std::size_t i = 0; i < n; ++i) p[i] = static_cast<std::uint32_t>(i * 2654435761U + seed);
}
bool filled(const std::uint32_t* p, std::size_t n, std::uint32_t seed) {
  for (std::size_t i = 0; i < n; ++i) {
    if (p[i] != static_cast<std::uint32_t>(i * 2654435761U + seed)) return false;
  }
  return true;
}

std::string text_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const ferry::error& e) {
    return e.what();
  }
  return {};
}

bool readable(int fd, milliseconds within) {
  pollfd p{fd, POLLIN, 0};
  return ::poll(&p, 1, static_cast<int>(within.count())) == 1 && (p.revents & POLLIN) != 0;
}

// --- buffers ----------------------------------------------------------------------------------------------------------

TEST(Buffers, HaveNoMemoryBeforeTheyAreUsedAndThenZeros) {
  const buffer b(300 * kib);
  EXPECT_EQ(b.bytes(), 300 * kib);
  EXPECT_FALSE(b.state().in_system || b.state().in_vram || b.state().stored);
  const auto* p = b.map<unsigned char>();
  EXPECT_TRUE(std::all_of(p, p + b.bytes(), [](unsigned char c) { return c == 0; }));
  EXPECT_TRUE(b.state().in_system);
  EXPECT_EQ(b.map(), p) << "one address while the handle lives";
}

TEST(Buffers, SizesAreWholePages) {
  const buffer b(1);
  EXPECT_EQ(b.bytes(), 4096U);
  EXPECT_EQ(code_of([] { buffer(0); }), FERRY_BAD_RANGE);
  EXPECT_EQ(code_of([] { buffer(std::size_t{1} << 60); }), FERRY_BAD_RANGE);
  EXPECT_EQ(code_of([] { buffer(4096, in_vram(9)); }), FERRY_BAD_RANGE);
  ferry_error e;
  EXPECT_EQ(ferry_buffer_create(4096, FERRY_IN_SYSTEM, 0x80, &e), nullptr);
  EXPECT_EQ(e.code, FERRY_BAD_RANGE);
}

TEST(Buffers, KernelsAndCpuReachThemAtOneAddress) {
  const buffer b(1 << 20);
  auto* p = b.map<std::uint32_t>();
  const std::size_t n = b.bytes() / sizeof *p;
  fill(p, n, 7);
  parallel_for(n, [p](std::size_t i) { p[i] += 1; });
  for (std::size_t i = 0; i < n; ++i) p[i] -= 1;
  EXPECT_TRUE(filled(p, n, 7));
}

TEST(Buffers, EveryDeviceReachesThem) {
  ASSERT_GE(device_count(), 2U);
  const buffer b(256 * kib);
  auto* p = b.map<std::uint32_t>();
  const std::size_t n = b.bytes() / sizeof *p;
  fill(p, n, 1);
  for (unsigned device = 0; device < 2; ++device) {
    queue q(device);
    q.parallel_for(n, [p](std::size_t i) { p[i] += 5; }).wait();
  }
  for (std::size_t i = 0; i < n; ++i) p[i] -= 10;
  EXPECT_TRUE(filled(p, n, 1));
}

TEST(Buffers, AKernelMayNotTouchWhatWasClosed) {
  FERRY_SKIP_CRASHES();
  std::uint32_t* p = nullptr;
  {
    const buffer b(64 * kib);
    p = b.map<std::uint32_t>();
    parallel_for(1, [p](std::size_t) { p[0] = 1; });
  }
  const auto failure = kernel_error_of([p] { parallel_for(1, [p](std::size_t) { p[0] = 2; }); });
  EXPECT_EQ(failure.code(), errc::kernel_fault);
}

TEST(Buffers, MoveToTheVramOfTheirHomeWhenAJobUsesThem) {
  const buffer source(512 * kib);
  const buffer target(512 * kib, in_vram(0));
  const std::size_t n = source.bytes() / 4;
  fill(source.map<std::uint32_t>(), n, 3);
  submit_copy({}, target, 0, source, 0, source.bytes()).wait();
  EXPECT_TRUE(target.state().in_vram);
  EXPECT_EQ(target.state().device, 0);
  EXPECT_TRUE(filled(target.map<std::uint32_t>(), n, 3)) << "the CPU reads VRAM in place";
}

TEST(Buffers, BytesSurviveMovesBetweenPlaces) {
  // Written by the CPU in system memory, brought to VRAM by the first job, taken back by a job of another device.
  const buffer b(3 << 20, in_vram(0));
  const buffer other(3 << 20, in_vram(1));
  auto* p = b.map<std::uint32_t>();
  const std::size_t n = b.bytes() / sizeof *p;
  fill(p, n, 11);
  submit_copy({.device = 0}, other, 0, b, 0, b.bytes()).wait();
  EXPECT_TRUE(filled(p, n, 11));
  submit_copy({.device = 1}, other, 0, b, 0, b.bytes()).wait();
  EXPECT_TRUE(filled(p, n, 11));
  EXPECT_TRUE(filled(other.map<std::uint32_t>(), n, 11));
}

TEST(Buffers, ImportedTwiceTheyAreOneHandle) {
  const buffer b(64 * kib);
  b.map<std::uint32_t>()[3] = 42;
  const int fd = b.export_fd();
  ferry_error e;
  ferry_buffer* first = ferry_buffer_import(fd, &e);
  ferry_buffer* second = ferry_buffer_import(fd, &e);
  EXPECT_EQ(::close(fd), 0);
  ASSERT_NE(first, nullptr) << e.text;
  EXPECT_EQ(first, second);
  EXPECT_EQ(first, b.handle());
  EXPECT_EQ(ferry_buffer_close(first, &e), FERRY_OK) << e.text;
  EXPECT_EQ(ferry_buffer_close(second, &e), FERRY_OK) << e.text;
  EXPECT_EQ(b.map<std::uint32_t>()[3], 42U) << "the first handle still holds it";
}

TEST(Buffers, ImportedAndClosedByManyThreads) {
  const int fd = [] {
    const buffer b(64 * kib);
    fill(b.map<std::uint32_t>(), 16 * kib, 8);
    return b.export_fd();
  }();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        const buffer b = buffer::import_fd(fd);
        // Some map it, so that addresses come and go while others hold on to the same handle.
        if (i % 3 == 0 && !filled(b.map<std::uint32_t>(), 16 * kib, 8)) ++wrong;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(::close(fd), 0);
}

TEST(Buffers, ADescriptorKeepsThemAlive) {
  int fd = -1;
  {
    const buffer b(64 * kib);
    fill(b.map<std::uint32_t>(), 16 * kib, 5);
    fd = b.export_fd();
  }
  const buffer again = buffer::import_fd(fd);
  EXPECT_EQ(::close(fd), 0);
  EXPECT_TRUE(filled(again.map<std::uint32_t>(), 16 * kib, 5));
}

TEST(Buffers, OtherDescriptorsGiveNothing) {
  const int event = ::eventfd(0, EFD_CLOEXEC);
  EXPECT_EQ(code_of([event] { static_cast<void>(buffer::import_fd(event)); }), FERRY_NOT_HELD);
  EXPECT_EQ(::close(event), 0);
  EXPECT_EQ(code_of([] { static_cast<void>(buffer::import_fd(-1)); }), FERRY_NOT_HELD);
  EXPECT_EQ(code_of([] { static_cast<void>(buffer::import_fd(99999)); }), FERRY_NOT_HELD);
  const timeline line;
  const int fd = line.export_fd();
  EXPECT_EQ(code_of([fd] { static_cast<void>(buffer::import_fd(fd)); }), FERRY_NOT_HELD) << "it stands for a timeline";
  EXPECT_EQ(::close(fd), 0);
}

TEST(Buffers, ClosedWhileBusyTheyLastUntilTheirJobsHaveEnded) {
  const buffer source(8 << 20);
  const buffer target(8 << 20);
  const std::size_t n = source.bytes() / 4;
  fill(source.map<std::uint32_t>(), n, 9);
  std::vector<fence> fences;
  for (int i = 0; i < 20; ++i) {
    const buffer between(8 << 20);
    fences.push_back(submit_copy({}, between, 0, source, 0, source.bytes()));
    fences.push_back(submit_copy({}, target, 0, between, 0, source.bytes()));
  }
  for (const fence& f : fences) f.wait();
  EXPECT_TRUE(filled(target.map<std::uint32_t>(), n, 9));
}

/// The soft limit of descriptors, for the time of a test.
class DescriptorLimit {
 public:
  explicit DescriptorLimit(rlim_t wanted) {
    getrlimit(RLIMIT_NOFILE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = std::min(wanted, before_.rlim_max);
    setrlimit(RLIMIT_NOFILE, &limit);
    enough_ = limit.rlim_cur == wanted;
  }
  ~DescriptorLimit() { setrlimit(RLIMIT_NOFILE, &before_); }
  [[nodiscard]] bool enough() const { return enough_; }

 private:
  rlimit before_{};
  bool enough_ = false;
};

TEST(Buffers, NoRoomForADescriptorIsToldAndNothingElseHarmed) {
  const buffer first(4096);
  first.map<char>()[0] = 7;
  const int next = ::dup(0);
  ::close(next);
  std::vector<buffer> many;
  {
    const DescriptorLimit few(static_cast<rlim_t>(next) + 20);
    const std::string text = text_of([&many] {
      for (;;) many.emplace_back(4096);
    });
    EXPECT_NE(text.find("as many descriptors as it may"), std::string::npos) << text;
    EXPECT_LE(many.size(), 20U);
    EXPECT_NE(text_of([&first] { (void)first.export_fd(); }).find("as many descriptors as it may"), std::string::npos);
    EXPECT_EQ(first.map<char>()[0], 7);
  }
  const buffer again(4096);
  again.map<char>()[0] = 1;
  many.clear();
  EXPECT_EQ(::close(first.export_fd()), 0);
}

TEST(Buffers, LimitIsToldAndNothingElseHarmed) {
  const DescriptorLimit room(4096);
  if (!room.enough()) GTEST_SKIP() << "this user may have no 4096 descriptors";
  std::vector<buffer> many;
  const std::string text = text_of([&many] {
    for (;;) many.emplace_back(4096);
  });
  EXPECT_NE(text.find("most it may"), std::string::npos) << text;
  EXPECT_LE(many.size(), 1024U);
  EXPECT_GE(many.size(), 1000U);
  many.pop_back();
  const buffer again(4096);
  again.map<char>()[0] = 1;
}

TEST(Buffers, OfMemoryAreThatMemory) {
  const std::size_t bytes = 1 << 20;
  auto* memory = static_cast<std::uint32_t*>(alloc_aligned(bytes, 4096));
  const std::size_t n = bytes / sizeof *memory;
  const buffer b = buffer::of_memory(memory, bytes);
  EXPECT_EQ(b.map(), memory);
  const buffer copy(bytes);
  for (std::uint32_t turn = 1; turn < 4; ++turn) {
    // On the device in between, so that the pages are elsewhere when the job looks them up.
    fill(memory, n, turn);
    parallel_for(n, [memory](std::size_t i) { memory[i] += 100; });
    submit_copy({}, copy, 0, b, 0, bytes).wait();
    auto* got = copy.map<std::uint32_t>();
    for (std::size_t i = 0; i < n; ++i) got[i] -= 100;
    EXPECT_TRUE(filled(got, n, turn)) << "turn " << turn;
  }
  submit_copy({}, b, 0, copy, 0, bytes).wait();
  EXPECT_TRUE(filled(memory, n, 3));
  EXPECT_EQ(code_of([&b] { static_cast<void>(b.export_fd()); }), FERRY_UNSUPPORTED);
}

TEST(Buffers, OfMemoryNeedWholeManagedPages) {
  alignas(4096) static char unmanaged[4096];
  EXPECT_EQ(code_of([] { static_cast<void>(buffer::of_memory(unmanaged, 4096)); }), FERRY_NOT_ALLOCATED);
  auto* memory = static_cast<char*>(alloc_aligned(8192, 4096));
  EXPECT_EQ(code_of([memory] { static_cast<void>(buffer::of_memory(memory + 8, 4096)); }), FERRY_BAD_RANGE);
  EXPECT_EQ(code_of([memory] { static_cast<void>(buffer::of_memory(memory, 100)); }), FERRY_BAD_RANGE);
  ferry::free(memory);
}

// --- copy and video ---------------------------------------------------------------------------------------------------

TEST(CopyJobs, CopyAnySpan) {
  const buffer a(1 << 20);
  const buffer b(1 << 20);
  auto* from = a.map<unsigned char>();
  auto* to = b.map<unsigned char>();
  for (std::size_t i = 0; i < a.bytes(); ++i) from[i] = static_cast<unsigned char>(i * 31 + i / 251);
  std::vector<unsigned char> expected(b.bytes(), 0);
  const std::size_t spans[][3] = {{0, 0, 1}, {1, 4097, 70001}, {4095, 8190, 3}, {123457, 700000, 100000}};
  for (const auto& [source_at, target_at, bytes] : spans) {
    submit_copy({}, b, target_at, a, source_at, bytes).wait();
    std::memcpy(expected.data() + target_at, from + source_at, bytes);
  }
  EXPECT_EQ(std::memcmp(to, expected.data(), expected.size()), 0);
}

TEST(CopyJobs, WithinOneBuffer) {
  const buffer b(64 * kib);
  auto* p = b.map<std::uint32_t>();
  fill(p, 8 * kib, 2);
  submit_copy({}, b, 32 * kib, b, 0, 32 * kib).wait();
  EXPECT_TRUE(filled(p + 8 * kib, 8 * kib, 2));
  EXPECT_EQ(code_of([&b] { static_cast<void>(submit_copy({}, b, 16 * kib, b, 0, 32 * kib)); }), FERRY_BAD_RANGE);
}

TEST(CopyJobs, SpansOutsideAreRefused) {
  const buffer a(8192);
  const buffer b(4096);
  EXPECT_EQ(code_of([&] { static_cast<void>(submit_copy({}, b, 0, a, 0, 8192)); }), FERRY_BAD_RANGE);
  EXPECT_EQ(code_of([&] { static_cast<void>(submit_copy({}, b, 1, a, 0, 4096)); }), FERRY_BAD_RANGE);
  EXPECT_EQ(code_of([&] { static_cast<void>(submit_copy({}, b, 0, a, UINT64_MAX, 2)); }), FERRY_BAD_RANGE);
  EXPECT_EQ(code_of([&] { static_cast<void>(submit_copy({}, b, 0, a, 0, 0)); }), FERRY_BAD_RANGE);
}

TEST(CopyJobs, OneAfterTheOtherWithoutBeingTold) {
  // Each reads what the one before wrote; no fence is named.
  const buffer chain[3] = {buffer(2 << 20), buffer(2 << 20, in_vram(0)), buffer(2 << 20, in_vram(1))};
  const std::size_t n = chain[0].bytes() / 4;
  fill(chain[0].map<std::uint32_t>(), n, 77);
  std::optional<fence> last;
  for (unsigned turn = 0; turn < 30; ++turn) {
    const buffer& from = chain[turn % 3];
    const buffer& to = chain[(turn + 1) % 3];
    last.emplace(submit_copy({.device = turn % 2}, to, 0, from, 0, from.bytes()));
  }
  last->wait();
  for (const buffer& b : chain) EXPECT_TRUE(filled(b.map<std::uint32_t>(), n, 77));
}

struct Rgba {
  unsigned char r, g, b, a;
};
unsigned char clamped(int v) { return static_cast<unsigned char>(std::clamp(v, 0, 255)); }

TEST(VideoJobs, Nv12ToRgba) {
  const unsigned width = 322;
  const unsigned height = 46;
  const unsigned pitch = 384;
  const buffer source(pitch * height * 3 / 2);
  const buffer target(width * height * 4, in_vram(0));
  auto* in = source.map<unsigned char>();
  for (std::size_t i = 0; i < pitch * height * 3 / 2; ++i) in[i] = static_cast<unsigned char>(i * 7 + i / 13);
  ferry::video op{};
  op.op = video_op::nv12_to_rgba;
  op.width = width;
  op.height = height;
  op.source_pitch = pitch;
  submit_video({}, op, target, source).wait();
  const auto* out = target.map<Rgba>();
  for (unsigned y = 0; y < height; ++y) {
    for (unsigned x = 0; x < width; ++x) {
      const int c = in[y * pitch + x] - 16;
      const int d = in[pitch * height + y / 2 * pitch + x / 2 * 2] - 128;
      const int e = in[pitch * height + y / 2 * pitch + x / 2 * 2 + 1] - 128;
      const Rgba p = out[y * width + x];
      ASSERT_EQ(p.r, clamped((298 * c + 409 * e + 128) >> 8)) << x << ", " << y;
      ASSERT_EQ(p.g, clamped((298 * c - 100 * d - 208 * e + 128) >> 8)) << x << ", " << y;
      ASSERT_EQ(p.b, clamped((298 * c + 516 * d + 128) >> 8)) << x << ", " << y;
      ASSERT_EQ(p.a, 255);
    }
  }
}

TEST(VideoJobs, HalfAndBlend) {
  const unsigned width = 64;
  const unsigned height = 32;
  const buffer source(width * height * 4);
  const buffer target(width * height * 4);
  auto* in = source.map<unsigned char>();
  auto* out = target.map<unsigned char>();
  for (std::size_t i = 0; i < source.bytes(); ++i) in[i] = static_cast<unsigned char>(i * 131 + 17);
  ferry::video half{};
  half.op = video_op::half;
  half.width = width;
  half.height = height;
  submit_video({}, half, target, source).wait();
  for (unsigned y = 0; y < height / 2; ++y) {
    for (unsigned i = 0; i < width / 2 * 4; ++i) {
      const unsigned at = 2 * y * width * 4 + i / 4 * 8 + i % 4;
      ASSERT_EQ(out[y * width / 2 * 4 + i],
                (in[at] + in[at + 4] + in[at + width * 4] + in[at + width * 4 + 4] + 2) >> 2);
    }
  }
  std::vector<unsigned char> before(out, out + target.bytes());
  ferry::video blend{};
  blend.op = video_op::blend;
  blend.width = width;
  blend.height = height;
  blend.alpha = 200;
  submit_video({}, blend, target, source).wait();
  for (std::size_t i = 0; i < width * height * 4; ++i) ASSERT_EQ(out[i], (200 * in[i] + 55 * before[i] + 127) / 255);
}

TEST(VideoJobs, WhatDoesNotFitIsRefused) {
  const buffer source(64 * kib);
  const buffer target(64 * kib);
  ferry::video op{};
  op.op = video_op::half;
  op.width = 64;
  op.height = 64;
  const auto refused = [&](const ferry::video& v) {
    return code_of([&] { static_cast<void>(submit_video({}, v, target, source)); }) == FERRY_BAD_RANGE;
  };
  EXPECT_FALSE(refused(op));
  for (auto change :
       {+[](ferry::video& v) { v.width = 0; }, +[](ferry::video& v) { v.width = 63; },
        +[](ferry::video& v) { v.height = 16386; }, +[](ferry::video& v) { v.source_offset = 60 * kib; },
        +[](ferry::video& v) { v.target_offset = UINT64_MAX; }, +[](ferry::video& v) { v.source_pitch = 10; },
        +[](ferry::video& v) { v.target_pitch = 1 << 30; }, +[](ferry::video& v) { v.op = static_cast<video_op>(0); },
        +[](ferry::video& v) { v.alpha = 256; }}) {
    ferry::video bad = op;
    change(bad);
    EXPECT_TRUE(refused(bad));
  }
  EXPECT_EQ(code_of([&] { static_cast<void>(submit_video({}, op, source, source)); }), FERRY_BAD_RANGE);
}

// --- fences -----------------------------------------------------------------------------------------------------------

/// A job that does not run before the point is signalled.
fence held_job(const timeline& line, std::uint64_t point, const buffer& b) {
  return submit_copy({.wait_points = {line.at(point)}}, b, 0, b, b.bytes() / 2, 4096);
}

TEST(Fences, WaitWithALimit) {
  const timeline line;
  const buffer b(64 * kib);
  const fence f = held_job(line, 1, b);
  EXPECT_FALSE(f.wait_for(milliseconds(5)));
  EXPECT_EQ(f.state(), FERRY_FENCE_SUBMITTED);
  ferry_error e;
  EXPECT_EQ(ferry_fence_wait(f.handle(), 0, &e), FERRY_TIMED_OUT);
  line.signal(1);
  EXPECT_TRUE(f.wait_for(patience));
  EXPECT_EQ(f.state(), FERRY_FENCE_SIGNALLED);
  EXPECT_FALSE(f.failure());
}

TEST(Fences, ManyThreadsWaitForOne) {
  const timeline line;
  const buffer b(64 * kib);
  const fence f = held_job(line, 1, b);
  std::atomic<int> well{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 100; ++i) threads.emplace_back([&] { well += f.wait_for(patience) ? 1 : 0; });
  // More threads wait than the session has room for questions: others still get their answers.
  const buffer another(4096);
  line.signal(1);
  for (auto& t : threads) t.join();
  EXPECT_EQ(well, 100);
}

TEST(Fences, Cancelled) {
  const timeline line;
  const buffer b(64 * kib);
  const fence f = held_job(line, 1, b);
  const fence after = submit_copy({.waits = {&f}}, b, 0, b, 32 * kib, 4096);
  f.cancel();
  EXPECT_EQ(code_of([&f] { f.wait(); }), FERRY_CANCELLED);
  EXPECT_EQ(code_of([&after] { after.wait(); }), FERRY_CANCELLED) << "what waits for a failed job fails as it did";
  EXPECT_EQ(f.failure(), errc::cancelled);
  const fence late = submit_copy({.waits = {&f}}, b, 0, b, 32 * kib, 4096);
  EXPECT_EQ(code_of([&late] { late.wait(); }), FERRY_CANCELLED);
}

TEST(Fences, WaitsForJobsThatAreNotVisibleYet) {
  const timeline line;
  const buffer a(64 * kib);
  const buffer b(64 * kib);
  fill(a.map<std::uint32_t>(), 16 * kib, 4);
  const fence first = submit_copy({.wait_points = {line.at(1)}}, b, 0, a, 0, 32 * kib);
  const fence second = submit_copy({.waits = {&first}}, b, 32 * kib, b, 0, 32 * kib);
  const fence third = submit_copy({.waits = {&second, &first}}, a, 0, b, 32 * kib, 32 * kib);
  EXPECT_FALSE(third.wait_for(milliseconds(5)));
  line.signal(1);
  third.wait();
  EXPECT_TRUE(filled(a.map<std::uint32_t>(), 8 * kib, 4));
  EXPECT_TRUE(filled(b.map<std::uint32_t>() + 8 * kib, 8 * kib, 4));
}

TEST(Fences, MergedAllAndAny) {
  const buffer b(64 * kib);
  const fence one = submit_copy({}, b, 0, b, 32 * kib, 4096);
  const fence two = submit_copy({}, b, 4096, b, 32 * kib, 4096);
  const fence all = merge_all({&one, &two, &one});
  const fence any = merge_any({&one, &two});
  all.wait();
  any.wait();
  EXPECT_TRUE(one.signalled() && two.signalled());
  const fence again = merge_all({&all, &any});
  again.wait();
  const timeline line;
  const fence held = held_job(line, 1, b);
  held.cancel();
  EXPECT_EQ(code_of([&] { merge_all({&one, &held}).wait(); }), FERRY_CANCELLED);
  EXPECT_EQ(code_of([&] { merge_any({&one, &held}).wait(); }), 0);
  EXPECT_EQ(code_of([&] { static_cast<void>(merge_all({})); }), FERRY_BAD_RANGE);
}

TEST(Fences, AsEventfd) {
  const timeline line;
  const buffer b(64 * kib);
  int fd = -1;
  {
    const fence f = held_job(line, 1, b);
    fd = f.eventfd();
  }
  EXPECT_FALSE(readable(fd, milliseconds(0)));
  line.signal(1);
  EXPECT_TRUE(readable(fd, patience));
  std::uint64_t value = 0;
  EXPECT_EQ(::read(fd, &value, sizeof value), 8);
  EXPECT_EQ(value, 1U);
  EXPECT_EQ(::close(fd), 0);
  const fence done = submit_copy({}, b, 0, b, 32 * kib, 4096);
  done.wait();
  fd = done.eventfd();
  EXPECT_TRUE(readable(fd, patience)) << "of one that has signalled before";
  EXPECT_EQ(::close(fd), 0);
}

TEST(Fences, AsSyncFile) {
  const timeline line;
  const buffer b(64 * kib);
  std::optional<fence> f(held_job(line, 1, b));
  const int fd = f->export_fd();
  EXPECT_FALSE(readable(fd, milliseconds(0)));
  EXPECT_FALSE(sync_fd_status(fd));
  f->cancel();
  EXPECT_TRUE(readable(fd, patience));
  EXPECT_EQ(sync_fd_status(fd), FERRY_CANCELLED);
  EXPECT_EQ(sync_fd_status(fd), FERRY_CANCELLED) << "looking takes nothing away";
  f.reset();
  const fence again = fence::import_fd(fd);
  EXPECT_EQ(again.failure(), errc::cancelled);
  EXPECT_EQ(::close(fd), 0);
  EXPECT_EQ(code_of([] { static_cast<void>(sync_fd_status(0)); }), FERRY_BAD_RANGE);
}

TEST(Fences, ClosedBeforeTheyHaveSignalled) {
  const buffer a(1 << 20);
  const buffer b(1 << 20);
  fill(a.map<std::uint32_t>(), 256 * kib, 21);
  for (int i = 0; i < 50; ++i) static_cast<void>(submit_copy({}, b, 0, a, 0, a.bytes()));
  submit_copy({}, b, 0, a, 0, a.bytes()).wait();
  EXPECT_TRUE(filled(b.map<std::uint32_t>(), 256 * kib, 21));
}

TEST(Fences, DeadlinesAreWishes) {
  const timeline line;
  const buffer b(64 * kib);
  const fence f = submit_copy({}, b, 0, b, 32 * kib, 4096);
  f.set_deadline(milliseconds(1));
  f.set_deadline(forever);
  f.wait();
  f.set_deadline(milliseconds(1));
}

// --- timelines --------------------------------------------------------------------------------------------------------

TEST(Timelines, SignalledFromTheCpu) {
  const timeline line;
  EXPECT_EQ(line.value(), 0U);
  line.signal(3);
  EXPECT_EQ(line.value(), 3U);
  EXPECT_TRUE(line.wait_for(2, seconds(0)));
  EXPECT_FALSE(line.wait_for(4, milliseconds(5)));
  EXPECT_EQ(code_of([&line] { line.signal(3); }), FERRY_IN_USE);
  EXPECT_EQ(code_of([&line] { line.signal(2); }), FERRY_IN_USE);
  EXPECT_EQ(code_of([&line] { line.signal(0); }), FERRY_BAD_RANGE);
  std::thread other([&line] { line.signal(4); });
  EXPECT_TRUE(line.wait_for(4, patience));
  other.join();
}

TEST(Timelines, SignalledByJobs) {
  const timeline line;
  const buffer b(64 * kib);
  const fence two = submit_copy({.wait_points = {line.at(1)}, .signal_points = {line.at(2)}}, b, 0, b, 32 * kib, 64);
  const fence three = submit_copy({.wait_points = {line.at(2)}, .signal_points = {line.at(3)}}, b, 0, b, 32 * kib, 64);
  EXPECT_EQ(code_of([&] { static_cast<void>(submit_copy({.signal_points = {line.at(2)}}, b, 0, b, 32 * kib, 64)); }),
            FERRY_IN_USE);
  EXPECT_FALSE(three.wait_for(milliseconds(5)));
  EXPECT_EQ(line.value(), 0U);
  line.signal(1);
  line.wait(3);
  three.wait();
  EXPECT_EQ(line.value(), 3U);
}

TEST(Timelines, LoopsAreRefusedAndTold) {
  const timeline left;
  const timeline right;
  const buffer b(64 * kib);
  const fence one = submit_copy({.wait_points = {left.at(1)}, .signal_points = {right.at(1)}}, b, 0, b, 32 * kib, 64);
  const job_options bad{.wait_points = {right.at(1)}, .signal_points = {left.at(1)}};
  EXPECT_EQ(code_of([&] { static_cast<void>(submit_copy(bad, b, 0, b, 32 * kib, 64)); }), FERRY_WOULD_DEADLOCK);
  const std::string text = text_of([&] { static_cast<void>(submit_copy(bad, b, 0, b, 32 * kib, 64)); });
  EXPECT_NE(text.find("waits for"), std::string::npos) << text;
  EXPECT_NE(text.find("promised by"), std::string::npos) << text;
  // By way of a fence that is not visible: the same loop.
  const job_options by_fence{.waits = {&one}, .signal_points = {left.at(1)}};
  EXPECT_EQ(code_of([&] { static_cast<void>(submit_copy(by_fence, b, 0, b, 32 * kib, 64)); }), FERRY_WOULD_DEADLOCK);
  left.signal(1);
  one.wait();
}

TEST(Timelines, WaitersOfAClosedOneFail) {
  const buffer b(64 * kib);
  std::optional<timeline> line(std::in_place);
  const fence f = held_job(*line, 1, b);
  line.reset();
  EXPECT_TRUE(code_of([&f] { static_cast<void>(f.wait_for(patience)); }) != 0);
  EXPECT_TRUE(f.signalled());
}

// --- bad jobs ---------------------------------------------------------------------------------------------------------

TEST(Jobs, OptionsOutOfRange) {
  const buffer b(64 * kib);
  const auto refused = [&b](const job_options& o) {
    return code_of([&] { static_cast<void>(submit_copy(o, b, 0, b, 32 * kib, 64)); });
  };
  EXPECT_EQ(refused({}), 0);
  EXPECT_EQ(refused({.device = 7}), FERRY_BAD_RANGE);
  EXPECT_EQ(refused({.priority = static_cast<priority>(5)}), FERRY_BAD_RANGE);
  EXPECT_EQ(refused({.timeout = seconds(61)}), FERRY_BAD_RANGE);
  EXPECT_EQ(refused({.waits = std::vector<const fence*>(0)}), 0);
  const fence f = submit_copy({}, b, 0, b, 32 * kib, 64);
  EXPECT_EQ(refused({.waits = std::vector<const fence*>(65, &f)}), FERRY_BAD_RANGE);
  const timeline line;
  EXPECT_EQ(refused({.wait_points = {line.at(0)}}), FERRY_BAD_RANGE);
  EXPECT_EQ(refused({.signal_points = {line.at(1), line.at(1)}}), FERRY_IN_USE);
  ferry_error e;
  const ferry_job_buffer null_buffer{nullptr, 0};
  ferry_job_options options{};
  options.buffers = &null_buffer;
  options.buffer_count = 1;
  EXPECT_EQ(ferry_submit_copy(&options, b.handle(), 0, b.handle(), 32 * kib, 64, &e), nullptr);
  EXPECT_EQ(e.code, FERRY_BAD_RANGE);
}

TEST(Jobs, TheirNumberIsLimited) {
  const timeline line;
  const buffer b(64 * kib);
  std::vector<fence> fences;
  const std::string text = text_of([&] {
    for (;;) fences.push_back(held_job(line, 1, b));
  });
  EXPECT_NE(text.find("most it may"), std::string::npos) << text;
  EXPECT_GE(fences.size(), 1000U);
  line.signal(1);
  for (const fence& f : fences) f.wait();
  held_job(line, 1, b).wait();
}

}  // namespace
}  // namespace ferry::test

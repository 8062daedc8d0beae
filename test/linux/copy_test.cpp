#include <gtest/gtest.h>
#include <poll.h>

#include <cstring>
#include <vector>

#include "base/random.h"
#include "base/types.h"
#include "linux/copy_engine.h"
#include "linux/futex.h"
#include "linux/memory_file.h"
#include "linux/stream_copy.h"

namespace ferry::linux {
namespace {

std::vector<unsigned char> pattern(std::size_t bytes, std::uint64_t seed) {
  Random random(seed);
  std::vector<unsigned char> v(bytes);
  for (auto& b : v) b = static_cast<unsigned char>(random.next());
  return v;
}

TEST(StreamCopy, EveryVariantCopiesExactlyTheSpan) {
  unsigned ran = 0;
  for (const char* kind : {"avx512", "avx2", "sse2", "plain"}) {
    for (const std::size_t bytes : {0U, 1U, 63U, 64U, 255U, 256U, 300U, 4096U, 70001U}) {
      for (const std::size_t offset : {0U, 1U, 32U, 63U}) {
        const auto source = pattern(bytes + 64, bytes * 64 + offset);
        std::vector<unsigned char> target(bytes + 192, 0xee);
        if (!detail::stream_copy_with(kind, target.data() + 64 + offset, source.data() + offset / 2, bytes)) continue;
        ++ran;
        for (std::size_t i = 0; i < target.size(); ++i) {
          const bool inside = i >= 64 + offset && i < 64 + offset + bytes;
          ASSERT_EQ(target[i], inside ? source[offset / 2 + i - 64 - offset] : 0xee)
              << kind << ' ' << bytes << ' ' << i;
        }
      }
    }
  }
  EXPECT_GE(ran, 36U);
}

TEST(StreamCopy, ZeroWritesExactlyTheSpan) {
  for (const std::size_t bytes : {0U, 5U, 256U, 4096U, 9999U}) {
    std::vector<unsigned char> target(bytes + 128, 0xee);
    stream_zero(target.data() + 33, bytes);
    for (std::size_t i = 0; i < target.size(); ++i) ASSERT_EQ(target[i], i >= 33 && i < 33 + bytes ? 0 : 0xee);
  }
}

class Engine : public ::testing::Test {
 protected:
  Engine() : bell_(std::move(Bell::make().value())), engine_(3, bell_) {}

  std::vector<CopyCompletion> wait(std::size_t count) {
    std::vector<CopyCompletion> got;
    const std::uint64_t end = monotonic_ns() + 20'000'000'000;
    while (got.size() < count && monotonic_ns() < end) {
      engine_.set_owner_sleeping(true);
      if (!engine_.has_completions()) {
        pollfd p{bell_.fd(), POLLIN, 0};
        ::poll(&p, 1, 1000);
        std::uint64_t n = 0;
        [[maybe_unused]] const auto r = ::read(bell_.fd(), &n, sizeof n);
      }
      engine_.set_owner_sleeping(false);
      engine_.take_completions(got);
    }
    EXPECT_EQ(got.size(), count) << "copies did not end within 20 s";
    return got;
  }

  Bell bell_;
  CopyEngine engine_;
};

TEST_F(Engine, CopiesBigAndSmallAndTellsEachOnce) {
  const auto source = pattern(4 << 20, 1);
  std::vector<unsigned char> target(4 << 20);
  std::size_t at = 0;
  std::uint64_t tag = 0;
  for (std::size_t bytes : {4096U, 2097152U, 65536U, 131072U, 200704U}) {
    CopyJob job;
    job.target = reinterpret_cast<std::byte*>(target.data() + at);
    job.source = reinterpret_cast<const std::byte*>(source.data() + at);
    job.bytes = bytes;
    job.tag = tag++;
    engine_.submit(job);
    at += bytes;
  }
  EXPECT_EQ(engine_.in_flight(), 5U);
  auto done = wait(5);
  std::uint64_t seen = 0;
  for (const auto& c : done) {
    EXPECT_TRUE(c.status.ok());
    seen |= 1ULL << c.tag;
  }
  EXPECT_EQ(seen, 0x1fU);
  EXPECT_EQ(engine_.in_flight(), 0U);
  EXPECT_EQ(std::memcmp(target.data(), source.data(), at), 0);
  for (std::size_t i = at; i < target.size(); ++i) ASSERT_EQ(target[i], 0);
}

TEST_F(Engine, HolesAreWrittenAsZerosAndStayHoles) {
  const Fd from = std::move(make_memory_file("from", block_bytes).value());
  const Fd to = std::move(make_memory_file("to", block_bytes).value());
  const Mapping source = std::move(Mapping::map(from.get(), 0, block_bytes).value());
  const Mapping target = std::move(Mapping::map(to.get(), 0, block_bytes).value());
  std::memset(target.data(), 0xff, block_bytes);
  source.data()[100 * page_bytes] = std::byte{9};
  CopyJob job;
  job.target = target.data();
  job.source = source.data();
  job.bytes = block_bytes;
  job.source_fd = from.get();
  engine_.submit(job);
  const auto done = wait(1);
  EXPECT_TRUE(done[0].source_had_hole);
  EXPECT_EQ(target.data()[100 * page_bytes], std::byte{9});
  target.data()[100 * page_bytes] = std::byte{0};
  for (std::size_t i = 0; i < block_bytes; ++i) ASSERT_EQ(target.data()[i], std::byte{0});
  EXPECT_EQ(next_data(from.get(), 0, block_bytes), 100 * page_bytes);
  EXPECT_EQ(next_data(from.get(), 101 * page_bytes, block_bytes), block_bytes);
}

TEST_F(Engine, PreparationComesBeforeTheFirstByte) {
  const auto source = pattern(block_bytes, 3);
  const Fd to = std::move(make_memory_file("to", block_bytes).value());
  const Mapping target = std::move(Mapping::map(to.get(), 0, block_bytes).value());
  CopyJob job;
  job.target = target.data();
  job.source = reinterpret_cast<const std::byte*>(source.data());
  job.bytes = block_bytes;
  job.prepare_target = Prepare::make_huge;
  engine_.submit(job);
  job.source = nullptr;  // preparation alone must leave the bytes
  job.prepare_target = Prepare::populate;
  const auto first = wait(1);
  engine_.submit(job);
  const auto second = wait(1);
  EXPECT_TRUE(first[0].status.ok());
  EXPECT_TRUE(second[0].status.ok());
  EXPECT_EQ(std::memcmp(target.data(), source.data(), block_bytes), 0);
}

TEST_F(Engine, PreparationThatCannotBeFailsTheJob) {
  // An address that is not mapped: no signal, an error.
  std::vector<unsigned char> source(page_bytes);
  Mapping gone =
      std::move(Mapping::map(std::move(make_memory_file("x", page_bytes).value()).get(), 0, page_bytes).value());
  CopyJob job;
  job.target = gone.data();
  gone.reset();
  job.source = reinterpret_cast<const std::byte*>(source.data());
  job.bytes = page_bytes;
  job.prepare_target = Prepare::populate;
  engine_.submit(job);
  EXPECT_FALSE(wait(1)[0].status.ok());
}

TEST_F(Engine, ManyJobsFromOneThread) {
  constexpr unsigned n = 2000;
  const auto source = pattern(n * page_bytes, 4);
  std::vector<unsigned char> target(source.size());
  for (unsigned i = 0; i < n; ++i) {
    CopyJob job;
    job.target = reinterpret_cast<std::byte*>(target.data() + i * page_bytes);
    job.source = reinterpret_cast<const std::byte*>(source.data() + i * page_bytes);
    job.bytes = page_bytes;
    job.tag = i;
    engine_.submit(job);
  }
  const auto done = wait(n);
  std::vector<bool> seen(n);
  for (const auto& c : done) {
    EXPECT_FALSE(seen[c.tag]);
    seen[c.tag] = true;
  }
  EXPECT_EQ(target, source);
}

}  // namespace
}  // namespace ferry::linux

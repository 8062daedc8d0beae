// Private memory becomes shared at the same address while other threads write to it: no update may be lost.
#include "client/convert.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "base/types.h"
#include "linux/memory_file.h"

namespace ferry::client {
namespace {

class ConvertTest : public ::testing::Test {
 protected:
  static constexpr std::size_t bytes = 4 << 20;

  void SetUp() override {
    span_ =
        static_cast<std::uint64_t*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(span_, MAP_FAILED);
    auto file = linux::make_memory_file("convert", bytes);
    ASSERT_TRUE(file.ok());
    file_ = std::move(file.value());
  }
  void TearDown() override { ::munmap(span_, bytes); }

  std::uint64_t* span_ = nullptr;
  linux::Fd file_;
};

TEST_F(ConvertTest, ContentsStayAndTheFileHasThem) {
  constexpr std::size_t words = bytes / sizeof(std::uint64_t);
  for (std::size_t i = 0; i < words; i += 1024) span_[i] = i + 1;
  ASSERT_TRUE(convert_to_shared(span_, bytes, file_.get(), 0, PROT_READ | PROT_WRITE).ok());
  auto other = linux::Mapping::map(file_.get(), 0, bytes);
  ASSERT_TRUE(other.ok());
  const auto* seen = reinterpret_cast<const std::uint64_t*>(other.value().data());
  for (std::size_t i = 0; i < words; i += 1024) {
    ASSERT_EQ(span_[i], i + 1);
    ASSERT_EQ(seen[i], i + 1);
  }
  span_[7] = 4711;
  EXPECT_EQ(seen[7], 4711U) << "the span is not the file";
}

TEST_F(ConvertTest, PagesNeverTouchedStayHoles) {
  span_[0] = 1;
  ASSERT_TRUE(convert_to_shared(span_, bytes, file_.get(), 0, PROT_READ | PROT_WRITE).ok());
  EXPECT_EQ(linux::next_hole(file_.get(), 0, bytes), page_bytes);
  EXPECT_EQ(linux::next_data(file_.get(), page_bytes, bytes), bytes);
}

TEST_F(ConvertTest, NoUpdateOfRunningThreadsIsLost) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "copier and writers are kept apart by the kernel, which ThreadSanitizer does not see";
#endif
  constexpr unsigned writers = 3;
  constexpr std::size_t words = bytes / sizeof(std::uint64_t);
  std::atomic<bool> stop{false};
  std::atomic<unsigned> running{0};
  std::vector<std::vector<std::uint64_t>> counts(writers, std::vector<std::uint64_t>(words / 64));
  std::vector<std::jthread> threads;
  for (unsigned t = 0; t < writers; ++t) {
    threads.emplace_back([&, t] {
      std::uint64_t state = t + 1;
      bool counted = false;
      while (!stop.load(std::memory_order_relaxed)) {
        state = state * 6364136223846793005U + 1442695040888963407U;
        const std::size_t slot = (state >> 33) % counts[t].size();
        // Every thread has words of its own on every page, so that a lost page is a lost count.
        span_[slot * 64 + t] += 1;
        ++counts[t][slot];
        if (!counted && slot % 2 == 0) {
          counted = true;
          running.fetch_add(1);
        }
      }
    });
  }
  while (running.load() != writers) std::this_thread::yield();
  const Status converted = convert_to_shared(span_, bytes, file_.get(), 0, PROT_READ | PROT_WRITE);
  stop.store(true);
  threads.clear();
  ASSERT_TRUE(converted.ok()) << to_string(converted.code) << " " << converted.sys_errno;
  for (unsigned t = 0; t < writers; ++t) {
    for (std::size_t slot = 0; slot < counts[t].size(); ++slot) {
      ASSERT_EQ(span_[slot * 64 + t], counts[t][slot]) << "thread " << t << " slot " << slot;
    }
  }
}

}  // namespace
}  // namespace ferry::client

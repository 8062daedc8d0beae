// Applications that have the manager remember more and more: each is refused in the end, and nobody else notices.
#include <unistd.h>

#include <cstdio>

#include "core/svm/types.h"
#include "ferryd_harness.h"
#include "manager/limits.h"

namespace ferry::manager::test {
namespace {

using wire::MessageType;

constexpr std::uint64_t outside = window_bytes / page_bytes + 512;

class HostileLimits : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(good_.hello());
    ASSERT_TRUE(bad_.hello());
  }
  void TearDown() override {
    ASSERT_TRUE(ferryd_.alive());
    EXPECT_EQ(good_.ask(MessageType::alloc, 1024, 16), Code::ok);
  }
  [[nodiscard]] std::uint64_t resident_pages() const {
    unsigned long all = 0;
    unsigned long resident = 0;
    if (std::FILE* f = std::fopen(("/proc/" + std::to_string(ferryd_.pid()) + "/statm").c_str(), "re")) {
      EXPECT_EQ(std::fscanf(f, "%lu %lu", &all, &resident), 2);
      std::fclose(f);
    }
    return resident;
  }
  Ferryd ferryd_{{"--vram", "8M"}};
  Speaker good_{ferryd_};
  Speaker bad_{ferryd_};
};

/// Its agent never takes the pages from its threads, so nothing that waits for that ends.
TEST_F(HostileLimits, RequestsThatAreNeverAnswered) {
  constexpr std::size_t more = 76;
  const auto device = attach_device(bad_);
  ASSERT_NE(device, nullptr);
  ASSERT_EQ(bad_.ask(MessageType::alloc, 0, 512), Code::ok);
  const std::uint64_t value = 1;
  ASSERT_EQ(::pwrite(bad_.files[1].get(), &value, sizeof value, 0), 8);
  wire::Span span{};
  span.count_pages = 512;
  for (std::size_t i = 0; i < requests_max + more; ++i) bad_.send(MessageType::prefetch, span);
  for (std::size_t i = 0; i < more; ++i) ASSERT_EQ(bad_.done(), Code::no_memory) << i;
  EXPECT_EQ(bad_.ask(MessageType::free, 0, 512), Code::no_memory);
  EXPECT_EQ(bad_.ask(MessageType::alloc, 1024, 1), Code::no_memory);
  bad_.send(MessageType::svm_reset, span);
  ASSERT_TRUE(bad_.got(MessageType::svm_answer));
  wire::SvmAnswer answer{};
  ASSERT_TRUE(bad_.in().body(answer));
  EXPECT_EQ(static_cast<Code>(answer.code), Code::no_memory);
  EXPECT_EQ(bad_.receive(0), linux::Receive::nothing) << "a request was answered";
}

/// Nothing is remembered of blocks that nobody has touched.
TEST_F(HostileLimits, ProtectionOfAllAddresses) {
  constexpr std::uint64_t huge = std::uint64_t{1} << 32;
  ASSERT_EQ(bad_.ask(MessageType::alloc, outside, huge), Code::ok);
  const std::uint64_t before = resident_pages();
  wire::Change protect{};
  protect.first_page = outside;
  protect.count_pages = huge;
  protect.change = static_cast<std::uint32_t>(core::Change::protect);
  protect.prot = core::span_read;
  bad_.send(MessageType::change, protect);
  ASSERT_EQ(bad_.done(), Code::ok);
  EXPECT_LT(resident_pages(), before + huge / block_pages / 64) << "a word for each block at most";
}

}  // namespace
}  // namespace ferry::manager::test

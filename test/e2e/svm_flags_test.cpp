// Every flag of <ferry/svm.h> over the real thing: what happens where it is set, and what where it is not.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csetjmp>
#include <csignal>
#include <cstring>
#include <functional>

#include "svm.h"

namespace ferry::test {
namespace {

/// One flag over the first block of two; the other is as a new allocation is.
class SvmFlags : public testing::Test {
 protected:
  void set(svm_flag flags) const { attributes().set(flags).apply(m_.p(), block); }
  void clear(svm_flag flags) const { attributes().clear(flags).apply(m_.p(), block); }
  static constexpr std::size_t with = 0;
  static constexpr std::size_t without = 512;
  Memory m_{2};
};

TEST_F(SvmFlags, HostAccessClearedMakesCpuTouchesOfVramEndInSigbus) {
  try {
    clear(svm_flag::host_access);
  } catch (const error& e) {
    ASSERT_NE(std::strstr(e.what(), "line 0, FERRY_SVM_CLR_FLAGS: HOST_ACCESS cannot be cleared"), nullptr) << e.what();
    GTEST_SKIP() << e.what();
  }
  ASSERT_EQ(device_writes(0, m_, with), 0);
  ASSERT_EQ(device_writes(0, m_, without), 0);
  ASSERT_EQ(m_.info(with).vram_device, 0);
  EXPECT_TRUE(ends_in_sigbus(m_.at(with)));
  EXPECT_EQ(m_.info(with).vram_device, 0) << "it stays";
  EXPECT_FALSE(ends_in_sigbus(m_.at(without)));
  EXPECT_EQ(m_.word(without), 513U);
  set(svm_flag::host_access);
  EXPECT_EQ(m_.word(with), 1U) << "allowed again";
}

TEST_F(SvmFlags, CoherentPagesThatBothWantAreHadInPlaceOthersGoToAndFro) {
  clear(svm_flag::coherent);
  const auto stays_home = [&](std::size_t number, unsigned rounds) {
    // Four changes of hands within 20 ms make a page contended: on a busy machine that may take some tries.
    for (unsigned round = 0; round < rounds; ++round) {
      EXPECT_EQ(device_writes(0, m_, number), 0);
      if (m_.info(number).vram_device < 0) return true;
      m_.word(number) += 1;
    }
    return false;
  };
  EXPECT_FALSE(stays_home(with, 200));
  EXPECT_TRUE(stays_home(without, 2000));
}

TEST_F(SvmFlags, ExtCoherentPagesAreNeverInVram) {
  set(svm_flag::ext_coherent);
  attributes().preferred(0).apply(m_.p(), m_.bytes());
  ASSERT_EQ(device_writes(0, m_, with), 0);
  ASSERT_EQ(device_writes(0, m_, without), 0);
  EXPECT_EQ(m_.info(with).vram_device, -1);
  EXPECT_EQ(m_.info(with).device_mapped, 1U);
  EXPECT_EQ(m_.info(without).vram_device, 0);
  // Set while it is there: it comes home.
  attributes().set(svm_flag::ext_coherent).apply(m_.at(without), block);
  EXPECT_EQ(m_.info(without).vram_device, -1);
  EXPECT_EQ(m_.word(without), 513U);
}

TEST_F(SvmFlags, GpuRoPagesAreReadAndAWriteFails) {
  FERRY_SKIP_CRASHES();
  ASSERT_EQ(device_writes(0, m_, with), 0);
  EXPECT_EQ(m_.info(with).device_writable, 1U);
  set(svm_flag::gpu_ro);
  EXPECT_EQ(m_.info(with).device_writable, 0U) << "the right to write is taken at once";
  EXPECT_EQ(device_reads(0, m_, with), 0);
  EXPECT_EQ(device_reads(1, m_, with), 0);
  EXPECT_EQ(device_writes(0, m_, with), FERRY_KERNEL_FAULT);
  EXPECT_EQ(device_writes(1, m_, with), FERRY_KERNEL_FAULT);
  EXPECT_EQ(device_writes(0, m_, without), 0);
  EXPECT_EQ(m_.word(with), 1U) << "no write has come through";
  m_.word(with) = 5;
  EXPECT_EQ(device_reads(0, m_, with), 0);
  clear(svm_flag::gpu_ro);
  EXPECT_EQ(device_writes(0, m_, with), 0);
  EXPECT_EQ(m_.word(with), 6U);
}

#if defined(__x86_64__) || defined(__aarch64__)
/// Machine code of a function that returns 42.
void write_function(unsigned char* to) {
#if defined(__x86_64__)
  constexpr unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};
#else
  constexpr unsigned char code[] = {0x40, 0x05, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6};
#endif
  std::memcpy(to, code, sizeof code);
  __builtin___clear_cache(reinterpret_cast<char*>(to), reinterpret_cast<char*>(to) + sizeof code);
}

TEST_F(SvmFlags, GpuExecPagesMayBeCalled) {
  FERRY_SKIP_CRASHES();
  write_function(m_.at(with));
  write_function(m_.at(without));
  m_.word(1) = 0;
  const auto call = [&](std::size_t number) {
    return failure_of([&] {
             queue q(0);
             q.parallel_for(1, [f = m_.at(number), out = m_.at(600)](std::size_t) {
                *reinterpret_cast<int*>(out) = reinterpret_cast<int (*)()>(f)();
              }).wait();
           })
        .code;
  };
  set(svm_flag::gpu_exec);
  EXPECT_EQ(call(with), 0);
  EXPECT_EQ(*reinterpret_cast<int*>(m_.at(600)), 42);
  EXPECT_EQ(call(without), FERRY_KERNEL_FAULT);
  clear(svm_flag::gpu_exec);
  EXPECT_EQ(call(with), FERRY_KERNEL_FAULT);
}
#endif

TEST_F(SvmFlags, AlwaysMappedPagesAreMappedWithoutATouch) {
  for (const unsigned device : {0U, 1U}) ASSERT_EQ(device_reads(device, m_, 1023), 0);  // both devices run
  EXPECT_EQ(m_.info(with).device_mapped, 0U);
  set(svm_flag::always_mapped);
  EXPECT_EQ(m_.info(with).device_mapped, 3U);
  EXPECT_EQ(m_.info(511).device_mapped, 3U);
  EXPECT_EQ(m_.info(without).device_mapped, 0U);
  // What takes it away gives it back before kernels run again.
  m_.word(with) = 4;
  ASSERT_EQ(device_writes(0, m_, with), 0);
  EXPECT_EQ(m_.word(with), 5U);
}

/// Pages that moved while the body ran, to whatever side.
template <typename Body>
std::uint64_t moved(Body&& body) {
  const events moves({event_kind::migrate_start});
  body();
  std::uint64_t bytes = 0;
  for (std::vector<event> some = moves.read(); !some.empty(); some = moves.read()) {
    for (const event& e : some) bytes += e.bytes;
  }
  return bytes;
}

/// Without it a CPU thread that only reads cannot be kept from writing a page that no table has an entry for.
bool can_protect_what_is_not_mapped() {
  const auto fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
  if (fd < 0) return true;
  constexpr std::uint64_t wp_unpopulated = 1 << 13;  // Linux 6.4; not in older headers
  uffdio_api api{.api = UFFD_API, .features = wp_unpopulated, .ioctls = 0};
  const bool can = ioctl(fd, UFFDIO_API, &api) == 0;
  close(fd);
  return can;
}

TEST_F(SvmFlags, ReadMostlyPagesAreWithTheCpuAndTwoDevicesAtOnce) {
  if (!can_protect_what_is_not_mapped()) {
    GTEST_SKIP()
        << "on this kernel a CPU thread has no copy beside those of devices (UFFD_FEATURE_WP_UNPOPULATED, Linux 6.4)";
  }
  set(svm_flag::read_mostly);
  for (const std::size_t number : {with, without}) {
    ASSERT_EQ(device_reads(0, m_, number), 0);
    ASSERT_EQ(device_reads(1, m_, number), 0);
    EXPECT_EQ(m_.word(number), number);
  }
  const ferry_page_info many = m_.info(with);
  EXPECT_EQ(many.device_mapped, 3U);
  EXPECT_EQ(many.device_writable, 0U);
  EXPECT_EQ(many.system_current, 1);
  EXPECT_EQ(many.cpu_may_map, 1);
  EXPECT_GE(many.vram_device, 0);
  EXPECT_EQ(copies_of(m_.at(with)), FERRY_COPY_SYSTEM | 3U);
  EXPECT_NE(explain(m_.at(with)).find(many.vram_device == 0 ? "with a copy on device 1" : "with a copy on device 0"),
            std::string::npos)
      << explain(m_.at(with));
  EXPECT_EQ(copies_of(m_.at(without)), FERRY_COPY_SYSTEM);
  EXPECT_EQ(m_.info(without).device_mapped, 0U) << "the CPU has taken it";
  const auto all_read = [&](std::size_t number) {
    EXPECT_EQ(device_reads(0, m_, number), 0);
    EXPECT_EQ(device_reads(1, m_, number), 0);
    EXPECT_EQ(m_.word(number), number);
  };
  EXPECT_EQ(moved([&] { all_read(with); }), 0U);
  EXPECT_NE(moved([&] { all_read(without); }), 0U);
}

TEST_F(SvmFlags, ReadMostlyPagesHaveOneCopyAgainWhenSomebodyWritesThem) {
  set(svm_flag::read_mostly);
  for (const unsigned writer : {0U, 1U, 2U}) {  // 2: the CPU
    const std::uint64_t before = m_.word(with);
    ASSERT_EQ(device_reads(0, m_, with), 0);
    ASSERT_EQ(device_reads(1, m_, with), 0);
    EXPECT_EQ(m_.word(with), before);
    const std::uint32_t rest = m_.info(1).device_mapped;
    if (writer == 2) {
      m_.word(with) += 1;
      EXPECT_EQ(m_.info(with).device_mapped, 0U);
    } else {
      ASSERT_EQ(device_writes(writer, m_, with), 0);
      EXPECT_EQ(m_.info(with).device_writable, 1U << writer);
      EXPECT_EQ(m_.info(with).device_mapped, 1U << writer);
      EXPECT_EQ(m_.info(with).cpu_may_map, 0);
    }
    EXPECT_EQ(m_.info(1).device_mapped, rest) << "the pages around it keep their copies";
    // Everybody sees the write.
    for (const unsigned reader : {0U, 1U}) {
      queue q(reader);
      q.parallel_for(1, [from = m_.at(with), to = m_.at(600 + reader)](std::size_t) {
         *reinterpret_cast<std::uint64_t*>(to) = *reinterpret_cast<std::uint64_t*>(from);
       }).wait();
      EXPECT_EQ(m_.word(600 + reader), before + 1) << "device " << reader << " after a write of " << writer;
    }
    EXPECT_EQ(m_.word(with), before + 1);
  }
}

/// Writers and readers of all three, over pages that are read mostly: no write is lost, none is seen half way.
TEST_F(SvmFlags, ReadMostlyPagesLoseNoWriteWhereAllWriteThem) {
  set(svm_flag::read_mostly);
  constexpr unsigned rounds = 20;
  constexpr std::size_t pages = 40;
  for (std::size_t i = 0; i < pages; ++i) m_.word(i) = 0;
  for (unsigned round = 0; round < rounds; ++round) {
    ASSERT_EQ(device_reads(round % 2, m_, 0, pages), 0);
    ASSERT_EQ(device_writes(0, m_, round, 2), 0);
    ASSERT_EQ(device_reads(1, m_, 0, pages), 0);
    ASSERT_EQ(device_writes(1, m_, round + 1, 2), 0);
    for (std::size_t i = 0; i < 4; ++i) m_.word(round + i) += 1;
  }
  std::vector<std::uint64_t> expected(pages + 8);
  for (unsigned round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < 4; ++i) expected[round + i] += i == 0 || i == 2 ? 2 : i == 1 ? 3 : 1;
  }
  for (std::size_t i = 0; i < pages; ++i) EXPECT_EQ(m_.word(i), expected[i]) << "page " << i;
}

TEST_F(SvmFlags, ReadMostlyTakenBackLeavesOneCopy) {
  set(svm_flag::read_mostly);
  ASSERT_EQ(device_reads(0, m_, with), 0);
  ASSERT_EQ(device_reads(1, m_, with), 0);
  ASSERT_EQ(m_.info(with).device_mapped, 3U);
  clear(svm_flag::read_mostly);
  const ferry_page_info one = m_.info(with);
  EXPECT_EQ(one.device_mapped, one.vram_device < 0 ? 0U : 1U << one.vram_device);
  EXPECT_EQ(copies_of(m_.at(with)) & 3U, one.vram_device < 0 ? 0U : 1U << one.vram_device);
  EXPECT_EQ(one.cpu_may_map, one.vram_device < 0 ? 1 : 0);
  EXPECT_EQ(m_.word(with), with);
}

TEST_F(SvmFlags, HiveLocalPagesAreReachedWhereTheyLieByDevicesOfTheHive) {
  if (!device_linked(0, 1)) GTEST_SKIP() << "the devices of this machine are not linked: e2e_svm_hive has such";
  set(svm_flag::hive_local);
  for (const std::size_t number : {with, without}) {
    ASSERT_EQ(device_writes(0, m_, number), 0);
    ASSERT_EQ(m_.info(number).vram_device, 0);
    ASSERT_EQ(device_writes(1, m_, number), 0);
  }
  EXPECT_EQ(m_.info(with).vram_device, 0) << "reached over the link";
  EXPECT_EQ(m_.info(with).device_mapped, 3U);
  EXPECT_EQ(m_.info(without).vram_device, 1) << "taken";
  EXPECT_EQ(m_.info(without).device_mapped, 2U);
  EXPECT_EQ(m_.word(with), 2U);
  EXPECT_EQ(m_.word(without), 514U);
  // One copy a hive, where each reads its own otherwise.
  set(svm_flag::read_mostly);
  attributes().set(svm_flag::read_mostly).apply(m_.at(without), block);
  for (const std::size_t number : {with, without}) {
    ASSERT_EQ(device_writes(0, m_, number), 0);
    ASSERT_EQ(m_.info(number).vram_device, 0);
    ASSERT_EQ(moved([&] { ASSERT_EQ(device_reads(1, m_, number), 0); }) != 0, number == without);
    EXPECT_EQ(m_.info(number).vram_device, 0);
  }
}

}  // namespace
}  // namespace ferry::test

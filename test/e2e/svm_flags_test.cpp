// Every flag of <ferry/svm.h> over the real thing: what happens where it is set, and what where it is not.
#include <csetjmp>
#include <csignal>
#include <functional>

#include "svm.h"

namespace ferry::test {
namespace {

sigjmp_buf after_bus;
void on_bus(int) { siglongjmp(after_bus, 1); }

/// True: the CPU's touch of the byte ended in SIGBUS.
bool ends_in_sigbus(const unsigned char* p) {
  struct sigaction mine {};
  struct sigaction before {};
  mine.sa_handler = &on_bus;
  mine.sa_flags = SA_NODEFER;
  sigaction(SIGBUS, &mine, &before);
  volatile bool ended = true;  // read after the jump
  if (sigsetjmp(after_bus, 1) == 0) {
    [[maybe_unused]] const unsigned char read = *static_cast<const volatile unsigned char*>(p);
    ended = false;
  }
  sigaction(SIGBUS, &before, nullptr);
  return ended;
}

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
  clear(svm_flag::host_access);
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

}  // namespace
}  // namespace ferry::test

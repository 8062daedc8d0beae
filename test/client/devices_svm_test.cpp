// Attributes that only the machine can keep: what may be written, called and reached, and copies that are beside each
// other. FERRY_DEVICES=4, FERRY_HIVE=0,1,2.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cstring>
#include <ferry/svm.hpp>
#include <memory>
#include <string>
#include <thread>

#include "e2e.h"

namespace ferry::test {
namespace {

constexpr std::size_t page = 4096;
constexpr std::size_t words_per_page = page / sizeof(std::uint64_t);

/// Pages of their own, from a block's beginning.
class Pages {
 public:
  explicit Pages(std::size_t count, ferry::placement where = ferry::placement::automatic)
      : words_(static_cast<std::uint64_t*>(ferry::alloc_aligned(count * page, 2 << 20, where))), bytes_(count * page) {
    std::memset(words_.get(), 0, bytes_);
  }
  [[nodiscard]] std::uint64_t* words() const { return words_.get(); }
  [[nodiscard]] std::uint64_t& word(std::size_t page_number) const { return words()[page_number * words_per_page]; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  void apply(const ferry::attributes& list) const { list.apply(words(), bytes_); }
  [[nodiscard]] ferry::page_info info(std::size_t page_number = 0) const { return ferry::query(&word(page_number)); }

 private:
  struct Free {
    void operator()(std::uint64_t* p) const { ferry::free(p); }
  };
  std::unique_ptr<std::uint64_t, Free> words_;
  std::size_t bytes_;
};

/// What a kernel on the device reads there.
std::uint64_t read_on(unsigned device, const std::uint64_t* at) {
  Vector<std::uint64_t> out(1, 0);
  ferry::queue q(device);
  q.parallel_for(
       1, [=, o = out.data()](std::size_t) { *o = *at; }, "read")
      .wait();
  return out[0];
}
void write_on(unsigned device, std::uint64_t* at, std::uint64_t value) {
  ferry::queue q(device);
  q.parallel_for(
       1, [=](std::size_t) { *at = value; }, "write")
      .wait();
}
std::string error_of_read(unsigned device, const std::uint64_t* at) {
  return kernel_error_of([&] { (void)read_on(device, at); }).what();
}
std::string error_of_write(unsigned device, std::uint64_t* at) {
  return kernel_error_of([&] { write_on(device, at, 666); }).what();
}
std::uint64_t stat(const char* key) {
  const std::string text = ferry::stats();
  const std::size_t at = text.find(std::string("\"") + key + "\"");
  return at == std::string::npos ? 0 : std::stoull(text.substr(text.find(':', at) + 1));
}

// --- read-only, executable, none -------------------------------------------------------------------------------------

class GpuRo : public ::testing::TestWithParam<ferry::placement> {};

TEST_P(GpuRo, ADeviceReadsAndAWriteOfItFails) {
  FERRY_SKIP_CRASHES();
  const Pages p(16, GetParam());
  p.word(3) = 33;
  p.apply(ferry::attributes().set(ferry::svm_flag::gpu_ro));
  EXPECT_EQ(read_on(0, &p.word(3)), 33U);
  EXPECT_NE(error_of_write(0, &p.word(3)), "") << "after a read";
  EXPECT_NE(error_of_write(1, &p.word(4)), "") << "at first touch";
  EXPECT_EQ(p.word(3), 33U);
  EXPECT_EQ(p.word(4), 0U);
  p.word(3) = 34;
  EXPECT_EQ(read_on(0, &p.word(3)), 34U);
  p.apply(ferry::attributes().clear(ferry::svm_flag::gpu_ro));
  write_on(0, &p.word(3), 35);
  EXPECT_EQ(p.word(3), 35U);
}
INSTANTIATE_TEST_SUITE_P(InVramAndInPlace, GpuRo,
                         ::testing::Values(ferry::placement::automatic, ferry::placement::system));

#if defined(__x86_64__)
constexpr std::array<unsigned char, 6> code_of_42 = {0xb8, 0x2a, 0x00, 0x00, 0x00, 0xc3};  // mov eax, 42; ret
#else
constexpr std::array<unsigned char, 8> code_of_42 = {0x40, 0x05, 0x80, 0x52,
                                                     0xc0, 0x03, 0x5f, 0xd6};  // mov w0, #42; ret
#endif

bool memory_files_may_be_executed() {
  const int fd = ::memfd_create("ferry-test", MFD_CLOEXEC);
  void* const p = fd < 0 || ::ftruncate(fd, page) != 0
                      ? MAP_FAILED
                      : ::mmap(nullptr, page, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
  if (p != MAP_FAILED) ::munmap(p, page);
  if (fd >= 0) ::close(fd);
  return p != MAP_FAILED;
}

std::uint64_t call_on(unsigned device, std::uint64_t* code) {
  Vector<std::uint64_t> out(1, 0);
  ferry::queue q(device);
  q.parallel_for(
       1, [=, o = out.data()](std::size_t) { *o = static_cast<std::uint64_t>(reinterpret_cast<int (*)()>(code)()); },
       "call")
      .wait();
  return out[0];
}

class GpuExec : public ::testing::TestWithParam<ferry::placement> {};

TEST_P(GpuExec, AKernelCallsIntoMemoryThatSaysSoAndNoOther) {
  FERRY_SKIP_CRASHES();
  if (!memory_files_may_be_executed()) GTEST_SKIP() << "memory files may not be executable here";
  const Pages p(16, GetParam());
  std::memcpy(&p.word(2), code_of_42.data(), code_of_42.size());
  const auto error_of_call = [&] { return std::string(kernel_error_of([&] { (void)call_on(0, &p.word(2)); }).what()); };
  const std::string first = error_of_call();
  EXPECT_NE(first.find("not executable"), std::string::npos) << first;
  EXPECT_NE(read_on(0, &p.word(2)), 0U);
  const std::string mapped = error_of_call();
  EXPECT_NE(mapped.find("not executable"), std::string::npos) << mapped;
  p.apply(ferry::attributes().set(ferry::svm_flag::gpu_exec));
  EXPECT_EQ(call_on(0, &p.word(2)), 42U);
  EXPECT_EQ(call_on(3, &p.word(2)), 42U);
  p.apply(ferry::attributes().clear(ferry::svm_flag::gpu_exec));
  const std::string again = error_of_call();
  EXPECT_NE(again.find("not executable"), std::string::npos) << again;
}
INSTANTIATE_TEST_SUITE_P(InVramAndInPlace, GpuExec,
                         ::testing::Values(ferry::placement::automatic, ferry::placement::system));

TEST(Machine, WhereADeviceHasNoAccessNothingIsReadThatWasMappedBefore) {
  FERRY_SKIP_CRASHES();
  const Pages p(16, ferry::placement::system);
  p.word(1) = 11;
  EXPECT_EQ(read_on(0, &p.word(1)), 11U);
  EXPECT_EQ(read_on(1, &p.word(1)), 11U);
  p.apply(ferry::attributes().access(0, ferry::device_access::none));
  EXPECT_NE(error_of_read(0, &p.word(1)), "");
  EXPECT_EQ(read_on(1, &p.word(1)), 11U);
  EXPECT_EQ(p.info(1).device_mapped & 1U, 0U);
}

// --- several devices -------------------------------------------------------------------------------------------------

TEST(Machine, ReadersOfAReadMostlyPageNeverSeeAnOldValueAfterANewOne) {
  const Pages p(1);
  p.apply(ferry::attributes().set(ferry::svm_flag::read_mostly));
  std::uint64_t* const at = p.words();
  Vector<std::uint64_t> wrong(4, 0);
  std::uint64_t* const out = wrong.data();
  constexpr std::uint64_t last = 200;
  const auto watch = [at, out](unsigned who) {
    std::uint64_t seen = 0;
    while (seen != last) {
      const std::uint64_t now = __atomic_load_n(at, __ATOMIC_ACQUIRE);
      if (now < seen) out[who] = 1;
      seen = now;
    }
  };
  ferry::queue q0(0);
  ferry::queue q1(1);
  auto c0 = q0.parallel_for(1, [watch](std::size_t) { watch(0); });
  auto c1 = q1.parallel_for(1, [watch](std::size_t) { watch(1); });
  std::thread reader([&] { watch(2); });
  for (std::uint64_t i = 1; i <= last; ++i) __atomic_store_n(at, i, __ATOMIC_RELEASE);
  c0.wait();
  c1.wait();
  reader.join();
  EXPECT_EQ(wrong[0] + wrong[1] + wrong[2], 0U);
}

TEST(Machine, ADeviceReachesALinkedOnesMemoryAndPrefetchGoesThereDirectly) {
  const Pages p(512);
  for (std::size_t i = 0; i < 512; ++i) p.word(i) = i;
  p.apply(ferry::attributes().preferred(0).access(1, ferry::device_access::in_place));
  write_on(0, &p.word(9), 90);
  ASSERT_EQ(p.info(9).vram_device, 0);
  EXPECT_EQ(read_on(1, &p.word(9)), 90U);
  EXPECT_EQ(p.info(9).vram_device, 0) << ferry::explain(&p.word(9));
  EXPECT_EQ(p.info(9).device_mapped & 2U, 2U);
  write_on(1, &p.word(9), 91);
  EXPECT_EQ(read_on(0, &p.word(9)), 91U);
  ferry::reset_attributes(p.words(), p.bytes());
  ferry::queue q1(1);
  const std::uint64_t home = stat("bytes_to_system");  // what was read came home
  ferry::prefetch(p.words(), p.bytes(), ferry::to_device(1));
  EXPECT_EQ(p.info(9).vram_device, 1);
  EXPECT_EQ(stat("bytes_to_system") - home, 0U) << "through system memory, where the devices are linked";
  EXPECT_EQ(read_on(1, &p.word(9)), 91U);
  EXPECT_EQ(p.word(9), 91U);
  EXPECT_EQ(p.word(10), 10U);
}

TEST(Machine, DevicesThatAreNotLinkedGoByWayOfSystemMemory) {
  const Pages p(512);
  write_on(0, &p.word(9), 90);
  const std::uint64_t home = stat("bytes_to_system");
  ferry::queue q3(3);
  ferry::prefetch(p.words(), p.bytes(), ferry::to_device(3));
  EXPECT_EQ(p.info(9).vram_device, 3);
  EXPECT_GT(stat("bytes_to_system"), home);
  EXPECT_EQ(read_on(3, &p.word(9)), 90U);
}

TEST(Machine, AtomicsMeetInALinkedDevicesMemory) {
  const Pages p(1);
  p.apply(ferry::attributes().preferred(0).access(1, ferry::device_access::in_place));
  write_on(0, p.words(), 0);
  constexpr std::uint64_t each = 20'000;
  const auto add = [at = p.words()](std::size_t) {
    for (std::uint64_t i = 0; i < each / 4; ++i) __atomic_fetch_add(at, 1, __ATOMIC_SEQ_CST);
  };
  ferry::queue q0(0);
  ferry::queue q1(1);
  auto c0 = q0.parallel_for(4, add);
  auto c1 = q1.parallel_for(4, add);
  c0.wait();
  c1.wait();
  EXPECT_EQ(p.word(0), 2 * each);
}

}  // namespace
}  // namespace ferry::test

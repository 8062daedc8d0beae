// Sixteen devices on one manager, some of them linked: one memory under the hands of all, and no page of system memory
// in anybody's reach but those that were opened to him. FERRY_HIVE=0,1,2,3/4,5.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "e2e.h"

namespace ferry::test {
namespace {

constexpr std::size_t page = 4096;
constexpr std::size_t words_per_page = page / sizeof(std::uint64_t);

/// A queue on every device.
std::vector<ferry::queue> queues_of_all() {
  std::vector<ferry::queue> queues;
  for (unsigned d = 0; d < ferry::device_count(); ++d) queues.emplace_back(d);
  return queues;
}

TEST(Devices, LinksAreThoseOfTheHives) {
  ASSERT_EQ(ferry::device_count(), 16U);
  for (unsigned a = 0; a < 16; ++a) {
    for (unsigned b = 0; b < 16; ++b) {
      const bool linked = a != b && ((a < 4 && b < 4) || (a / 2 == 2 && b / 2 == 2));
      EXPECT_EQ(ferry::device_linked(a, b), linked) << a << " and " << b;
    }
  }
  EXPECT_EQ(code_of([] { (void)ferry::device_linked(3, 16); }), FERRY_BAD_RANGE);
}

TEST(Devices, AllSixteenWriteOneAllocation) {
  auto queues = queues_of_all();
  const std::size_t devices = queues.size();
  constexpr std::size_t each = 8 * words_per_page;
  Vector<std::uint64_t> v(devices * each, 7);
  std::uint64_t* const data = v.data();
  // Each in turn writes its own part and reads what the one before it wrote, then all at once add to every word.
  for (unsigned d = 0; d < devices; ++d) {
    queues[d]
        .parallel_for(each,
                      [=](std::size_t i) {
                        const std::uint64_t before = d == 0 ? 7 : data[(d - 1) * each + i];
                        data[d * each + i] = before + 1;
                      })
        .wait();
  }
  for (unsigned d = 0; d < devices; ++d) {
    for (std::size_t i = 0; i < each; ++i) ASSERT_EQ(v[d * each + i], 8 + d) << d << ", " << i;
  }
  std::vector<ferry::completion> all;
  for (auto& q : queues) {
    all.push_back(q.parallel_for(16, [=](std::size_t) {
      for (std::size_t i = 0; i < devices * each; i += words_per_page) {
        __atomic_fetch_add(data + i, 1, __ATOMIC_SEQ_CST);
      }
    }));
  }
  for (auto& c : all) c.wait();
  for (std::size_t i = 0; i < devices * each; i += words_per_page) {
    ASSERT_EQ(v[i], 8 + i / each + 16 * devices) << i;
  }
}

/// Adds from the CPU and from two devices at once to one word; in bounded time, and none is lost.
void contend(ferry::placement where, unsigned a, unsigned b) {
  struct Free {
    void operator()(std::uint64_t* p) const { ferry::free(p); }
  };
  const std::unique_ptr<std::uint64_t, Free> memory(
      static_cast<std::uint64_t*>(ferry::alloc_aligned(page, page, where)));
  std::uint64_t* const word = memory.get();
  *word = 0;
  constexpr std::uint64_t from_device = 40'000;
  ferry::queue qa(a);
  ferry::queue qb(b);
  const auto add = [word](std::size_t) {
    for (std::uint64_t i = 0; i < from_device / 8; ++i) __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
  };
  std::atomic<bool> stop{false};
  std::uint64_t from_cpu = 0;
  std::thread cpu([&] {
    while (!stop.load(std::memory_order_relaxed)) {
      __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
      ++from_cpu;
    }
  });
  auto ca = qa.parallel_for(8, add);
  auto cb = qb.parallel_for(8, add);
  ca.wait();
  cb.wait();
  stop.store(true);
  cpu.join();
  EXPECT_EQ(*word, 2 * from_device + from_cpu);
}

TEST(Devices, AtomicsOfTheCpuAndTwoDevicesInPlaceLoseNothing) { contend(ferry::placement::system, 0, 1); }
TEST(Devices, AtomicsOfTheCpuAndTwoLinkedDevicesLoseNothing) { contend(ferry::placement::automatic, 0, 1); }
TEST(Devices, AtomicsOfTheCpuAndTwoDevicesApartLoseNothing) { contend(ferry::placement::automatic, 6, 7); }

// --- IOMMU -----------------------------------------------------------------------------------------------------------

/// The process of a device.
pid_t process_of(ferry::queue& q) {
  Vector<std::int64_t> pid(1);
  q.parallel_for(1, [p = pid.data()](std::size_t) { p[0] = ::getpid(); }).wait();
  return static_cast<pid_t>(pid[0]);
}

/// Pages of [p, p + bytes) that are in the process's page table.
std::vector<bool> present_pages(pid_t pid, const void* p, std::size_t bytes) {
  const int fd = ::open(("/proc/" + std::to_string(pid) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC);
  std::vector<std::uint64_t> entries(bytes / page);
  const auto offset = static_cast<off_t>(reinterpret_cast<std::uintptr_t>(p) / page * sizeof(std::uint64_t));
  const ssize_t got = fd < 0 ? -1 : ::pread(fd, entries.data(), entries.size() * sizeof(std::uint64_t), offset);
  if (fd >= 0) ::close(fd);
  if (got != static_cast<ssize_t>(entries.size() * sizeof(std::uint64_t))) return {};
  std::vector<bool> present;
  for (const std::uint64_t entry : entries) present.push_back((entry >> 63) != 0);
  return present;
}

TEST(DevicesIommu, ADeviceHasNoPageInReachThatWasNotOpenedToIt) {
  ferry::queue q2(2);
  ferry::queue q3(3);
  const std::array<pid_t, 2> pids = {process_of(q2), process_of(q3)};
  constexpr std::size_t pages = 1024;
  auto* const data = static_cast<std::uint64_t*>(ferry::alloc_aligned(pages * page, 2 << 20, ferry::placement::system));
  for (std::size_t i = 0; i < pages * words_per_page; ++i) data[i] = i;
  if (present_pages(pids[0], data, page).empty()) {
    ferry::free(data);
    GTEST_SKIP() << "/proc/PID/pagemap of a child may not be read here";
  }
  // Device 2 reads every 64th page, device 3 writes three of them.
  Vector<std::uint64_t> sum(1);
  q2.parallel_for(1, [=, s = sum.data()](std::size_t) {
      for (std::size_t i = 0; i < pages; i += 64) *s += data[i * words_per_page];
    }).wait();
  q3.parallel_for(3, [=](std::size_t i) { data[i * 300 * words_per_page] = 1; }).wait();
  for (unsigned d = 2; d < 4; ++d) {
    const std::vector<bool> present = present_pages(pids[d - 2], data, pages * page);
    ASSERT_EQ(present.size(), pages);
    std::size_t reached = 0;
    for (std::size_t i = 0; i < pages; ++i) {
      if (!present[i]) continue;
      ++reached;
      const ferry::page_info info = ferry::query(data + i * words_per_page);
      EXPECT_NE(info.device_mapped >> d & 1, 0U) << "device " << d << " reaches page " << i;
    }
    EXPECT_GE(reached, d == 2 ? pages / 64 : 3);
  }
  ferry::free(data);
  for (unsigned d = 2; d < 4; ++d) {
    for (const bool present : present_pages(pids[d - 2], data, pages * page)) EXPECT_FALSE(present);
  }
}

/// The file that managed pages lie in, as the library holds it.
int system_file() {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code failed;
    const std::string target = std::filesystem::read_symlink(entry.path(), failed).string();
    if (target.find("ferry-system") != std::string::npos) return std::stoi(entry.path().filename().string());
  }
  return -1;
}

/// What a kernel found out about a page by every way of reading that it has.
struct Tried {
  std::int64_t written;    ///< write(2) from it: bytes, or -errno
  std::int64_t peeked;     ///< process_vm_readv of itself
  std::int64_t populated;  ///< MADV_POPULATE_READ
  std::uint64_t seen;      ///< what the calls brought
};

TEST(DevicesIommu, AKernelThatReadsAPageWhichIsNobodysGetsNothingByAnyWay) {
  FERRY_SKIP_CRASHES();
  const ferry_machine_info info = ferry::machine();
  constexpr std::uint64_t secret = 0x5ec2'e75e'c2e7'5ec2;
  // In the window, not allocated, and yet with bytes in the file, as something that leaked would be.
  const std::uint64_t offset = info.window_bytes - (std::uint64_t{1} << 30);
  const int file = system_file();
  ASSERT_GE(file, 0);
  ASSERT_EQ(::pwrite(file, &secret, sizeof secret, static_cast<off_t>(offset)), static_cast<ssize_t>(sizeof secret));
  auto* const page_of_nobody = reinterpret_cast<std::uint64_t*>(info.window_base + offset);
  ferry::queue q(5);
  Vector<Tried> tried(1);
  q.parallel_for(1, [=, t = tried.data()](std::size_t) {
     int ends[2];
     if (::pipe(ends) != 0) return;
     std::uint64_t got = 0;
     t->written = ::write(ends[1], page_of_nobody, sizeof got) < 0 ? -errno : 1;
     if (t->written > 0 && ::read(ends[0], &got, sizeof got) < 0) got = 0;
     t->seen |= got;
     got = 0;
     iovec to{&got, sizeof got};
     iovec from{page_of_nobody, sizeof got};
     t->peeked = ::process_vm_readv(::getpid(), &to, 1, &from, 1, 0) < 0 ? -errno : 1;
     t->seen |= got;
     t->populated = ::madvise(page_of_nobody, page, 22 /* MADV_POPULATE_READ */) != 0 ? -errno : 1;
     ::close(ends[0]);
     ::close(ends[1]);
   }).wait();
  EXPECT_LT(tried[0].written, 0);
  EXPECT_LT(tried[0].peeked, 0);
  EXPECT_LT(tried[0].populated, 0);
  EXPECT_EQ(tried[0].seen, 0U);
  Vector<std::uint64_t> read(1, 0);
  const ferry::kernel_error error =
      kernel_error_of([&] { q.parallel_for(1, [=, r = read.data()](std::size_t) { r[0] = *page_of_nobody; }).wait(); });
  EXPECT_NE(std::string(error.what()).find("no usable managed memory"), std::string::npos) << error.what();
  EXPECT_EQ(read[0], 0U);
  // Gone again, so that nothing stays in the file.
  ASSERT_EQ(::fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), page), 0);
}

TEST(DevicesIommu, WhatWasOpenedIsClosedWhenMemoryIsFreed) {
  auto queues = queues_of_all();
  const auto open_pages = [] {
    const std::string text = ferry::stats();
    const auto number = [&](const char* key) {
      const std::size_t at = text.find(key);
      return at == std::string::npos ? 0 : std::stoull(text.substr(text.find(':', at) + 1));
    };
    return number("\"dma_mapped_pages\"") - number("\"dma_unmapped_pages\"");
  };
  const auto before = open_pages();
  auto* const data = static_cast<std::uint64_t*>(ferry::alloc_aligned(64 * page, 2 << 20, ferry::placement::system));
  std::memset(data, 0, 64 * page);
  for (auto& q : queues) {
    q.parallel_for(64, [=](std::size_t i) {
       __atomic_fetch_add(data + i * words_per_page, 1, __ATOMIC_RELAXED);
     }).wait();
  }
  for (std::size_t i = 0; i < 64; ++i) EXPECT_EQ(data[i * words_per_page], queues.size());
  EXPECT_GE(open_pages(), before + 64 * queues.size());
  ferry::free(data);
  EXPECT_EQ(open_pages(), before);
}

}  // namespace
}  // namespace ferry::test

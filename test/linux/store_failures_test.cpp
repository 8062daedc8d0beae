#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "store_harness.h"

namespace ferry::linux {
namespace {

class StoreFailures : public StoreTest {};

// --- failures --------------------------------------------------------------------------------------------------------

TEST_F(StoreFailures, WithoutAFileFullMemoryIsNoSpaceAndNothingIsKeptOfTheJob) {
  StoreConfig c = config();
  c.memory_bytes = mib;
  c.file_bytes = 0;
  open(c);
  Pages pages(512);
  for (std::uint32_t i = 0; i < 512; ++i) make_page(pages.page(i), Kind::text, i);
  std::vector<std::vector<StoreHandle>> kept;
  Status status;
  for (int round = 0; round < 32 && status.ok(); ++round) {
    StoreCompletion stored = put(pages);
    status = stored.status;
    if (status.ok()) {
      kept.push_back(std::move(stored.handles));
    } else {
      for (const StoreHandle handle : stored.handles) EXPECT_EQ(handle, 0U);
    }
  }
  EXPECT_EQ(status.code, Code::no_space);
  ASSERT_FALSE(kept.empty());
  EXPECT_EQ(store_->stats().pages, 512 * kept.size());
  EXPECT_EQ(store_->stats().failed, 1U);
  for (const auto& handles : kept) ASSERT_TRUE(get(pages, handles).ok());
  // Room again.
  drop(kept.back());
  kept.pop_back();
  StoreCompletion stored = put(pages);
  EXPECT_TRUE(stored.status.ok());
}

TEST_F(StoreFailures, NoiseHasNoPlaceWithoutAFile) {
  StoreConfig c = config();
  c.file_bytes = 0;
  open(c);
  Pages pages(4);
  for (std::uint32_t i = 0; i < 4; ++i) make_page(pages.page(i), Kind::noise, i);
  EXPECT_EQ(put(pages).status.code, Code::no_space);
  expect_empty();
}

TEST_F(StoreFailures, AFullFileIsNoSpace) {
  StoreConfig c = config(Codec::none);
  c.file_bytes = mib;
  open(c);
  Pages pages(200);
  for (std::uint32_t i = 0; i < 200; ++i) make_page(pages.page(i), Kind::noise, i);
  StoreCompletion first = put(pages);
  ASSERT_TRUE(first.status.ok());
  EXPECT_EQ(put(pages).status.code, Code::no_space);
  EXPECT_EQ(store_->stats().pages, 200U);
  ASSERT_TRUE(get(pages, first.handles).ok());
  drop(first.handles);
  EXPECT_TRUE(put(pages).status.ok());
}

TEST_F(StoreFailures, FailingWritesAreToldAndLoseNothing) {
  std::atomic<int> error{0};
  StoreConfig c = config();
  c.memory_bytes = mib;
  c.fault = [&](bool write, std::uint64_t, std::size_t) { return write ? error.load() : 0; };
  open(c);
  Pages pages(512);
  for (std::uint32_t i = 0; i < 512; ++i) make_page(pages.page(i), i % 8 == 0 ? Kind::noise : Kind::text, i);
  StoreCompletion before = put(pages);
  ASSERT_TRUE(before.status.ok());
  for (const auto& [number, code] : {std::pair{EIO, Code::io_error}, std::pair{ENOSPC, Code::no_space}}) {
    error.store(number);
    const StoreCompletion failed = put(pages);
    EXPECT_EQ(failed.status.code, code);
    EXPECT_EQ(failed.status.sys_errno, number);
    store_->verify();
    EXPECT_EQ(store_->stats().pages, 512U);
  }
  error.store(0);
  Pages target(512);
  ASSERT_TRUE(get(target, before.handles).ok());
  for (std::uint32_t i = 0; i < 512; ++i) ASSERT_EQ(std::memcmp(pages.page(i), target.page(i), page_bytes), 0) << i;
  StoreCompletion after = put(pages);
  EXPECT_TRUE(after.status.ok());
  drop(before.handles);
  drop(after.handles);
  expect_empty();
}

TEST_F(StoreFailures, AFailingReadIsAnIoErrorAndTheNextTryMayDoBetter) {
  std::atomic<int> error{0};
  StoreConfig c = config(Codec::none);
  c.fault = [&](bool write, std::uint64_t, std::size_t) { return write ? 0 : error.load(); };
  open(c);
  Pages pages(64);
  for (std::uint32_t i = 0; i < 64; ++i) make_page(pages.page(i), Kind::noise, i);
  StoreCompletion stored = put(pages);
  ASSERT_TRUE(stored.status.ok());
  error.store(EIO);
  const Status status = get(pages, stored.handles);
  EXPECT_EQ(status.code, Code::io_error);
  EXPECT_EQ(status.sys_errno, EIO);
  error.store(0);
  EXPECT_TRUE(get(pages, stored.handles).ok());
}

TEST_F(StoreFailures, BrokenBytesAreFoundWhereverTheyLie) {
  for (const Kind kind : {Kind::text, Kind::noise}) {
    for (const std::uint64_t memory_bytes : {std::uint64_t{mib}, 8 * mib}) {
      StoreConfig c = config();
      c.memory_bytes = memory_bytes;
      open(c);
      Pages pages(512);
      std::vector<StoreHandle> all;
      for (std::uint32_t round = 0; round < 8; ++round) {
        for (std::uint32_t i = 0; i < 512; ++i) make_page(pages.page(i), kind, round * 512 + i);
        StoreCompletion stored = put(pages);
        ASSERT_TRUE(stored.status.ok());
        all.insert(all.end(), stored.handles.begin(), stored.handles.end());
      }
      // The first ones lie in the file, if there is not enough memory; the last ones in memory, if they compress.
      for (const std::size_t victim : {std::size_t{5}, all.size() - 3}) {
        ASSERT_TRUE(store_->corrupt(all[victim]));
        EXPECT_EQ(get(pages, {all[victim]}).code, Code::io_error);
        EXPECT_TRUE(get(pages, {all[victim - 1], all[victim + 1]}).ok());
      }
    }
  }
}

TEST_F(StoreFailures, ADirectoryThatCannotHoldTheFileIsToldAtOnce) {
  StoreConfig c = config();
  c.directory = "/proc/self/no-such-directory";
  auto made = Store::make(c, bell_);
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.status().code, Code::io_error);
  EXPECT_EQ(made.status().sys_errno, ENOENT);
}

/// For this thread and those it starts: io_uring_setup says EPERM, as in many sandboxes.
bool forbid_uring() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program{static_cast<unsigned short>(std::size(code)), code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST_F(StoreFailures, WhereIoUringIsForbiddenOrdinaryReadsAndWritesDo) {
  std::thread([&] {
    ASSERT_TRUE(forbid_uring());
    EXPECT_EQ(probe_uring(), EPERM);
    open(config(Codec::none));
    EXPECT_FALSE(store_->stats().uring);
    Pages pages(100);
    for (std::uint32_t i = 0; i < 100; ++i) make_page(pages.page(i), Kind::noise, i);
    StoreCompletion stored = put(pages);
    ASSERT_TRUE(stored.status.ok());
    pages.forget();
    ASSERT_TRUE(get(pages, stored.handles).ok());
    std::vector<std::byte> wanted(page_bytes);
    for (std::uint32_t i = 0; i < 100; ++i) {
      make_page(wanted.data(), Kind::noise, i);
      ASSERT_EQ(std::memcmp(pages.page(i), wanted.data(), page_bytes), 0) << i;
    }
  }).join();
}

TEST_F(StoreFailures, IoUringIsUsedWhereItMayBe) {
  open(config());
  if (const int error = probe_uring(); error != 0) GTEST_SKIP() << "io_uring: " << std::strerror(error);
  EXPECT_TRUE(store_->stats().uring);
}

}  // namespace
}  // namespace ferry::linux

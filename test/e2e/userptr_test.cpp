// Buffers that are managed memory themselves (ferry_buffer_from_memory), and everything else that is done to that memory.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <ferry/svm.hpp>
#include <ferry/work.hpp>
#include <thread>

#include "change.h"

namespace ferry::test {
namespace {

constexpr auto patience = std::chrono::seconds(60);
constexpr std::size_t first = 32;   ///< page of the memory that the buffer begins with: of a granule of its own
constexpr std::size_t length = 48;  ///< pages of the buffer

std::uint64_t* at(char* p, std::size_t i) { return reinterpret_cast<std::uint64_t*>(p + i * page); }

/// Managed memory, each page with its stamp, in its first word; pages [first, first + length) are a buffer too.
class User {
 public:
  static constexpr std::size_t count = 1024;
  explicit User(bool adopted = false) : adopted_(adopted) {
    if (adopted) {
      p_ =
          static_cast<char*>(::mmap(nullptr, count * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    } else {
      p_ = static_cast<char*>(ferry_alloc(count * page, FERRY_AUTOMATIC, nullptr));
    }
    for (std::size_t i = 0; i < count; ++i) word(i) = stamp(i);
    ferry_error e{};
    const ferry_code had = adopted ? ferry_adopt(p_, count * page, &e) : FERRY_OK;
    EXPECT_EQ(had, FERRY_OK) << e.text;
    buffer.emplace(buffer::of_memory(p_ + first * page, length * page));
  }
  ~User() {
    if (adopted_) {
      ::munmap(p_, count * page);
    } else {
      ferry_free(p_, nullptr);
    }
  }
  User(const User&) = delete;
  User& operator=(const User&) = delete;

  [[nodiscard]] std::uint64_t& word(std::size_t i) const { return *test::at(p_, i); }
  [[nodiscard]] char* at(std::size_t i) const { return p_ + i * page; }
  [[nodiscard]] int device_of(std::size_t i) const {
    ferry_page_info info{};
    EXPECT_EQ(ferry_query(at(i), &info, nullptr), FERRY_OK);
    return info.vram_device;
  }
  std::optional<ferry::buffer> buffer;

 private:
  bool adopted_;
  char* p_ = nullptr;
};

/// A buffer with memory of its own that a copy job puts the user's pages in, or takes them from.
class Other {
 public:
  Other() : own_(length * page) {}
  /// Word 0 of page i of the user's pages, as a copy job sees it now.
  std::uint64_t seen(const User& u, std::size_t i) {
    submit_copy({}, own_, 0, *u.buffer, 0, length * page).wait();
    return *test::at(own_.map<char>(), i - first);
  }
  /// A copy job writes `value` to word 0 of the page.
  fence put(const User& u, std::size_t i, std::uint64_t value) {
    *test::at(own_.map<char>(), 0) = value;
    return submit_copy({}, *u.buffer, (i - first) * page, own_, 0, sizeof value);
  }

 private:
  ferry::buffer own_;
};

/// A graphics job that adds 1 to word 1 of each page of the user's buffer, again and again, until it is told to stop.
class Running {
 public:
  explicit Running(const User& u, unsigned device = 0) : control_(page) {
    auto* const control = control_.map<std::uint64_t>();
    control[0] = control[8] = 0;
    char* const p = u.at(first);
    job_.emplace(submit_graphics({.device = device,
                                  .cus_max = 1,
                                  .timeout = std::chrono::seconds(50),
                                  .buffers = {writes(*u.buffer), writes(control_)}},
                                 1, [control, p](std::size_t) {
                                   do {
                                     for (std::size_t i = 0; i < length; ++i) {
                                       __atomic_fetch_add(test::at(p, i) + 1, 1, __ATOMIC_RELAXED);
                                     }
                                     __atomic_fetch_add(control + 8, 1, __ATOMIC_RELEASE);
                                   } while (__atomic_load_n(control, __ATOMIC_ACQUIRE) == 0);
                                 }));
    wait_for_turns(1);
  }
  ~Running() {
    if (!ended_) end();
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  [[nodiscard]] std::uint64_t turns() const {
    return __atomic_load_n(control_.map<std::uint64_t>() + 8, __ATOMIC_ACQUIRE);
  }
  /// So many more. It is no test of anything how long they take, only that they come.
  void wait_for_turns(std::uint64_t more) const {
    const std::uint64_t until = turns() + more;
    const auto begin = std::chrono::steady_clock::now();
    while (turns() < until) {
      if (job_->signalled() || std::chrono::steady_clock::now() - begin > patience) {
        ADD_FAILURE() << "the job does not go on: " << static_cast<int>(job_->failure().value_or(errc{}));
        return;
      }
      std::this_thread::yield();
    }
  }
  void tell() const { __atomic_store_n(control_.map<std::uint64_t>(), 1, __ATOMIC_RELEASE); }
  /// How often it has added 1.
  std::uint64_t end() {
    ended_ = true;
    tell();
    EXPECT_NO_THROW(job_->wait());
    return turns();
  }
  /// The code that it fails with.
  int failure() {
    ended_ = true;
    try {
      job_->wait();
    } catch (const ferry::error& e) {
      return static_cast<int>(e.code());
    }
    return 0;
  }
  [[nodiscard]] const fence& job() const { return *job_; }

 private:
  ferry::buffer control_;
  std::optional<fence> job_;
  bool ended_ = false;
};

int kernel_adds(unsigned device, const User& u, std::size_t from, std::size_t n) {
  try {
    queue q(device);
    char* const p = u.at(from);
    q.parallel_for(1, [p, n](std::size_t) {
       for (std::size_t i = 0; i < n; ++i) __atomic_fetch_add(test::at(p, i), 1, __ATOMIC_RELAXED);
     }).wait();
    return 0;
  } catch (const ferry::error& e) {
    return static_cast<int>(e.code());
  }
}

int code_of(const fence& f) {
  try {
    f.wait();
    return 0;
  } catch (const ferry::error& e) {
    return static_cast<int>(e.code());
  }
}

class Userptr : public testing::TestWithParam<bool> {};

TEST_P(Userptr, JobsSeeWhatIsInVramAndEverybodySeesWhatJobsWrite) {
  const User u(GetParam());
  Other other;
  for (unsigned device : {0U, 1U}) {
    for (std::size_t i = first; i < first + length; ++i) u.word(i) = stamp(i);
    ASSERT_EQ(kernel_adds(device, u, 0, 128), 0);
    EXPECT_EQ(u.device_of(first + 3), static_cast<int>(device));
    EXPECT_EQ(other.seen(u, first + 3), stamp(first + 3) + 1) << "the newest, from VRAM";
    ASSERT_EQ(kernel_adds(device, u, first, length), 0);
    other.put(u, first + 3, 1000).wait();
    ASSERT_EQ(kernel_adds(device, u, first + 3, 1), 0);
    EXPECT_EQ(u.word(first + 3), 1001U);
    EXPECT_EQ(u.word(first + 4), stamp(first + 4) + 2);
  }
}

TEST_P(Userptr, PagesStayInSystemMemoryWhileAJobUsesThemAndAreReachedThere) {
  const User u(GetParam());
  ASSERT_EQ(kernel_adds(0, u, 0, 512), 0);
  Running job(u);
  EXPECT_EQ(u.device_of(first), -1);
  ferry::prefetch(u.at(0), 512 * page, to_device(1));
  EXPECT_EQ(u.device_of(first), -1) << "a prefetch passes them by";
  EXPECT_EQ(u.device_of(first + length - 1), -1);
  EXPECT_EQ(u.device_of(200), 1) << "and no others";
  EXPECT_TRUE(migrate_async(u.at(first), length * page, to_device(1)).wait_for(patience));
  EXPECT_EQ(u.device_of(first), -1);
  // Kernels of both devices and this thread add beside the job, in one memory.
  std::uint64_t added = 0;
  for (unsigned turn = 0; turn < 10; ++turn) {
    char* const p = u.at(first);
    queue q(turn % 2);
    q.parallel_for(1, [p](std::size_t) {
       for (std::size_t i = 0; i < length; ++i) __atomic_fetch_add(test::at(p, i) + 1, 1, __ATOMIC_RELAXED);
     }).wait();
    for (std::size_t i = 0; i < length; ++i) __atomic_fetch_add(test::at(p, i) + 1, 1, __ATOMIC_RELAXED);
    added += 2;
    EXPECT_EQ(u.device_of(first), -1);
  }
  const std::uint64_t turns = job.end();
  for (std::size_t i = first; i < first + length; ++i) ASSERT_EQ(test::at(u.at(i), 0)[1], turns + added) << i;
  ferry::prefetch(u.at(first), length * page, to_device(1));
  EXPECT_EQ(u.device_of(first), 1) << "free to go";
}

TEST_P(Userptr, AttributesBindKernelsAndMovesAndJobsAsFarAsTheyAreWrittenFor) {
  const User u(GetParam());
  Other other;
  attributes().preferred(1).apply(u.at(first), length * page);
  ASSERT_EQ(kernel_adds(1, u, first, length), 0);
  EXPECT_EQ(u.device_of(first), 1);
  EXPECT_EQ(other.seen(u, first), stamp(first) + 1) << "a job comes before a preferred location";
  EXPECT_EQ(u.device_of(first), -1);
  ASSERT_EQ(kernel_adds(1, u, first, length), 0);
  EXPECT_EQ(u.device_of(first), 1) << "which counts again afterwards";
  reset_attributes(u.at(first), length * page);
  // Copies of pages that are read mostly end when a job writes them.
  attributes().set(svm_flag::read_mostly).apply(u.at(first), length * page);
  ferry::prefetch(u.at(first), length * page, to_device(0));
  ferry::prefetch(u.at(first), length * page, to_device(1));
  other.put(u, first + 2, 5000).wait();
  ASSERT_EQ(kernel_adds(0, u, first + 2, 1), 0);
  ASSERT_EQ(kernel_adds(1, u, first + 2, 1), 0);
  EXPECT_EQ(u.word(first + 2), 5002U);
  {
    Running job(u);
    ferry::prefetch(u.at(first), length * page, to_device(1));
    EXPECT_EQ(u.device_of(first), -1) << "nothing is copied while a job may write it";
    job.wait_for_turns(3);
  }
  reset_attributes(u.at(first), length * page);
}

TEST_P(Userptr, NoAccessTakesMappingsFromGraphicsJobsAndNothingFromCopies) {
  FERRY_TEST_CRASHES_END_DEVICES();
  const User u(GetParam());
  Other other;
  {
    Running job(u);
    attributes().access(0, device_access::none).apply(u.at(first), length * page);
    EXPECT_EQ(kernel_adds(0, u, first, 1), FERRY_KERNEL_FAULT);
    EXPECT_EQ(kernel_adds(1, u, first, 1), 0);
    EXPECT_EQ(job.failure(), FERRY_KERNEL_FAULT);
  }
  EXPECT_EQ(other.seen(u, first), stamp(first) + 1) << "a copy engine is no device";
  EXPECT_EQ(u.word(first), stamp(first) + 1);
  {
    Running job(u, 1);
    EXPECT_GT(job.end(), 0U) << "of the device that has access";
  }
  reset_attributes(u.at(first), length * page);
  EXPECT_EQ(kernel_adds(0, u, first, 1), 0);
}

TEST_P(Userptr, PinsInSystemMemoryGoWithJobsAndPinsInVramKeepThemOut) {
  const User u(GetParam());
  Other other;
  {
    const pin held(u.at(first), length * page);
    other.put(u, first + 1, 44).wait();
    Running job(u);
    ferry_error e{};
    EXPECT_EQ(ferry_pin(u.at(first), page, 0, &e), FERRY_IN_USE) << "in VRAM while a job uses it";
  }
  EXPECT_EQ(u.word(first + 1), 44U);
  {
    const pin held(u.at(first + 8), page, to_device(0));
    EXPECT_EQ(u.device_of(first + 8), 0);
    EXPECT_EQ(code_of(other.put(u, first + 1, 45)), FERRY_NO_MEMORY) << "what it needs cannot come home";
    EXPECT_EQ(u.device_of(first + 8), 0);
    EXPECT_EQ(u.word(first + 1), 44U);
  }
  other.put(u, first + 1, 46).wait();
  EXPECT_EQ(u.word(first + 1), 46U);
}

TEST_P(Userptr, AnUnmapWaitsForVisibleJobsAndLaterJobsFail) {
  const User u(GetParam());
  Other other;
  Running job(u);
  std::atomic<bool> unmapped{false};
  bool early = true;
  std::thread unmaps([&] {
    EXPECT_EQ(::munmap(u.at(first + 4), 2 * page), 0);
    unmapped = true;
    early = !job.job().signalled();
  });
  job.wait_for_turns(50);
  EXPECT_FALSE(unmapped) << "a page is its address: the job writes it still";
  job.end();
  unmaps.join();
  EXPECT_FALSE(early);
  EXPECT_EQ(read_signal(u.at(first + 4)), SIGSEGV);
  EXPECT_EQ(code_of(other.put(u, first, 1)), FERRY_NOT_ALLOCATED);
  EXPECT_EQ(u.word(first), stamp(first)) << "and has done nothing";
  EXPECT_EQ(u.word(first + 3), stamp(first + 3));
  EXPECT_THROW((void)buffer::of_memory(u.at(first), length * page), ferry::error);
  const buffer rest = buffer::of_memory(u.at(first), 4 * page);
  EXPECT_EQ(rest.bytes(), 4 * page);
}

TEST_P(Userptr, AMoveOfTheMappingLeavesTheBufferWithNothing) {
  User u(GetParam());
  Other other;
  void* const moved = ::mremap(u.at(first), length * page, length * page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
  if (moved == MAP_FAILED) {
    EXPECT_EQ(errno, EINVAL) << "of adopted memory";
  } else {
    EXPECT_EQ(*test::at(static_cast<char*>(moved), 5), stamp(first + 5));
    EXPECT_EQ(u.word(first + 5), 0U);
    const int code = code_of(other.put(u, first, 7));
    EXPECT_TRUE(code == 0 || code == FERRY_NOT_ALLOCATED) << code;
    EXPECT_EQ(*test::at(static_cast<char*>(moved), 0), stamp(first)) << "the buffer stays with the addresses";
    EXPECT_EQ(u.word(first), code == 0 ? 7U : 0U);
    ::munmap(moved, length * page);
  }
}

TEST_P(Userptr, DiscardedPagesAreZerosForTheNextJobAndJobsThatRunAreWaitedFor) {
  const User u(GetParam());
  Other other;
  ASSERT_EQ(kernel_adds(0, u, first, length), 0);
  ASSERT_EQ(::madvise(u.at(first + 2), 2 * page, MADV_DONTNEED), 0);
  EXPECT_EQ(other.seen(u, first + 2), 0U);
  EXPECT_EQ(other.seen(u, first + 1), stamp(first + 1) + 1);
  Running job(u);
  bool early = true;
  std::thread drops([&] {
    EXPECT_EQ(::madvise(u.at(first), page, MADV_DONTNEED), 0);
    early = !job.job().signalled();
  });
  job.wait_for_turns(50);
  job.end();
  drops.join();
  EXPECT_FALSE(early);
  EXPECT_EQ(u.word(first), 0U);
  EXPECT_EQ(test::at(u.at(first), 0)[1], 0U) << "nothing of the job's comes after";
  discard(u.at(first), length * page);
  other.put(u, first + 9, 9).wait();
  EXPECT_EQ(u.word(first + 9), 9U);
}

TEST_P(Userptr, ProtectionBindsThreadsAndKernelsAndNoJobThatWasGivenTheBuffer) {
  FERRY_TEST_CRASHES_END_DEVICES();
  const User u(GetParam());
  Other other;
  ASSERT_EQ(::mprotect(u.at(first), length * page, PROT_READ), 0);
  EXPECT_EQ(write_signal(u.at(first)), SIGSEGV);
  EXPECT_NE(kernel_adds(0, u, first, 1), 0);
  EXPECT_EQ(other.seen(u, first), stamp(first));
  EXPECT_EQ(code_of(other.put(u, first, 3)), 0);
  EXPECT_EQ(u.word(first), 3U);
  ASSERT_EQ(::mprotect(u.at(first), length * page, PROT_READ | PROT_WRITE), 0);
  Running job(u);
  EXPECT_GT(job.end(), 0U);
}

TEST_P(Userptr, AForkLeavesBothWithWhatJobsHadWrittenAndBuffersThatGoOn) {
  const User u(GetParam());
  Other other;
  ASSERT_EQ(kernel_adds(0, u, first, length), 0);
  other.put(u, first + 2, 22).wait();
  std::uint64_t turns = 0;
  {
    Running job(u);
    turns = job.end();  // a fork takes from devices what graphics jobs have of such a buffer
  }
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char byte = 0;
    ::close(go[1]);
    if (::read(go[0], &byte, 1) != 1) ::_exit(1);
    if (u.word(first + 1) != stamp(first + 1) + 1) ::_exit(2);
    if (u.word(first + 2) != 22) ::_exit(3);  // jobs of afterwards write the parent's pages
    if (test::at(u.at(first), 0)[1] != turns) ::_exit(4);
    u.word(first + 1) = 5;
    ::_exit(u.word(first + 1) == 5 ? 0 : 5);
  }
  ASSERT_GT(child, 0);
  ::close(go[0]);
  const int code = code_of(other.put(u, first + 2, 23));
  EXPECT_EQ(code, GetParam() ? FERRY_NOT_ALLOCATED : 0) << "adopted memory is given back for a fork";
  if (code == 0) {
    Running job(u);
    EXPECT_GT(job.end(), 0U);
  }
  EXPECT_EQ(::write(go[1], "g", 1), 1);
  ::close(go[1]);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << WEXITSTATUS(status);
  EXPECT_EQ(u.word(first + 1), stamp(first + 1) + 1);
  EXPECT_EQ(u.word(first + 2), code == 0 ? 23U : 22U);
}

INSTANTIATE_TEST_SUITE_P(, Userptr, testing::Bool(),
                         [](const testing::TestParamInfo<bool>& i) { return i.param ? "adopted" : "allocated"; });

TEST(UserptrAdopted, MemoryThatIsGivenBackFailsTheNextJob) {
  const User u(true);
  Other other;
  other.put(u, first, 8).wait();
  ferry_error e{};
  ASSERT_EQ(ferry_release(u.at(0), User::count * page, &e), FERRY_OK) << e.text;
  EXPECT_EQ(u.word(first), 8U);
  EXPECT_EQ(code_of(other.put(u, first, 9)), FERRY_NOT_ALLOCATED);
  EXPECT_EQ(u.word(first), 8U);
}

TEST(UserptrSpans, ThatCannotBeAreRefusedWithTheReason) {
  char* const p = static_cast<char*>(ferry_alloc(4 << 20, FERRY_AUTOMATIC, nullptr));
  ferry_error e{};
  const auto refused = [&](void* at, std::size_t bytes, unsigned flags, int code, const char* says) {
    EXPECT_EQ(ferry_buffer_from_memory(at, bytes, flags, &e), nullptr);
    EXPECT_EQ(e.code, code) << e.text;
    EXPECT_NE(std::string(e.text).find(says), std::string::npos) << e.text;
  };
  refused(p + 1, page, 0, FERRY_BAD_RANGE, "multiples");
  refused(p, page + 8, 0, FERRY_BAD_RANGE, "multiples");
  refused(p, 0, 0, FERRY_BAD_RANGE, "0 bytes");
  refused(p, ~std::size_t{0} / page * page, 0, FERRY_BAD_RANGE, "address space");
  refused(p, page, 0x10, FERRY_BAD_RANGE, "0x10");
  char stack[2 * page];
  refused(reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(stack) + page - 1) & ~(page - 1)), page, 0,
          FERRY_NOT_ALLOCATED, "");
  buffer twice = buffer::of_memory(p, 8 * page);
  buffer again = buffer::of_memory(p + 4 * page, 8 * page);
  submit_copy({}, again, 4 * page, twice, 0, 4 * page).wait();
  EXPECT_EQ(ferry_buffer_export(twice.handle(), &e), -1);
  EXPECT_EQ(e.code, FERRY_UNSUPPORTED);
  ferry_free(p, nullptr);
}

/// A wave in a system call that never returns leaves nobody its compute unit.
TEST(BlockedWave, CostsItsOwnerTheDeviceWhereOthersAreOwedItsUnitAndNobodyAnything) {
  auto* const words = static_cast<std::uint64_t*>(ferry_alloc(1024 * page, FERRY_AUTOMATIC, nullptr));
  words[0] = words[512] = 0;
  queue q(0);
  completion blocked = q.launch({.items = 1, .wave = 1}, [words](item) {
    int ends[2];
    char byte = 0;
    if (::pipe(ends) != 0) return;
    __atomic_store_n(words, 5, __ATOMIC_RELEASE);
    if (::read(ends[0], &byte, 1) >= 0) words[0] = 7;
  });
  while (__atomic_load_n(words, __ATOMIC_ACQUIRE) != 5) std::this_thread::yield();
  // Its memory moves, and other kernels run.
  ferry::prefetch(words, 1024 * page, to_device(0));
  ferry::prefetch(words, 1024 * page, to_cpu);
  queue other(0);
  other.parallel_for(1, [words](std::size_t) { words[512] = 1; }).wait();
  EXPECT_FALSE(blocked.done());
  // All units of the device.
  const buffer frame(page);
  const fence job = submit_graphics({.cus_min = 3, .timeout = std::chrono::seconds(50), .buffers = {writes(frame)}}, 1,
                                    [p = frame.map<std::uint64_t>()](std::size_t) { *p = 3; });
  try {
    blocked.wait();
    ADD_FAILURE() << "the kernel has ended";
  } catch (const ferry::error& e) {
    EXPECT_EQ(e.code(), errc::device_lost) << e.what();
  }
  const int code = code_of(job);
  EXPECT_TRUE(code == FERRY_DEVICE_LOST || code == 0) << "it was the same process's: " << code;
  EXPECT_EQ(words[0], 5U) << "memory is kept";
  EXPECT_EQ(words[512], 1U);
  parallel_for(1, [words](std::size_t) { words[0] = 9; });
  EXPECT_EQ(words[0], 9U) << "the next launch has a new device";
  ferry_free(words, nullptr);
}

}  // namespace
}  // namespace ferry::test

// munmap, mmap over it, mprotect, madvise, mremap of memory that was adopted: as of private memory, whatever devices have of
// it at that moment.
#include <ferry/svm.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>

#include "change.h"

namespace ferry::test {
namespace {

constexpr std::size_t count = 1200;  // more than two blocks

/// How a device has the memory when it is changed.
enum class Had { not_yet, in_system, in_vram, dirty_in_vram, partly };
constexpr Had all_ways[] = {Had::not_yet, Had::in_system, Had::in_vram, Had::dirty_in_vram, Had::partly};

std::string name_of(Had had) {
  switch (had) {
    case Had::not_yet: return "not_yet";
    case Had::in_system: return "in_system";
    case Had::in_vram: return "in_vram";
    case Had::dirty_in_vram: return "dirty_in_vram";
    case Had::partly: return "partly";
  }
  return "?";
}

/// Private anonymous memory, each page with its stamp, adopted as the test wants it.
class Own {
 public:
  Own(std::size_t pages, Had had) : pages_(pages) {
    base_ =
        static_cast<char*>(::mmap(nullptr, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(base_, MAP_FAILED);
    for (std::size_t p = 0; p < pages; ++p) word(p) = stamp(p) - (had == Had::dirty_in_vram ? 1 : 0);
    ferry_error e{};
    switch (had) {
      case Had::not_yet: break;
      case Had::in_system: EXPECT_EQ(ferry_adopt(base_, pages * page, &e), FERRY_OK) << e.text; break;
      case Had::in_vram:
        EXPECT_EQ(ferry_adopt(base_, pages * page, &e), FERRY_OK) << e.text;
        EXPECT_EQ(ferry_prefetch(base_, pages * page, 0, &e), FERRY_OK) << e.text;
        break;
      case Had::dirty_in_vram:
        ferry::parallel_for(pages, [b = base_](std::size_t p) { ++*reinterpret_cast<std::uint64_t*>(b + p * page); });
        break;
      case Had::partly: EXPECT_EQ(ferry_adopt(at(350), 500 * page, &e), FERRY_OK) << e.text; break;
    }
  }
  ~Own() {
    if (base_ == nullptr) return;
    ::munmap(base_, hole_first_ * page);
    ::munmap(at(hole_end_), (pages_ - hole_end_) * page);
  }
  Own(const Own&) = delete;
  Own& operator=(const Own&) = delete;
  [[nodiscard]] char* at(std::size_t p) const { return base_ + p * page; }
  [[nodiscard]] std::uint64_t& word(std::size_t p) const { return *reinterpret_cast<std::uint64_t*>(at(p)); }
  void forget() { base_ = nullptr; }
  /// These pages are somebody else's.
  void hole(std::size_t first, std::size_t pages) {
    hole_first_ = first;
    hole_end_ = first + pages;
  }

 private:
  char* base_ = nullptr;
  std::size_t pages_;
  std::size_t hole_first_ = 0;
  std::size_t hole_end_ = 0;
};

std::uint64_t device_word(const void* from) {
  auto* const out = static_cast<std::uint64_t*>(ferry::alloc(page, ferry::placement::system));
  ferry::parallel_for(1, [from, out](std::size_t) { *out = *static_cast<const std::uint64_t*>(from); });
  const std::uint64_t value = *out;
  ferry::free(out);
  return value;
}

class AdoptedChange : public testing::TestWithParam<Had> {};
INSTANTIATE_TEST_SUITE_P(Of, AdoptedChange, testing::ValuesIn(all_ways),
                         [](const auto& info) { return name_of(info.param); });

TEST_P(AdoptedChange, MunmapOfAPartLeavesTheRest) {
  Own own(count, GetParam());
  ASSERT_EQ(::munmap(own.at(400), 300 * page), 0);
  own.hole(400, 300);
  EXPECT_EQ(read_signal(own.at(400)), SIGSEGV);
  EXPECT_EQ(write_signal(own.at(699)), SIGSEGV);
  EXPECT_EQ(device_word(own.at(399)), stamp(399));
  EXPECT_EQ(device_word(own.at(700)), stamp(700));
  for (std::size_t p = 0; p < count; ++p) {
    if (p < 400 || p >= 700) {
      ASSERT_EQ(own.word(p), stamp(p)) << p;
    }
  }
#if !defined(__SANITIZE_ADDRESS__)
  const int code = kernel_code(own.at(699), false);
  unsigned char in_core = 0;
  const bool used_again = ::mincore(own.at(699), page, &in_core) == 0;  // by whoever wants memory
  EXPECT_TRUE(code != 0 || used_again);
#endif
  void* again =
      ::mmap(own.at(400), 300 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (again == MAP_FAILED && errno == EEXIST) return;
  ASSERT_EQ(again, own.at(400));
  own.hole(0, 0);
  EXPECT_EQ(device_word(own.at(500)), 0U);
  own.word(500) = 5;
  EXPECT_EQ(device_word(own.at(500)), 5U);
}

TEST_P(AdoptedChange, AMappingOverItIsOtherMemory) {
  const Own own(count, GetParam());
  ASSERT_EQ(::mmap(own.at(500), 200 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
            own.at(500));
  EXPECT_EQ(device_word(own.at(600)), 0U);
  for (std::size_t p = 0; p < count; ++p) ASSERT_EQ(own.word(p), p >= 500 && p < 700 ? 0 : stamp(p)) << p;
  ferry::parallel_for(200, [b = own.at(500)](std::size_t p) { *reinterpret_cast<std::uint64_t*>(b + p * page) = p; });
  for (std::size_t p = 0; p < 200; ++p) ASSERT_EQ(own.word(500 + p), p);
}

TEST_P(AdoptedChange, ReadOnlyMemoryCannotBeWrittenByAnybody) {
  const Own own(count, GetParam());
  ASSERT_EQ(::mprotect(own.at(400), 10 * page, PROT_READ), 0);
  EXPECT_EQ(write_signal(own.at(405)), SIGSEGV);
  EXPECT_EQ(own.word(405), stamp(405));
  EXPECT_EQ(write_signal(own.at(410)), 0);
  own.word(410) = stamp(410);
  if (GetParam() != Had::not_yet) {
    EXPECT_EQ(device_word(own.at(405)), stamp(405)) << "reading is allowed";
  }
  EXPECT_EQ(device_word(own.at(410)), stamp(410));
#if !defined(__SANITIZE_ADDRESS__)
  std::string text;
  EXPECT_NE(kernel_code(own.at(405), true, &text), 0);
  EXPECT_NE(text.find("may not write"), std::string::npos) << text;
  EXPECT_EQ(own.word(405), stamp(405));
#endif
  ASSERT_EQ(::mprotect(own.at(400), 10 * page, PROT_READ | PROT_WRITE), 0);
  EXPECT_EQ(kernel_code(own.at(405), true), 0);
  EXPECT_EQ(write_signal(own.at(406)), 0);
  for (std::size_t p = 0; p < count; ++p) {
    if (p != 405 && p != 406) {
      ASSERT_EQ(own.word(p), stamp(p)) << p;
    }
  }
}

TEST_P(AdoptedChange, GuardPagesStopThreadsAndKernels) {
  const Own own(count, GetParam());
  ASSERT_EQ(::mprotect(own.at(600), page, PROT_NONE), 0);
  EXPECT_EQ(read_signal(own.at(600)), SIGSEGV);
  EXPECT_EQ(device_word(own.at(599)), stamp(599));
  EXPECT_EQ(device_word(own.at(601)), stamp(601));
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_NE(kernel_code(own.at(600), false), 0);
#endif
  ASSERT_EQ(::mprotect(own.at(600), page, PROT_READ | PROT_WRITE), 0);
  EXPECT_EQ(device_word(own.at(600)), stamp(600)) << "the contents were kept";
  EXPECT_EQ(own.word(600), stamp(600));
}

TEST_P(AdoptedChange, DontneedReadsAsZerosEverywhere) {
  const Own own(count, GetParam());
  ASSERT_EQ(::madvise(own.at(300), 400 * page, MADV_DONTNEED), 0);
  EXPECT_EQ(device_word(own.at(500)), 0U);
  for (std::size_t p = 0; p < count; ++p) ASSERT_EQ(own.word(p), p >= 300 && p < 700 ? 0 : stamp(p)) << p;
  own.word(300) = 17;
  EXPECT_EQ(device_word(own.at(300)), 17U);
}

TEST_P(AdoptedChange, FreeReadsAsBeforeOrAsZeros) {
  const Own own(count, GetParam());
  ASSERT_EQ(::madvise(own.at(0), count * page, MADV_FREE), 0);
  for (std::size_t p = 0; p < count; ++p) {
    const std::uint64_t now = own.word(p);
    ASSERT_TRUE(now == 0 || now == stamp(p)) << p << ": " << now;
    own.word(p) = p;
  }
  EXPECT_EQ(device_word(own.at(1000)), 1000U);
  for (std::size_t p = 0; p < count; ++p) ASSERT_EQ(own.word(p), p);
}

TEST_P(AdoptedChange, MremapShrinksAndGrows) {
  Own own(count, GetParam());
  ASSERT_EQ(::mremap(own.at(0), count * page, 1000 * page, 0), own.at(0));
  own.hole(1000, 200);
  EXPECT_EQ(read_signal(own.at(1000)), SIGSEGV);
  EXPECT_EQ(own.word(999), stamp(999));
  auto* moved = static_cast<char*>(::mremap(own.at(0), 1000 * page, 3000 * page, MREMAP_MAYMOVE));
  ASSERT_NE(moved, MAP_FAILED);
  own.forget();
  const auto word = [&](std::size_t p) -> std::uint64_t& {
    return *reinterpret_cast<std::uint64_t*>(moved + p * page);
  };
  EXPECT_EQ(device_word(&word(999)), stamp(999));
  for (std::size_t p = 0; p < 3000; ++p) ASSERT_EQ(word(p), p < 1000 ? stamp(p) : 0) << p;
  ferry::parallel_for(3000, [moved](std::size_t p) { ++*reinterpret_cast<std::uint64_t*>(moved + p * page); });
  for (std::size_t p = 0; p < 3000; ++p) ASSERT_EQ(word(p), (p < 1000 ? stamp(p) : 0) + 1) << p;
  EXPECT_EQ(::munmap(moved, 3000 * page), 0);
}

TEST_P(AdoptedChange, MremapToAnAddressAndWithoutUnmapping) {
  Own own(count, GetParam());
  const Own target(count, Had::dirty_in_vram);
  own.hole(100, 700);
  ASSERT_EQ(::mremap(own.at(100), 700 * page, 700 * page, MREMAP_MAYMOVE | MREMAP_FIXED, target.at(50)), target.at(50));
  EXPECT_EQ(read_signal(own.at(100)), SIGSEGV);
  EXPECT_EQ(read_signal(own.at(799)), SIGSEGV);
  for (std::size_t p = 0; p < count; ++p) {
    ASSERT_EQ(target.word(p), p >= 50 && p < 750 ? stamp(p + 50) : stamp(p)) << p;
  }
  EXPECT_EQ(device_word(target.at(400)), stamp(450));
  auto* copy =
      static_cast<char*>(::mremap(own.at(900), 10 * page, 10 * page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr));
  ASSERT_NE(copy, MAP_FAILED);
  EXPECT_EQ(*reinterpret_cast<std::uint64_t*>(copy), stamp(900));
  EXPECT_EQ(own.word(900), 0U) << "still there, and empty";
  own.word(900) = 3;
  EXPECT_EQ(device_word(own.at(900)), 3U);
  EXPECT_EQ(::munmap(copy, 10 * page), 0);
}

int end_of(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST_P(AdoptedChange, WhatAChildIsNotToHaveItDoesNotHave) {
  const Own own(count, GetParam());
  ASSERT_EQ(::madvise(own.at(400), 10 * page, MADV_WIPEONFORK), 0);
  ASSERT_EQ(::madvise(own.at(500), 10 * page, MADV_DONTFORK), 0);
  for (int round = 0; round < 2; ++round) {
    // On the device again after the first fork, which gave it back.
    EXPECT_EQ(device_word(own.at(405)), stamp(405));
    EXPECT_EQ(device_word(own.at(505)), stamp(505));
    const pid_t child = ::fork();
    if (child == 0) {
      if (own.word(405) != 0 || own.word(399) != stamp(399)) ::_exit(1);
      ::signal(SIGSEGV, [](int) { ::_exit(3); });
      static_cast<void>(*static_cast<volatile char*>(own.at(505)));
      ::_exit(2);
    }
    ASSERT_GT(child, 0);
    EXPECT_EQ(end_of(child), 3) << "1: not zeros; 2: it has what it should not";
    EXPECT_EQ(own.word(405), stamp(405));
    EXPECT_EQ(own.word(505), stamp(505));
  }
  ASSERT_EQ(::madvise(own.at(400), 10 * page, MADV_KEEPONFORK), 0);
  ASSERT_EQ(::madvise(own.at(500), 10 * page, MADV_DOFORK), 0);
  EXPECT_EQ(device_word(own.at(505)), stamp(505));
  const pid_t child = ::fork();
  if (child == 0) ::_exit(own.word(405) == stamp(405) && own.word(505) == stamp(505) ? 0 : 1);
  ASSERT_GT(child, 0);
  EXPECT_EQ(end_of(child), 0);
}

/// In a child: all are as they were, and are its own. 0: well.
int look_as_child(const Own& own, std::size_t pages) {
  for (std::size_t p = 0; p < pages; ++p) {
    if (own.word(p) != stamp(p)) return 1;
  }
  for (std::size_t p = 0; p < pages; ++p) own.word(p) = 7 * p;
  for (std::size_t p = 0; p < pages; ++p) {
    if (own.word(p) != 7 * p) return 2;
  }
  return 0;
}

class AdoptedPinnedTo : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(To, AdoptedPinnedTo, testing::Values(FERRY_TO_CPU, 0),
                         [](const auto& info) { return info.param == 0 ? "device" : "cpu"; });

TEST_P(AdoptedPinnedTo, AForksChildHasItAsItWas) {
  const Own own(count, Had::in_vram);
  ferry_error e{};
  ASSERT_EQ(ferry_pin(own.at(600), 3 * page, GetParam(), &e), FERRY_OK) << e.text;
  ASSERT_EQ(::mprotect(own.at(602), page, PROT_READ), 0);
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  // A fork does not wait for the unpin, which this very thread would have to do.
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(go[1]);  // so that it ends with its parent
    char byte = 0;
    if (::read(go[0], &byte, 1) != 1) ::_exit(9);
    if (own.word(602) != stamp(602)) ::_exit(3);
    if (write_signal(own.at(602)) != SIGSEGV) ::_exit(4);
    if (::mprotect(own.at(602), page, PROT_READ | PROT_WRITE) != 0) ::_exit(5);
    ::_exit(look_as_child(own, count));
  }
  ASSERT_GT(child, 0);
  ASSERT_EQ(::mprotect(own.at(602), page, PROT_READ | PROT_WRITE), 0);
  // Threads do not reach what is pinned in VRAM.
  if (GetParam() == FERRY_TO_CPU) own.word(600) = 1;
  ferry::parallel_for(1, [o = own.at(0)](std::size_t) {
    *reinterpret_cast<std::uint64_t*>(o + 601 * page) = 1;
    *reinterpret_cast<std::uint64_t*>(o + 602 * page) = 2;
  });
  ASSERT_EQ(::write(go[1], "", 1), 1);
  EXPECT_EQ(end_of(child), 0) << "1: not as it was; 2: not its own; 3, 4, 5: page 602";
  ::close(go[0]);
  ::close(go[1]);
  EXPECT_EQ(device_word(own.at(601)), 1U);
  EXPECT_EQ(device_word(own.at(602)), 2U);
  EXPECT_EQ(device_word(own.at(0)), stamp(0));
  ASSERT_EQ(ferry_unpin(own.at(600), 3 * page, &e), FERRY_OK) << e.text;
  EXPECT_EQ(own.word(602), 2U);
}

TEST(AdoptedPins, AForksChildForksAgain) {
  const Own own(64, Had::in_vram);
  ferry_error e{};
  ASSERT_EQ(ferry_pin(own.at(2), 3 * page, FERRY_TO_CPU, &e), FERRY_OK) << e.text;
  const pid_t child = ::fork();
  if (child == 0) {
    const pid_t grandchild = ::fork();
    if (grandchild == 0) ::_exit(look_as_child(own, 64));
    if (grandchild < 0 || end_of(grandchild) != 0) ::_exit(8);
    ::_exit(look_as_child(own, 64));
  }
  ASSERT_GT(child, 0);
  EXPECT_EQ(end_of(child), 0) << "8: the grandchild's is not as it was";
  ASSERT_EQ(ferry_unpin(own.at(2), 3 * page, &e), FERRY_OK) << e.text;
}

TEST(AdoptedPins, AForksChildHasWhatAdviceSays) {
  const Own own(64, Had::not_yet);
  ASSERT_EQ(::madvise(own.at(10), 4 * page, MADV_WIPEONFORK), 0);
  ASSERT_EQ(::madvise(own.at(20), 4 * page, MADV_DONTFORK), 0);
  ferry_error e{};
  ASSERT_EQ(ferry_adopt(own.at(0), 64 * page, &e), FERRY_OK) << e.text;
  ASSERT_EQ(ferry_pin(own.at(0), 64 * page, FERRY_TO_CPU, &e), FERRY_OK) << e.text;
  const pid_t child = ::fork();
  if (child == 0) {
    for (const std::size_t p : {9, 14, 19, 24}) {
      if (own.word(p) != stamp(p)) ::_exit(1);
    }
    if (own.word(10) != 0 || own.word(13) != 0) ::_exit(2);
    ::_exit(read_signal(own.at(20)) == SIGSEGV && read_signal(own.at(23)) == SIGSEGV ? 0 : 3);
  }
  ASSERT_GT(child, 0);
  EXPECT_EQ(end_of(child), 0) << "1: not as it was; 2: not zeros; 3: it has what it should not";
  ASSERT_EQ(ferry_unpin(own.at(0), 64 * page, &e), FERRY_OK) << e.text;
}

/// Some way below the frame of its caller.
[[gnu::noinline]] pid_t fork_below() {
  volatile char between[8 * page];
  between[0] = 1;
  between[sizeof between - 1] = 1;
  const pid_t child = ::fork();
  return between[0] == 1 ? child : -1;
}

TEST(AdoptedPins, AForksChildHasWhatIsPinnedOfItsThreadsStack) {
  std::thread([] {
    alignas(4096) char buffer[2 * page];
    std::memset(buffer, 5, sizeof buffer);
    ferry_error e{};
    const int adopted = ferry_adopt(buffer, sizeof buffer, &e);
    if (adopted == FERRY_UNSUPPORTED) GTEST_SKIP() << "stacks cannot be adopted here: " << e.text;
    ASSERT_EQ(adopted, FERRY_OK) << e.text;
    ASSERT_EQ(ferry_pin(buffer, sizeof buffer, FERRY_TO_CPU, &e), FERRY_OK) << e.text;
    const pid_t child = fork_below();
    if (child == 0) {
      for (const char c : buffer) {
        if (c != 5) ::_exit(1);
      }
      std::memset(buffer, 6, sizeof buffer);
      ::_exit(0);
    }
    EXPECT_GT(child, 0);
    EXPECT_EQ(end_of(child), 0);
    for (const char c : buffer) ASSERT_EQ(c, 5);
    EXPECT_EQ(ferry_unpin(buffer, sizeof buffer, &e), FERRY_OK) << e.text;
  }).join();
}

TEST(AdoptedPins, AreNotGivenBack) {
  const Own own(10, Had::in_vram);
  ferry_error e{};
  ASSERT_EQ(ferry_pin(own.at(2), 3 * page, FERRY_TO_CPU, &e), FERRY_OK) << e.text;
  EXPECT_EQ(ferry_release(own.at(0), 10 * page, &e), FERRY_IN_USE) << e.text;
  EXPECT_EQ(::mremap(own.at(0), 10 * page, 20 * page, MREMAP_MAYMOVE), MAP_FAILED);
  EXPECT_EQ(errno, EBUSY);
  EXPECT_EQ(device_word(own.at(3)), stamp(3));
  ASSERT_EQ(ferry_unpin(own.at(2), 3 * page, &e), FERRY_OK) << e.text;
  EXPECT_EQ(ferry_release(own.at(0), 10 * page, &e), FERRY_OK) << e.text;
  for (std::size_t p = 0; p < 10; ++p) EXPECT_EQ(own.word(p), stamp(p)) << p;
}

TEST(AdoptedChangeErrors, AKernelThatMayNotReadOrWriteIsTold) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer reports these kernels itself, and ends the device";
#endif
  const Own own(10, Had::not_yet);
  ASSERT_EQ(::mprotect(own.at(0), 10 * page, PROT_READ), 0);
  // Whether it is served or refused, it ends.
  static_cast<void>(kernel_code(own.at(3), false));
  EXPECT_NE(kernel_code(own.at(3), true), 0);
  EXPECT_EQ(own.word(3), stamp(3));
}

TEST(AdoptedChangeErrors, AreThoseOfTheKernel) {
  Own own(10, Had::in_vram);
  EXPECT_TRUE(::munmap(own.at(0) + 1, page) == -1 && errno == EINVAL);
  EXPECT_TRUE(::munmap(own.at(0), 0) == -1 && errno == EINVAL);
  EXPECT_TRUE(::mprotect(own.at(0) + 1, page, PROT_READ) == -1 && errno == EINVAL);
  EXPECT_TRUE(::madvise(own.at(0) + 1, page, MADV_DONTNEED) == -1 && errno == EINVAL);
  EXPECT_TRUE(::madvise(own.at(0), page, 12345) == -1 && errno == EINVAL);
  EXPECT_TRUE(::mremap(own.at(0), page, 0, 0) == MAP_FAILED && errno == EINVAL);
  EXPECT_TRUE(::mremap(own.at(0), page, page, MREMAP_FIXED, own.at(5)) == MAP_FAILED && errno == EINVAL);
  EXPECT_TRUE(::mremap(own.at(0), 4 * page, 4 * page, MREMAP_FIXED | MREMAP_MAYMOVE, own.at(2)) == MAP_FAILED &&
              errno == EINVAL);
  // A hole: what comes before it is changed, for devices too.
  ASSERT_EQ(::munmap(own.at(5), page), 0);
  own.hole(5, 1);
  EXPECT_TRUE(::mprotect(own.at(0), 10 * page, PROT_READ) == -1 && errno == ENOMEM);
  EXPECT_EQ(write_signal(own.at(4)), SIGSEGV);
  EXPECT_EQ(write_signal(own.at(6)), 0);
  own.word(6) = stamp(6);
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_NE(kernel_code(own.at(4), true), 0);
  EXPECT_EQ(kernel_code(own.at(7), true), 0);
  own.word(7) = stamp(7);
#endif
  for (std::size_t p = 0; p < 10; ++p) {
    if (p != 5) {
      EXPECT_EQ(own.word(p), stamp(p)) << p;
    }
  }
}

/// Before Linux 6.17 mremap refuses a span of several mappings, which memory is of which parts are adopted.
bool mremap_takes_several_mappings() {
  constexpr std::size_t one = 4096;
  char* const old = static_cast<char*>(mmap(nullptr, 4 * one, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (old == MAP_FAILED || mprotect(old, one, PROT_READ | PROT_WRITE) != 0) return true;
  void* const moved = mremap(old, 2 * one, 2 * one, MREMAP_MAYMOVE | MREMAP_FIXED, old + 2 * one);
  munmap(old, 4 * one);
  return moved != MAP_FAILED;
}

/// Threads change adopted memory of their own while kernels work on it, each checked against what it must be.
TEST(AdoptedChangeThreads, SequencesAgainstAShadow) {
  if (!mremap_takes_several_mappings()) GTEST_SKIP() << "this kernel's mremap moves one mapping at a time (Linux 6.17)";
  constexpr std::size_t most = 400;
  std::atomic<bool> failed{false};
  const auto work = [&](unsigned number) {
    std::mt19937_64 random(number + 11);
    std::vector<std::uint64_t> shadow(most);
    char* base =
        static_cast<char*>(::mmap(nullptr, most * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    const auto word = [&](std::size_t p) -> std::uint64_t& {
      return *reinterpret_cast<std::uint64_t*>(base + p * page);
    };
    for (std::size_t p = 0; p < most; ++p) word(p) = shadow[p] = p + 1;
    for (unsigned round = 0; round < 100 && !failed; ++round) {
      const std::size_t first = random() % most;
      const std::size_t length = 1 + random() % std::min<std::size_t>(most - first, 150);
      void* at = base + first * page;
      switch (random() % 6) {
        case 0:
          if (::madvise(at, length * page, MADV_DONTNEED) != 0) failed = true;
          std::fill_n(shadow.begin() + static_cast<std::ptrdiff_t>(first), length, 0);
          break;
        case 1:
          if (::munmap(at, length * page) != 0 ||
              ::mmap(at, length * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at) {
            failed = true;
          }
          std::fill_n(shadow.begin() + static_cast<std::ptrdiff_t>(first), length, 0);
          break;
        case 2:
          if (::mprotect(at, length * page, PROT_READ) != 0 ||
              ::mprotect(at, length * page, PROT_READ | PROT_WRITE) != 0) {
            failed = true;
          }
          break;
        case 3: {
          auto* moved =
              static_cast<char*>(::mremap(base, most * page, most * page, MREMAP_MAYMOVE | MREMAP_FIXED,
                                          ::mmap(nullptr, most * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)));
          if (moved == MAP_FAILED) {
            failed = true;
          } else {
            base = moved;
          }
          break;
        }
        default:
          ferry::parallel_for(length, [base, first](std::size_t i) {
            *reinterpret_cast<std::uint64_t*>(base + (first + i) * page) += i + 1;
          });
          for (std::size_t p = first; p < first + length; ++p) shadow[p] += p - first + 1;
      }
      for (std::size_t p = first; p < first + length && !failed; ++p) {
        if (word(p) != shadow[p]) {
          ADD_FAILURE() << "thread " << number << ", round " << round << ", page " << p << ": " << word(p)
                        << " and not " << shadow[p];
          failed = true;
        }
      }
    }
    for (std::size_t p = 0; p < most && !failed; ++p) {
      if (word(p) != shadow[p]) {
        ADD_FAILURE() << "thread " << number << ", page " << p;
        failed = true;
      }
    }
    ::munmap(base, most * page);
  };
  std::vector<std::thread> all;
  for (unsigned t = 0; t < 4; ++t) all.emplace_back(work, t);
  for (auto& t : all) t.join();
  EXPECT_FALSE(failed);
}

}  // namespace
}  // namespace ferry::test

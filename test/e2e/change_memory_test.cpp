// munmap, mmap over it, mprotect, madvise, mremap of managed memory, wherever its pages are at that moment.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <ferry/svm.hpp>
#include <random>
#include <thread>

#include "change.h"

namespace ferry::test {
namespace {

class Change : public testing::TestWithParam<Where> {};
INSTANTIATE_TEST_SUITE_P(Of, Change, testing::ValuesIn(everywhere),
                         [](const auto& info) { return name_of(info.param); });

constexpr std::size_t count = 1200;  // more than two blocks

TEST_P(Change, MunmapOfAPartLeavesTheRest) {
  Pages pages(count, GetParam());
  pages.use(100);
  ASSERT_EQ(::munmap(pages.at(400), 300 * page), 0);
  EXPECT_EQ(read_signal(pages.at(400)), SIGSEGV);
  EXPECT_EQ(read_signal(pages.at(699)), SIGSEGV);
  for (std::size_t p = 0; p < count; ++p) {
    if (p < 400 || p >= 700) {
      ASSERT_EQ(pages.word(p), stamp(p)) << p;
    }
  }
  pages.stop();
  FERRY_TEST_CRASHES_END_DEVICES();
  std::string text;
  EXPECT_EQ(kernel_code(pages.at(500), false, &text), FERRY_KERNEL_FAULT) << text;
  EXPECT_EQ(pages.device_word(399), stamp(399));
  EXPECT_EQ(pages.device_word(700), stamp(700));
}

TEST_P(Change, MprotectOfAHoleFailsAndMakesNoMemory) {
  Pages pages(count, GetParam());
  ASSERT_EQ(::munmap(pages.at(400), 300 * page), 0);
  for (const int prot : {PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE}) {
    EXPECT_EQ(::mprotect(pages.at(500), page, prot), -1);
    EXPECT_EQ(errno, ENOMEM);
  }
  // From memory over the hole to memory: what comes before it is changed, as elsewhere.
  EXPECT_EQ(::mprotect(pages.at(300), 500 * page, PROT_READ), -1);
  EXPECT_EQ(errno, ENOMEM);
  EXPECT_EQ(read_signal(pages.at(400)), SIGSEGV);
  EXPECT_EQ(read_signal(pages.at(699)), SIGSEGV);
  EXPECT_EQ(write_signal(pages.at(399)), SIGSEGV);
  EXPECT_EQ(pages.word(399), stamp(399));
  pages.word(700) = 5;
  EXPECT_EQ(pages.word(700), 5U);
}

TEST_P(Change, MunmapOfAllThenFree) {
  Pages pages(count, GetParam());
  ASSERT_EQ(::munmap(pages.at(0), count * page), 0);
  EXPECT_EQ(write_signal(pages.at(7)), SIGSEGV);
  ASSERT_EQ(::munmap(pages.at(0), count * page), 0) << "what is not mapped can be unmapped, as elsewhere";
}

TEST_P(Change, DontneedReadsAsZerosEverywhere) {
  for (const int advice : {MADV_DONTNEED, MADV_REMOVE}) {
    Pages pages(count, GetParam());
    pages.use(100);
    ASSERT_EQ(::madvise(pages.at(300), 400 * page, advice), 0);
    for (std::size_t p = 0; p < count; ++p) {
      ASSERT_EQ(pages.word(p), p >= 300 && p < 700 ? 0 : stamp(p)) << p << ", advice " << advice;
    }
    pages.stop();
    EXPECT_EQ(pages.device_word(300), 0U);
    EXPECT_EQ(pages.device_word(299), stamp(299));
    pages.word(300) = 17;
    EXPECT_EQ(pages.device_word(300), 17U);
  }
}

TEST_P(Change, DiscardedPagesAreZerosOnTheDeviceFirst) {
  Pages pages(count, GetParam());
  ASSERT_EQ(::madvise(pages.at(0), count * page, MADV_DONTNEED), 0);
  EXPECT_EQ(pages.device_word(5), 0U);
  EXPECT_EQ(pages.device_word(1100), 0U);
  EXPECT_EQ(pages.word(5), 0U);
}

TEST_P(Change, FreeReadsAsBeforeOrAsZeros) {
  Pages pages(count, GetParam());
  ASSERT_EQ(::madvise(pages.at(0), count * page, MADV_FREE), 0);
  for (std::size_t p = 0; p < count; ++p) {
    const std::uint64_t now = pages.word(p);
    ASSERT_TRUE(now == 0 || now == stamp(p)) << p << ": " << now;
    pages.word(p) = p;
  }
  for (std::size_t p = 0; p < count; ++p) ASSERT_EQ(pages.word(p), p);
  EXPECT_EQ(pages.device_word(1000), 1000U);
}

TEST_P(Change, ReadOnlyPagesCannotBeWrittenByAnybody) {
  Pages pages(count, GetParam());
  pages.use(100);
  ASSERT_EQ(::mprotect(pages.at(300), 10 * page, PROT_READ), 0);
  EXPECT_EQ(write_signal(pages.at(305)), SIGSEGV);
  EXPECT_EQ(pages.word(305), stamp(305));
  EXPECT_EQ(write_signal(pages.at(310)), 0);
  pages.stop();
  FERRY_TEST_CRASHES_END_DEVICES();
  std::string text;
  EXPECT_EQ(kernel_code(pages.at(305), true, &text), FERRY_KERNEL_FAULT);
  EXPECT_NE(text.find("may not write"), std::string::npos) << text;
  EXPECT_EQ(pages.device_word(305), stamp(305)) << "reading is allowed";
  EXPECT_EQ(pages.word(305), stamp(305));
  ASSERT_EQ(::mprotect(pages.at(300), 10 * page, PROT_READ | PROT_WRITE), 0);
  EXPECT_EQ(kernel_code(pages.at(305), true), 0);
  EXPECT_EQ(write_signal(pages.at(305)), 0);
}

TEST_P(Change, GuardPagesStopThreadsAndKernels) {
  Pages pages(count, GetParam());
  ASSERT_EQ(::mprotect(pages.at(600), page, PROT_NONE), 0);
  EXPECT_EQ(read_signal(pages.at(600)), SIGSEGV);
  EXPECT_EQ(pages.word(599), stamp(599));
  EXPECT_EQ(pages.word(601), stamp(601));
  EXPECT_EQ(pages.device_word(599), stamp(599));
  EXPECT_EQ(pages.device_word(601), stamp(601));
  FERRY_TEST_CRASHES_END_DEVICES();
  EXPECT_EQ(kernel_code(pages.at(600), false), FERRY_KERNEL_FAULT);
  ASSERT_EQ(::mprotect(pages.at(600), page, PROT_READ | PROT_WRITE), 0);
  EXPECT_EQ(pages.device_word(600), stamp(600)) << "the contents were kept";
  EXPECT_EQ(pages.word(600), stamp(600));
}

TEST_P(Change, AMappingOverManagedPagesIsTheProgramsOwn) {
  Pages pages(count, GetParam());
  pages.use(100);
  void* over =
      ::mmap(pages.at(500), 200 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  ASSERT_EQ(over, pages.at(500));
  for (std::size_t p = 0; p < count; ++p) {
    ASSERT_EQ(pages.word(p), p >= 500 && p < 700 ? 0 : stamp(p)) << p;
  }
  pages.word(600) = 5;
  pages.stop();
  EXPECT_EQ(pages.device_word(499), stamp(499));
  EXPECT_EQ(pages.device_word(700), stamp(700));
  EXPECT_EQ(pages.word(600), 5U);
}

TEST_P(Change, MremapShrinksInPlace) {
  Pages pages(count, GetParam());
  ASSERT_EQ(::mremap(pages.at(0), count * page, 300 * page, 0), pages.at(0));
  EXPECT_EQ(pages.word(299), stamp(299));
  EXPECT_EQ(read_signal(pages.at(300)), SIGSEGV);
}

TEST_P(Change, MremapGrowsByMoving) {
  Pages pages(count, GetParam());
  EXPECT_EQ(::mremap(pages.at(0), count * page, 2 * count * page, 0), MAP_FAILED);
  EXPECT_EQ(errno, ENOMEM);
  auto* moved = static_cast<char*>(::mremap(pages.at(0), count * page, 2 * count * page, MREMAP_MAYMOVE));
  ASSERT_NE(moved, MAP_FAILED);
  EXPECT_EQ(read_signal(pages.at(0)), SIGSEGV);
  for (std::size_t p = 0; p < 2 * count; ++p) {
    ASSERT_EQ(*reinterpret_cast<std::uint64_t*>(moved + p * page), p < count ? stamp(p) : 0) << p;
  }
  ferry::parallel_for(2 * count, [moved](std::size_t p) { ++*reinterpret_cast<std::uint64_t*>(moved + p * page); });
  EXPECT_EQ(*reinterpret_cast<std::uint64_t*>(moved + 5 * page), stamp(5) + 1);
  ferry::free(moved);
}

TEST_P(Change, MremapToAnAddressAndWithoutUnmapping) {
  Pages pages(count, GetParam());
  Pages target(count, Where::vram_dirty);
  ASSERT_EQ(::mremap(pages.at(100), 200 * page, 200 * page, MREMAP_MAYMOVE | MREMAP_FIXED, target.at(50)),
            target.at(50));
  EXPECT_EQ(target.word(50), stamp(100));
  EXPECT_EQ(target.word(249), stamp(299));
  EXPECT_EQ(target.word(49), stamp(49));
  EXPECT_EQ(target.word(250), stamp(250));
  EXPECT_EQ(target.device_word(60), stamp(110));
  EXPECT_EQ(read_signal(pages.at(100)), SIGSEGV);
  auto* copy =
      static_cast<char*>(::mremap(pages.at(400), 10 * page, 10 * page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr));
  ASSERT_NE(copy, MAP_FAILED);
  EXPECT_EQ(*reinterpret_cast<std::uint64_t*>(copy), stamp(400));
  EXPECT_EQ(pages.word(400), 0U) << "still there, and empty";
  pages.word(400) = 3;
  EXPECT_EQ(pages.device_word(400), 3U);
  ferry::free(copy);
}

TEST_P(Change, MremapCarriesTheProtectionAndRefusesSeveral) {
  Pages pages(count, GetParam());
  ASSERT_EQ(::mprotect(pages.at(100), 50 * page, PROT_READ), 0);
  EXPECT_EQ(::mremap(pages.at(50), 100 * page, 200 * page, MREMAP_MAYMOVE), MAP_FAILED);
  EXPECT_EQ(errno, EFAULT);
  EXPECT_EQ(write_signal(pages.at(100)), SIGSEGV);
  EXPECT_EQ(write_signal(pages.at(50)), 0);
  auto* moved = static_cast<char*>(::mremap(pages.at(100), 50 * page, 600 * page, MREMAP_MAYMOVE));
  ASSERT_NE(moved, MAP_FAILED);
  EXPECT_EQ(write_signal(moved), SIGSEGV);
  EXPECT_EQ(*reinterpret_cast<std::uint64_t*>(moved + 49 * page), stamp(149));
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_EQ(kernel_code(moved, true), FERRY_KERNEL_FAULT);
#endif
  ASSERT_EQ(::mprotect(moved, 600 * page, PROT_READ | PROT_WRITE), 0);
  EXPECT_EQ(kernel_code(moved + 599 * page, true), 0);
  ferry::free(moved);
}

int end_of(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// Bytes that migrated meanwhile, anywhere.
template <typename Body>
std::uint64_t migrated(Body&& body) {
  const events moves({event_kind::migrate_start});
  body();
  std::uint64_t bytes = 0;
  for (std::vector<event> some = moves.read(); !some.empty(); some = moves.read()) {
    for (const event& e : some) bytes += e.bytes;
  }
  return bytes;
}

/// Whole blocks that lie in VRAM keep their place there, whatever becomes of their address.
TEST(ChangeMoves, PagesInVramStayWhereTheyAre) {
  constexpr std::size_t pages = 1024;
  constexpr std::size_t bytes = pages * page;
  const auto word = [](char* base, std::size_t p) -> std::uint64_t& {
    return *reinterpret_cast<std::uint64_t*>(base + p * page);
  };
  auto* base = static_cast<char*>(ferry::alloc_aligned(bytes, std::size_t{2} << 20));
  for (std::size_t p = 0; p < pages; ++p) word(base, p) = stamp(p) - 1;
  ferry::prefetch(base, bytes, ferry::to_device(0));
  ferry::parallel_for(pages, [base](std::size_t p) { ++*reinterpret_cast<std::uint64_t*>(base + p * page); });
  ASSERT_EQ(ferry::query(base).vram_device, 0);
  ASSERT_EQ(ferry::query(base + bytes - page).vram_device, 0);
  auto* place = static_cast<char*>(ferry::alloc_aligned(bytes, std::size_t{2} << 20));
  // To an address, to one of Ferry's choice, and leaving the old one; then everything is read on the device, where it lies.
  EXPECT_EQ(migrated([&] { ASSERT_EQ(::mremap(base, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place), place); }),
            0U);
  EXPECT_EQ(read_signal(base), SIGSEGV);
  EXPECT_EQ(ferry::query(place).vram_device, 0);
  EXPECT_EQ(ferry::query(place).dirty, 1);
  EXPECT_EQ(ferry::query(place + bytes - page).vram_device, 0);
  char* copy = nullptr;
  EXPECT_EQ(migrated([&] {
              copy = static_cast<char*>(::mremap(place, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr));
            }),
            0U);
  ASSERT_NE(copy, MAP_FAILED);
  EXPECT_EQ(ferry::query(copy).vram_device, 0);
  EXPECT_EQ(word(place, 0), 0U);
  EXPECT_EQ(word(place, pages - 1), 0U);
  word(place, 3) = 7;  // still the program's own
  EXPECT_EQ(word(place, 3), 7U);
  char* larger = nullptr;
  EXPECT_EQ(migrated([&] { larger = static_cast<char*>(::mremap(copy, bytes, 2 * bytes, MREMAP_MAYMOVE)); }), 0U);
  ASSERT_NE(larger, MAP_FAILED);
  EXPECT_EQ(ferry::query(larger).vram_device, 0);
  ferry::parallel_for(pages, [larger](std::size_t p) { ++*reinterpret_cast<std::uint64_t*>(larger + p * page); });
  EXPECT_EQ(ferry::query(larger + bytes - page).vram_device, 0);
  for (std::size_t p = 0; p < pages; ++p) ASSERT_EQ(word(larger, p), stamp(p) + 1) << p;
  for (std::size_t p = pages; p < 2 * pages; ++p) ASSERT_EQ(word(larger, p), 0U) << p;
  ferry::free(larger);
  ferry::free(place);
  ferry::free(base);
}

/// Not aligned to each other, they are copied inside VRAM, where there is room.
TEST(ChangeMoves, PagesInVramAreCopiedThereWhereTheyCannotStay) {
  constexpr std::size_t pages = 300;
  auto* base = static_cast<char*>(ferry::alloc_aligned(std::size_t{2} << 20, std::size_t{2} << 20));
  auto* place = static_cast<char*>(ferry::alloc_aligned(std::size_t{2} << 20, std::size_t{2} << 20));
  ferry::parallel_for(512, [base](std::size_t p) { *reinterpret_cast<std::uint64_t*>(base + p * page) = stamp(p); });
  ASSERT_EQ(ferry::query(base + 10 * page).vram_device, 0);
  EXPECT_EQ(migrated([&] {
              ASSERT_EQ(::mremap(base + 10 * page, pages * page, pages * page, MREMAP_MAYMOVE | MREMAP_FIXED,
                                 place + 100 * page),
                        place + 100 * page);
            }),
            0U);
  EXPECT_EQ(ferry::query(place + 100 * page).vram_device, 0);
  for (std::size_t p = 0; p < pages; ++p) {
    ASSERT_EQ(*reinterpret_cast<std::uint64_t*>(place + (100 + p) * page), stamp(p + 10)) << p;
  }
  EXPECT_EQ(*reinterpret_cast<std::uint64_t*>(base + 9 * page), stamp(9));
  EXPECT_EQ(*reinterpret_cast<std::uint64_t*>(base + 310 * page), stamp(310));
  ferry::free(place);
  ferry::free(base);
}

/// While a fork's child still needs them, and while the next fork begins: each process has its own.
TEST(ChangeMoves, PagesOfAForkAreTheChildsAsTheyWere) {
  constexpr std::size_t pages = 1024;
  constexpr std::size_t bytes = pages * page;
  auto* base = static_cast<char*>(ferry::alloc_aligned(bytes, std::size_t{2} << 20));
  ferry::parallel_for(pages, [base](std::size_t p) { *reinterpret_cast<std::uint64_t*>(base + p * page) = stamp(p); });
  for (int round = 0; round < 4; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (std::size_t p = 0; p < pages; ++p) {
        if (*reinterpret_cast<std::uint64_t*>(base + p * page) != stamp(p)) ::_exit(1);
      }
      ::_exit(0);
    }
    auto* moved = static_cast<char*>(::mremap(base, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr));
    ASSERT_NE(moved, MAP_FAILED);
    for (std::size_t p = 0; p < pages; ++p) *reinterpret_cast<std::uint64_t*>(base + p * page) = 5;
    EXPECT_EQ(end_of(child), 0);
    ASSERT_EQ(::munmap(base, bytes), 0);
    ferry::free(base);
    base = moved;
    for (std::size_t p = 0; p < pages; ++p)
      ASSERT_EQ(*reinterpret_cast<std::uint64_t*>(base + p * page), stamp(p)) << p;
  }
  ferry::free(base);
}

TEST_P(Change, WhatAChildIsNotToHaveItDoesNotHave) {
  Pages pages(count, GetParam());
  ASSERT_EQ(::madvise(pages.at(400), 10 * page, MADV_WIPEONFORK), 0);
  ASSERT_EQ(::madvise(pages.at(500), 100 * page, MADV_DONTFORK), 0);
  ASSERT_EQ(::madvise(pages.at(520), 10 * page, MADV_DOFORK), 0);
  const auto has = [&](std::size_t p) { return pages.word(p) == stamp(p); };
  pid_t child = ::fork();
  if (child == 0) {
    if (pages.word(405) != 0 || !has(399) || !has(410) || !has(499) || !has(525) || !has(600)) ::_exit(1);
    pages.word(405) = 7;
    const pid_t grandchild = ::fork();
    if (grandchild == 0) ::_exit(pages.word(405) == 0 && has(399) ? 0 : 1);
    if (end_of(grandchild) != 0 || pages.word(405) != 7) ::_exit(4);
    ::signal(SIGSEGV, [](int) { ::_exit(3); });
    static_cast<void>(*static_cast<volatile char*>(pages.at(505)));
    ::_exit(2);
  }
  ASSERT_GT(child, 0);
  EXPECT_EQ(end_of(child), 3) << "1: not as it should be; 2: it has what it should not; 4: its own child has";
  for (std::size_t p = 0; p < count; ++p) ASSERT_EQ(pages.word(p), stamp(p)) << p;
  ASSERT_EQ(::madvise(pages.at(400), 10 * page, MADV_KEEPONFORK), 0);
  ASSERT_EQ(::madvise(pages.at(500), 100 * page, MADV_DOFORK), 0);
  child = ::fork();
  if (child == 0) ::_exit(has(405) && has(505) ? 0 : 1);
  ASSERT_GT(child, 0);
  EXPECT_EQ(end_of(child), 0);
}

TEST(ChangeForks, AdviceEndsWithTheMemory) {
  for (int round = 0; round < 3; ++round) {
    auto* memory = static_cast<std::uint64_t*>(ferry::alloc_aligned(16 * page, page));
    memory[0] = 5;
    const pid_t child = ::fork();
    if (child == 0) ::_exit(memory[0] == 5 ? 0 : 1);
    ASSERT_GT(child, 0);
    EXPECT_EQ(end_of(child), 0) << "round " << round;
    ASSERT_EQ(::madvise(memory, 16 * page, MADV_WIPEONFORK), 0);
    ferry::free(memory);  // and had again by the next round
  }
}

TEST(ChangeErrors, AreThoseOfTheKernel) {
  Pages pages(10, Where::in_system);
  EXPECT_TRUE(::munmap(pages.at(0) + 1, page) == -1 && errno == EINVAL);
  EXPECT_TRUE(::munmap(pages.at(0), 0) == -1 && errno == EINVAL);
  EXPECT_TRUE(::mprotect(pages.at(0) + 1, page, PROT_READ) == -1 && errno == EINVAL);
  EXPECT_TRUE(::madvise(pages.at(0) + 1, page, MADV_DONTNEED) == -1 && errno == EINVAL);
  EXPECT_TRUE(::madvise(pages.at(0), page, 12345) == -1 && errno == EINVAL);
  EXPECT_TRUE(::mremap(pages.at(0), page, 0, 0) == MAP_FAILED && errno == EINVAL);
  EXPECT_TRUE(::mremap(pages.at(0), page, page, MREMAP_FIXED, pages.at(5)) == MAP_FAILED && errno == EINVAL);
  for (std::size_t p = 0; p < 10; ++p) EXPECT_EQ(pages.word(p), stamp(p));
}

TEST(ChangeErrors, OtherMemoryIsTheKernelsAlone) {
  auto* own = static_cast<char*>(::mmap(nullptr, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(own, MAP_FAILED);
  own[0] = 1;
  EXPECT_EQ(::mprotect(own, page, PROT_READ), 0);
  EXPECT_EQ(write_signal(own), SIGSEGV);
  EXPECT_EQ(::mprotect(own, page, PROT_READ | PROT_WRITE), 0);
  EXPECT_EQ(::madvise(own, page, MADV_DONTNEED), 0);
  EXPECT_EQ(own[0], 0);
  auto* moved = static_cast<char*>(::mremap(own, 4 * page, 8 * page, MREMAP_MAYMOVE));
  ASSERT_NE(moved, MAP_FAILED);
  EXPECT_EQ(::munmap(moved, 8 * page), 0);
}

/// Four threads change memory of their own, while kernels work on all of it, each checked against what it must be.
TEST(ChangeThreads, SequencesAgainstAShadow) {
  constexpr unsigned threads = 4;
  constexpr std::size_t own = 700;
  std::atomic<bool> failed{false};
  const auto work = [&](unsigned number) {
    std::mt19937_64 random(number + 1);
    std::vector<std::uint64_t> shadow(own);
    auto* base = static_cast<char*>(ferry::alloc(own * page));
    std::vector<bool> writable(own, true);
    const auto word = [&](std::size_t p) -> std::uint64_t& {
      return *reinterpret_cast<std::uint64_t*>(base + p * page);
    };
    for (std::size_t p = 0; p < own; ++p) word(p) = shadow[p] = p + 1;
    for (unsigned round = 0; round < 120 && !failed; ++round) {
      const std::size_t first = random() % own;
      const std::size_t length = 1 + random() % std::min<std::size_t>(own - first, 200);
      switch (random() % 6) {
        case 0:
          if (::madvise(base + first * page, length * page, MADV_DONTNEED) != 0) failed = true;
          for (std::size_t p = first; p < first + length; ++p) shadow[p] = 0;
          break;
        case 1: {
          const bool allow = random() % 2 == 0;
          if (::mprotect(base + first * page, length * page, allow ? PROT_READ | PROT_WRITE : PROT_READ) != 0)
            failed = true;
          for (std::size_t p = first; p < first + length; ++p) writable[p] = allow;
          break;
        }
        case 2:
        case 3: {
          std::size_t end = first;
          while (end < first + length && writable[end]) ++end;
          if (end == first) break;
          ferry::parallel_for(end - first, [base, first](std::size_t i) {
            *reinterpret_cast<std::uint64_t*>(base + (first + i) * page) += i + 1;
          });
          for (std::size_t p = first; p < end; ++p) shadow[p] += p - first + 1;
          break;
        }
        case 4:
          for (std::size_t p = first; p < first + length; ++p) {
            if (writable[p]) word(p) = shadow[p] = random();
          }
          break;
        default:
          // All of it moves.
          if (round % 20 == 0) {
            ::mprotect(base, own * page, PROT_READ | PROT_WRITE);  // what differs the kernel does not move, either
            auto* moved =
                static_cast<char*>(::mremap(base, own * page, own * page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr));
            if (moved == MAP_FAILED) {
              failed = true;
              break;
            }
            ::munmap(base, own * page);
            ferry::free(base);
            base = moved;
            writable.assign(own, true);
          }
      }
      for (std::size_t p = first; p < first + length; ++p) {
        if (word(p) != shadow[p]) {
          ADD_FAILURE() << "thread " << number << ", round " << round << ", page " << p << ": " << word(p)
                        << " and not " << shadow[p];
          failed = true;
          break;
        }
      }
    }
    for (std::size_t p = 0; p < own && !failed; ++p) {
      if (word(p) != shadow[p]) {
        ADD_FAILURE() << "thread " << number << ", page " << p;
        failed = true;
      }
    }
    ferry::free(base);
  };
  std::vector<std::thread> all;
  for (unsigned t = 0; t < threads; ++t) all.emplace_back(work, t);
  for (auto& t : all) t.join();
  EXPECT_FALSE(failed);
}

}  // namespace
}  // namespace ferry::test

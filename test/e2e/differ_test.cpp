// What a program sees of its calls about addresses, with devices at its memory and without: random sequences, each step
// compared. FERRY_DIFFER=first:count:steps runs other sequences, FERRY_DIFFER_KEEP=3,17 these steps of them alone.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>
#include <set>
#include <sstream>

#include "twins.h"

namespace ferry::test {
namespace {

constexpr std::int64_t page_i = 4096;
constexpr int all_rights = PROT_READ | PROT_WRITE;

// Newer than the C library: MADV_COLD, PAGEOUT, POPULATE_READ, POPULATE_WRITE, DONTNEED_LOCKED, COLLAPSE. Pages are not poisoned, as
// those are the machine's.
constexpr int advices[] = {MADV_NORMAL,
                           MADV_RANDOM,
                           MADV_SEQUENTIAL,
                           MADV_WILLNEED,
                           MADV_DONTNEED,
                           MADV_DONTNEED,
                           MADV_FREE,
                           MADV_REMOVE,
                           MADV_DONTFORK,
                           MADV_DOFORK,
                           MADV_MERGEABLE,
                           MADV_UNMERGEABLE,
                           MADV_HUGEPAGE,
                           MADV_NOHUGEPAGE,
                           MADV_DONTDUMP,
                           MADV_DODUMP,
                           MADV_WIPEONFORK,
                           MADV_KEEPONFORK,
                           20,
                           21,
                           22,
                           23,
                           24,
                           25,
                           5,
                           -1,
                           12345};

class Step {
 public:
  Step(Twins& twins, std::uint64_t seed, std::uint64_t number) : twins_(twins), random_(seed * 1'000'003 + number) {}

  bool run() {
    const unsigned kind = below(100);
    bool same =
        kind < 14   ? map()
        : kind < 21 ? twins_.unmap(place(), length())
        : kind < 33 ? remap()
        : kind < 45 ? protect()
        : kind < 57 ? advise()
        : kind < 60 ? twins_.in_core(place(), length())
        : kind < 63 ? twins_.sync(place(), length(), pick({MS_ASYNC, MS_SYNC, MS_INVALIDATE, MS_ASYNC | MS_SYNC, 99}))
        : kind < 65 ? twins_.lock(place(), length(), below(2) == 0)
        : kind < 68 ? twins_.truncate(file(), file_place())
        : kind < 78 ? transfer()
        : kind < 82 ? twins_.store(place(), random_())
        : kind < 83 ? twins_.fork_compare()
        : kind < 85 ? twins_.device_as_thread(first(), below(2) == 0)
                    : have();
    const int from = first();
    same = twins_.compare(from, 1 + static_cast<int>(below(6))) && same;
    return same;
  }

 private:
  unsigned below(unsigned most) { return static_cast<unsigned>(random_() % most); }
  int pick(std::initializer_list<int> of) { return std::data(of)[below(static_cast<unsigned>(of.size()))]; }
  int first() { return static_cast<int>(below(Twins::pages)); }
  std::int64_t place() {
    std::int64_t at = static_cast<std::int64_t>(below(Twins::pages + 4)) - 2;
    at *= page_i;
    if (below(16) == 0) at += pick({1, 8, 2048, 4095});
    return at;
  }
  std::size_t length() {
    const unsigned kind = below(32);
    if (kind == 0) return 0;
    if (kind == 1) return ~std::size_t{0} - static_cast<std::size_t>(pick({0, 1, 4094, 4095, 4096, 8191}));
    std::size_t bytes = (1 + (kind < 20 ? below(6) : below(Twins::pages))) * 4096UL;
    if (kind < 5) bytes -= static_cast<std::size_t>(pick({1, 4095, 100}));
    return bytes;
  }
  int prot() {
    const unsigned kind = below(16);
    if (kind < 8) return all_rights;
    if (kind < 11) return PROT_READ;
    if (kind < 13) return PROT_NONE;
    return pick({PROT_WRITE, PROT_EXEC, PROT_READ | PROT_EXEC, all_rights | PROT_EXEC});
  }
  int file() { return static_cast<int>(below(2)); }
  std::int64_t file_place() {
    std::int64_t at = static_cast<std::int64_t>(below(Twins::file_pages + 6)) * page_i;
    if (below(4) == 0) at += pick({1, 100, 4095});
    if (below(30) == 0) at = -page_i;
    return at;
  }
  /// Of a call that takes what there is elsewhere, too: small.
  std::size_t map_length() {
    const std::size_t bytes = length();
    return bytes > ~std::size_t{0} / 2 ? bytes : bytes % (Twins::pages * 4096UL + 4096);
  }
  std::int64_t place_for(std::size_t bytes) {
    const std::int64_t at = place();
    const std::int64_t most = Twins::pages * page_i - static_cast<std::int64_t>(bytes);
    return bytes > Twins::pages * 4096UL ? at : std::min(at, std::max<std::int64_t>(most, 0));
  }

  bool map() {
    const std::size_t bytes = map_length();
    const int fixed = pick({MAP_FIXED, MAP_FIXED, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_FIXED_NOREPLACE | MAP_FIXED, 0});
    const unsigned kind = below(12);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    int of = -1;
    std::int64_t offset = 0;
    if (kind < 4) {
      flags = (kind < 2 ? MAP_PRIVATE : MAP_SHARED) | (below(8) == 0 ? MAP_POPULATE : 0);
      of = file();
      offset = file_place();
      if (below(6) != 0) offset = std::max<std::int64_t>(offset / page_i * page_i, 0);
    } else if (kind == 4) {
      flags = MAP_SHARED | MAP_ANONYMOUS;
    } else if (kind == 5) {
      flags |= MAP_NORESERVE;
    } else if (kind == 6) {
      flags = pick({0, MAP_PRIVATE | MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE});
    }
    return twins_.map(place_for(bytes), bytes, prot(), flags | fixed, of, offset);
  }
  bool protect() {
    int to = prot();
    if (below(20) == 0)
      to = pick({PROT_GROWSDOWN | PROT_READ, PROT_GROWSUP | PROT_READ, 8, 0x40, -1, PROT_GROWSDOWN | PROT_GROWSUP});
    return twins_.protect(place(), length(), to);
  }
  bool advise() {
    const std::int64_t at = place();
    const std::size_t bytes = length();
    if (below(10) == 0)
      return twins_.advise(
          at, bytes, pick({POSIX_MADV_NORMAL, POSIX_MADV_RANDOM, POSIX_MADV_WILLNEED, POSIX_MADV_DONTNEED, 77}), true);
    return twins_.advise(at, bytes, advices[below(std::size(advices))]);
  }
  bool remap() {
    std::size_t old_bytes = length();
    std::size_t new_bytes = below(3) == 0 ? old_bytes : length();
    int flags = pick({0, MREMAP_MAYMOVE, MREMAP_MAYMOVE, MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_MAYMOVE | MREMAP_FIXED,
                      MREMAP_MAYMOVE | MREMAP_DONTUNMAP, MREMAP_MAYMOVE | MREMAP_DONTUNMAP | MREMAP_FIXED});
    if (below(20) == 0) flags = pick({MREMAP_FIXED, MREMAP_DONTUNMAP, 8, 16, -1});
    if (below(20) == 0) old_bytes = 0;
    if (below(30) == 0) new_bytes = 0;
    const std::int64_t at = place();
    if ((flags & MREMAP_FIXED) == 0 && new_bytes < (std::size_t{1} << 40) &&
        at + static_cast<std::int64_t>(new_bytes) > (Twins::pages + Twins::margin - 1) * page_i) {
      new_bytes = 4096;
    }
    return twins_.remap(at, old_bytes, new_bytes, flags, place_for(new_bytes));
  }
  bool transfer() {
    const auto way = static_cast<Twins::Way>(below(3));
    std::size_t bytes = 1 + below(way == Twins::Way::pipe ? 6000 : 6 * 4096);
    if (below(4) == 0) bytes = bytes / 4096 * 4096;
    const std::int64_t at = place() + (below(2) == 0 ? below(4096) : 0);
    std::int64_t offset = file_place();
    if (way != Twins::Way::pipe) offset = std::min<std::int64_t>(offset, Twins::file_pages * page_i);
    return twins_.transfer(below(2) == 0, way, file(), offset, at, bytes);
  }
  /// What a program does not see.
  bool have() {
    const int from = first();
    const int count = 1 + static_cast<int>(below(below(4) == 0 ? Twins::pages : 12));
    switch (below(10)) {
      case 0: twins_.adopt(from, count); return true;
      case 1: twins_.release(from, count); return true;
      case 2: twins_.to_device(from, count); return true;
      case 3:
      case 4: return twins_.device(from, count, false, 0);
      default: return twins_.device(from, count, true, random_());
    }
  }

  Twins& twins_;
  std::mt19937_64 random_;
};

struct Sequences {
  std::uint64_t first = 1;
  std::uint64_t count = 4;
  std::uint64_t steps = 150;
  std::set<std::uint64_t> keep;
};

Sequences wanted() {
  Sequences s;
  if (const char* const given = std::getenv("FERRY_DIFFER"); given != nullptr) {
    std::istringstream in(given);
    char colon = 0;
    in >> s.first >> colon >> s.count >> colon >> s.steps;
  }
  if (const char* const given = std::getenv("FERRY_DIFFER_KEEP"); given != nullptr) {
    std::istringstream in(given);
    std::string step;
    while (std::getline(in, step, ',')) s.keep.insert(std::stoull(step));
  }
  return s;
}

TEST(Differ, NothingOfRandomSequences) {
  // Some of what is made here lies behind pages that nobody may touch, as stacks do.
  if (::geteuid() != 0) GTEST_SKIP() << "stacks cannot be adopted without privilege";
  const Sequences s = wanted();
  for (std::uint64_t seed = s.first; seed < s.first + s.count; ++seed) {
    Twins twins;
    bool same = twins.device(10, 60, true, 1);
    for (std::uint64_t step = 0; step < s.steps && same; ++step) {
      if (!s.keep.empty() && !s.keep.contains(step)) continue;
      same = Step(twins, seed, step).run() && (step % 16 != 15 || twins.compare_all());
      if (!same)
        std::printf("FERRY_DIFFER=%llu:1:%llu\n", static_cast<unsigned long long>(seed),
                    static_cast<unsigned long long>(step + 1));
    }
    same = same && twins.compare_all();
    ASSERT_EQ(twins.differences(), "") << "seed " << seed << "\n" << twins.log();
  }
}

}  // namespace
}  // namespace ferry::test

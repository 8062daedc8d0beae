// What the stress test does to the address space: plain system calls on memory of its own.
#include <ferry/svm.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "stress.h"

namespace ferry::demo::stress {
namespace {

int end_of(pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

std::optional<std::string> missing_fork() {
  auto* word = static_cast<std::uint64_t*>(ferry::alloc_aligned(page_size, page_size));
  *word = 7;
  const pid_t child = fork();
  if (child == 0) {
    // Where memory is not there its touch ends the child, with words for people that are not wanted here.
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(2);
    _exit(*static_cast<volatile std::uint64_t*>(word) == 7 ? 0 : 1);
  }
  const int code = child < 0 ? -1 : end_of(child);
  ferry::free(word);
  if (code == 0) return {};
  return "unsupported: the child of a fork does not have managed memory";
}

/// Memory that a device wrote reads as zeros after madvise, where changes of the address space are followed.
std::optional<std::string> missing_change() {
  auto* word = static_cast<std::uint64_t*>(ferry::alloc_aligned(page_size, page_size));
  *word = 7;
  ferry::parallel_for(1, [word](std::size_t) { *word += 1; });
  const bool zero = madvise(word, page_size, MADV_DONTNEED) == 0 && *static_cast<volatile std::uint64_t*>(word) == 0;
  ferry::free(word);
  if (zero) return {};
  return "unsupported: changes of the address space by system calls are not followed";
}

std::optional<std::string> missing_adoption() {
  void* memory = mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return "no memory of its own";
  ferry_error error{};
  const ferry_code code = ferry_adopt(memory, page_size, &error);
  munmap(memory, page_size);
  if (code == FERRY_OK) return {};
  return std::string("unsupported: ") + error.text;
}

/// Parent and child both have what was there, change it, and see their own change alone.
bool Worker::fork_and_write() {
  Region& region = some_region();
  settle(region, {0, region.pages});
  note(region, "fork", {0, region.pages});
  const std::uint64_t salt = random_();
  const auto change = [&region](std::uint64_t by) {
    for (std::size_t p = 0; p < region.pages; ++p) {
      if (!region.states[p].mapped || (region.states[p].prot & 3) != 3) continue;
      change_page(region.words + p * page_words, by, 1);
      change_page(region.shadow.data() + p * page_words, by, 1);
    }
  };
  const auto same = [&region] {
    for (std::size_t p = 0; p < region.pages; ++p) {
      if (!region.states[p].mapped || (region.states[p].prot & PROT_READ) == 0) continue;
      const std::size_t at = p * page_words;
      if (std::memcmp(region.words + at, region.shadow.data() + at, page_size) != 0) return false;
    }
    return true;
  };
  const pid_t child = fork();
  if (child < 0) return false;
  if (child == 0) {
    // Only what the child of a program with threads may: no allocation, no lock.
    if (!same()) _exit(10);
    change(~salt);
    _exit(same() ? 0 : 11);
  }
  change(salt);
  if (const int code = end_of(child); code != 0) {
    const char* why = code == 10   ? "it did not have what its parent had"
                      : code == 11 ? "it did not have what it wrote"
                                   : "it could not go on";
    common_.tell_wrong(fmt::format("the child of a fork ended with {} ({}): {}", code, why, place(region, 0)));
  }
  check(region, {0, region.pages});
  return true;
}

bool Worker::protect() {
  Region& region = some_region();
  const Span span = some_span(region, 16);
  static constexpr int prots[] = {PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE};
  const int prot = prots[draw(3)];
  if (span.pages == 0) return false;
  settle(region, span);
  note(region, prot == 3 ? "mprotect rw" : prot == 1 ? "mprotect r" : "mprotect none", span);
  if (mprotect(region.words + span.first * page_words, span.pages * page_size, prot) != 0) return false;
  for (std::size_t p = span.first; p < span.first + span.pages; ++p) region.states[p].prot = prot;
  return true;
}

bool Worker::zero() {
  Region& region = some_region();
  const Span span = some_span(region, 16);
  if (span.pages == 0) return false;
  note(region, "madvise dontneed", span);
  if (madvise(region.words + span.first * page_words, span.pages * page_size, MADV_DONTNEED) != 0) return false;
  std::fill_n(region.shadow.data() + span.first * page_words, span.pages * page_words, 0);
  for (std::size_t p = span.first; p < span.first + span.pages; ++p) region.states[p].lazy = false;
  return true;
}

void Worker::forget(Region& region, std::size_t first, std::size_t pages, bool mapped) {
  std::fill_n(region.shadow.data() + first * page_words, pages * page_words, 0);
  std::fill_n(region.states.data() + first, pages, PageState{.mapped = mapped});
}

bool Worker::uniform(const Region& region) {
  return std::all_of(region.states.begin(), region.states.end(),
                     [](const PageState& p) { return p.mapped && (p.prot & 3) == 3; });
}

/// Holes are anybody's, and may be somebody's by now.
void Worker::unmap_own(Region& region) {
  for (std::size_t p = 0; p < region.pages;) {
    std::size_t end = p;
    while (end < region.pages && region.states[end].mapped) ++end;
    if (end != p && munmap(region.words + p * page_words, (end - p) * page_size) != 0) {
      common_.tell_wrong("the program's own memory cannot be unmapped");
    }
    p = end + 1;
  }
  region.words = nullptr;
}

bool Worker::unmap() {
  Region& region = some_region(common_.own_memory && draw(2) == 0 ? Origin::own : Origin::allocated);
  const Span span = some_span(region, 32);
  if (span.pages == 0) return false;
  settle(region, span);
  check(region, span);
  note(region, "munmap", span);
  if (munmap(region.words + span.first * page_words, span.pages * page_size) != 0) {
    common_.tell_wrong(fmt::format("munmap: {}: {}", std::strerror(errno), place(region, span.first)));
    return true;
  }
  forget(region, span.first, span.pages, false);
  return true;
}

/// Other memory where there was some, or in a hole if nobody has it: zeros, which devices get like any other.
bool Worker::map_again() {
  Region& region = some_region(Origin::own);
  Span span{draw(region.pages), 0};
  const bool fill = !region.states[span.first].mapped;
  const std::size_t wanted = 1 + draw(std::min<std::size_t>(32, region.pages - span.first));
  while (span.pages < wanted && region.states[span.first + span.pages].mapped != fill) ++span.pages;
  void* const at = region.words + span.first * page_words;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (fill ? MAP_FIXED_NOREPLACE : MAP_FIXED);
  note(region, fill ? "mmap in a hole" : "mmap over", span);
  if (mmap(at, span.pages * page_size, PROT_READ | PROT_WRITE, flags, -1, 0) != at) {
    if (!fill) common_.tell_wrong(fmt::format("mmap over: {}: {}", std::strerror(errno), place(region, span.first)));
    return false;
  }
  forget(region, span.first, span.pages, true);
  return true;
}

/// Shrinks, grows or moves all of it; what is new is zeros.
bool Worker::remap() {
  Region& region = some_region(common_.own_memory && draw(2) == 0 ? Origin::own : Origin::allocated);
  if (!uniform(region)) return false;
  settle(region, {0, region.pages});
  switch (draw(3)) {
    case 0: return remap_to(region, region.pages - draw(std::min<std::size_t>(region.pages, 32)), false);
    case 1: return remap_to(region, region.pages + 1 + draw(32), false);
    default: return remap_to(region, region.pages, region.origin == Origin::own);
  }
}

bool Worker::remap_to(Region& region, std::size_t pages, bool fixed) {
  // Allocations that become smaller than that share pages with others when they are moved.
  if (region.origin == Origin::allocated && (pages < 512 || pages > 1024)) return false;
  note(region,
       pages < region.pages   ? "mremap smaller"
       : pages > region.pages ? "mremap larger"
                              : "mremap elsewhere",
       {0, region.pages});
  void* target = nullptr;
  if (fixed) {
    target = mmap(nullptr, pages * page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (target == MAP_FAILED) return false;
  }
  void* const moved =
      fixed ? mremap(region.words, region.pages * page_size, pages * page_size, MREMAP_MAYMOVE | MREMAP_FIXED, target)
            : mremap(region.words, region.pages * page_size, pages * page_size, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) {
    common_.tell_wrong(fmt::format("mremap: {}: {}", std::strerror(errno), place(region, 0)));
    return false;
  }
  // The addresses of an allocation stay its own until it is freed, even if nothing is there any more.
  if (region.origin == Origin::allocated && moved != region.words) ferry::free(region.words);
  region.words = static_cast<std::uint64_t*>(moved);
  const std::size_t had = region.pages;
  region.pages = pages;
  region.shadow.resize(pages * page_words);
  region.states.resize(pages);
  if (pages > had) forget(region, had, pages - had, true);
  check(region, {0, pages});
  return true;
}

bool Worker::adopt() {
  Region& region = some_region(Origin::own);
  const Span span = usable_span(region, 3, region.pages);
  if (span.pages == 0) return false;
  note(region, "adopt", span);
  ferry_error error{};
  if (ferry_adopt(region.words + span.first * page_words, span.pages * page_size, &error) != FERRY_OK) {
    throw ferry::error(error);
  }
  return true;
}

bool Worker::release() {
  Region& region = some_region(Origin::own);
  const Span span = some_span(region, region.pages);
  if (span.pages == 0) return false;
  note(region, "release", span);
  ferry_error error{};
  if (ferry_release(region.words + span.first * page_words, span.pages * page_size, &error) != FERRY_OK) {
    throw ferry::error(error);
  }
  return true;
}

bool Worker::free_lazily() {
  Region& region = some_region();
  const Span span = usable_span(region, 3, 16);
  note(region, "madvise free", span);
  if (span.pages == 0) return false;
  if (madvise(region.words + span.first * page_words, span.pages * page_size, MADV_FREE) != 0) return false;
  for (std::size_t p = span.first; p < span.first + span.pages; ++p) region.states[p].lazy = true;
  return true;
}

}  // namespace ferry::demo::stress

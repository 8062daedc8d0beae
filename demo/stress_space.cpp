// What the stress test does to the address space: plain system calls on memory of its own.
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
  settle(region, span);
  note(region, prot == 3 ? "mprotect rw" : prot == 1 ? "mprotect r" : "mprotect none", span);
  if (mprotect(region.words + span.first * page_words, span.pages * page_size, prot) != 0) return false;
  for (std::size_t p = span.first; p < span.first + span.pages; ++p) region.states[p].prot = prot;
  return true;
}

bool Worker::zero() {
  Region& region = some_region();
  const Span span = some_span(region, 16);
  note(region, "madvise dontneed", span);
  if (madvise(region.words + span.first * page_words, span.pages * page_size, MADV_DONTNEED) != 0) return false;
  std::fill_n(region.shadow.data() + span.first * page_words, span.pages * page_words, 0);
  for (std::size_t p = span.first; p < span.first + span.pages; ++p) region.states[p].lazy = false;
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

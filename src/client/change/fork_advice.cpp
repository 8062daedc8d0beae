#include "client/change/fork_advice.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstddef>

#include "linux/lock.h"

namespace ferry::client {
namespace {

constinit linux::LockClass advice_lock("advice about forks", linux::LockRank::leaf);

struct Run {
  Part part;
  ForkAdvice advice = ForkAdvice::none;
};

struct Table {
  std::array<Run, 1024> runs{};
  std::size_t count = 0;

  /// Takes the part out. False: a run would have to be cut in two, and there is no room.
  bool take(const Part& part) {
    for (std::size_t i = 0; i < count;) {
      Run& run = runs[i];
      if (run.part.end <= part.first || run.part.first >= part.end) {
        ++i;
        continue;
      }
      const Part behind{part.end, run.part.end};
      if (run.part.first < part.first) {
        if (!behind.empty()) {
          if (count == runs.size()) return false;
          runs[count++] = {behind, run.advice};
        }
        run.part.end = part.first;
        ++i;
      } else if (!behind.empty()) {
        run.part.first = part.end;
        ++i;
      } else {
        run = runs[--count];
      }
    }
    return true;
  }
  bool add(const Part& part, ForkAdvice advice) {
    for (std::size_t i = 0; i < count; ++i) {
      Run& run = runs[i];
      if (run.advice != advice || (run.part.end != part.first && run.part.first != part.end)) continue;
      run.part = {std::min(run.part.first, part.first), std::max(run.part.end, part.end)};
      return true;
    }
    if (count == runs.size()) return false;
    runs[count++] = {part, advice};
    return true;
  }
};

// Constant-initialized. The second is the forking thread's: nobody is at work on it when the child looks.
constinit linux::Mutex mutex{advice_lock};
constinit Table table;
constinit Table frozen;

}  // namespace

Status set_fork_advice(const Part& part, ForkAdvice advice) {
  const linux::LockGuard lock(mutex);
  // Room for what is cut off and for what is new.
  if (table.count + 2 > table.runs.size()) return Code::no_memory;
  table.take(part);
  if (advice != ForkAdvice::none) table.add(part, advice);
  return {};
}

void forget_fork_advice(const Part& part) {
  const linux::LockGuard lock(mutex);
  if (table.take(part)) return;
  // No room to cut a run in two: what lies behind is told apart from now on by nobody, and children have it.
  for (std::size_t i = 0; i < table.count; ++i) {
    Run& run = table.runs[i];
    if (run.part.first < part.first && run.part.end > part.end) run.part.end = part.first;
  }
}

Status move_fork_advice(const Part& from, std::uint64_t to) {
  const linux::LockGuard lock(mutex);
  const std::size_t had = table.count;
  for (std::size_t i = 0; i < had; ++i) {
    const Run run = table.runs[i];
    const Part part{std::max(run.part.first, from.first), std::min(run.part.end, from.end)};
    if (part.empty()) continue;
    if (!table.add({part.first - from.first + to, part.end - from.first + to}, run.advice)) return Code::no_memory;
  }
  return {};
}

void freeze_fork_advice() {
  const linux::LockGuard lock(mutex);
  std::copy_n(table.runs.begin(), table.count, frozen.runs.begin());
  frozen.count = table.count;
}

bool apply_fork_advice() {
  for (std::size_t i = 0; i < frozen.count; ++i) {
    const Run& run = frozen.runs[i];
    const bool wiped = run.advice == ForkAdvice::wiped;
    if (raw_mmap(run.part.first, run.part.bytes(), wiped ? PROT_READ | PROT_WRITE : PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) {
      return false;
    }
    // The child's own children are not to have its contents either.
    if (wiped) raw_madvise(run.part.first, run.part.bytes(), MADV_WIPEONFORK);
  }
  return true;
}

bool is_absent_in_child(std::uint64_t address) {
  return std::any_of(frozen.runs.begin(), frozen.runs.begin() + static_cast<std::ptrdiff_t>(frozen.count),
                     [&](const Run& run) {
                       return run.advice == ForkAdvice::absent && address >= run.part.first && address < run.part.end;
                     });
}

Part take_present_in_child(Part& rest) {
  const auto absent_at = [](std::uint64_t at) {
    for (std::size_t i = 0; i < frozen.count; ++i) {
      const Run& run = frozen.runs[i];
      if (run.advice == ForkAdvice::absent && at >= run.part.first && at < run.part.end) return run.part.end;
    }
    return std::uint64_t{0};
  };
  for (std::uint64_t past = 0; !rest.empty() && (past = absent_at(rest.first)) != 0;) rest.first = past;
  if (rest.empty()) return {};
  Part part = rest;
  for (std::size_t i = 0; i < frozen.count; ++i) {
    const Run& run = frozen.runs[i];
    if (run.advice == ForkAdvice::absent && run.part.first > part.first) part.end = std::min(part.end, run.part.first);
  }
  rest.first = part.end;
  return part;
}

}  // namespace ferry::client

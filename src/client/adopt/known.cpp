#include "client/adopt/known.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/types.h"

namespace ferry::client {
namespace {

constexpr std::uint64_t blocks_most = user_address_end / block_bytes;

/// A bit a block of the address space: set, some of it may be adopted.
constinit std::atomic<std::atomic<std::uint64_t>*> table{nullptr};
constinit std::atomic<bool> any_adopted{false};
constinit std::atomic<std::uint32_t> swaps_begun{0};

struct ForkAdvice {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  bool dont_fork = false;
  bool wipe_on_fork = false;
};
constinit std::atomic<bool> fork_advice_used{false};
constinit std::array<ForkAdvice, 512> kept{};
constinit std::size_t kept_count = 0;

bool add(const ForkAdvice& advice) {
  for (std::size_t i = 0; i < kept_count; ++i) {
    ForkAdvice& k = kept[i];
    if (k.dont_fork != advice.dont_fork || k.wipe_on_fork != advice.wipe_on_fork) continue;
    if (k.end == advice.begin || k.begin == advice.end) {
      k.begin = std::min(k.begin, advice.begin);
      k.end = std::max(k.end, advice.end);
      return true;
    }
  }
  if (kept_count == kept.size()) return false;
  kept[kept_count++] = advice;
  return true;
}

/// Takes [begin, end) out of what is kept, and calls fn(part) for each part.
template <typename Fn>
void take(std::uint64_t begin, std::uint64_t end, Fn&& fn) {
  for (std::size_t i = 0; i < kept_count;) {
    const ForkAdvice k = kept[i];
    if (k.end <= begin || k.begin >= end) {
      ++i;
      continue;
    }
    kept[i] = kept[--kept_count];
    ForkAdvice rest = k;
    rest.end = std::min(k.end, begin);
    // Two rests need the room of one and one more; what was there before a full table is not kept any more then.
    if (rest.begin < rest.end) add(rest);
    rest = k;
    rest.begin = std::max(k.begin, end);
    if (rest.begin < rest.end) add(rest);
    ForkAdvice part = k;
    part.begin = std::max(k.begin, begin);
    part.end = std::min(k.end, end);
    fn(part);
    i = 0;
  }
}

bool parse_span(std::string_view line, std::uint64_t& begin, std::uint64_t& end) {
  std::uint64_t values[2] = {0, 0};
  std::size_t at = 0;
  for (int v = 0; v < 2; ++v) {
    const std::size_t first = at;
    for (; at < line.size(); ++at) {
      const char c = line[at];
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
      if (digit < 0) break;
      values[v] = values[v] << 4 | static_cast<std::uint64_t>(digit);
    }
    if (at == first || at == line.size() || line[at] != (v == 0 ? '-' : ' ')) return false;
    ++at;
  }
  begin = values[0];
  end = values[1];
  return true;
}

/// What the kernel has noted of the mapping at the address.
ForkAdvice advice_of(std::uint64_t address) {
  ForkAdvice advice;
  const int fd = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, "/proc/self/smaps", O_RDONLY | O_CLOEXEC));
  if (fd < 0) return advice;
  static constinit std::array<char, 8192> buffer{};  // the adopter's alone
  std::size_t held = 0;
  bool inside = false;
  bool done = false;
  while (!done) {
    const long got = ::syscall(SYS_read, fd, buffer.data() + held, buffer.size() - held);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    held += static_cast<std::size_t>(got);
    std::size_t start = 0;
    for (std::size_t i = 0; i < held && !done; ++i) {
      if (buffer[i] != '\n') continue;
      const std::string_view line(buffer.data() + start, i - start);
      start = i + 1;
      std::uint64_t begin = 0;
      std::uint64_t end = 0;
      if (parse_span(line, begin, end)) {
        inside = address >= begin && address < end;
        done = begin > address;
      } else if (inside && line.starts_with("VmFlags:")) {
        advice.dont_fork = line.find(" dc") != std::string_view::npos;
        advice.wipe_on_fork = line.find(" wf") != std::string_view::npos;
        done = true;
      }
    }
    held -= start;
    std::memmove(buffer.data(), buffer.data() + start, held);
    if (held == buffer.size()) held = 0;  // no line is that long
  }
  ::syscall(SYS_close, fd);
  return advice;
}

}  // namespace

bool open_known() {
  if (table.load(std::memory_order_acquire) != nullptr) return true;
  void* memory =
      ::mmap(nullptr, blocks_most / 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  table.store(static_cast<std::atomic<std::uint64_t>*>(memory), std::memory_order_release);
  return true;
}

void note_adopted(std::uint64_t begin, std::uint64_t end) {
  std::atomic<std::uint64_t>* words = table.load(std::memory_order_acquire);
  if (words == nullptr) return;
  for (std::uint64_t block = begin / block_bytes; block <= (end - 1) / block_bytes && block < blocks_most; ++block) {
    words[block / 64].fetch_or(std::uint64_t{1} << (block % 64), std::memory_order_relaxed);
  }
  any_adopted.store(true, std::memory_order_seq_cst);
  swaps_begun.fetch_add(1, std::memory_order_seq_cst);
}

void forget_adopted(std::uint64_t begin, std::uint64_t end) {
  std::atomic<std::uint64_t>* words = table.load(std::memory_order_acquire);
  if (words == nullptr) return;
  const std::uint64_t stop = std::min(end / block_bytes, blocks_most);
  for (std::uint64_t block = (begin + block_bytes - 1) / block_bytes; block < stop; ++block) {
    const std::uint64_t bit = std::uint64_t{1} << (block % 64);
    // Written only where it is set: a large span is mostly memory that the table never had.
    if ((words[block / 64].load(std::memory_order_relaxed) & bit) != 0) {
      words[block / 64].fetch_and(~bit, std::memory_order_relaxed);
    }
  }
}

bool may_be_adopted(std::uint64_t address, std::size_t bytes) {
  const std::atomic<std::uint64_t>* words = table.load(std::memory_order_acquire);
  if (words == nullptr || bytes == 0 || address >= user_address_end || bytes > user_address_end - address) return false;
  const std::uint64_t first = address / block_bytes;
  const std::uint64_t last = (address + bytes - 1) / block_bytes;
  for (std::uint64_t word = first / 64; word <= last / 64; ++word) {
    std::uint64_t bits = words[word].load(std::memory_order_relaxed);
    if (word == first / 64) bits &= ~std::uint64_t{0} << (first % 64);
    if (word == last / 64) bits &= ~std::uint64_t{0} >> (63 - last % 64);
    if (bits != 0) return true;
  }
  return false;
}

void note_fork_advice() { fork_advice_used.store(true, std::memory_order_relaxed); }

bool keep_fork_advice(std::uint64_t begin, std::uint64_t end) {
  if (!fork_advice_used.load(std::memory_order_relaxed)) return true;
  // Of other memory that was there before.
  take(begin, end, [](const ForkAdvice&) {});
  ForkAdvice now = advice_of(begin);
  if (!now.dont_fork && !now.wipe_on_fork) return true;
  now.begin = begin;
  now.end = end;
  return add(now);
}

std::uint64_t kept_fork_advice(std::uint64_t begin, std::uint64_t end, bool& dont_fork, bool& wipe_on_fork) {
  dont_fork = wipe_on_fork = false;
  for (std::size_t i = 0; i < kept_count; ++i) {
    const ForkAdvice& k = kept[i];
    if (begin >= k.begin && begin < k.end) {
      dont_fork = k.dont_fork;
      wipe_on_fork = k.wipe_on_fork;
      return std::min(end, k.end);
    }
    if (k.begin > begin) end = std::min(end, k.begin);
  }
  return end;
}

void give_fork_advice_back(std::uint64_t begin, std::uint64_t end) {
  take(begin, end, [](const ForkAdvice& part) {
    void* at = reinterpret_cast<void*>(part.begin);
    if (part.dont_fork) ::madvise(at, part.end - part.begin, MADV_DONTFORK);
    if (part.wipe_on_fork) ::madvise(at, part.end - part.begin, MADV_WIPEONFORK);
  });
}

std::uint32_t adoption_swaps() { return swaps_begun.load(std::memory_order_seq_cst); }
bool has_adopted() { return any_adopted.load(std::memory_order_acquire); }
void note_release() { swaps_begun.fetch_add(1, std::memory_order_seq_cst); }

}  // namespace ferry::client

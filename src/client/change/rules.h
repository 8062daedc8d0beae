// What the changes of the window's memory and those of adopted memory have in common: spans, errors, and the kernel's own
// calls. Internal to client/change.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "base/types.h"
#include "core/svm/types.h"

namespace ferry::client {

struct Session;

// By number: libc's functions come to whoever asks here.
int raw_munmap(std::uint64_t at, std::size_t bytes);
int raw_mprotect(std::uint64_t at, std::size_t bytes, int prot);
int raw_madvise(std::uint64_t at, std::size_t bytes, int advice);
void* raw_mmap(std::uint64_t at, std::size_t bytes, int prot, int flags, int fd, std::int64_t offset);
void* raw_mremap(std::uint64_t at, std::size_t old_bytes, std::size_t new_bytes, int flags, std::uint64_t to);

[[nodiscard]] constexpr std::uint64_t round_up(std::uint64_t bytes) {
  return (bytes + page_bytes - 1) & ~(page_bytes - 1);
}
[[nodiscard]] constexpr bool well_formed(std::uint64_t at, std::size_t bytes) {
  return at % page_bytes == 0 && bytes != 0 && at + round_up(bytes) > at;
}

struct Part {
  std::uint64_t first = 0;
  std::uint64_t end = 0;
  [[nodiscard]] std::size_t bytes() const { return end - first; }
  [[nodiscard]] bool empty() const { return end <= first; }
};
[[nodiscard]] inline Part part_of(const void* address, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uint64_t>(address);
  return {at, at + round_up(bytes)};
}

/// What mprotect takes beside reading, writing and code: for semaphores (PROT_SEM), which makes no difference.
inline constexpr int prot_semaphores = 8;

/// What madvise means for managed memory.
enum class AdviceRule : std::uint8_t {
  zero,    ///< contents are zeros afterwards
  free,    ///< contents are as before, or zeros
  fork,    ///< what a child gets
  hint,    ///< about reading; says nothing where pages come from Ferry
  kernel,  ///< the kernel's alone
};
[[nodiscard]] AdviceRule rule_of_advice(int advice);

/// What the manager could not do, as errno.
[[nodiscard]] int errno_of(Status status);
/// What devices may do: they obey read and write; with both allowed, code may lie there as on any managed page.
[[nodiscard]] unsigned device_prot(int prot);
/// Returns when the core has carried it out.
Status tell_change(Session& s, core::Change change, const Part& part, unsigned prot = 0);
/// The same of a move: what `part` has goes to `to`, and `part` reads as zeros.
Status tell_move(Session& s, const Part& part, std::uint64_t to);

}  // namespace ferry::client

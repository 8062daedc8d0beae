#include "device/user_fence.h"

#include "device/cu.h"
#include "linux/futex.h"
#include "wire/ring.h"

namespace ferry::device {
namespace {

/// Looks at the word before the wave gives way: what is about to come comes within this.
constexpr unsigned looks = 64;

}  // namespace

WordWait wait_word(const std::uint64_t* word, std::uint64_t value, std::uint64_t timeout_ns) {
  const auto reached = [&] { return __atomic_load_n(word, __ATOMIC_ACQUIRE) >= value; };
  Cu* cu = current_cu();
  if (cu == nullptr || cu->running() == nullptr || cu->running()->graphics) return WordWait::not_allowed;
  if (reached()) return WordWait::reached;
  const std::uint64_t begin_ns = linux::monotonic_ns();
  for (;;) {
    for (unsigned i = 0; i < looks; ++i) {
      cpu_relax();
      if (!reached()) continue;
      cu->end_rest();
      return WordWait::reached;
    }
    if (linux::monotonic_ns() - begin_ns >= timeout_ns) return WordWait::timed_out;
    cu->rest();
  }
}

}  // namespace ferry::device

// One turn of a polling loop.
#pragma once

namespace ferry {

/// Tells the processor that this thread polls: kind to the sibling hyperthread, and the end of the loop is noticed sooner.
/// Elsewhere than on x86-64 and arm64 it is nothing, which is correct and only less kind. Any thread, any context.
inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // arm64's "yield" is a no-op on most cores; isb takes about as long as x86's pause
#endif
}

}  // namespace ferry

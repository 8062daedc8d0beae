// Copies and fills past the caches, for memory that this processor will not read next. Any thread.
#pragma once

#include <cstddef>

namespace ferry::linux {

/// Copies with non-temporal stores, in order and complete when it returns (other threads see it after any
/// synchronisation). Best at 64-byte aligned targets; any alignment and size works. The spans must not overlap.
void stream_copy(void* target, const void* source, std::size_t bytes);
/// The same with zeros.
void stream_zero(void* target, std::size_t bytes);

/// "avx512", "avx2", "sse2" or "plain": what this machine gets.
[[nodiscard]] const char* stream_copy_kind();

namespace detail {
/// For tests: the named variant whatever the machine would choose; false if it cannot run here.
bool stream_copy_with(const char* kind, void* target, const void* source, std::size_t bytes);
}  // namespace detail

}  // namespace ferry::linux

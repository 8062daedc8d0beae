// User fences: words in managed memory that CPU threads and waves wait for. The manager knows nothing of them, and
// memory management never waits for one. Any thread, any wave.
#pragma once

#include <ferry/ferry.h>

#include <cstdint>

namespace ferry::client {

ferry_code wait_until(const std::uint64_t* word, std::uint64_t value, std::uint64_t timeout_ns, ferry_error* error);
ferry_code signal(std::uint64_t* word, std::uint64_t value, ferry_error* error);

}  // namespace ferry::client

// Threads that sleep on a futex which may be another process's, too (pthread_join, process-shared locks), are listed by the
// kernel under what backs the word: the mapping of before, when that changes under them. Nobody would wake them any more.
#pragma once

#include <cstdint>

#include "client/adopt/threads.h"

namespace ferry::client {

[[nodiscard]] bool sleeps_on_shared_word(const ThreadActivity& activity, std::uint64_t begin, std::uint64_t end);

/// Every thread of the process that sleeps on such a word in [begin, end) goes back to sleep on what is mapped there now.
/// By a signal that the program does not use and the thread does not block; where there is none the thread is left.
/// No malloc. The session's own threads only.
void restart_sleepers(std::uint64_t begin, std::uint64_t end);

}  // namespace ferry::client
